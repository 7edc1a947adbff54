"""Runs of a seed share the games of their first teacher, and have the scores that they would have played."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, PPO

import polydistill_agents.lineage.baseline
import polydistill_agents.lineage.domain
from polydistill.lineage import run_lineage
from polydistill.provenance import weights_sha256
from polydistill.runs import Run
from polydistill.runs.shared_store import VARIABLE
from polydistill_agents.environments.evaluation import Evaluation, evaluate
from polydistill_agents.environments.random_play import measure_random
from polydistill_agents.lineage.agent_config import (
    AgentConfig,
    AgentScoringConfig,
    AgentStudentConfig,
    AgentTeacherConfig,
)
from polydistill_agents.lineage.config import PlayConfig
from polydistill_agents.lineage.domain import AgentDomain
from polydistill_agents.lineage.opening import open_teacher
from polydistill_agents.lineage.plan import PRODUCTS, kind_of
from polydistill_agents.lineage.shared_games import SharedGames
from tests.agents.environments import toys  # noqa: F401  # registers Masked-v3

pytestmark = pytest.mark.usefixtures("one_thread")
KL = AgentStudentConfig(batch_size=16, samples_per_step=2, temperature=0.5)
MSE = dataclasses.replace(KL, objective="policy_mse", temperature=None)


def save(path: Path, kind: Any = DQN, seed: int = 3, env: str = "CartPole-v1") -> str:
    model = kind("MlpPolicy", gym.make(env), policy_kwargs={"net_arch": [8]}, seed=seed, device="cpu")
    model.save(path)
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    return AgentConfig(
        env="CartPole-v1",
        device="cpu",
        threads=1,
        teacher=AgentTeacherConfig(path=save(tmp_path / "teacher.zip")),
        student=KL,
        play=PlayConfig(steps=160, replay_steps=160, warmup_steps=64, n_envs=4, train_freq=8),
        evaluation=AgentScoringConfig(episodes=5, curve_every_steps=80, curve_episodes=3),
    )


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whose games are played, and not read: the hash of the weights."""
    whose: list[str] = []

    def watch(agent: Any, *given: Any, **options: Any) -> Evaluation:
        whose.append("a curve" if agent.network is None else weights_sha256(agent.network.state_dict()))
        return evaluate(agent, *given, **options)

    def watch_random(*given: Any, **options: Any) -> Any:
        whose.append("random play")
        return measure_random(*given, **options)

    monkeypatch.setattr(polydistill_agents.lineage.domain, "evaluate", watch)
    monkeypatch.setattr(polydistill_agents.lineage.baseline, "measure_random", watch_random)
    return whose


def distil(out: Path, config: AgentConfig) -> tuple[Any, list[str]]:
    """The summary without its clock, and the metrics."""
    with Run.open(out, config, kind=kind_of(config), command="-", products=PRODUCTS) as run:
        run_lineage(AgentDomain(config, open_teacher(config)), config, run)
    summary = json.loads((out / "summary.json").read_text())
    told = {k: v for k, v in summary.items() if k not in {"wall_seconds", "seconds", "throughput", "command"}}
    return told, (out / "metrics.jsonl").read_text().splitlines()


def shared(run: tuple[Any, list[str]], played: list[str]) -> list[bool]:
    """Whether the games of the first teacher, of random play and of the student were read, and not played."""
    teacher, student = (generation["sha256"] for generation in run[0]["generations"])
    return [who not in played for who in (teacher, "random play", student)]


def test_the_second_arm_plays_no_game_of_the_teacher_and_has_the_same_summary(
    tmp_path: Path, config: AgentConfig, played: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(config, student=MSE)
    alone = distil(tmp_path / "alone", other)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "shared"))
    played.clear()
    first = distil(tmp_path / "first", config)
    assert shared(first, played) == [False, False, False]
    played.clear()
    assert distil(tmp_path / "second", other) == alone
    assert shared(alone, played) == [True, True, False]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"evaluation": AgentScoringConfig(episodes=6, curve_every_steps=80, curve_episodes=3)},
        {"evaluation": AgentScoringConfig(episodes=5, play="sample")},
        {"env_max_steps": 40},
        {"teacher": "another"},
    ],
    ids=lambda changes: "-".join(map(str, *changes.items())),
)
def test_what_changes_the_games_shares_nothing(
    tmp_path: Path, config: AgentConfig, played: list[str], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    if changes.get("teacher") == "another":
        changes = {"teacher": AgentTeacherConfig(path=save(tmp_path / "another.zip", seed=4))}
    other = dataclasses.replace(config, **changes)
    alone = distil(tmp_path / "alone", other)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "shared"))
    distil(tmp_path / "first", config)
    played.clear()
    assert distil(tmp_path / "second", other) == alone
    assert not any(shared(alone, played))


def test_where_q_values_are_sampled_the_temperature_counts(tmp_path: Path, config: AgentConfig) -> None:
    teacher = open_teacher(config)
    colder = dataclasses.replace(config, student=dataclasses.replace(KL, temperature=0.25))

    def keys(acts: str) -> set[str]:
        return {SharedGames(each, teacher, acts)._key("evaluation") for each in (config, colder)}

    assert len(keys("greedy")) == 1
    assert len(keys("sample")) == 2
    assert not keys("greedy") & keys("sample")


def test_games_of_a_sampled_policy_and_those_with_masks_are_shared(
    tmp_path: Path, config: AgentConfig, played: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, changes in {
        "ppo": {"teacher": AgentTeacherConfig(path=save(tmp_path / "ppo.zip", PPO))},
        "masked": {
            "env": "Masked-v3",
            "teacher": AgentTeacherConfig(path=save(tmp_path / "masked.zip", MaskablePPO, env="Masked-v3")),
        },
    }.items():
        one = dataclasses.replace(config, **changes)
        other = dataclasses.replace(one, student=MSE)
        monkeypatch.delenv(VARIABLE, raising=False)
        alone = distil(tmp_path / f"{name}-alone", other)
        monkeypatch.setenv(VARIABLE, str(tmp_path / "shared"))
        distil(tmp_path / f"{name}-first", one)
        played.clear()
        assert distil(tmp_path / f"{name}-second", other) == alone
        assert shared(alone, played) == [True, True, False]


def test_a_damaged_file_is_played_again(
    tmp_path: Path, config: AgentConfig, played: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "shared"))
    first = distil(tmp_path / "first", config)
    for path in (tmp_path / "shared").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    played.clear()
    assert distil(tmp_path / "second", config) == first
    assert not any(shared(first, played))


def test_an_evaluation_comes_back_bit_for_bit(
    tmp_path: Path, config: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "shared"))
    scores = np.array([0.1 + 0.2, -1e-300, 3e17])
    games = Evaluation(scores, np.array([1, 2**40, 3]), None, 0.125, 1, 2, 2, 1 / 3)
    ours = SharedGames(config, open_teacher(config), "greedy")
    ours.of_teacher("evaluation", lambda: games)
    ours.of_random_play(lambda: scores)

    def never() -> Any:
        raise AssertionError("it was there")

    found = ours.of_teacher("evaluation", never)
    assert found.scores.tobytes() == ours.of_random_play(never).tobytes() == scores.tobytes()
    assert found.lengths.tolist() == [1, 2**40, 3]
    assert found[2:] == games[2:]
