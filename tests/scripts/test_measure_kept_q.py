"""scripts/measure_kept_q.py: rows for each objective and scale, in units that do not hang on the scale."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stable_baselines3 import DQN, PPO


@pytest.fixture
def script(root: Path) -> list[str]:
    return [sys.executable, str(root / "scripts" / "measure_kept_q.py")]


def test_it_writes_a_row_for_each_student(script: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    DQN("MlpPolicy", "CartPole-v1", seed=0, policy_kwargs={"net_arch": [8]}).save(tmp_path / "dqn.zip")
    words = ["--teacher.path", str(tmp_path / "dqn.zip"), "--json", str(tmp_path / "raw.json")]
    few = ["--seeds", "1", "--steps", "2500", "--episodes", "2", "--states", "100"]
    done = subprocess.run([*script, *words, *few], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| policy_kl_q ") == 2
    raw = json.loads((tmp_path / "raw.json").read_text(encoding="utf-8"))
    rows = {(row["scale"], row["objective"]): row for row in raw["rows"]}
    assert len(rows) == 6
    for objective in ("policy_kl", "policy_kl_q", "policy_mse"):
        small, large = rows[1.0, objective], rows[100.0, objective]
        assert large["mean_q"] == pytest.approx(100 * small["mean_q"], rel=1e-5)
        assert large["temperature"] == pytest.approx(100 * small["temperature"], rel=0.06)  # rounded to two digits
    kept, free = rows[1.0, "policy_kl_q"], rows[1.0, "policy_kl"]
    assert kept["worst_q_error"] < free["worst_q_error"]


def test_a_teacher_of_logits_is_refused_in_one_line(script: list[str], tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1").save(tmp_path / "ppo.zip")
    words = [*script, "--teacher.path", str(tmp_path / "ppo.zip")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "gives no Q-values" in done.stderr
    assert "Traceback" not in done.stderr
