"""Measure which objectives leave a student with the Q-values of its teacher, and at which scale of them.

    python scripts/measure_kept_q.py --teacher.path dqn.zip --json scripts/measurements/kept_q.json

Each objective teaches students of a DQN of CartPole, with several seeds and equal samples (the defaults of
distill_agent.py, 20,000 steps of play); then of the same DQN with all its Q-values 100 times as large. Errors are means
of sizes over states of the teacher's own play, in units of the temperature.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("atari")

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polydistill.config.parsing import parse
from polydistill.config.plain_yaml import to_mapping
from polydistill.disk import atomic_write
from polydistill.errors import UserError, require_at_least, run_script
from polydistill.provenance import git_state, hardware, versions
from polydistill.runs import format_table
from polydistill_agents import PolicyDistillation, as_teacher
from polydistill_agents.environments.atari import PACKAGES
from polydistill_agents.environments.evaluation import evaluate
from polydistill_agents.environments.gym_task import GymTask, open_environment
from polydistill_agents.lineage.agent_config import AgentConfig, AgentTeacherConfig
from polydistill_agents.networks.architecture import Architecture
from polydistill_agents.networks.observations import to_tensors
from polydistill_agents.networks.regret import q_errors
from polydistill_agents.teachers import Teacher

OBJECTIVES = ("policy_kl", "policy_kl_q", "policy_mse")
GAMES_SEED = 1_000  # of the states and of the scores: games that no student learned from


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher.

    Args:
        path: a zip of a DQN of CartPole, of Stable-Baselines3 of any year.
    """

    path: str = ""


@dataclass(frozen=True)
class KeptQConfig:
    """What is measured, and how long.

    Args:
        scales: of the teacher's Q-values; each has its own students.
        seeds: students of each objective and scale.
        steps: of play that each student watches.
        episodes: games of each student's score.
        states: of the teacher's play, in which the Q-values are compared.
        threads: processor threads of torch.
        json: file for the raw measurements; empty: none.
    """

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    scales: tuple[float, ...] = (1.0, 100.0)
    seeds: int = 5
    steps: int = 20_000
    episodes: int = 20
    states: int = 4_800
    threads: int = 1
    json: str = ""

    def __post_init__(self) -> None:
        require_at_least(1, self, "seeds", "steps", "episodes", "states", "threads")
        if not self.scales:
            raise ValueError("scales is empty: name at least one")


def scale(teacher: Teacher, by: float) -> Teacher:
    """The same teacher with Q-values ``by`` times as large."""
    return Teacher(lambda observations: by * teacher(observations))


def play(task: GymTask, teacher: Teacher, states: int) -> Tensor:
    """``(states, numbers)`` observations of the teacher's own greedy play."""
    env = task.make_env(8, seed=GAMES_SEED)
    seen, observations = [], env.reset()
    while sum(map(len, seen)) < states:
        seen.append(np.array(observations))
        actions = teacher(to_tensors(observations, "cpu")).argmax(dim=1).numpy()
        observations = env.step(actions)[0]
    env.close()
    return torch.as_tensor(np.concatenate(seen)[:states])


def teach(config: KeptQConfig, task: GymTask, teacher: Teacher, shape: Architecture, objective: str, seed: int) -> Any:
    """A student that has learned, with the settings of distill_agent.py."""
    usual = AgentConfig(env="CartPole-v1", teacher=AgentTeacherConfig(path=config.teacher.path))
    student = PolicyDistillation(
        "MlpPolicy",
        task.make_env(usual.play.n_envs, seed=seed),
        teacher,
        learning_rate=usual.student.learning_rate,
        buffer_size=usual.play.replay_steps,
        learning_starts=usual.play.warmup_steps,
        batch_size=usual.student.batch_size,
        samples_per_step=usual.student.samples_per_step,
        train_freq=usual.play.train_freq,
        averaging=usual.student.averaging,
        objective=objective,
        policy_kwargs={"net_arch": list(shape.net_arch), "activation_fn": shape.activation},
        seed=seed,
        device="cpu",
    )
    student.learn(config.steps)
    student.env.close()
    return student


def compare(student: PolicyDistillation, teacher: Teacher, states: Tensor) -> dict[str, float]:
    """Agreement and errors in these states; errors in units of the student's temperature."""
    scores, wanted = as_teacher(student)(states), teacher(states)
    best, worst = q_errors(scores, wanted)
    unit = student.temperature
    assert unit is not None
    agreed = (scores.argmax(dim=1) == wanted.argmax(dim=1)).double().mean()
    return {
        "temperature": unit,
        "agreement": float(agreed),
        "max_q_error": float(best.abs().mean()) / unit,
        "worst_q_error": float(worst.abs().mean()) / unit,
    }


def measure(config: KeptQConfig, original: Teacher) -> list[dict[str, Any]]:
    """A row for each student."""
    task, shape = open_environment("CartPole-v1"), original.architecture
    if original.kind != "q_values" or shape is None:
        raise UserError(
            f"{config.teacher.path} gives no Q-values, or is no DQN of plain layers: give a DQN of CartPole"
        )
    original.count_actions(task)
    states, rows = play(task, original, config.states), []
    for by in config.scales:
        teacher = scale(original, by)
        for objective in OBJECTIVES:
            for seed in range(config.seeds):
                student = teach(config, task, teacher, shape, objective, seed)
                games = evaluate(as_teacher(student), task, episodes=config.episodes, seed=GAMES_SEED)
                rows.append(
                    {
                        "objective": objective,
                        "scale": by,
                        "seed": seed,
                        "score": games.mean,
                        "mean_q": float(teacher(states).amax(dim=1).mean()),
                        **compare(student, teacher, states),
                    }
                )
                print(f"{objective}, scale {by:g}, seed {seed}: {games.mean:.1f}", file=sys.stderr)
    return rows


def format_rows(rows: list[dict[str, Any]]) -> str:
    """A row for each student; scripts/render_students.py makes the means over the seeds."""
    names = ("objective", "seed", "mean_q", "score", "agreement", "max_q_error", "worst_q_error")
    return format_table(
        names, [[f"{row[name]:,.4g}" if name not in names[:2] else row[name] for name in names] for row in rows]
    )


@run_script
def main(argv: list[str] | None = None) -> None:
    program = "python scripts/measure_kept_q.py"
    config = parse(KeptQConfig, argv, program=program, description=__doc__ or "", default_name=None).config
    torch.set_num_threads(config.threads)
    rows = measure(config, as_teacher(config.teacher.path))
    print(format_rows(rows))
    if config.json:
        raw: dict[str, Any] = {
            "config": to_mapping(config),
            "rows": rows,
            "hardware": hardware(),
            "versions": versions(*PACKAGES),
            "git": git_state(),
        }
        atomic_write(Path(config.json), (json.dumps(raw, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
