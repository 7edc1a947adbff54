"""evaluate_agent.py in environments of gymnasium: random play beside the agent, and masks where there are."""

from __future__ import annotations

import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
from stable_baselines3 import DQN, PPO

from polydistill_agents.environments.evaluation import evaluate
from polydistill_agents.teachers import as_teacher
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


def test_several_files_are_scored_as_one_agent_by_their_mean_policy(inside: Script, tmp_path: Path) -> None:
    save_two(tmp_path)
    words = ["--env", "CartPole-v1", "--episodes", 4, "--temperature", 0.5]
    done = inside("evaluate_agent.py", "a.zip", "--more", "[b.zip]", "--beside", "b.zip", *words)
    assert done.returncode == 0, done.stderr
    shown = rows(done.stdout)
    assert list(shown) == ["random play", "b.zip", "ensemble of the 2"]
    assert "note: ensemble of the 2: a.zip, b.zip; Q-values among them at T = 0.5" in done.stdout
    both = as_teacher([tmp_path / "a.zip", tmp_path / "b.zip"], temperatures=[1.0, 0.5])
    assert float(shown["ensemble of the 2"][0]) == evaluate(both, "CartPole-v1", episodes=4).mean


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("[b.zip, a.zip]", "more names further files, each once, got 'a.zip', 'b.zip', 'a.zip'"),
        ("[wide.zip]", "teacher 1 sees (4,) float32, teacher 2 sees (6,) float32"),
        ("[none.zip]", "no such file: none.zip"),
    ],
)
def test_files_that_are_no_one_agent_are_one_line(inside: Script, tmp_path: Path, more: str, message: str) -> None:
    save_two(tmp_path)
    DQN("MlpPolicy", "Acrobot-v1", device="cpu", seed=0).save(tmp_path / "wide.zip")
    done = inside("evaluate_agent.py", "a.zip", "--more", more, "--env", "CartPole-v1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert message in done.stderr


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


def save_two(folder: Path) -> None:
    """An agent of logits, ``a.zip``, and one of Q-values, ``b.zip``, of CartPole."""
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu", seed=0).save(folder / "a.zip")
    DQN("MlpPolicy", "CartPole-v1", device="cpu", seed=0).save(folder / "b.zip")


@pytest.mark.parametrize(("agent", "teacher", "unit"), [("a", "b", "Q-values"), ("b", "a", "probability")])
def test_a_report_shows_where_agent_and_teacher_disagree(
    inside: Script, tmp_path: Path, root: Path, agent: str, teacher: str, unit: str
) -> None:
    save_two(tmp_path)
    words = [f"{agent}.zip", "--env", "CartPole-v1", "--episodes", 4, "--beside", f"{teacher}.zip"]
    plain = inside("evaluate_agent.py", *words)
    done = inside("evaluate_agent.py", *words, "--report", "out.html")
    assert done.returncode == 0, done.stderr
    assert [rows(done.stdout)[who][:3] for who in ("a.zip", "b.zip")] == [
        rows(plain.stdout)[who][:3] for who in ("a.zip", "b.zip")
    ], "the scores are those without a report"
    assert columns(done.stdout)[1] == explained(root, "Report of evaluate_agent.py")
    assert done.stdout.endswith("saved: out.html\n")
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert unit in page
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(svg)
    assert len(re.findall("<svg", page)) > 2, "two curves, and states"
    assert not re.search(r"(?:src|href)=\"(?!data:)", page), "it asks for nothing else"
    assert str(tmp_path) not in page
    again = inside("evaluate_agent.py", *words, "--report", "out.html")
    assert (again.returncode, again.stderr.splitlines()[-1]) == (
        2,
        "error: report out.html is there already: choose another name, or remove it",
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--report", "a.html"], "report compares the agent with its teacher: add --beside TEACHER"),
        (["--beside", "b.zip", "--report", "a.pdf"], "report must end in .html, got a.pdf"),
        (["--beside", "b.zip", "--report", "none/a.html"], "there is no folder none for --report"),
        (["--beside", "wide.zip", "--report", "a.html"], "was it trained in another environment"),
        (["--beside", "more.zip", "--report", "a.html"], "more.zip"),
    ],
)
def test_a_report_that_cannot_be_made_is_refused_before_the_games(
    inside: Script, tmp_path: Path, words: list[str], message: str
) -> None:
    save_two(tmp_path)
    DQN("MlpPolicy", "Acrobot-v1", device="cpu", seed=0).save(tmp_path / "wide.zip")
    done = inside("evaluate_agent.py", "a.zip", "--env", "CartPole-v1", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert message in done.stderr
    assert not list(tmp_path.glob("*.html"))


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
