"""The scripts around distill_agent.py: one trains its teachers of control tasks, one measures its speed."""

from __future__ import annotations

import json
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from polydistill_agents import as_teacher
from tests.curves_and_tables import columns, explained

Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize(
    ("env", "asked", "kind", "steps"),
    [
        ("CartPole-v1", [], "q_values", 1_300),
        ("Acrobot-v1", [], "logits", 64),
        ("Acrobot-v1", ["--algorithm", "dqn"], "q_values", 64),
    ],
)
def test_a_trained_teacher_is_scored_and_teaches(
    inside: Script, tmp_path: Path, env: str, asked: list[str], kind: str, steps: int
) -> None:
    words = ["--env", env, *asked, "--file", "teachers/new.zip", "--steps", steps, "--episodes", 3]
    done = inside("train_control_teacher.py", *words)
    assert done.returncode == 0, done.stderr
    assert "teachers/new.zip: mean " in done.stdout
    assert "95% over 3 games" in done.stdout
    assert as_teacher(tmp_path / "teachers" / "new.zip").kind == kind


def test_a_teacher_that_is_no_better_than_chance_is_said(inside: Script) -> None:
    done = inside(
        "train_control_teacher.py", "--env", "Acrobot-v1", "--file", "new.zip", "--steps", 64, "--episodes", 3
    )
    assert done.returncode == 0, done.stderr
    assert "warning: the teacher's score " in done.stderr
    assert "is not clearly above random play's" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--env", "Pendulum-v1", "--file", "new.zip"], "unknown env 'Pendulum-v1' (there are Acrobot-v1, "),
        (["--env", "CartPole-v1", "--file", "new"], "file must end in .zip"),
        (["--env", "CartPole-v1", "--algorithm", "ppo", "--file", "new.zip"], "algorithm of CartPole-v1"),
        (["--env", "CartPole-v1", "--file", "there.zip"], "there.zip is there already"),
    ],
)
def test_what_cannot_be_trained_is_one_line(inside: Script, tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "there.zip").write_bytes(b"mine")
    done = inside("train_control_teacher.py", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "there.zip").read_bytes() == b"mine"


def test_the_bench_measures_each_contender(inside: Script, root: Path, tmp_path: Path) -> None:
    words = ["--net_archs", "[8]", "--batch_size", 8, "--rounds", 2, "--steps", 64]
    done = inside("bench_agent.py", *words, "--json", "bench.json")
    assert done.returncode == 0, done.stderr
    raw = json.loads((tmp_path / "bench.json").read_text())
    rates = raw["samples_per_second"]["8"]
    assert set(rates) == {"student", "dqn", "dqn_games"}
    assert all(len(values) == 2 and min(values) > 0 for values in rates.values())
    assert raw["hardware"]["cores"] >= 1
    assert columns(done.stdout) == [explained(root, "Tables of the benchmarks", "bench_agent.py")]


def test_bench_makes_equal_updates_from_equal_steps(root: Path) -> None:
    """One update for each 4 steps: train_freq, and 2 samples per step in batches of 8."""

    bench = runpy.run_path(str(root / "scripts" / "bench_agent.py"))
    config = bench["BenchConfig"](batch_size=8, n_envs=4)
    teacher = bench["make_dqn"](config, 8, 1)
    models = [bench["make_student"](config, 8, teacher), teacher, bench["make_dqn"](config, 8, 4)]
    for model in models:
        model.learn(512)
    before = [model._n_updates for model in models]
    for model in models:
        model.learn(256, reset_num_timesteps=False)
    assert [model._n_updates - then for model, then in zip(models, before, strict=True)] == [64, 64, 64]
