"""Measure the speed of distilling an agent of CartPole beside that of Stable-Baselines3's own DQN.

    python scripts/bench_agent.py --threads 1 --json scripts/measurements/bench_agent.json

Both learn with the same network, batches, and updates per step of play, in turn, in several rounds of one process;
medians are reported. The student watches several games at once; DQN plays one, as it does by default, and in a second
row as many as the student watches.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("atari")

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from polydistill.config.parsing import parse
from polydistill.config.plain_yaml import to_mapping
from polydistill.cores import say_if_loaded
from polydistill.disk import atomic_write
from polydistill.errors import require_at_least, run_script
from polydistill.provenance import git_state, hardware, versions
from polydistill.runs import format_table
from polydistill_agents import PolicyDistillation
from polydistill_agents.environments.atari import PACKAGES
from polydistill_agents.environments.gym_task import open_environment

STEPS_PER_UPDATE = 4  # train_freq of Stable-Baselines3's DQN, whose gradient_steps are 1
WARM_UP = 1_024  # steps


@dataclass(frozen=True)
class BenchConfig:
    """What is measured, and how long.

    Args:
        net_archs: widths of the two hidden layers; each is measured.
        batch_size: samples per update.
        n_envs: games that the student watches at once.
        threads: processor threads of torch.
        rounds: times that everything is measured, in turn.
        steps: of play per measurement.
        json: file for the raw measurements; empty: none.
    """

    net_archs: tuple[int, ...] = (64, 256)
    batch_size: int = 64
    n_envs: int = 8
    threads: int = 1
    rounds: int = 7
    steps: int = 8_192
    json: str = ""

    def __post_init__(self) -> None:
        require_at_least(1, self, "batch_size", "n_envs", "threads", "rounds", "steps")
        if not self.net_archs:
            raise ValueError("net_archs is empty: name at least one width")


def make_dqn(config: BenchConfig, width: int, n_envs: int) -> DQN:
    """Stable-Baselines3's DQN at its defaults, which of CartPole are those of every environment."""
    return DQN(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs, seed=0),
        learning_starts=100,
        batch_size=config.batch_size,
        train_freq=STEPS_PER_UPDATE,
        gradient_steps=n_envs,  # train_freq counts steps of all games together
        policy_kwargs={"net_arch": [width, width]},
        seed=0,
        device="cpu",
    )


def make_student(config: BenchConfig, width: int, teacher: DQN) -> PolicyDistillation:
    """A student with as many updates per step."""
    env = open_environment("CartPole-v1").make_env(config.n_envs, seed=0)
    return PolicyDistillation(
        "MlpPolicy",
        env,
        teacher,
        learning_starts=100,
        batch_size=config.batch_size,
        samples_per_step=config.batch_size / STEPS_PER_UPDATE,
        policy_kwargs={"net_arch": [width, width]},
        seed=0,
        device="cpu",
    )


def measure_loop(model: PolicyDistillation | OffPolicyAlgorithm, steps: int) -> float:
    """Samples per second that it learns from."""
    before, started = model._n_updates, time.perf_counter()
    model.learn(steps, reset_num_timesteps=False)
    return (model._n_updates - before) * model.batch_size / (time.perf_counter() - started)


def measure(config: BenchConfig, width: int) -> dict[str, list[float]]:
    """The rates of each, once per round."""
    teacher = make_dqn(config, width, 1)
    models = {
        "student": make_student(config, width, teacher),
        "dqn": make_dqn(config, width, 1),
        "dqn_games": make_dqn(config, width, config.n_envs),
    }
    for model in models.values():  # work that is done only once is not measured
        model.learn(WARM_UP)
    found: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(config.rounds):
        for name, model in models.items():
            found[name].append(round(measure_loop(model, config.steps), 1))
    return found


def format_result(found: dict[str, dict[str, list[float]]], n_envs: int) -> str:
    """Medians and ratios as a table."""
    names = {
        "student": f"PolicyDistillation, {n_envs} games",
        "dqn": "DQN.learn, one game",
        "dqn_games": f"DQN.learn, {n_envs} games",
    }
    rows: list[list[str | float | None]] = []
    for width, rates in found.items():
        for name, text in names.items():
            values = rates[name]
            ratio = statistics.median(ours / its for ours, its in zip(rates["student"], values, strict=True))
            spread = f"{min(values):,.0f} to {max(values):,.0f}"
            rows.append([f"[{width}, {width}]", text, f"{statistics.median(values):,.0f}", spread, f"{ratio:.2f}"])
    return format_table(["net_arch", "learner", "samples/s", "range", "student / this"], rows)


@run_script
def main(argv: list[str] | None = None) -> None:
    program = "python scripts/bench_agent.py"
    config = parse(BenchConfig, argv, program=program, description=__doc__ or "", default_name=None).config
    say_if_loaded()
    torch.set_num_threads(config.threads)
    found = {str(width): measure(config, width) for width in config.net_archs}
    print(format_result(found, config.n_envs))
    if config.json:
        raw: dict[str, Any] = {
            "config": to_mapping(config),
            "samples_per_second": found,
            "hardware": hardware(),
            "versions": versions(*PACKAGES),
            "git": git_state(),
        }
        atomic_write(Path(config.json), (json.dumps(raw, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
