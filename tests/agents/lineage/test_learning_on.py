"""The stage after a student: a stock DQN goes on from its file, is scored in the same games, and can be begun again."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.logger import Logger

from polydistill.config.plain_yaml import to_mapping
from polydistill.errors import Interrupted, UserError
from polydistill.lineage import LineageConfig, run_lineage
from polydistill.runs import Run, read_summary
from polydistill.runs.checkpoint import CheckpointConfig
from polydistill.runs.interruption import StopSignals
from polydistill.streams import derive_seed
from polydistill.study.arms import make_plan
from polydistill.study.config import StudyConfig
from polydistill.study.records import METRICS
from polydistill.study.worlds import open_world
from polydistill_agents.commands.distil import show
from polydistill_agents.distillation.learning_on import LearningOnConfig, Watch, learn_on
from polydistill_agents.environments.evaluation import evaluate
from polydistill_agents.environments.gym_task import open_environment
from polydistill_agents.files.sb3_zip import read_agent
from polydistill_agents.lineage.agent_config import (
    AgentConfig,
    AgentScoringConfig,
    AgentStudentConfig,
    AgentTeacherConfig,
)
from polydistill_agents.lineage.config import PlayConfig
from polydistill_agents.lineage.domain import AgentDomain
from polydistill_agents.lineage.opening import open_teacher
from polydistill_agents.lineage.plan import PRODUCTS, disk_bytes, format_plan
from polydistill_agents.lineage.report import format_summary
from polydistill_agents.teachers import as_teacher
from tests.curves_and_tables import explained
from tests.stop_signals import StopAt

pytestmark = pytest.mark.usefixtures("one_thread")
AFTER = LearningOnConfig(steps=300, learning_starts=100, batch_size=8, learning_rate=1e-2, curve_every_steps=100)
gym.register("polydistill-test/Pictures-v0", lambda: FakeImageEnv(screen_height=36, screen_width=36, action_dim=3))


def save_agent(path: Path, kind: Any = DQN, **options: Any) -> str:
    kind("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [8]}, seed=3, device="cpu", **options).save(path)
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    """A short run whose student learns on, beside an untrained teacher of CartPole."""
    return AgentConfig(
        env="CartPole-v1",
        device="cpu",
        threads=1,
        teacher=AgentTeacherConfig(path=save_agent(tmp_path / "teacher.zip")),
        student=AgentStudentConfig(objective="policy_kl_q", batch_size=16, samples_per_step=2),
        play=PlayConfig(steps=320, replay_steps=320, warmup_steps=64, n_envs=4, train_freq=8),
        evaluation=AgentScoringConfig(episodes=5, curve_every_steps=160, curve_episodes=3),
        checkpoint=CheckpointConfig(every_seconds=1e9, every_steps=160),
        learn_on=AFTER,
    )


def distil(out: Path, config: AgentConfig, stop: StopSignals | None = None) -> dict[str, Any]:
    with Run.open(out, config, kind="agent", command="-", products=PRODUCTS) as run:
        return run_lineage(AgentDomain(config, open_teacher(config)), config, run, stop=stop or StopSignals())


def curve(out: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    scores = [line for line in lines if line["role"] == "learning_on" and "eval/mean_reward" in line["values"]]
    assert len({line["step"] for line in scores}) == len(scores)
    return {line["step"]: line["values"]["eval/mean_reward"] for line in scores}


def weights(path: Path) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in read_agent(path).weights.items()}


def outcome(out: Path) -> Any:
    summary = json.loads((out / "summary.json").read_text())
    told = {k: v for k, v in summary.items() if k not in {"wall_seconds", "seconds", "throughput", "command"}}
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return told, lines, weights(out / "student.zip"), weights(out / "learned_on.zip")


def test_a_student_learns_on_and_is_scored_in_the_games_in_which_it_was_scored_before(
    tmp_path: Path, config: AgentConfig, root: Path
) -> None:
    summary = distil(tmp_path / "run", config)
    student = summary["generations"][1]["metrics"]
    assert "score_after" not in summary["generations"][0]["metrics"]
    games = {"episodes": 5, "seed": derive_seed(config.seed, "evaluation", 1)}
    after = evaluate(as_teacher(tmp_path / "run" / "learned_on.zip"), config.task, **games)
    assert student["score_after"] == after.mean
    assert student["score_after_ci95"] == list(after.interval(config.seed) or ())
    assert (
        student["scores"]
        == evaluate(as_teacher(tmp_path / "run" / "student.zip"), config.task, **games).scores.tolist()
    )
    points = curve(tmp_path / "run")
    assert list(points) == [0, 100, 200, 300]
    assert points[300] == student["score_after"]
    start = evaluate(
        as_teacher(tmp_path / "run" / "student.zip"), config.task, episodes=3,
        seed=derive_seed(config.seed, "learning on, curve 0", 1),
    )  # fmt: skip
    assert points[0] == start.mean
    written = read_agent(tmp_path / "run" / "learned_on.zip")
    assert (written.score_kind, written.steps) == ("q_values", 300)
    assert weights(tmp_path / "run" / "learned_on.zip") != weights(tmp_path / "run" / "student.zip")
    DQN.load(tmp_path / "run" / "learned_on.zip", env=gym.make("CartPole-v1"), device="cpu")
    assert "score after" in format_summary(summary, wide=True)
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    tags = {tag for line in lines if line["role"] == "learning_on" for tag in line["values"]}
    assert tags | {"time/fps"} == explained(root, "Curves of a student that learns on")


@pytest.mark.parametrize("at", [1, 60, 150, 290])
def test_a_run_that_is_stopped_while_its_student_learns_on_ends_like_one_that_never_was(
    tmp_path: Path, config: AgentConfig, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    distil(tmp_path / "whole", config)
    asked = 0

    def stop_there(watch: Watch) -> bool:
        nonlocal asked
        asked += 1
        if asked == at:
            stop.left = 0
        return stepped(watch)

    stop, stepped = StopAt(10**9), Watch._on_step
    with monkeypatch.context() as patch:
        patch.setattr(Watch, "_on_step", stop_there)
        with pytest.raises(Interrupted, match="stopped while the student learned on: the same command goes on"):
            distil(tmp_path / "run", config, stop)
    np.random.seed(at)  # another process begins with another
    distil(tmp_path / "run", config)
    for found, expected in zip(outcome(tmp_path / "run"), outcome(tmp_path / "whole"), strict=True):
        assert found == expected


def test_only_the_last_student_learns_on_and_one_that_does_not_is_as_it_was(
    tmp_path: Path, config: AgentConfig
) -> None:
    first, second = distil(tmp_path / "two", dataclasses.replace(config, lineage=LineageConfig(2)))["generations"][1:]
    assert "score_after" not in first["metrics"]
    assert "score_after" in second["metrics"]
    without = dataclasses.replace(config, learn_on=LearningOnConfig())
    assert "learn_on" not in to_mapping(without)
    plain = distil(tmp_path / "plain", without)["generations"][1]
    assert plain["sha256"] == first["sha256"]
    assert plain["metrics"].keys() == first["metrics"].keys()
    assert not (tmp_path / "plain" / "learned_on.zip").exists()


class Played(BaseCallback):
    """Notes what was done in which state, and the weights behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[np.ndarray] = []
        self.actions: list[int] = []
        self.weights: list[torch.Tensor] = []

    def _on_step(self) -> bool:
        self.seen.append(np.array(self.model._last_obs[0]))  # type: ignore[index, attr-defined]
        self.actions.append(int(self.locals["actions"][0]))
        self.weights.append(next(self.model.policy.parameters()).detach().clone())
        return True


def play(path: str, **options: Any) -> Played:
    played = Played()
    settings = LearningOnConfig(**{"steps": 200, "batch_size": 8, "learning_starts": 120, **options}).filled()
    env = open_environment("CartPole-v1").make_env(1, seed=4)
    learn_on(Path(path), env, settings, seed=2**62 + 1, device="cpu", logger=Logger(None, []), watch=played)
    return played


def test_before_the_first_update_the_student_plays_itself_and_nobody_at_random(tmp_path: Path) -> None:
    path = save_agent(tmp_path / "a.zip")
    played, agent = play(path, epsilon=0.0), as_teacher(path)
    actions = agent(torch.from_numpy(np.stack(played.seen))).argmax(dim=1)[:120].tolist()
    assert played.actions[:120] == actions
    assert len(played.actions) == 200
    changed = [index for index, weight in enumerate(played.weights) if not torch.equal(weight, played.weights[0])]
    assert changed[0] == 124, "a step later than the first update, which follows the first 4 steps after 120"


def test_without_own_play_updates_begin_at_once_and_epsilon_is_the_share_of_random_actions(tmp_path: Path) -> None:
    path = save_agent(tmp_path / "a.zip")
    played = play(path, learning_starts=0, train_freq=2)
    assert not torch.equal(played.weights[2], played.weights[0])
    played = play(path, steps=1_200, learning_starts=1_199, epsilon=0.5)
    agent = as_teacher(path)
    greedy = agent(torch.from_numpy(np.stack(played.seen))).argmax(dim=1).numpy()
    other = np.mean(greedy[:1_199] != np.array(played.actions[:1_199]))
    assert 0.2 < other < 0.3, "half of the random actions of two are the greedy one"


def test_the_global_generators_are_left_alone(tmp_path: Path) -> None:
    path = save_agent(tmp_path / "a.zip")
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index, union-attr]
    first = play(path)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index, union-attr]
    assert torch.equal(torch.get_rng_state(), before[2])
    np.random.seed(7), torch.manual_seed(7)
    again = play(path)
    assert again.actions == first.actions
    assert torch.equal(again.weights[-1], first.weights[-1])


def test_a_student_of_logits_learns_on_with_one_line_that_says_what_they_are_not(
    tmp_path: Path, config: AgentConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    distil(tmp_path / "kept", config)
    assert "not Q-values" not in capsys.readouterr().err
    lesson = AgentStudentConfig(objective="policy_kl", batch_size=16, samples_per_step=2)
    distil(tmp_path / "kl", dataclasses.replace(config, student=lesson))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "not Q-values" in line]
    assert line.startswith("the student of policy_kl gives logits, not Q-values: it learns on all the same")
    assert read_agent(tmp_path / "kl" / "learned_on.zip").score_kind == "q_values", "by then they are"
    show(read_summary(tmp_path / "kl"), tmp_path / "kl", wide=False)
    told = capsys.readouterr().out
    assert f"saved: {tmp_path / 'kl' / 'learned_on.zip'}" in told
    assert "do not call DQN.learn" not in told, "it has learned on"
    ppo = save_agent(tmp_path / "ppo.zip", PPO, n_steps=8, batch_size=8)
    lesson = dataclasses.replace(lesson, objective="policy_mse")
    distil(tmp_path / "mse", dataclasses.replace(config, student=lesson, teacher=AgentTeacherConfig(path=ppo)))
    assert "the student of policy_mse gives logits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.9}, "gamma says how a student learns on, and it does not: give steps, too"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 1_000}, "steps = 1000 must be more than learning_starts = 1000: it would not learn"),
        ({"steps": 2_000, "gamma": 1.5}, "gamma must lie between 0 and 1, got 1.5"),
        ({"steps": 2_000, "epsilon": -0.1}, "epsilon must lie between 0 and 1"),
        ({"steps": 2_000, "learning_rate": 0.0}, "learning_rate must be positive"),
        ({"steps": 2_000, "train_freq": 0}, "train_freq must be at least 1"),
        ({"steps": 2_000, "learning_starts": -1}, "learning_starts must not be negative, got -1"),
    ],
)
def test_a_setting_without_effect_or_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearningOnConfig(**options)


def test_what_cannot_learn_on_is_one_line_before_anything_is_played(tmp_path: Path, config: AgentConfig) -> None:
    with pytest.raises(ValueError, match=r"a DQN, which acts greedily: leave evaluation\.play out"):
        dataclasses.replace(config, evaluation=AgentScoringConfig(play="sample"))
    env = "polydistill-test/Pictures-v0"
    DQN("CnnPolicy", env, buffer_size=1, device="cpu", seed=0).save(tmp_path / "frames.zip")
    frames = dataclasses.replace(
        config,
        env=env,
        teacher=AgentTeacherConfig(path=str(tmp_path / "frames.zip")),
        student=dataclasses.replace(config.student, size="40x64x64x512"),
    )
    with pytest.raises(UserError, match=r"wider than DQN\.load's networks: leave learn_on\.steps out"):
        open_teacher(frames)


def test_a_plan_counts_what_comes_after_the_student(tmp_path: Path, config: AgentConfig) -> None:
    without = dataclasses.replace(config, learn_on=LearningOnConfig())
    teacher = open_teacher(config)
    assert "(16 games, if one" in format_plan(without, teacher, tmp_path)
    assert "(30 games, if one" in format_plan(config, teacher, tmp_path), "three points of three, and five"
    large = dataclasses.replace(config, learn_on=dataclasses.replace(AFTER, buffer_size=2**20))
    assert "memory: 32.0 MiB of replay" in format_plan(large, teacher, tmp_path)
    assert disk_bytes(config, teacher) > disk_bytes(without, teacher) + 10**6


def test_an_arm_of_a_study_may_say_how_its_student_learns_on_and_the_score_after_is_compared() -> None:
    settings = {"env": "CartPole-v1", "teacher.path": "a.zip", "learn_on.steps": 2_000}
    arms = {"fast": {"learn_on.learning_rate": 1e-3}, "slow": {"learn_on.learning_rate": 1e-5}}
    study = StudyConfig(world="agent", settings=settings, arms=arms, metric="score_after")
    plan = make_plan(study, open_world("agent"), None)
    assert plan.arm("slow").config["learn_on"]["learning_rate"] == 1e-5
    assert plan.base["learn_on"]["target_update_interval"] == 1_000
    assert (plan.metric, plan.direction) == ("score_after", METRICS["score_after"].direction)
