"""What a generation begins with: its games, a student that has learned nothing, and a rehearsal of its first update."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from polydistill.errors import UserError
from polydistill.learning.rewind import NonFiniteError
from polydistill.streams import derive_seed, repeated_seed
from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill_agents.distillation.q_learning import QLearning
from polydistill_agents.distillation.settings import fitting_policy
from polydistill_agents.distillation.student_policy import choose_architecture
from polydistill_agents.environments.atari import AtariVecEnv
from polydistill_agents.environments.checksums import Checksums
from polydistill_agents.environments.seeded import SeededVecEnv
from polydistill_agents.lineage.agent_config import AgentConfig
from polydistill_agents.lineage.config import SAME_SIZE, AtariConfig
from polydistill_agents.networks.observations import take, to_tensors
from polydistill_agents.teachers import Teacher
from polydistill_agents.teachers.recorded import RecordedTeacher

REHEARSED = 256  # samples of a rehearsal at most
REHEARSED_GAMES = 4  # a game takes a tenth of a second to begin

AnyConfig = AtariConfig | AgentConfig


def role_of(generation: int) -> str:
    """The name under which a student's numbers are logged."""
    return f"generation_{generation}"


def role_of_ensemble(members: Sequence[int]) -> str:
    """The name under which the score of an ensemble is logged; those of a lineage are generations in a row."""
    return f"ensemble_{members[0]}_{members[-1]}"


def seed_of_students(config: AnyConfig) -> int:
    """Root of the random streams of learning: the seed, or of a student repeated another for each number.

    What is scored, and how, stays the seed's: teachers and students of a seed meet the same games.
    """
    return repeated_seed(config.seed, config.student.repeat)


def make_env(config: AnyConfig, teacher: Teacher, generation: int) -> SeededVecEnv:
    """The games that ``teacher`` plays for the student of ``generation``, with its actions."""
    seed = derive_seed(seed_of_students(config), "environments of play", generation)
    n_actions = teacher.count_actions(config.task)
    env = config.task.make_env(config.play.n_envs, seed=seed, n_threads=config.threads, n_actions=n_actions)
    if isinstance(teacher, RecordedTeacher):
        teacher.prepare(env)
    return env


def make_checksums(config: AnyConfig, teacher: Teacher, env: SeededVecEnv, generation: int) -> Checksums | None:
    """Those of the play of ``generation``, where it is to be saved, or is that of a data set; else None."""
    if isinstance(teacher, RecordedTeacher):
        return teacher.checksums(env)
    saved = config.save_dataset is not None and generation == 1
    return Checksums(sliding=isinstance(env, AtariVecEnv)) if saved else None


def student_network(config: AnyConfig, space: spaces.Space[Any]) -> tuple[str, dict[str, Any]]:
    """The student's policy for observations of ``space``, and what a ``PolicyDistillation`` is told of its network."""
    if isinstance(config, AtariConfig):
        return "CnnPolicy", {"size": None if config.student.size == SAME_SIZE else config.student.size}
    network: dict[str, Any] = {} if config.student.size is None else {"size": config.student.size}
    if config.student.net_arch is not None:
        network["policy_kwargs"] = {"net_arch": list(config.student.net_arch)}
    return fitting_policy(space), network


def make_student(config: AnyConfig, teacher: Teacher, env: SeededVecEnv, generation: int) -> PolicyDistillation:
    """The untrained student of ``generation``, watching ``env``."""
    policy, network = student_network(config, env.observation_space)
    return PolicyDistillation(
        policy,
        env,
        teacher,
        learning_rate=config.student.learning_rate,
        averaging=config.student.averaging,
        temperature=config.student.temperature or 1.0,
        **network,
        **settings_of_play(config),
        generation=generation,
        seed=seed_of_students(config),
    )


def settings_of_play(config: AnyConfig) -> dict[str, Any]:
    """What a student is told of its play, and of what it learns from it."""
    beta, end = config.play.beta, config.play.beta_end
    return {
        "buffer_size": config.play.replay_steps,
        "learning_starts": config.play.warmup_steps,
        "batch_size": config.student.batch_size,
        "samples_per_step": config.student.samples_per_step,
        "train_freq": config.play.train_freq,
        "objective": config.student.objective,
        "objective_kwargs": config.student.options(),
        "exploration_rate": config.teacher.epsilon,
        "play": config.teacher.play,
        "beta": beta if end is None else (beta, end),
        "precision": "bfloat16" if config.precision == "bfloat16" else "float32",
        "device": config.device,
    }


def make_control(config: AnyConfig, teacher: Teacher, env: SeededVecEnv, generation: int) -> QLearning:
    """The untrained DQN that plays ``env`` itself: of the architecture that a student of ``teacher`` would have."""
    policy, network = student_network(config, env.observation_space)
    td = config.student.td
    return QLearning(
        env,
        choose_architecture(policy, network.get("size"), teacher, network.get("policy_kwargs", {})),
        samples_per_step=config.student.samples_per_step,
        learning_starts=config.play.warmup_steps,
        log_every=config.play.train_freq,
        seed=derive_seed(seed_of_students(config), "control", generation),
        learning_rate=config.student.learning_rate,
        buffer_size=config.play.replay_steps,
        batch_size=config.student.batch_size,
        device=config.device,
        **td.given,
    )


def rehearse(config: AnyConfig, teacher: Teacher) -> None:
    """One update of a throw-away student from the first states of play: what only a batch shows, shown before hours.

    Raises:
        UserError: the teacher's scores, the loss or the weights after the update are not finite.
    """
    if not config.student.has_teacher:
        return  # nobody learns from its scores
    if not teacher.recorded:
        few = dataclasses.replace(config.play, n_envs=min(REHEARSED_GAMES, config.play.n_envs))
        config = dataclasses.replace(config, play=few)
    env = make_env(config, teacher, generation=1)
    model = make_student(config, teacher, env, generation=1)
    first = env.reset()
    if isinstance(teacher, RecordedTeacher):
        teacher.checksums(env).begin(first)
    observations = to_tensors(first, config.device)
    teacher.begin(env.num_envs)
    try:
        targets = model.label(env, observations, np.ones(env.num_envs, dtype=bool))
    except NonFiniteError:
        raise UserError("the teacher's scores of the first states are not finite: it cannot teach") from None
    env.close()
    rows = torch.arange(min(config.student.batch_size, REHEARSED), device=targets.device) % len(targets)
    for _ in range(2):  # the second shows what the first has made of the student
        loss, scores = model.learner.update(take(observations, rows), targets[rows])
    if not bool(loss.isfinite() & scores.isfinite().all()):
        raise UserError(
            f"the first update of a student is not finite with student.objective = {config.student.objective} and "
            f"student.learning_rate = {config.student.learning_rate:g}: choose others"
        )
