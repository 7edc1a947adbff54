"""The control without a teacher: a stock DQN with a student's steps, updates, architecture and scoring."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN

import polydistill_agents.environments.task
import polydistill_agents.lineage.domain
from polydistill.config.plain_yaml import to_mapping
from polydistill.errors import Interrupted
from polydistill.learning.rewind import NonFiniteError
from polydistill.lineage import LineageConfig, run_lineage
from polydistill.runs import Run
from polydistill.runs.checkpoint import CheckpointConfig
from polydistill.runs.interruption import StopSignals
from polydistill_agents.environments.atari import AtariVecEnv
from polydistill_agents.environments.evaluation import Evaluation
from polydistill_agents.files.sb3_zip import read_agent
from polydistill_agents.lineage.agent_config import (
    AgentConfig,
    AgentScoringConfig,
    AgentStudentConfig,
    AgentTeacherConfig,
)
from polydistill_agents.lineage.config import AtariConfig, EvaluationConfig, PlayConfig, StudentConfig
from polydistill_agents.lineage.control import TDConfig
from polydistill_agents.lineage.domain import AgentDomain
from polydistill_agents.lineage.opening import open_teacher
from polydistill_agents.lineage.plan import PRODUCTS, format_plan, kind_of
from polydistill_agents.lineage.students import AnyConfig, make_control, make_env
from polydistill_agents.teachers import Teacher, as_teacher
from tests.agents.samples import make_network
from tests.stop_signals import StopAt

pytestmark = pytest.mark.usefixtures("one_thread")
TD = AgentStudentConfig(objective="td", batch_size=16, samples_per_step=2)


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    """A short control beside an untrained teacher of CartPole."""
    model = DQN("MlpPolicy", gym.make("CartPole-v1"), policy_kwargs={"net_arch": [8]}, seed=3, device="cpu")
    model.save(tmp_path / "teacher.zip")
    return AgentConfig(
        env="CartPole-v1",
        device="cpu",
        threads=1,
        teacher=AgentTeacherConfig(path=str(tmp_path / "teacher.zip")),
        student=TD,
        play=PlayConfig(steps=640, replay_steps=320, warmup_steps=64, n_envs=4, train_freq=8),
        evaluation=AgentScoringConfig(episodes=5, curve_every_steps=320, curve_episodes=3),
        checkpoint=CheckpointConfig(every_seconds=1e9, every_steps=160),
    )


def distil(
    out: Path, config: AnyConfig, stop: StopSignals | None = None, teacher: Teacher | None = None
) -> dict[str, Any]:
    with Run.open(out, config, kind=kind_of(config), command="-", products=PRODUCTS) as run:
        domain = AgentDomain(config, teacher or open_teacher(config))
        return run_lineage(domain, config, run, stop=stop or StopSignals())


def score_quickly(agent: Any, *given: Any, episodes: int, **options: Any) -> Evaluation:
    """Scores that depend on the weights, in the place of games that would take most of a test's time."""
    frames = torch.arange(episodes * 4 * 84 * 84).reshape(episodes, 4, 84, 84).to(torch.uint8)
    scores = agent(frames).sum(dim=1).numpy().astype(np.float64)
    return Evaluation(scores, np.ones(episodes, dtype=np.int64), None if options["reference"] is None else 0.5, 0.0)


def outcome(out: Path) -> Any:
    summary = json.loads((out / "summary.json").read_text())
    told = {k: v for k, v in summary.items() if k not in {"wall_seconds", "seconds", "throughput", "command"}}
    weights = read_agent(out / "student.zip").weights
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return told, lines, {name: value.numpy().tobytes() for name, value in weights.items()}


def test_a_control_that_was_stopped_ends_like_one_that_never_was(tmp_path: Path, config: AgentConfig) -> None:
    distil(tmp_path / "whole", config)
    stops = 0
    for at in (20, 60, 130, 200):
        try:
            np.random.seed(at)  # another process begins with another
            distil(tmp_path / "run", config, StopAt(at))
        except Interrupted as stopped:
            stops += "in generation 1" in str(stopped)
    assert stops >= 3
    distil(tmp_path / "run", config)
    for found, expected in zip(outcome(tmp_path / "run"), outcome(tmp_path / "whole"), strict=True):
        assert found == expected


def test_a_control_of_atari_that_was_stopped_ends_like_one_that_never_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sticky = {"max_frames": 160, "repeat_action_probability": 0.25, "noop_max": 5}
    monkeypatch.setattr(polydistill_agents.environments.task, "AtariVecEnv", partial(AtariVecEnv, **sticky))
    monkeypatch.setattr(polydistill_agents.lineage.domain, "evaluate", score_quickly)
    config = AtariConfig(
        device="cpu",
        threads=1,
        precision="float32",
        student=StudentConfig(objective="td", size="net3", batch_size=8, samples_per_step=1.0),
        play=PlayConfig(steps=80, replay_steps=64, warmup_steps=20, n_envs=2, train_freq=5),
        evaluation=EvaluationConfig(episodes=2, curve_every_steps=0),
        checkpoint=CheckpointConfig(every_seconds=1e9, every_steps=40),
    )
    run = partial(distil, teacher=as_teacher(make_network(n_actions=6)))
    run(tmp_path / "whole", config)
    for at in (20, 36):  # the second time the replay has begun to overwrite its oldest steps
        with pytest.raises(Interrupted, match="in generation 1 after step"):
            run(tmp_path / "run", config, StopAt(at))
    run(tmp_path / "run", config)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_control_has_the_steps_updates_architecture_and_metrics_of_a_student(
    tmp_path: Path, config: AgentConfig
) -> None:
    lesson = dataclasses.replace(config, student=AgentStudentConfig(batch_size=16, samples_per_step=2))
    control, student = distil(tmp_path / "control", config), distil(tmp_path / "student", lesson)
    found, expected = (
        {name: read_agent(out / "student.zip").data[name] for name in ("num_timesteps", "_n_updates")}
        for out in (tmp_path / "control", tmp_path / "student")
    )
    assert found == expected == {"num_timesteps": 640, "_n_updates": 80}
    first, second = (summary["generations"][1] for summary in (control, student))
    assert first["parameters"] == second["parameters"] == 4 * 8 + 8 + 8 * 2 + 2
    assert first["metrics"].keys() == second["metrics"].keys()
    assert control["generations"][0]["metrics"] == student["generations"][0]["metrics"]
    assert first["objective"] == "td"
    assert read_agent(tmp_path / "control/student.zip").score_kind == "q_values"
    opened = DQN.load(tmp_path / "control/student.zip", env=gym.make("CartPole-v1"), device="cpu")
    assert opened.predict(np.zeros(4, np.float32), deterministic=True)[0] in (0, 1)
    assert not (tmp_path / "control" / "recordings").exists()


def test_a_control_learns_from_rewards(config: AgentConfig) -> None:
    """A teacher that knows nothing: what is better than it was learned from play."""
    play = PlayConfig(steps=4_000, replay_steps=4_000, warmup_steps=500, n_envs=4, train_freq=64)
    student = dataclasses.replace(TD, batch_size=64, samples_per_step=16, learning_rate=2.3e-3, net_arch=(64, 64))
    config = dataclasses.replace(config, play=play, student=student)
    teacher = open_teacher(config)
    env = make_env(config, teacher, 1)
    model = make_control(config, teacher, env, 1).learn(4_000)
    assert model.ep_info_buffer is not None
    assert np.mean([game["l"] for game in list(model.ep_info_buffer)[-10:]]) > 60  # random play: 22


def test_the_games_of_a_control_begin_as_those_of_a_student(config: AgentConfig) -> None:
    teacher = open_teacher(config)
    first, second = make_env(config, teacher, 1), make_env(config, teacher, 1)
    make_control(config, teacher, second, 1)
    first.reset(), second.reset()
    assert first.reset_seeds.tolist() == second.reset_seeds.tolist()


def test_a_loss_that_is_not_finite_ends_a_control(config: AgentConfig) -> None:
    teacher = open_teacher(config)
    model = make_control(config, teacher, make_env(config, teacher, 1), 1)
    next(model.student.parameters()).data.fill_(np.nan)
    with pytest.raises(NonFiniteError, match="the loss of td is nan at step 64") as told:
        model.learn(100)
    assert told.value.left == "the state behind it and the loss"  # not "before it": it is not put back


def test_a_repeated_control_is_another_one(config: AgentConfig) -> None:
    repeated = dataclasses.replace(config, student=dataclasses.replace(TD, repeat=1))
    teacher = open_teacher(config)
    first, same, other = (
        make_control(one, teacher, make_env(one, teacher, 1), 1) for one in (config, config, repeated)
    )
    weights = [next(model.student.parameters()).detach().numpy() for model in (first, same, other)]
    assert (weights[0] == weights[1]).all()
    assert (weights[0] != weights[2]).all()


def test_in_new_games_a_control_waits_until_its_replay_has_filled(config: AgentConfig) -> None:
    teacher = open_teacher(config)
    begun = make_control(config, teacher, make_env(config, teacher, 1), 1).learn(320)
    assert begun._n_updates == 40
    model = make_control(config, teacher, make_env(config, teacher, 1), 1)
    model.load_state(begun.state(), new_games=True)
    model.learn(60, reset_num_timesteps=False)
    assert model._n_updates == 40
    model.learn(4, reset_num_timesteps=False)
    assert model._n_updates == 40 + 8


def test_the_settings_of_dqn_are_written_where_they_decide_something_and_only_there(config: AgentConfig) -> None:
    td = to_mapping(config)["student"]["td"]
    expected = {"gamma": 0.99, "exploration_fraction": 0.16, "exploration_final_eps": 0.05}
    assert td == {**expected, "target_update_interval": 250}
    assert "td" not in to_mapping(AgentStudentConfig())
    atari = AtariConfig(student=StudentConfig(objective="td", td=TDConfig(gamma=0.9)))
    assert to_mapping(atari)["student"]["td"] == {**expected, "gamma": 0.9, "target_update_interval": 1000}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "policy_kl", "td": TDConfig(gamma=0.9)}, "td.gamma is of the objective td, not of policy_kl"),
        ({"objective": "td", "delta": 1.0}, "td has no option delta"),
        ({"objective": "td", "beta": 0.5}, "td has no option beta"),
    ],
)
def test_an_option_without_effect_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StudentConfig(**options)


def test_settings_of_dqn_out_of_range_are_refused() -> None:
    for name in ("gamma", "exploration_fraction", "exploration_final_eps"):
        with pytest.raises(ValueError, match=f"{name} must lie between 0 and 1, got 1.5"):
            TDConfig(**{name: 1.5})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="exploration_fraction must be positive"):
        TDConfig(exploration_fraction=0.0)
    with pytest.raises(ValueError, match="target_update_interval must be at least 1"):
        TDConfig(target_update_interval=0)


def test_a_control_has_no_second_generation(config: AgentConfig) -> None:
    with pytest.raises(ValueError, match=r"td learns from no teacher: lineage\.generations must be 1"):
        dataclasses.replace(config, lineage=LineageConfig(generations=2))


def test_a_plan_of_a_control_tells_the_memory_of_its_replay(config: AgentConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, play=dataclasses.replace(config.play, steps=2**20, replay_steps=2**20))
    plan = format_plan(config, open_teacher(config), tmp_path / "run")
    assert "memory: 32.0 MiB of replay on cpu" in plan  # twice 4 numbers of 4 bytes each
