"""The commands of docs/agents.md run, in its order, with small agents of every kind that it names."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import sb3_contrib
import stable_baselines3 as sb3
import torch

from polydistill_agents.lineage import plan
from polydistill_agents.lineage.rates import Rates

PAGE = Path(__file__).resolve().parent.parent / "docs" / "agents.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the commands run: the agents that they name, and the page's own module."""
    made = tmp_path_factory.mktemp("page")
    (made / "configs").symlink_to(PAGE.parent.parent / "configs")
    (made / "my_envs.py").write_text(next(text for kind, text in BLOCKS if kind == "python"), encoding="utf-8")
    before = Path.cwd(), dict(sys.modules), torch.get_num_threads()
    os.chdir(made)
    sys.path.append(str(made))
    import my_envs

    sys.path.remove(str(made))
    stacked = gym.wrappers.FrameStackObservation(gym.make("CartPole-v1"), 4)
    kinds: dict[str, tuple[Any, Any]] = {
        "ppo": (sb3.PPO, "CartPole-v1"),
        "dqn": (sb3.DQN, "CartPole-v1"),
        "a2c": (sb3.A2C, "CartPole-v1"),
        "qrdqn": (sb3_contrib.QRDQN, "CartPole-v1"),
        "trpo": (sb3_contrib.TRPO, "CartPole-v1"),
        "recurrent": (sb3_contrib.RecurrentPPO, "CartPole-v1"),
        "masked": (sb3_contrib.MaskablePPO, my_envs.Doors()),
        "stacked": (sb3.PPO, stacked),
    }
    for name, (kind, env) in kinds.items():
        policy = "MlpLstmPolicy" if name == "recurrent" else "MlpPolicy"
        kind(policy, env, device="cpu", seed=0).save(made / name)
    (made / "born").mkdir()
    for name in ("generation_1", "generation_2", "student"):
        shutil.copy(made / "dqn.zip", made / "born" / f"{name}.zip")
    yield made
    os.chdir(before[0])
    for name in set(sys.modules) - set(before[1]):
        if name == "my_envs":
            del sys.modules[name]
    torch.set_num_threads(before[2])


@pytest.mark.parametrize("command", [line for line in COMMANDS if "train_control_teacher" not in line])
def test_a_command_of_the_page_runs(
    command: str, folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "measure_rates", lambda *_, **__: Rates(1e3, 1e3, 1e3))  # it takes two seconds
    monkeypatch.setattr(sys, "path", [*sys.path])
    program, script, *words = shlex.split(command, comments=True)
    assert program == "python"
    words = [word.replace("runs/born/", "born/") for word in words]  # the run itself is only a dry one
    words += ["--device", "cpu", "--threads", "1"]
    if "distill_agent" in script:
        words += ["--dry_run"] * ("--dry_run" not in words)
    else:
        words += ["--episodes", "2"]
        words = [str(folder / "dqn.zip") if word == "runs/agent/student.zip" else word for word in words]
    code: object = 0
    try:
        runpy.run_path(str(root / script))["main"](words)
    except SystemExit as end:
        code = end.code
    assert code == 0, capsys.readouterr().err


def test_a_command_trains_the_teacher_of_the_page(folder: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = [line for line in COMMANDS if "train_control_teacher" in line]
    _, script, *words = shlex.split(command, comments=True)
    words[words.index("ppo.zip")] = "trained.zip"
    runpy.run_path(str(root / script))["main"]([*words, "--steps", "64", "--episodes", "1"])
    assert "trained.zip: mean " in capsys.readouterr().out
