"""What a plan can see and what it costs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from polydistill.config.parsing import read_config
from polydistill.runs.speeds import remember
from polydistill.study.arms import make_plan
from polydistill.study.config import StudyConfig
from polydistill.study.forecast import format_forecast, warning_of_too_few
from polydistill.study.plan import Plan
from polydistill.study.records import RunRecord
from polydistill.study.runner import work_of
from polydistill.study.worlds import open_world
from tests.study.fake_world import FAKE, FakeConfig, study


def plan_of(seeds: int, **settings) -> Plan:
    return make_plan(study(seeds=seeds, contrasts=(("ban", "labels"),), **settings), FAKE, None)


def test_what_a_plan_sees_is_in_standard_deviations_until_pairs_are_finished() -> None:
    # the textbook's row: 34 pairs see half a standard deviation with power 0.8
    text = format_forecast(plan_of(34), [], FAKE, Path("out"), 2)
    assert "a mean difference between arms of 0.495 standard deviations of the differences in a seed" in text
    assert "ban against labels:" not in text


def test_finished_pairs_put_it_in_the_unit_of_the_metric() -> None:
    records = [
        RunRecord(arm, seed, "", "done", {"test_error": value})
        for arm, values in (("ban", (10.0, 12.0, 17.0)), ("labels", (11.0, 11.0, 14.0)))
        for seed, value in enumerate(values)
    ]
    # the differences -1, 1, 3 have the standard deviation 2, so twice 0.495
    text = format_forecast(plan_of(34), records, FAKE, Path("out"), 2)
    assert "ban against labels: 0.99 points, by the 3 pairs that are finished" in text


@pytest.mark.parametrize(("seeds", "says"), [(5, "the smallest is 0.0625; 6 seeds can"), (6, "")])
def test_a_plan_in_which_nothing_can_be_found_is_warned_of(seeds: int, says: str) -> None:
    assert says in warning_of_too_few(plan_of(seeds))
    assert bool(warning_of_too_few(plan_of(seeds))) == bool(says)
    assert (
        "warning: with 5 seeds no permutation" in format_forecast(plan_of(seeds), [], FAKE, Path("out"), 2)
    ) == bool(says)


def test_epochs_of_an_arm_that_are_not_those_of_teacher_and_student_are_warned_of() -> None:
    labels, key = {"student.objective": "cross_entropy"}, "training.epochs"
    settings = {key: 20, "lineage.generations": 1, "device": "cpu", "precision": "float32"}

    def warned(joint: int, **more: object) -> bool:
        arms = {"labels": labels, "joint": labels | {key: joint}}
        plan = make_plan(StudyConfig(world="images", settings=settings | more, arms=arms), open_world("images"), None)
        text = format_forecast(plan, [], open_world("images"), Path("out"), 2)
        says = "warning: arm joint has 120 epochs, teacher and student of the base together have 40"
        assert (says in text) == ("an equal budget is --arms.joint.training.epochs 40" in text)
        return says in text

    folder = {"data.root": "pictures", "teacher.network": "resnet-8"}
    assert warned(120, **folder)
    assert not warned(40, **folder)
    assert not warned(120, **folder, **{"teacher.path": "a.safetensors"}), "a given teacher is not paid for"


def test_the_time_is_what_such_runs_took_shared_among_the_cores() -> None:
    plan = plan_of(10, settings={"data.made_up": 4711})
    assert plan.teacher is not None
    for config, seconds in ((plan.teacher, 100.0), (plan.arm("ban").config, 200.0)):
        remember(work_of(plan.world, config), 1 / seconds)
    # 10 teachers, 10 of ban, and 10 of labels at their mean, 150 s: 4500 s on 3 cores
    text = format_forecast(plan, [], FAKE, Path("out"), 3)
    assert "time: about 25 min on 3 cores, by what such runs took here; not known of labels: taken as the mean" in text


def test_what_has_not_run_here_takes_what_its_world_expects() -> None:
    def expected_seconds(config: FakeConfig) -> float:
        # a teacher of its own would cost 1000 s more
        return 100 * config.lineage.generations + (0 if config.teacher.path else 1000)

    plan = plan_of(10, settings={"data.made_up": 4712})
    remember(work_of(plan.world, plan.arm("ban").config), 1 / 400)
    world = dataclasses.replace(FAKE, expected_seconds=expected_seconds)
    # 10 teachers of 1000 s, 10 of ban of 400 s, 10 of labels of 100 s: 15,000 s on 5 cores
    text = format_forecast(plan, [], world, Path("out"), 5)
    assert "time: about 50 min on 5 cores, by what such runs took here; of teacher, labels by the size of" in text


def test_the_estimate_of_a_lineage_counts_its_teacher_only_where_it_trains_one() -> None:
    world = open_world("cifar")
    assert world.expected_seconds is not None

    def seconds(**settings: object) -> float:
        given = {"device": "cpu", "threads": 1, "precision": "float32", **settings}
        return world.expected_seconds(read_config(world.config_class, None, given, world.default))

    teacher = seconds(**{"lineage.generations": 0})
    student = seconds(**{"lineage.generations": 1, "teacher.path": "a.safetensors"})
    assert seconds(**{"lineage.generations": 1}) == pytest.approx(teacher + student)
    assert student == pytest.approx(teacher * 4 / 3)  # forward, backward twice as much; its teacher's pass beside
