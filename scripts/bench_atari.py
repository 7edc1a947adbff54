"""Measure the speed of distilling an Atari agent: its parts alone, the running loop, and two other ways to learn.

    python scripts/bench_atari.py --threads 2 --json scripts/measurements/bench_atari.json

All parts are measured in turn, in several rounds of one process, and medians are reported: such rates are noisy, and
ratios within a round are less so. The two other ways are the same update in plain float32 torch, as one would write
it by hand, and the loop of Stable-Baselines3's own DQN with the same network, games, batch size and updates per step.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("atari")

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import DQN
from torch import Tensor, nn
from torch.nn import functional as F

from polydistill.config.parsing import parse
from polydistill.config.plain_yaml import to_mapping
from polydistill.disk import atomic_write
from polydistill.errors import run_script
from polydistill.provenance import git_state, hardware, versions
from polydistill.runs import format_table
from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill_agents.environments.atari import PACKAGES, AtariVecEnv
from polydistill_agents.lineage.config import AtariConfig
from polydistill_agents.lineage.opening import open_teacher
from polydistill_agents.lineage.rates import Rates, measure_environment, measure_labels, measure_rate, measure_training
from polydistill_agents.lineage.students import make_env, make_student


@dataclass(frozen=True)
class BenchConfig:
    """What is measured, and how long.

    Args:
        game: ROM id of ale-py, like pong.
        teacher: a DQN zip; empty: the project's own teacher of the game.
        threads: processor threads of torch and of the emulator; 0: as many as there are cores.
        device: auto, cpu or cuda.
        samples_per_step: learned from per step of play; 0: as many as the default run.
        rounds: times that everything is measured, in turn.
        seconds: per measurement of a part.
        loop_steps: agent steps per measurement of a loop.
        json: file for the raw measurements; empty: none.
    """

    game: str = "pong"
    teacher: str = ""
    threads: int = 0
    device: str = "auto"
    samples_per_step: float = 0.0
    rounds: int = 5
    seconds: float = 3.0
    loop_steps: int = 4_096
    json: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.samples_per_step < math.inf:
            raise ValueError(f"samples_per_step must be 0 or more, got {self.samples_per_step}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device must be auto, cpu or cuda, got {self.device!r}")
        for name in ("rounds", "seconds", "loop_steps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


def hand_written_update(observations: Tensor, targets: Tensor, batch_size: int) -> Callable[[], int]:
    """One update of a Nature-CNN by KL at temperature 0.01, in plain float32 torch on batches from memory."""
    network = nn.Sequential(
        *(nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, targets.shape[1])),
    ).to(observations.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-4)

    def update() -> int:
        chosen = torch.randint(len(observations), (batch_size,), device=observations.device)
        scores = network(observations[chosen].float() / 255)
        policy = F.softmax(targets[chosen] / 0.01, dim=1)
        loss = F.kl_div(F.log_softmax(scores, dim=1), policy, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return batch_size

    return update


def timed_loop(model: PolicyDistillation, env: AtariVecEnv, steps: int) -> dict[str, float]:
    """Rates in the running loop: each part's by its own time, and the whole loop's samples per second."""
    spent = {"environment": 0.0, "labels": 0.0, "training": 0.0}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments)
            if name == "labels" and model.device.type == "cuda":
                torch.cuda.synchronize()
            spent[name] += time.perf_counter() - started
            return result

        return call

    teacher = model.teacher
    assert teacher is not None
    step, label, train = env.step, teacher.label, model.train
    env.step, teacher.label = timed("environment", step), timed("labels", label)  # type: ignore[method-assign]
    model.train = timed("training", train)
    before, started = model._n_updates, time.perf_counter()
    try:
        model.learn(steps, log_interval=None, reset_num_timesteps=False)
    finally:
        env.step, teacher.label, model.train = step, label, train  # type: ignore[method-assign]
    seconds = time.perf_counter() - started
    samples = (model._n_updates - before) * model.batch_size
    return {
        "loop_environment": steps / spent["environment"],
        "loop_labels": steps / spent["labels"],
        "loop_training": samples / spent["training"],
        "loop": samples / seconds,
    }


def make_dqn(config: AtariConfig, env: AtariVecEnv) -> DQN:
    """Stable-Baselines3's DQN with as many updates per step, past its warm-up."""
    updates = Fraction(config.student.samples_per_step).limit_denominator(64) * env.num_envs / config.student.batch_size
    return DQN(
        "CnnPolicy",
        env,
        buffer_size=16_000,
        learning_starts=100,
        batch_size=config.student.batch_size,
        train_freq=updates.denominator,
        gradient_steps=updates.numerator,
        exploration_initial_eps=config.teacher.epsilon,
        exploration_final_eps=config.teacher.epsilon,
        seed=0,
        device=config.device,
    )


def dqn_loop(model: DQN, steps: int) -> float:
    """Samples per second that Stable-Baselines3's loop trains."""
    before, started = model._n_updates, time.perf_counter()
    model.learn(steps, reset_num_timesteps=False)
    return (model._n_updates - before) * model.batch_size / (time.perf_counter() - started)


def measure(config: BenchConfig, atari: AtariConfig) -> dict[str, list[float]]:
    """Every rate, once per round."""
    teacher = open_teacher(atari)
    torch.set_num_threads(atari.threads)
    env, loop_env, dqn_env = (make_env(atari, teacher, generation) for generation in (1, 2, 3))
    alone, loop = (make_student(atari, teacher, e, 1) for e in (env, loop_env))
    dqn = make_dqn(atari, dqn_env)
    alone.learning_starts = loop.learning_starts = 0
    for model in (loop, dqn, alone):  # a warm-up: work that is done only once is not measured
        model.learn(16 * env.num_envs)
    assert alone.replay is not None
    by_hand = hand_written_update(*alone.replay.gather(torch.arange(len(alone.replay))), atari.student.batch_size)
    found: dict[str, list[float]] = {}
    for _ in range(config.rounds):
        row = {
            "environment": measure_environment(env, config.seconds),
            "labels": measure_labels(teacher, env, atari.device, config.seconds),
            "training": measure_training(alone, config.seconds),
            "by_hand": measure_rate(by_hand, config.seconds, atari.device),
            **timed_loop(loop, loop_env, config.loop_steps),
            "dqn_loop": dqn_loop(dqn, config.loop_steps),
        }
        for name, value in row.items():
            found.setdefault(name, []).append(round(value, 1))
    return found


def format_result(found: dict[str, list[float]], samples_per_step: float) -> str:
    """The medians as a table, and the ratios that matter."""
    median = {name: statistics.median(values) for name, values in found.items()}
    names = {
        "environment": ("emulator", "steps/s"),
        "labels": ("teacher's labels", "labels/s"),
        "training": ("student's updates", "samples/s"),
        "loop": ("whole loop", "samples/s"),
        "by_hand": ("the same update by hand, float32", "samples/s"),
        "dqn_loop": ("Stable-Baselines3's DQN.learn", "samples/s"),
    }
    rows = [
        [text, unit, median[name], median.get(f"loop_{name}"), f"{min(found[name]):,.0f} to {max(found[name]):,.0f}"]
        for name, (text, unit) in names.items()
    ]
    bound = Rates(median["environment"], median["labels"], median["training"]).loop_bound(1 / samples_per_step)

    def ratio(above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(found[above], found[below], strict=True))

    return "\n".join(
        [
            format_table(["what", "unit", "alone", "in the loop", "range"], rows),
            "",
            f"whole loop / the three parts alone, one after another: {median['loop'] / bound:.2f}",
            f"student's updates / by hand in float32: {ratio('training', 'by_hand'):.2f}",
            f"whole loop / Stable-Baselines3's DQN.learn: {ratio('loop', 'dqn_loop'):.2f}",
        ]
    )


@run_script
def main(argv: list[str] | None = None) -> None:
    config = parse(
        BenchConfig, argv, program="python scripts/bench_atari.py", description=__doc__, default_name=None
    ).config
    atari = AtariConfig(game=config.game, device=config.device, threads=config.threads).resolve()  # type: ignore[arg-type]
    if config.teacher:
        atari = replace(atari, teacher=replace(atari.teacher, path=config.teacher))
    if config.samples_per_step:
        atari = replace(atari, student=replace(atari.student, samples_per_step=config.samples_per_step))
    found = measure(config, atari)
    print(format_result(found, atari.student.samples_per_step))
    if config.json:
        raw = {
            "config": to_mapping(atari),
            "rates_per_second": found,
            "hardware": hardware(),
            "versions": versions(*PACKAGES),
            "git": git_state(),
        }
        atomic_write(Path(config.json), (json.dumps(raw, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
