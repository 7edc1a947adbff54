"""One student of several tasks from the command line: Atari games, environments of gymnasium, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from stable_baselines3 import DQN, PPO

from polydistill.config.parsing import read_config
from polydistill_agents.files.sb3_zip import write_dqn_zip
from polydistill_agents.lineage.multitask.games import ManyGamesConfig
from polydistill_agents.lineage.multitask.tasks import ManyTasksConfig
from tests.agents.samples import make_network
from tests.curves_and_tables import columns, explained, written_tags

Script = Callable[..., "subprocess.CompletedProcess[str]"]
SMALL = [
    *("--student.batch_size", "16", "--student.samples_per_step", "1", "--student.controller", "[8]"),
    *("--play.steps", "64", "--play.replay_steps", "64", "--play.warmup_steps", "32"),
    *("--play.n_envs", "2", "--play.train_freq", "4", "--threads", "1", "--device", "cpu"),
    *("--evaluation.episodes", "2", "--evaluation.curve_every_steps", "0", "--out", "run"),
]


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of untrained agents: of two games, and of two environments."""
    folder = tmp_path_factory.mktemp("agents")
    write_dqn_zip(folder / "pong.zip", make_network(n_actions=6))
    write_dqn_zip(folder / "breakout.zip", make_network(n_actions=4, seed=1))
    DQN("MlpPolicy", "CartPole-v1", device="cpu", seed=0).save(folder / "dqn")
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu", seed=0).save(folder / "ppo")
    PPO("MlpPolicy", "Acrobot-v1", n_steps=8, batch_size=8, device="cpu", seed=0).save(folder / "acrobot")
    return folder


def planets(agents: Path, **more: object) -> str:
    """Two CartPoles, of which one has other rewards: a DQN with its own temperature, and a PPO."""
    tasks = {
        "earth": {"env": "CartPole-v1", "teacher": str(agents / "dqn.zip"), "temperature": 0.5},
        "jupiter": {
            "env": "CartPole-v1",
            "env_kwargs": ["sutton_barto_reward=true"],
            "teacher": str(agents / "ppo.zip"),
        },
        **more,
    }
    return json.dumps(tasks)


@pytest.mark.usefixtures("short_games")
def test_two_games_from_their_zips_to_the_table_and_again(
    inside: Script, agents: Path, root: Path, tmp_path: Path
) -> None:
    games = json.dumps({name: str(agents / f"{name}.zip") for name in ("pong", "breakout")})
    words = ["--games", games, *SMALL, "--precision", "float32", "--student.size", "net3"]
    done = inside("distill_atari.py", *words)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\| pong .*\n\| breakout ", done.stdout, flags=re.MULTILINE)
    assert {"task", "score", "teacher", "of teacher", "% of teacher"} <= columns(done.stdout)[0]
    assert "geometric mean of 'of teacher': not defined, no positive number in" in done.stdout
    table = done.stdout[done.stdout.index("2 tasks,") :]
    assert inside("distill_atari.py", *words).stdout == table
    assert inside("show.py", "run").stdout.strip() in table
    wide = inside("show.py", "run", "--wide").stdout
    assert columns(wide)[0] | {"student"} == explained(root, "Table of several tasks"), "one student has no number"
    tags = {tag.partition("/")[2] for tag in written_tags(tmp_path / "run")}
    assert tags <= explained(root, "Curves of distill_atari.py and distill_agent.py") | {"distill/batch_share"}
    seen = np.zeros((1, 4, 84, 84), np.uint8)
    for name, n_actions in (("pong", 6), ("breakout", 4)):
        model = DQN.load(tmp_path / "run" / f"generation_1_{name}.zip", device="cpu")
        assert 0 <= model.predict(seen)[0][0] < n_actions
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["kind"], list(summary["generations"][1]["metrics"]["tasks"])) == ("tasks", ["pong", "breakout"])


@pytest.mark.usefixtures("short_games")
def test_games_learn_from_the_files_of_an_earlier_run(inside: Script, agents: Path, tmp_path: Path) -> None:
    games = json.dumps({name: str(agents / f"{name}.zip") for name in ("pong", "breakout")})
    words = [*SMALL[:-2], "--precision", "float32", "--student.size", "net3"]
    first = inside("distill_atari.py", "--games", games, *words, "--save_dataset", "play", "--out", "first")
    assert first.returncode == 0, first.stderr
    assert {path.name for path in (tmp_path / "play").iterdir()} == {"pong.safetensors", "breakout.safetensors"}
    again = ["--games", "{pong: null, breakout: null}", *words, "--dataset", "play", "--out", "again"]
    done = inside("distill_atari.py", *again)
    assert done.returncode == 0, done.stderr
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("first", "again")]
    assert summaries[0]["generations"][1]["sha256"] == summaries[1]["generations"][1]["sha256"]
    told = " ".join(done.stdout.split())
    assert "note: breakout: the teacher's score is that of which the data set tells: it did not play here" in told
    assert inside("distill_atari.py", *again).stdout == done.stdout[done.stdout.index("2 tasks,") :]
    refused = inside("distill_atari.py", "--games", games, *words, "--save_dataset", "play", "--out", "other")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "play/pong.safetensors is there already" in refused.stderr


@pytest.mark.parametrize("heads", ["own", "one"])
def test_two_environments_of_one_form_of_observations(inside: Script, agents: Path, tmp_path: Path, heads: str) -> None:
    words = ["--tasks", planets(agents), *SMALL, "--student.heads", heads, "--student.net_arch", "[16]"]
    planned = inside("distill_agent.py", *words, "--dry_run")
    assert planned.returncode == 0, planned.stderr
    assert "1 generation of 2 tasks, with 64 steps of play of each and 128 samples of all" in planned.stdout
    assert not (tmp_path / "run").exists()
    done = inside("distill_agent.py", *words, "--lineage.generations", 2, "--doctor")
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^doctor: earth, policy_kl, .*; jupiter, policy_kl, ", done.stdout, flags=re.MULTILINE)) == 2
    assert re.search(r"^  (fine|suspicious|cannot tell) +jupiter: the teacher", done.stdout, flags=re.MULTILINE)
    rows = re.findall(r"^\| (\w+) +\| +(\d) ", done.stdout, flags=re.MULTILINE)
    assert rows == [("earth", "1"), ("earth", "2"), ("jupiter", "1"), ("jupiter", "2")]
    model = DQN.load(tmp_path / "run" / "generation_2_jupiter.zip", device="cpu")
    assert model.policy.net_arch == [16, 8]
    options = ["--env", "CartPole-v1", "--env_kwargs", "sutton_barto_reward=true", "--episodes", 3]
    scored = inside("evaluate_agent.py", "run/generation_2_jupiter.zip", *options)
    assert scored.returncode == 0, scored.stderr


def test_games_whose_heads_and_teachers_do_not_fit_are_refused_in_one_line(inside: Script, agents: Path) -> None:
    swapped = json.dumps({"pong": str(agents / "breakout.zip"), "breakout": str(agents / "pong.zip")})
    for games, message in (
        (swapped, "games.pong: the teacher scores 4 actions, the environment has 6"),
        ("{pong: typo.zip, breakout: b.zip}", "games.pong: no such file: typo.zip"),
        ("{pong: null, qbert: null}", "games: qbert has no teacher, and none of it is shipped"),
        ("{pong: a.zip, PongNoFrameskip-v4: b.zip}", "games: pong is there twice"),
        ("{pong: [a.zip, b.zip], qbert: c.zip}", "games.pong has 2 teachers"),
        ("[pong, breakout]", "games must be a mapping"),
    ):
        refused = inside("distill_atari.py", "--games", games, *SMALL)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
        assert message in refused.stderr
    refused = inside("distill_atari.py", "--games", swapped, "--teacher.path", "a.zip")
    assert (refused.returncode, "unknown flag --teacher.path" in refused.stderr) == (2, True), "of which game?"


def test_environments_that_no_student_could_learn_together_are_refused_in_one_line(
    inside: Script, agents: Path
) -> None:
    acrobot = {"env": "Acrobot-v1", "teacher": str(agents / "acrobot.zip")}
    for tasks, message in (
        (planets(agents, swing=acrobot), "earth shows (4,), swing shows (6,)"),
        (planets(agents, moon={"env": "CartPole-v1"}), "tasks.moon has no teacher: give its file"),
        (planets(agents, moon={"env": "CartPole-v9", "teacher": "a.zip"}), "tasks.moon: "),
        (planets(agents, moon={"teacher": "a.zip"}), "tasks.moon: env is needed"),
        (planets(agents, **{"a/b": {"env": "CartPole-v1", "teacher": "a.zip"}}), "letters, digits and _ alone"),
    ):
        refused = inside("distill_agent.py", "--tasks", tasks, *SMALL)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
        assert message in refused.stderr


def test_one_head_of_two_kinds_of_scores_is_refused_before_anything_is_played(inside: Script, agents: Path) -> None:
    words = ["--tasks", planets(agents), *SMALL, "--student.heads", "one", "--student.objective", "policy_mse"]
    refused = inside("distill_agent.py", *words)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
    assert "policy_mse would teach it q_values in earth, logits in jupiter" in refused.stderr


def test_the_page_about_several_tasks_shows_configs_that_are_read(root: Path, tmp_path: Path) -> None:
    page = (root / "docs" / "several_tasks.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    for text, kind in zip(blocks, (ManyGamesConfig, ManyTasksConfig), strict=True):
        (tmp_path / "config.yaml").write_text(text)
        config = read_config(kind, tmp_path / "config.yaml", {})
        assert config.names == list(next(iter(yaml.safe_load(text).values())))
