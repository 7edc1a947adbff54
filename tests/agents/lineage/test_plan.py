"""What a run takes is counted before anything is opened or built."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from polydistill.runs.shared_store import VARIABLE
from polydistill_agents.environments.atari import AtariVecEnv
from polydistill_agents.lineage.config import AtariConfig, StudentConfig
from polydistill_agents.lineage.plan import count_student, disk_bytes, format_plan, remember_speed
from polydistill_agents.lineage.students import make_env, make_student
from polydistill_agents.networks.nature import count_parameters
from polydistill_agents.teachers import Teacher, as_teacher
from tests.agents.samples import make_network

CONFIG = AtariConfig(device="cpu", threads=1, precision="float32")


def make_teacher(n_actions: int) -> Teacher:
    return as_teacher(make_network("net2", n_actions))


@pytest.mark.parametrize(("size", "n_actions"), [("teacher", 6), ("net3", 6), ("teacher", 18)])
def test_a_student_is_counted_as_it_will_be_without_opening_a_game(
    size: str, n_actions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, teacher = dataclasses.replace(CONFIG, student=StudentConfig(size=size)), make_teacher(n_actions)
    with monkeypatch.context() as patch:
        patch.setattr(AtariVecEnv, "__init__", lambda *_, **__: pytest.fail("a game was opened"))
        counted = count_student(config, teacher)
        assert disk_bytes(config, teacher) > 9 * 4 * counted
    few = dataclasses.replace(config, play=dataclasses.replace(config.play, n_envs=1))
    env = make_env(few, teacher, 1)
    assert counted == count_parameters(make_student(few, teacher, env, 1).student)


def test_a_student_of_an_unknown_teacher_is_counted_as_the_largest() -> None:
    teacher = Teacher(lambda frames: torch.zeros(len(frames), 6))
    assert count_student(CONFIG, teacher) == count_student(CONFIG, as_teacher(make_network("nature")))


def test_the_speed_of_games_that_another_run_may_have_played_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    summary = {"throughput": {"generation_1_train_samples_per_second": 500.0}, "seconds": [0.1, 60.0]}
    monkeypatch.setenv(VARIABLE, str(tmp_path / "shared"))
    remember_speed(CONFIG, summary)
    plan = format_plan(CONFIG, make_teacher(6), tmp_path / "run")
    assert "an earlier run here" not in plan
    monkeypatch.delenv(VARIABLE)
    remember_speed(CONFIG, summary)
    plan = format_plan(CONFIG, make_teacher(6), tmp_path / "run")
    assert "an earlier run here: 500 samples/s with their play, 18000.0 games per minute" in plan  # 30 in 0.1 s
