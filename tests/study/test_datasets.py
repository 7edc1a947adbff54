"""Files of play of the runs of a study: each run its own, and no two write the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from polydistill.errors import UserError
from polydistill.study.arms import make_plan
from polydistill.study.config import StudyConfig
from polydistill.study.datasets import own_files
from polydistill.study.executors.interface import Job
from polydistill.study.executors.local import LocalExecutor
from polydistill.study.plan import Plan
from polydistill.study.planned import planned_runs
from polydistill.study.runner import Runner
from polydistill.study.worlds import open_world

ARMS = {"kl": {"student.objective": "policy_kl"}, "mse": {"student.objective": "policy_mse"}}


def plan_of(**settings: Any) -> Plan:
    settings = {"env": "CartPole-v1", "teacher.path": "a.zip", **settings}
    return make_plan(StudyConfig(world="agent", settings=settings, arms=ARMS, seeds=2), open_world("agent"), None)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("play.safetensors", "kl/seed0", "mse/seed0"),
        ("play-{seed}.safetensors", "kl/seed0", "mse/seed0"),
        ("play-{arm}.safetensors", "kl/seed0", "kl/seed1"),
    ],
)
def test_two_runs_that_would_write_the_same_file_are_refused_in_one_line(name: str, first: str, second: str) -> None:
    with pytest.raises(
        UserError, match=rf"{first} and {second} would both write play.*: put {{seed}} and {{arm}} into"
    ):
        plan_of(save_dataset=name)


def test_each_run_is_told_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(save_dataset="{arm}/{seed}.safetensors")
    assert [own_files(run)["save_dataset"] for run in planned_runs(plan)] == [
        "kl/0.safetensors", "mse/0.safetensors", "kl/1.safetensors", "mse/1.safetensors",
    ]  # fmt: skip
    jobs: list[Job] = []
    monkeypatch.setattr(LocalExecutor, "start", lambda _, job: jobs.append(job))
    with LocalExecutor(4) as executor:
        Runner(plan, open_world("agent"), tmp_path, executor)._start_ready()
    words = [job.command[job.command.index("--save_dataset") + 1] for job in jobs]
    assert words == ["kl/0.safetensors", "mse/0.safetensors", "kl/1.safetensors", "mse/1.safetensors"]


def test_all_may_learn_from_one_file_and_a_study_without_files_names_none() -> None:
    assert {own_files(run)["dataset"] for run in planned_runs(plan_of(dataset="play.safetensors"))} == {
        "play.safetensors"
    }
    told = [own_files(run) for run in planned_runs(plan_of(dataset="play-{seed}.safetensors"))]
    assert told[0] == told[1] == {"dataset": "play-0.safetensors"}
    assert told[2] == {"dataset": "play-1.safetensors"}
    assert {len(own_files(run)) for run in planned_runs(plan_of())} == {0}
