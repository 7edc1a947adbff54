"""Teachers that a study is given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from polydistill.errors import UserError
from polydistill.report.document import Items, Paragraph
from polydistill.runs.interruption import StopSignals
from polydistill.study.analysis import analyse
from polydistill.study.arms import make_plan
from polydistill.study.executors.local import LocalExecutor
from polydistill.study.plan import Plan
from polydistill.study.records import RunRecord
from polydistill.study.report.contents import build
from polydistill.study.report.evidence import gather
from polydistill.study.runner import Runner, read_records
from polydistill.study.teachers import require_given, shares_one
from tests.study.fake_world import FAKE, study


def plan_of(path: Path | str, more: Sequence[str] = (), **settings: Any) -> Plan:
    return make_plan(study(settings={"teacher.path": str(path), "teacher.more": [*more]}, **settings), FAKE, None)


def test_a_teacher_that_is_missing_is_named_before_the_first_run(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "t{seed}.zip", seeds=4)
    (tmp_path / "t0.zip").touch()
    (tmp_path / "t2").touch()  # .zip may be left out, and be there
    with pytest.raises(
        UserError, match=r"no teacher .*/t1.zip for seed 1 and for 2 further seeds: teacher.path"
    ) as told:
        require_given(plan, read_records(plan, tmp_path / "s"))
    assert "\n" not in str(told.value)
    require_given(plan_of(tmp_path / "t{seed}"), read_records(plan_of(tmp_path / "t{seed}"), tmp_path / "s")[:1])


def test_several_teachers_of_a_seed_are_named_and_handed_to_its_runs(tmp_path: Path) -> None:
    more = [str(tmp_path / "u{seed}.zip"), str(tmp_path / "v.zip")]
    plan = plan_of(tmp_path / "t.zip", more=more)
    for name in ("t", "v", "u0"):
        (tmp_path / f"{name}.zip").write_text(json.dumps({"sha256": name, "accuracy": 0.5}))
    out = tmp_path / "s"
    with pytest.raises(UserError, match=r"no teacher .*/u1.zip for seed 1: teacher.path"):
        require_given(plan, read_records(plan, out))
    assert not shares_one(plan)
    assert shares_one(plan_of(tmp_path / "t.zip", more=more[1:]))
    (tmp_path / "u1.zip").touch()
    require_given(plan, read_records(plan, out))
    out.mkdir()
    with StopSignals() as stop, LocalExecutor(2) as executor:
        Runner(plan, FAKE, out, executor).run(stop)
    stored = yaml.safe_load((out / "runs" / "ban" / "seed1" / "config.yaml").read_text())
    assert stored["teacher"]["more"] == [str(tmp_path / "u1.zip"), str(tmp_path / "v.zip")]
    with LocalExecutor(1) as executor:
        assert not Runner(plan, FAKE, out, executor).pending


def test_a_student_of_another_arm_teaches_alone_where_others_have_several_teachers(tmp_path: Path) -> None:
    arms = {"labels": {}, "second": {"teacher": "labels", "student.repeat": 1}}
    plan = plan_of(tmp_path / "t.zip", more=[str(tmp_path / "u.zip")], arms=arms)
    (tmp_path / "t.zip").write_text(json.dumps({"sha256": "t", "accuracy": 0.5}))
    out = tmp_path / "s"
    out.mkdir()
    with StopSignals() as stop, LocalExecutor(2) as executor:
        Runner(plan, FAKE, out, executor).run(stop)
    first, second = (
        yaml.safe_load((out / "runs" / arm / "seed0" / "config.yaml").read_text())["teacher"] for arm in arms
    )
    assert first["more"] == [str(tmp_path / "u.zip")]
    assert (Path(second["path"]).parent.parent.name, second["more"]) == ("labels", [])
    with LocalExecutor(1) as executor:
        assert not Runner(plan, FAKE, out, executor).pending


def test_a_teacher_whose_seed_is_finished_or_that_lies_elsewhere_is_not_looked_for(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "t{seed}.zip")
    require_given(plan, [RunRecord(arm, seed, "", "done") for arm in plan.names for seed in plan.seeds])
    elsewhere = plan_of("hf://someone/agents/t{seed}.zip")
    require_given(elsewhere, read_records(elsewhere, tmp_path / "s"))


def test_a_teacher_that_was_changed_between_two_runs_is_refused(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "t{seed}.json")
    for arm, sha256 in zip(plan.names, ("x", "y"), strict=True):
        folder = tmp_path / "s" / "runs" / arm / "seed1"
        folder.mkdir(parents=True)
        config = {**plan.arm(arm).config, "seed": 1}
        (folder / "config.yaml").write_text(json.dumps(config))
        generations = [{"sha256": sha256, "metrics": {}}, {"sha256": arm, "metrics": {"test_accuracy": 0.5}}]
        (folder / "summary.json").write_text(json.dumps({"schema": 1, "wall_seconds": 1, "generations": generations}))
    with (
        LocalExecutor(1) as executor,
        pytest.raises(UserError, match=r"runs/ban/seed1 had another teacher than .*labels"),
    ):
        Runner(plan, FAKE, tmp_path / "s", executor)


@pytest.mark.parametrize(
    ("path", "opening", "limit"),
    [
        ("teacher.zip", "All seeds share one teacher: this study says nothing of other teachers.", True),
        ("teacher_{seed}.zip", "Each seed has its own teacher, which was given.", False),
    ],
)
def test_the_report_says_whether_seeds_share_their_teacher(
    tmp_path: Path, path: str, opening: str, limit: bool
) -> None:
    plan = plan_of(path)
    records = read_records(plan, tmp_path)
    document = build("", plan, records, analyse(plan, records), gather(tmp_path, records), {}, "")
    blocks = {section.title: section.blocks for section in document.sections}
    assert opening in [block.text for block in blocks[""] if isinstance(block, Paragraph)]
    (limits,) = blocks["What this study cannot say"]
    assert isinstance(limits, Items)
    assert any("other teachers" in line for line in limits.texts) == limit
