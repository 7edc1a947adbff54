"""Measure what students that learn meanwhile cost a DQN of Atari.

    python scripts/bench_online.py --threads 2 --json scripts/measurements/bench_online.json

One DQN, set up as train_teacher.py does, plays and learns: without students, with each of them, and with all, in turn,
in several rounds of one process; medians are reported. The limit stands beside them: 1.25 times the time without
students, for one of net2's size. Who labels is copied anew for each round of updates, so that this is the most it may
cost.
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

from stable_baselines3 import DQN

from polydistill.config.parsing import parse
from polydistill.config.plain_yaml import to_mapping
from polydistill.cores import say_if_loaded
from polydistill.device import Precision, prepare
from polydistill.disk import atomic_write
from polydistill.errors import require_at_least, run_script
from polydistill.provenance import git_state, hardware, versions
from polydistill.runs import format_table
from polydistill_agents.distillation.online import DistillCallback
from polydistill_agents.distillation.online.students import name_students
from polydistill_agents.environments.atari import PACKAGES
from polydistill_agents.teachers.training import make_teacher
from polydistill_agents.teachers.training_config import TeacherTrainingConfig

LIMIT = 1.25  # times the time without students, for one of net2's size
ALONE, ALL = "without students", "all"


@dataclass(frozen=True)
class BenchConfig:
    """What is measured, and how long.

    Args:
        game: that is played.
        students: sizes, each measured alone, and all of them together.
        samples_per_step: samples that each student learns from per step of the teacher.
        round_steps: steps of the teacher between two rounds of updates.
        precision: of all networks, float32 or bfloat16; auto: bfloat16 where the processor computes in it.
        threads: processor threads.
        rounds: times that everything is measured, in turn.
        steps: of play per measurement.
        warm_up_steps: of each before the first.
        json: file for the raw measurements; empty: none.
    """

    game: str = "pong"
    students: tuple[str, ...] = ("net1", "net2", "net3")
    samples_per_step: float = 2.0
    round_steps: int = 512
    precision: Precision = "auto"
    threads: int = 0
    rounds: int = 7
    steps: int = 2_048
    warm_up_steps: int = 2_048
    json: str = ""

    def __post_init__(self) -> None:
        require_at_least(1, self, "rounds", "steps", "round_steps", "warm_up_steps")
        require_at_least(0, self, "threads")
        name_students(list(self.students))
        if self.samples_per_step <= 0:
            raise ValueError(f"samples_per_step must be positive, got {self.samples_per_step}")

    @property
    def teacher(self) -> TeacherTrainingConfig:
        """The training that is measured, on this machine."""
        steps = max(2 * self.warm_up_steps, 20_000)
        training = TeacherTrainingConfig(
            game=self.game, steps=steps, threads=self.threads, precision=self.precision, buffer_size=20_000,
            learning_starts=min(self.warm_up_steps // 2, 256), device="cpu",
        )  # fmt: skip
        return training.resolve()


def make_callbacks(config: BenchConfig, precision: Any) -> dict[str, DistillCallback | None]:
    """What is measured, by name."""
    groups = {name: [name] for name in config.students}
    if len(groups) > 1:
        groups[ALL] = list(config.students)
    made: dict[str, DistillCallback | None] = {ALONE: None}
    for name, students in groups.items():
        made[name] = DistillCallback(
            students,
            labels="current",
            samples_per_step=config.samples_per_step,
            round_steps=config.round_steps,
            learning_starts=min(config.warm_up_steps // 2, 256),
            precision=precision,
            seed=0,
        )
    return made


def measure(model: DQN, callbacks: dict[str, DistillCallback | None], config: BenchConfig) -> dict[str, list[float]]:
    """Seconds per step of the teacher, once per round."""
    for callback in callbacks.values():  # work that is done only once is not measured
        model.learn(config.warm_up_steps, callback, reset_num_timesteps=False)
    found: dict[str, list[float]] = {name: [] for name in callbacks}
    for _ in range(config.rounds):
        for name, callback in callbacks.items():
            before, started = model.num_timesteps, time.perf_counter()
            model.learn(config.steps, callback, reset_num_timesteps=False)
            found[name].append((time.perf_counter() - started) / (model.num_timesteps - before))
    return found


def format_result(found: dict[str, list[float]], n_all: int) -> str:
    """Medians and ratios as a table."""
    headers = ["students", "steps/s", "time / without", "range", "per student", "limit"]
    rows: list[list[str | float | None]] = [[ALONE, f"{1 / statistics.median(found[ALONE]):,.0f}", *[None] * 4]]
    for name in list(found)[1:]:
        ratios = [ours / alone for ours, alone in zip(found[name], found[ALONE], strict=True)]
        ratio = statistics.median(ratios)
        each = 1 + (ratio - 1) / (n_all if name == ALL else 1)
        rate, spread = 1 / statistics.median(found[name]), f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append([name, f"{rate:,.0f}", f"{ratio:.3f}", spread, f"{each:.3f}", f"{LIMIT:.2f}"])
    return format_table(headers, rows)


@run_script
def main(argv: list[str] | None = None) -> None:
    program = "python scripts/bench_online.py"
    config = parse(BenchConfig, argv, program=program, description=__doc__ or "", default_name=None).config
    say_if_loaded()
    training = config.teacher
    prepare(training.device, training.threads)
    model, env = make_teacher(training)
    found = measure(model, make_callbacks(config, training.precision), config)
    env.close()
    print(format_result(found, len(config.students)))
    if config.json:
        raw: dict[str, Any] = {
            "config": to_mapping(config),
            "training": to_mapping(training),
            "seconds_per_step": found,
            "hardware": hardware(),
            "versions": versions(*PACKAGES),
            "git": git_state(),
        }
        atomic_write(Path(config.json), (json.dumps(raw, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
