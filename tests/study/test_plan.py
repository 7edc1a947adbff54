"""The plan: fixed and hashed before the first run, compared on continuing, extended only on the record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from polydistill.errors import UserError
from polydistill.study.plan import Arm, Plan, keep_plan, moved_places, read_plan


def make_plan(seeds: int = 3) -> Plan:
    base = {"student": {"objective": "ban"}, "device": "cpu"}
    return Plan(
        world="cifar",
        base=base,
        arms=(
            Arm(
                "labels", {"student.objective": "cross_entropy"}, "teacher", {"student": {"objective": "cross_entropy"}}
            ),
            Arm("ban", {}, "teacher", base),
        ),
        teacher={"lineage": {"generations": 0}},
        contrasts=(("ban", "labels"),),
        seeds=tuple(range(seeds)),
        metric="test_error",
        direction="lower",
        margin=0.5,
        alpha=0.05,
        commit="c0ffee",
    )


def test_a_plan_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    plan = make_plan()
    assert read_plan(tmp_path) is None
    assert keep_plan(tmp_path, plan, 0) == plan
    assert read_plan(tmp_path) == plan
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["sha256"] == plan.sha256
    assert len(plan.sha256) == 64


def test_the_hash_is_of_everything_that_was_planned_and_of_nothing_else() -> None:
    plan = make_plan()
    others = [
        replace(plan, seeds=(0, 1)),
        replace(plan, contrasts=()),
        replace(plan, metric="test_nll"),
        replace(plan, margin=None),
        replace(plan, alpha=0.1),
        replace(plan, base={}),
        replace(plan, commit=None),
        replace(plan, arms=plan.arms[:1]),
    ]
    assert len({plan.sha256, *(other.sha256 for other in others)}) == len(others) + 1
    assert make_plan().sha256 == plan.sha256


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (replace(make_plan(), alpha=0.1), "alpha is 0.05 there and 0.1 here"),
        (replace(make_plan(), contrasts=()), r"contrasts is \[\['ban', 'labels'\]\] there and \[\] here"),
        (replace(make_plan(), base={"device": "cuda"}), "base.device is 'cpu' there and 'cuda' here"),
        (replace(make_plan(), arms=make_plan().arms[:1]), r"arms.ban.overrides is \{\} there and not set here"),
        (make_plan(2), "the plan of .* has 3 seeds, and a plan does not shrink: add --seeds 3"),
        (replace(make_plan(), seeds=(5, 6, 7)), "first_seed is 0 there and 5 here"),
    ],
    ids=["alpha", "contrasts", "base", "arms", "fewer seeds", "other seeds"],
)
def test_another_plan_is_refused_by_what_differs_and_nothing_is_written(tmp_path: Path, other: Plan, says: str) -> None:
    keep_plan(tmp_path, make_plan(), 0)
    before = (tmp_path / "plan.json").read_bytes()
    with pytest.raises(UserError, match=says):
        keep_plan(tmp_path, other, 0)
    assert (tmp_path / "plan.json").read_bytes() == before


def test_seeds_are_added_by_an_amendment_that_says_how_much_was_known(tmp_path: Path) -> None:
    keep_plan(tmp_path, make_plan(), 0)
    keep_plan(tmp_path, make_plan(5), finished=7)
    plan = keep_plan(tmp_path, make_plan(6), finished=8)
    assert [(amendment.seeds, amendment.finished) for amendment in plan.amendments] == [((3, 4), 7), ((5,), 8)]
    assert plan.all_seeds == (0, 1, 2, 3, 4, 5)
    assert plan.seeds == (0, 1, 2)
    assert plan.sha256 == make_plan().sha256
    assert read_plan(tmp_path) == plan


def test_a_later_commit_goes_on_with_the_plan_of_the_first(tmp_path: Path) -> None:
    keep_plan(tmp_path, make_plan(), 0)
    assert keep_plan(tmp_path, replace(make_plan(), commit="badbed"), 1).commit == "c0ffee"


def test_data_may_lie_elsewhere_and_the_plan_stays(tmp_path: Path) -> None:
    there, here = (
        replace(make_plan(), base={"data": {"root": root}}, teacher={"data": {"root": root}}) for root in ("a", "b")
    )
    keep_plan(tmp_path, there, 0)
    assert keep_plan(tmp_path, here, 1) == there
    assert moved_places(there, here) == {"data.root": "b"}
    assert moved_places(there, there) == {}


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda whole: whole.update(alpha=0.5), "was edited"),
        (lambda whole: whole["amendments"][0].update(finished=0), "was edited"),
        (lambda whole: whole["amendments"].clear(), None),  # seeds less: the command itself then adds them anew
        (lambda whole: whole.pop("metric"), "is damaged"),
        (lambda whole: whole.update(schema=9), "has schema 9, this version reads 1"),
    ],
    ids=["alpha", "amendment", "amendments gone", "metric gone", "schema"],
)
def test_an_edited_file_is_refused(tmp_path: Path, edit, says: str | None) -> None:
    keep_plan(tmp_path, make_plan(), 0)
    keep_plan(tmp_path, make_plan(5), 6)
    whole = json.loads((tmp_path / "plan.json").read_text())
    edit(whole)
    (tmp_path / "plan.json").write_text(json.dumps(whole))
    if says is None:
        assert read_plan(tmp_path) == make_plan()
        return
    with pytest.raises(UserError, match=says):
        read_plan(tmp_path)
