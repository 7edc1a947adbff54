"""distill_agent.py as a user runs it: from a zip to a table and again, and one clear line for what is wrong."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from polydistill.hub.readme import is_ours, read_readme
from polydistill_agents.files.sb3_zip import read_agent
from tests.agents.environments import toys
from tests.curves_and_tables import OF_Q_VALUES, columns, explained, written_tags
from tests.fuzz.seeds import pack, unpack

Script = Callable[..., "subprocess.CompletedProcess[str]"]
TOYS = toys.__name__
SMALL = [
    *("--student.batch_size", "16", "--student.samples_per_step", "2", "--threads", "1", "--device", "cpu"),
    *("--play.steps", "640", "--play.replay_steps", "640", "--play.warmup_steps", "64", "--play.n_envs", "4"),
    *("--play.train_freq", "8", "--evaluation.episodes", "5", "--evaluation.curve_every_steps", "320"),
    *("--evaluation.curve_episodes", "3", "--checkpoint.every_steps", "160"),
]


class Faulty(toys.Toy):
    """Fails once: in the step at which the countdown of all its games ends."""

    countdown = -1
    how = "raises"

    def step(self, action: Any) -> Any:
        shown, *rest = super().step(action)
        Faulty.countdown -= 1
        if Faulty.countdown == 0 and self.how == "raises":
            raise ConnectionError("the simulator is gone")
        return np.full(3, np.nan, np.float32) if Faulty.countdown == 0 else shown, *rest


gym.register("polydistill-test/Faulty-v0", Faulty)


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained agents in a folder, and files that only look like some."""
    folder = tmp_path_factory.mktemp("agents")
    options: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "seed": 3, "device": "cpu"}
    short = options | {"n_steps": 8, "batch_size": 8}
    DQN("MlpPolicy", gym.make("CartPole-v1"), **options).save(folder / "dqn.zip")
    PPO("MlpPolicy", gym.make("CartPole-v1"), **short).save(folder / "ppo.zip")
    PPO("MlpPolicy", Faulty(), **short).save(folder / "toy.zip")
    MaskablePPO("MlpPolicy", gym.make("Masked-v3"), **short).save(folder / "masked.zip")
    members = unpack((folder / "ppo.zip").read_bytes())
    data = json.loads(members["data"])
    unknown = {"__module__": "their.policies", "__name__": "Clever"}
    (folder / "unknown.zip").write_bytes(
        pack(members | {"data": json.dumps(data | {"policy_class": unknown}).encode()})
    )
    (folder / "damaged.zip").write_bytes((folder / "ppo.zip").read_bytes()[:3000])
    (folder / "behind").mkdir()
    behind = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    PPO("MlpPolicy", behind, **short).learn(8).save(folder / "behind" / "ppo.zip")
    (folder / "normal").mkdir()
    (folder / "normal" / "ppo.zip").write_bytes((folder / "ppo.zip").read_bytes())
    (folder / "normal" / "vecnormalize.pkl").write_bytes(pickle.dumps({"not": "statistics"}))
    return folder


def test_a_lineage_from_a_zip_to_the_table_and_again(inside: Script, agents: Path, tmp_path: Path, root: Path) -> None:
    words = [*SMALL, "--teacher.path", agents / "dqn.zip", "--env", "CartPole-v1", "--out", "run", "--play.beta", "0.5"]
    done = inside("distill_agent.py", *words)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["kind"] == "agent"
    assert summary["command"].startswith("python scripts/distill_agent.py --student.batch_size 16 ")
    assert DQN.load(tmp_path / "run" / "student.zip", env=gym.make("CartPole-v1"), device="cpu").policy.net_arch == [8]
    tags = explained(root, "Curves of distill_atari.py and distill_agent.py")
    assert written_tags(tmp_path / "run") == tags - OF_Q_VALUES
    assert is_ours(read_readme(tmp_path / "run") or "")
    assert done.stdout.endswith("\ncard: run/README.md\n")
    again = inside("distill_agent.py", *words)
    assert again.returncode == 0
    assert done.stdout.startswith("temperature ")
    assert done.stdout.endswith(again.stdout)
    assert again.stdout.startswith("CartPole-v1, 5 full games each, protocol own, seed 0\n")
    shown = inside("show.py", "run", "--wide")
    others = {"invalid", "masked score", "score after"}
    assert columns(shown.stdout) == [explained(root, "Table of distill_agent.py") - others]
    keys = [set(generation["metrics"]) for generation in summary["generations"]]
    known = explained(root, "Metrics of summary.json, agents") | explained(root, "Metrics of summary.json, Atari")
    others = {"invalid_share", "masked_score_mean", "has_memory", "dataset_sha256", "score_after", "score_after_ci95"}
    assert keys[0] | others == known
    assert keys[1] == keys[0] - {"random_mean", "random_ci95", "random_scores"}
    assert json.loads((tmp_path / "run/summary.json").read_text())["config"]["env"] == "CartPole-v1"


def test_a_table_of_masked_play_has_all_columns(inside: Script, agents: Path, root: Path) -> None:
    words = ["--teacher.path", agents / "masked.zip", "--env", f"{TOYS}:Masked-v3", "--wide", "--out", "run"]
    done = inside("distill_agent.py", *SMALL, *words)
    assert done.returncode == 0, done.stderr
    assert columns(done.stdout) == [explained(root, "Table of distill_agent.py") - {"score after"}]


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(
    inside: Script, agents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # no earlier run is remembered
    words = ["--teacher.path", agents / "dqn.zip", "--env", "CartPole-v1", "--dry_run"]
    done = inside("distill_agent.py", *SMALL, *words)
    assert done.returncode == 0, done.stderr
    assert "(16 games, if one lasts 500 steps)" in done.stdout, "five and five, and two points of three"
    for word in ("time: about ", "memory: ", " MiB of replay", "disk: ", "a new run would begin there"):
        assert word in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_and_the_doctor_know_a_data_set(inside: Script, agents: Path, tmp_path: Path) -> None:
    words = [*SMALL, "--env", "CartPole-v1", "--out", "run"]
    assert (
        inside("distill_agent.py", *words, "--teacher.path", agents / "dqn.zip", "--save_dataset", "play").returncode
        == 0
    )
    done = inside("distill_agent.py", *words[:-1], "again", "--dataset", "play", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "a new run would begin there" in done.stdout
    assert not (tmp_path / "again").exists()
    done = inside("distill_agent.py", *words[:-1], "again", "--dataset", "play", "--doctor")
    assert done.returncode == 0, done.stderr
    again = inside("distill_agent.py", *words[:-1], "again", "--dataset", "play")
    assert done.stdout.endswith(again.stdout)
    assert "note: the teacher's score is that of 5 full games of which the data set tells: it did not play here" in (
        " ".join(again.stdout.split())
    )


BAD = [
    ([], "teacher.path is needed: the file of the agent that teaches (--teacher.path dqn.zip --env CartPole-v1)"),
    (["--teacher.path", "dqn.zip"], "env is needed: the id of what is played, like CartPole-v1"),
    (["CartPool-v1", "dqn.zip"], "unknown environment 'CartPool-v1'; did you mean CartPole-v1?"),
    (["CartPole-v1", "dqm.zip"], "no such file: "),
    (["CartPole-v1", "damaged.zip"], "damaged.zip is damaged"),
    (
        ["CartPole-v1", "unknown.zip"],
        "only policies of DQN, QR-DQN, PPO, A2C, TRPO, MaskablePPO and RecurrentPPO are read, its class is of 'their.",
    ),
    (["CartPole-v1", "normal/ppo.zip"], "vecnormalize.pkl"),
    (
        ["CartPole-v1", "behind/ppo.zip"],
        "it learned behind VecNormalize, whose statistics are not in the zip: put beside",
    ),
    (["Pendulum-v1", "dqn.zip"], "the actions of Pendulum-v1 are Box(1,) float32: a DQN takes Discrete actions alone"),
    (["NeedsBox-v0", "dqn.zip"], "NeedsBox-v0 needs the module tests.agents.environments.no_such_module"),
    (
        ["Acrobot-v1", "dqn.zip"],
        "the teacher sees (4,) float32, the environment shows (6,) float32: was it trained in another environment, or",
    ),
    (["ALE/Pong-v5", "dqn.zip"], "is a game of Atari: distill_atari.py --game pong (polydistill-atari) distils it"),
    (["CartPole-v1", "dqn.zip", "--wrappers", "Flaten"], "unknown wrapper 'Flaten'"),
    (
        ["CartPole-v1", "dqn.zip", "--wrappers", "VecNormalize"],
        "leave VecNormalize out: its statistics are read beside",
    ),
    (["CartPole-v1", "dqn.zip", "--env_kwargs", "mass=3"], "env_kwargs: CartPole-v1 has no option 'mass'"),
    (["CartPole-v1", "dqn.zip", "--env_package", "no_such"], "there is no module 'no_such', neither installed nor in"),
    ([f"{TOYS}:Words-v3", "dqn.zip"], "its 'mission' is Text, and agents see Box, Discrete"),
    (["CartPole-v1", "dqn.zip", "--student.objective", "policy_lk"], "did you mean policy_kl?"),
    (
        ["CartPole-v1", "ppo.zip", "--student.objective", "policy_kl_q"],
        "objective policy_kl_q keeps Q-values, and the teacher gives logits: choose policy_kl, or a teacher of",
    ),
    (["CartPole-v1", "dqn.zip", "--student.net_arch", "[0]"], "net_arch must hold widths of at least 1, got [0]"),
    (["CartPole-v1", "dqn.zip", "--teacher.more", "ppo.zip"], "no such file: ppo.zip"),
    (["CartPole-v1", "dqn.zip", "--dataset", "none"], "no such file: none"),
    (["CartPole-v1", "dqn.zip", "--dataset", "."], ". is no data set of play (--save_dataset writes one)"),
    (
        ["CartPole-v1", "dqn.zip", "--save_dataset", "."],
        ". is there already: remove it, or give --save_dataset another",
    ),
    (
        [f"{TOYS}:Restless-v3", "toy.zip", "--save_dataset", "play"],
        "Restless-v3 does not repeat itself from a seed (st",
    ),
    (["CartPole-v1", "dqn.zip", "--evaluation.play", "often"], "--evaluation.play must be one of greedy, sample"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_line_and_nothing_is_written(
    inside: Script, agents: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    if words and not words[0].startswith("-"):
        env, teacher, *others = words
        words = ["--env", env, "--teacher.path", str(agents / teacher), *others]
    elif words:
        words = [words[0], str(agents / words[1])]
    done = inside("distill_agent.py", *SMALL, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_that_scores_otherwise_than_expected_stops_the_run_before_it_trains(
    inside: Script, agents: Path, tmp_path: Path
) -> None:
    words = ["--teacher.path", agents / "ppo.zip", "--env", "CartPole-v1", "--teacher.expected_score", "1475"]
    done = inside("distill_agent.py", *SMALL, *words)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: the teacher scores ")
    assert "and is known for 1475: does it see and play what it was trained on (wrappers, frame stack," in line
    assert not (tmp_path / "runs" / "agent" / "student.zip").exists()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("raises", "fails in step 7[0-9]: ConnectionError: the simulator is gone; what was saved is kept"),
        ("shows nan", r"gives an observation that is not finite \(NaN or inf\) in step 7[0-9]"),
    ],
)
def test_an_environment_that_fails_in_the_middle_loses_nothing(
    inside: Script, agents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, says: str
) -> None:
    monkeypatch.setattr(Faulty, "how", how)
    monkeypatch.setattr(Faulty, "countdown", 0)
    words = [*SMALL, "--teacher.path", agents / "toy.zip", "--env", "polydistill-test/Faulty-v0"]
    whole = inside("distill_agent.py", *words, "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    learned_in = 640 + (3 + 5) * toys.LENGTH  # with the second point of the curve, and the games of the table
    Faulty.countdown = -Faulty.countdown - learned_in + 300
    failed = inside("distill_agent.py", *words, "--out", "run")
    assert failed.returncode == 2
    assert re.search(says, failed.stderr.splitlines()[-1])
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    again = inside("distill_agent.py", *words, "--out", "run")
    assert again.returncode == 0, again.stderr
    assert "plays its games again" in again.stderr
    one, other = (read_agent(tmp_path / name / "student.zip").weights for name in ("whole", "run"))
    assert all(np.array_equal(one[name], other[name]) for name in one)
