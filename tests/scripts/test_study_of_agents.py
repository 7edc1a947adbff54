"""scripts/study.py with agents, each seed with a teacher of its own."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import pytest
from stable_baselines3 import DQN

pytest.importorskip("matplotlib", reason="the extra study is not installed")
Script = Callable[..., "subprocess.CompletedProcess[str]"]

STUDY = """
world: agent
settings:
  env: CartPole-v1
  teacher.path: teachers/{seed}.zip
  student.temperature: 1.0
  student.batch_size: 16
  play: {steps: 320, replay_steps: 320, warmup_steps: 64, n_envs: 4, train_freq: 8}
  evaluation: {episodes: 3, curve_every_steps: 64, curve_episodes: 2}
arms:
  kl: {student.objective: policy_kl}
  mse: {student.objective: policy_mse, play.beta: 0.0}
contrasts: [[kl, mse]]
seeds: 2
"""


def test_each_seed_is_taught_by_its_own_teacher_and_a_missing_one_is_one_line(inside: Script, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "teachers").mkdir()
    words = ["--config", "study.yaml", "--out", "s"]
    for seed in (0, 1):
        refused = inside("study.py", *words)
        assert refused.returncode == 2
        assert f"error: there is no teacher teachers/{seed}.zip for seed {seed}" in refused.stderr
        assert not (tmp_path / "s").exists()
        model = DQN("MlpPolicy", gym.make("CartPole-v1"), policy_kwargs={"net_arch": [8]}, seed=seed, device="cpu")
        model.save(tmp_path / "teachers" / f"{seed}.zip")
    assert "given, one for each seed" in inside("study.py", *words, "--dry_run").stdout

    done = inside("study.py", *words)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "s" / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"], row["status"]) for row in rows] == [
        ("kl", "0", "done"), ("mse", "0", "done"), ("kl", "1", "done"), ("mse", "1", "done"),
    ]  # fmt: skip
    taught = [row["teacher_score_mean"] for row in rows]
    assert taught[0] == taught[1] != taught[2] == taught[3]
    assert "Each seed has its own teacher" in (tmp_path / "s" / "report.md").read_text()

    (tmp_path / "teachers" / "0.zip").unlink()  # its seed is finished
    assert inside("study.py", *words).returncode == 0
    more = inside("study.py", *words, "--seeds", 3)
    assert "there is no teacher teachers/2.zip for seed 2:" in more.stderr


def test_each_run_of_a_study_writes_its_own_play_and_the_study_goes_on_from_there(
    inside: Script, tmp_path: Path
) -> None:
    text = STUDY.replace("settings:", "settings:\n  save_dataset: play/{arm}-{seed}.safetensors")
    (tmp_path / "study.yaml").write_text(text.replace("{seed}.zip", "0.zip"))
    (tmp_path / "teachers").mkdir()
    model = DQN("MlpPolicy", gym.make("CartPole-v1"), policy_kwargs={"net_arch": [8]}, seed=0, device="cpu")
    model.save(tmp_path / "teachers" / "0.zip")
    words = ["--config", "study.yaml", "--out", "s"]
    done = inside("study.py", *words)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "play").iterdir()}
    assert names == {f"{arm}-{seed}.safetensors" for arm in ("kl", "mse") for seed in (0, 1)}
    again = inside("study.py", *words)
    assert again.returncode == 0, again.stderr
    (tmp_path / "study.yaml").write_text(text.replace("{arm}-", ""))
    refused = inside("study.py", "--config", "study.yaml", "--out", "t", "--dry_run")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "kl/seed0 and mse/seed0 would both write play/0.safetensors" in refused.stderr
