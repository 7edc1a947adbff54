"""Arms that train nothing: the mean of the predictions of other arms' students."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from polydistill.errors import UserError
from polydistill.study.arms import make_plan
from polydistill.study.budget import budgets, unequal_ensembles
from polydistill.study.config import StudyConfig
from polydistill.study.forecast import format_forecast
from polydistill.study.found import read_found
from polydistill.study.plan import Plan, keep_plan, read_plan
from polydistill.study.planned import in_order_of_start
from polydistill.study.worlds import open_world
from tests.study.fake_world import ARMS, FAKE, study
from tests.study.test_plan import make_plan as plan_without_ensembles
from tests.study.test_runner import plan_of, run, starts, statuses

BOTH = {"both": {"ensemble": ["labels", "ban"]}}


def test_an_ensemble_has_its_members_and_what_it_shares_with_the_runs() -> None:
    plan = plan_of(arms=ARMS | BOTH, contrasts=(("both", "ban"),))
    both = plan.arm("both")
    assert both.members == ("labels", "ban")
    assert both.teacher == ""
    assert both.config == {
        "members": ["../../labels/seed{seed}", "../../ban/seed{seed}"], "device": "cpu", "threads": 1,
        "data": {"made_up": 100, "root": ""},
    }  # fmt: skip
    assert plan.arm("ban").members == ()


def test_null_without_quotes_is_the_arm_of_that_name() -> None:
    arms = {"labels": {}, None: {"student.repeat": 1}, "two": {"ensemble": ["labels", None]}}
    assert plan_of(arms=arms).arm("two").members == ("labels", "null")


def test_the_hash_of_a_plan_without_ensembles_is_that_of_earlier_versions() -> None:
    assert plan_without_ensembles().sha256 == "22fd59a53cb79e7b643df454c11323fd7ffbf6f1fd16ccfdf7cd73f8d7955de9"


def test_a_plan_with_an_ensemble_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    plan = keep_plan(tmp_path, plan_of(arms=ARMS | BOTH), 0)
    assert read_plan(tmp_path) == plan
    swapped = plan_of(arms=ARMS | {"both": {"ensemble": ["ban", "labels"]}})
    with pytest.raises(UserError, match=r"plan.json is another plan: arms.both.overrides.ensemble is"):
        keep_plan(tmp_path, swapped, 0)


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        ({"ensemble": ["labels", "bann"]}, "arm x: its member 'bann' is no arm; did you mean ban[?]"),
        ({"ensemble": ["labels", "teacher"]}, "arm x: its member 'teacher' is no arm"),
        ({"ensemble": ["labels", "both"]}, "arm x: its member both is an ensemble; name the arms of that instead"),
        ({"ensemble": ["labels", "x"]}, "arm x: its member x is an ensemble"),
        ({"ensemble": ["labels"]}, "arm x: an ensemble is a list of at least 2 arms, each once, got .'labels'."),
        ({"ensemble": ["ban", "ban"]}, "arm x: an ensemble is a list of at least 2 arms, each once"),
        ({"ensemble": "ban"}, "arm x: an ensemble is a list of at least 2 arms, each once, got 'ban'"),
        ({"ensemble": ["labels", ["ban"]]}, r"arm x: its member .* is no arm"),
        ({"ensemble": None}, "arm x: an ensemble is a list of at least 2 arms"),
        ({"ensemble": ["labels", "ban"], "student.bonus": 1}, "arm x .* trains nothing: it cannot set student.bonus"),
        ({"ensemble": ["labels", "ban"], "teacher": "ban"}, "arm x .* trains nothing: it cannot set teacher"),
        ({"teacher": "both"}, "arm x: its teacher both is an ensemble, which is no network"),
        ({"ensemble": ["ban", "labels"]}, "arms both and x are ensembles of the same members"),
    ],
)
def test_an_ensemble_that_is_none_is_one_line(arm: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        plan_of(arms=ARMS | BOTH | {"x": arm})


def test_a_world_without_ensembles_refuses_them_in_one_line() -> None:
    with pytest.raises(UserError, match="arm both is an ensemble, which the world agent cannot measure"):
        make_plan(study(arms=ARMS | BOTH), dataclasses.replace(FAKE, name="agent", ensemble=None), None)
    assert all(open_world(name).ensemble is not None for name in ("agent", "atari", "cifar"))


def test_an_ensemble_waits_for_its_members_and_is_measured_once_per_seed(tmp_path: Path) -> None:
    plan = plan_of(arms=BOTH | ARMS)
    assert in_order_of_start(plan)[0].arm == "teacher"
    records = run(plan, tmp_path)
    assert set(statuses(records).values()) == {"done"}
    # by hand: labels 0.5 and 0.52, ban 0.125 more
    assert [records["both", seed].metrics["test_error"] for seed in (0, 1)] == pytest.approx([43.75, 41.75])
    run(plan, tmp_path)
    assert starts(tmp_path)["both/seed0"] == 1


def test_a_failed_member_fails_the_ensemble_of_that_seed_alone(tmp_path: Path) -> None:
    arms = {"labels": {"student.bonus": 0.5}, "ban": {"student.does": "fail", "student.seed": 0}} | BOTH
    records = run(plan_of(arms=arms), tmp_path)
    assert records["both", 0].status == "failed"
    assert records["both", 0].why == "its member, ban/seed0, failed"
    assert records["both", 1].status == "done"


def test_an_ensemble_of_other_networks_than_the_members_is_refused(tmp_path: Path) -> None:
    plan = plan_of(arms=ARMS | BOTH)
    run(plan, tmp_path)
    path = tmp_path / "runs" / "ban" / "seed1" / "summary.json"
    summary = json.loads(path.read_text())
    summary["generations"][-1]["sha256"] = "another"
    path.write_text(json.dumps(summary))
    with pytest.raises(UserError, match=r"runs/both/seed1 had another member than .*runs/ban/seed1"):
        run(plan, tmp_path)


def test_ensembles_that_are_there_are_found_with_their_members(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(plan_of(arms=ARMS | BOTH), tmp_path)
    plan, records = read_found(StudyConfig(runs=f"{tmp_path}/runs/*/*"), tmp_path / "out")
    names = {arm.name: arm.members for arm in plan.arms}
    ban, labels = (name for name, members in names.items() if not members)
    both = f"ensemble of {labels} + {ban}"
    assert names[both] == (labels, ban)
    assert sum(record.arm == both for record in records) == 2
    for seed in (0, 1):
        (tmp_path / "runs" / "labels" / f"seed{seed}").rename(tmp_path / "runs" / f"seed{seed}")
    with pytest.raises(UserError, match="finds 1 arms and 2 seeds"):
        read_found(StudyConfig(runs=f"{tmp_path}/runs/*/*"), tmp_path / "out")
    assert "both/seed0 is an ensemble, and its member" in capsys.readouterr().err


# ---- budgets, of the real world --------------------------------------------------------------------------------------

LABELS, BAN = {"student.objective": "cross_entropy"}, {"student.objective": "ban"}
TRAINED: dict[str, dict[str, Any]] = {
    "labels": LABELS, "null": LABELS | {"student.repeat": 1}, "joint": LABELS | {"student.epochs": 16},
    "ban": BAN, "ban_again": BAN | {"student.repeat": 1}, "ban_2": BAN | {"teacher": "ban"},
}  # fmt: skip


def real_plan(ensembles: dict[str, list[str]]) -> Plan:
    """Of the smoke config with one generation and eight epochs; the first two ensembles are compared."""
    first, second, *_ = ensembles
    arms = TRAINED | {name: {"ensemble": members} for name, members in ensembles.items()}
    settings = {"lineage.generations": 1}
    return make_plan(study(arms=arms, settings=settings, contrasts=((first, second),)), open_world("cifar"), None)


def test_an_ensemble_costs_its_members_and_the_networks_that_taught_them() -> None:
    plan = real_plan({"a": ["ban", "ban_2"], "b": ["labels", "null"], "c": ["ban_2", "joint"]})
    costs = {name: (cost.networks, cost.trained, cost.training) for name, cost in budgets(plan).items()}
    assert costs == {
        "a": (2, ("teacher", "ban", "ban_2"), 24),
        "b": (2, ("labels", "null"), 16),  # the teacher taught them nothing
        "c": (2, ("teacher", "joint", "ban", "ban_2"), 40),
    }


@pytest.mark.parametrize(
    ("ensembles", "says"),
    [
        (
            {"a": ["ban", "ban_2"], "b": ["labels", "null"]},
            ["a takes 24 epochs of training (teacher, ban, ban_2) and b 16 (labels, null): budgets are not equal"],
        ),
        ({"a": ["ban", "ban_2"], "b": ["labels", "null", "joint"]}, ["a has 2 networks and b 3: a larger is better"]),
        ({"a": ["ban", "ban_2"], "b": ["labels", "joint"]}, []),
        ({"a": ["ban", "ban_2"], "b": ["ban", "ban_again"]}, []),
    ],
)
def test_ensembles_of_unequal_budgets_in_one_contrast_are_told(
    ensembles: dict[str, list[str]], says: list[str]
) -> None:
    plan = real_plan(ensembles)
    assert unequal_ensembles(plan) == says
    forecast = format_forecast(plan, [], open_world("cifar"), Path("out"), 2)
    assert [line in forecast for line in says] == [True] * len(says)
    assert ("budgets are not equal" in forecast or "a larger is better" in forecast) == bool(says)
    assert re.search(rf"\| a +\| - +\| ensemble {re.escape(' + '.join(ensembles['a']))} ", forecast), forecast
