"""evaluate_agent.py in environments of gymnasium: random play beside the agent, and masks where there are."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from stable_baselines3 import DQN, PPO

from tests.agents.environments import toys
from tests.curves_and_tables import columns, explained

Script = Callable[..., "subprocess.CompletedProcess[str]"]


def rows(printed: str) -> dict[str, list[str]]:
    """``who -> cells`` of the table."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    return {cells[0]: cells[1:] for cells in lines[2:]}


def test_an_agent_is_scored_in_any_environment_beside_random_play(inside: Script, tmp_path: Path, root: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu", seed=0).save(tmp_path / "a.zip")
    DQN("MlpPolicy", "CartPole-v1", device="cpu", seed=0).save(tmp_path / "b.zip")
    words = ["--env", "CartPole-v1", "--episodes", 4, "--env_kwargs", "[sutton_barto_reward=True]"]
    done = inside("evaluate_agent.py", "a.zip", "--beside", "b.zip", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("CartPole-v1, 4 full games, protocol own\n")
    shown = rows(done.stdout)
    assert list(shown) == ["random play", "b.zip", "a.zip"]
    assert all(-1 <= float(cells[0]) <= 0 for cells in shown.values()), "that reward is -1 at a fall, else 0"
    optional = {"of human", "invalid", "masked mean"}
    assert columns(done.stdout) == [explained(root, "Table of evaluate_agent.py") - optional]


def test_where_there_are_masks_the_share_of_invalid_actions_and_masked_play_are_told(
    inside: Script, tmp_path: Path, root: Path
) -> None:
    env = f"{toys.__name__}:Masked-v3"
    DQN("MlpPolicy", toys.Masked(), device="cpu", seed=0).save(tmp_path / "a.zip")
    done = inside("evaluate_agent.py", "a.zip", "--env", env, "--episodes", 3)
    assert done.returncode == 0, done.stderr
    assert columns(done.stdout) == [explained(root, "Table of evaluate_agent.py") - {"of human"}]
    invalid = rows(done.stdout)["a.zip"][3]
    assert invalid.endswith("%")
    assert 0 < float(invalid[:-1]) < 100, "one of three actions is invalid in each step"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--env_kwargs", "[gravity]"], "env_kwargs holds options like gravity=9.8, got 'gravity'"),
        (["--env_kwargs", "[mass=2]"], "env_kwargs: CartPole-v1 has no option 'mass'"),
        (["--wrappers", "[FlattenObservatio]"], "did you mean FlattenObservation?"),
        (["--env_max_steps", "-1"], "env_max_steps must not be negative"),
    ],
)
def test_what_does_not_fit_the_environment_is_one_line(
    inside: Script, tmp_path: Path, words: list[str], message: str
) -> None:
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu", seed=0).save(tmp_path / "a.zip")
    done = inside("evaluate_agent.py", "a.zip", "--env", "CartPole-v1", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert message in done.stderr
