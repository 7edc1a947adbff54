"""From a study's config to its plan: each arm's whole config; arms that differ in more than they may are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from polydistill.errors import UserError
from polydistill.study.arms import make_plan
from polydistill.study.planned import in_order_of_start, planned_runs
from tests.study.fake_world import ARMS, FAKE, study


def test_each_arm_has_the_whole_config_and_one_core_and_one_precision() -> None:
    plan = make_plan(study(settings={"data.made_up": 50}), FAKE, None)
    assert plan.base == {
        "device": "cpu", "threads": 1, "precision": "bfloat16", "data": {"made_up": 50, "root": ""},
        "teacher": {"path": "", "more": []},
        "student": {"objective": "ban", "repeat": 0, "bonus": 0.0, "does": "learn", "seed": None},
        "lineage": {"generations": 1},
    }  # fmt: skip
    assert plan.arm("ban").config == plan.base | {"student": plan.base["student"] | {"bonus": 0.125}}
    assert plan.arm("ban").overrides == {"student.bonus": 0.125}
    assert plan.teacher == plan.base | {"lineage": {"generations": 0}}
    assert plan.names == ("labels", "ban")
    assert plan.seeds == (0, 1)


def test_the_base_lies_beside_the_study_and_nested_keys_are_dotted_ones(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("student: {objective: kl}\ndata: {made_up: 7}\nprecision: float32\n")
    arms = {"a": {"student": {"bonus": 1}}, "b": None}
    plan = make_plan(study(base="base.yaml", arms=arms), FAKE, tmp_path / "study.yaml")
    assert plan.arm("a").overrides == {"student.bonus": 1}
    assert plan.arm("b").config == plan.base
    assert (plan.base["student"]["objective"], plan.base["precision"]) == ("kl", "float32")


def test_precision_stays_what_the_plan_began_with() -> None:
    first = make_plan(study(), FAKE, None)
    stored = dataclasses.replace(first, base=first.base | {"precision": "float32"})
    assert make_plan(study(), FAKE, None, stored).arm("ban").config["precision"] == "float32"


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        ({"student.objetive": "ban"}, "arm x: unknown key student.objetive; did you mean student.objective[?]"),
        ({"student.bonus": "much"}, "arm x: student.bonus must be a number, got 'much'"),
        ({"student.repeat": -1}, "arm x: student: repeat must not be negative, got -1"),
        ({"seed": 3}, "arm x sets seed, which all arms share"),
        ({"device": "cuda"}, "arm x sets device, which all arms share: put it under settings"),
        ({"data.made_up": 3}, "arm x sets data.made_up, which all arms share"),
        ({"precision": "float32"}, "arm x sets precision, which all arms share"),
        ({"teacher.path": "a.zip"}, "arm x sets teacher.path: arms of a seed share their teacher"),
        ({"teacher": "bann"}, "arm x: its teacher 'bann' is no arm; did you mean ban[?]"),
        ({"teacher": 3}, "arm x: teacher must be the name of an arm, got 3"),
        ({"teacher": "x"}, "arms teach each other in a circle: x learns from x"),
        ({"student.bonus": 0.125}, "arms ban and x are the same run"),
        ({"student": {"bonus": 1}, "student.bonus": 2}, "arm x: the key student.bonus is there twice"),
    ],
)
def test_an_arm_that_differs_in_more_than_it_may_is_one_line(arm: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make_plan(study(arms=ARMS | {"x": arm}), FAKE, None)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"settings": {"seed": 3}}, "settings: seed cannot be set: first_seed and seeds say which"),
        (
            {"settings": {"data.root": 2024}},
            'data.root must be text, got 2024; quotes make it text: "2024" in a file, \'"2',
        ),
        ({"settings": {"data.made_upp": 3}}, "settings: unknown key data.made_upp; did you mean data.made_up[?]"),
        ({"base": "nowhere.yaml"}, "there is no base nowhere.yaml"),
    ],
)
def test_settings_that_are_wrong_are_one_line(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make_plan(study(**settings), FAKE, None)


def test_a_given_teacher_is_not_trained() -> None:
    plan = make_plan(study(settings={"teacher.path": "teacher{seed}.json"}), FAKE, None)
    assert plan.teacher is None
    assert [(run.name, run.teacher) for run in planned_runs(plan)][:2] == [("labels/seed0", None), ("ban/seed0", None)]


def test_runs_start_seed_by_seed_and_teachers_a_seed_ahead_for_each_generation_that_waits() -> None:
    arms = ARMS | {"ban_2": {"teacher": "ban", "student.bonus": 0.125}}
    plan = make_plan(study(arms=arms, seeds=3), FAKE, None)
    assert [run.name for run in planned_runs(plan)][:5] == [
        "teacher/seed0", "labels/seed0", "ban/seed0", "ban_2/seed0", "teacher/seed1",
    ]  # fmt: skip
    assert [run.name for run in in_order_of_start(plan)] == [
        "teacher/seed0", "teacher/seed1", "ban/seed0", "teacher/seed2", "ban/seed1", "labels/seed0", "ban_2/seed0",
        "ban/seed2", "labels/seed1", "ban_2/seed1", "labels/seed2", "ban_2/seed2",
    ]  # fmt: skip
    assert [run.teacher for run in planned_runs(plan)][:4] == [None, ("teacher", 0), ("teacher", 0), ("ban", 0)]
