"""What is found and measured before a lineage of agents begins: its teacher, how all act, the temperature."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polydistill.errors import UserError
from polydistill.learning.lesson import require_kind
from polydistill.losses import get_objective
from polydistill.provenance import weights_sha256
from polydistill.streams import derive_seed, numpy_stream
from polydistill_agents.distillation.acting import TeacherActs
from polydistill_agents.distillation.student_policy import choose_architecture
from polydistill_agents.environments.protocols import sampling_temperature
from polydistill_agents.environments.recording import first_difference
from polydistill_agents.lineage.agent_config import AgentConfig
from polydistill_agents.lineage.config import SAME_SIZE, AtariConfig
from polydistill_agents.lineage.datasets import (
    require_can_be_saved,
    require_fits,
    require_same_original,
    require_told_games,
)
from polydistill_agents.lineage.student_file import is_student
from polydistill_agents.lineage.students import AnyConfig, rehearse, student_network
from polydistill_agents.networks.architecture import Architecture
from polydistill_agents.networks.nature import SIZES, fits_stock
from polydistill_agents.networks.observations import Arrays, to_tensors
from polydistill_agents.teachers import Teacher, as_teacher
from polydistill_agents.teachers.recorded import RecordedTeacher
from polydistill_agents.teachers.temperature import Tempered, choose_temperature
from polydistill_agents.teachers.zoo import find_teacher

STATES = 2048  # of a teacher's play, from which a temperature is chosen
DATASET = "dataset_sha256"  # among the metrics of generation 0: of the play that generation 1 learned from


def open_teacher(config: AnyConfig) -> Teacher:
    """The configured teacher, or the project's own, or the one of a data set of play, on the configured device.

    Raises:
        UserError: there is none, the file is damaged, it does not fit the environment, or no student could learn from
            it; or the environment's play cannot be saved, or its student cannot learn on, as is asked.
    """
    if config.save_dataset is not None:
        require_can_be_saved(config)
    teacher = open_teachers(config)
    teacher.to(config.device).count_actions(config.task)
    if config.student.has_teacher:
        try:
            require_kind(get_objective(config.student.objective), teacher.kind)
        except ValueError as error:
            raise UserError(str(error)) from None
    _require_can_learn_on(config, teacher)
    rehearse(config, teacher)
    return teacher


def architecture_of_student(config: AnyConfig, teacher: Teacher) -> Architecture:
    """Of a student of ``teacher``; no game is opened, and no memory taken."""
    policy, network = student_network(config, config.task.observation_space)
    with warnings.catch_warnings():  # the run itself says that a teacher's architecture is unknown
        warnings.simplefilter("ignore")
        return choose_architecture(policy, network.get("size"), teacher, network.get("policy_kwargs", {}))


def _require_can_learn_on(config: AnyConfig, teacher: Teacher) -> None:
    if isinstance(config, AgentConfig) and config.learn_on.steps is not None:
        size = architecture_of_student(config, teacher).size
        if size is not None and not fits_stock(size):
            raise UserError(f"a student of size {size} is wider than DQN.load's networks: leave learn_on.steps out")


def _open_recorded(config: AnyConfig) -> RecordedTeacher:
    """The teacher of the configured data set, with the one behind it where its file is named.

    Raises:
        UserError: the file is none, or of other play than the config asks for; or the teacher is another one.
    """
    recorded = RecordedTeacher(Path(config.dataset or ""))
    require_fits(config, recorded.data)
    if config.teacher.paths:
        recorded.original = open_teachers(dataclasses.replace(config, dataset=None))
        network = recorded.original.network
        require_same_original(recorded, None if network is None else weights_sha256(network.state_dict()))
        recorded.original.to(config.device).count_actions(config.task)
    else:
        require_told_games(config, recorded)
    return recorded


def open_teachers(config: AnyConfig) -> Teacher:
    """The teacher, or the mean of several, each of Q-values at its own temperature; or that of a data set.

    Raises:
        UserError: a file is missing or damaged, or they are no one teacher.
    """
    if config.dataset is not None:
        return _open_recorded(config)
    first = config.teacher.path or find_teacher(config.game) if isinstance(config, AtariConfig) else config.teacher.path
    members = [as_teacher(path).to(config.device) for path in (first, *config.teacher.more)]
    if len(members) == 1:
        return members[0]
    if isinstance(config, AtariConfig) and config.student.size == SAME_SIZE and len({m.size for m in members}) > 1:
        raise UserError(f"teacher.more: the teachers are of several sizes: choose student.size, of {', '.join(SIZES)}")
    temperatures = []
    for member in members:
        member.count_actions(config.task)
        temperatures.append(temperature_of(config, member))
    return as_teacher(members, temperatures=temperatures)


def temperature_of(config: AnyConfig, teacher: Teacher) -> float:
    """T of its policy: 1 of logits; of Q-values the configured one, else what its own play asks for."""
    if teacher.kind == "logits":
        return 1.0
    return config.student.temperature or measure_temperature(config, teacher).temperature


def measure_temperature(config: AnyConfig, teacher: Teacher) -> Tempered:
    """The temperature for a teacher of Q-values, from states of its own play."""
    options: Any = {"seed": derive_seed(config.seed, "temperature"), "n_threads": config.threads}
    n_actions = teacher.count_actions(config.task)
    env = config.task.for_teacher().make_env(config.play.n_envs, n_actions=n_actions, **options)
    act = TeacherActs(config.teacher.epsilon, None, numpy_stream(config.seed, "temperature, exploration", 0))
    observations: Arrays = env.reset()
    teacher.begin(env.num_envs)
    starts, seen = np.ones(env.num_envs, dtype=bool), []
    for _ in range(-(-STATES // env.num_envs)):
        states = to_tensors(observations, config.device)
        seen.append(teacher.label(states, starts))
        observations, _, starts, _ = env.step(act(states, seen[-1]))
    env.close()
    return choose_temperature(torch.cat(seen))


def tempered(config: AnyConfig, temperature: float) -> AnyConfig:
    """The config with a temperature."""
    student: Any = dataclasses.replace(config.student, temperature=temperature)
    return dataclasses.replace(config, student=student)


def say_what_to_expect(config: AgentConfig) -> None:
    """One line on standard error for each thing that a user must know beforehand."""
    found = list(config.task.notes)
    step = first_difference(config.task, seed=derive_seed(config.seed, "repeats"))
    if step is not None:
        found.append(
            f"{config.env} does not repeat itself from a seed (step {step}): a run that is stopped goes on with new "
            "games, so its result is not that of an undisturbed one"
        )
    for line in found:
        print(line, file=sys.stderr)


def choose_play(config: AnyConfig, teacher: Teacher) -> str:
    """How all agents of a lineage act while they are scored, "greedy" or "sample": as the protocol has it for the first
    teacher, so that its students, which are DQNs in their files, compare with it.
    """
    if isinstance(teacher, RecordedTeacher):
        if teacher.original is None:
            return require_told_games(config, teacher)
        teacher = teacher.original
    settings, paths = config.evaluation, config.teacher.paths
    play = "greedy" if settings.play == "protocol" and paths and all(map(is_student, paths)) else settings.play
    sampled = sampling_temperature(play, config.task.protocol(settings.protocol), teacher.kind, 1.0)
    return "greedy" if sampled is None else "sample"


def require_same_teacher(config: AnyConfig, teacher: Teacher, first: Mapping[str, Any]) -> None:
    """Compare teacher and data set with generation 0, as summary.json has it: where they lie does not matter.

    Args:
        config: of the run.
        teacher: of generation 1.
        first: generation 0.

    Raises:
        UserError: they are not those that the run began with.
    """
    recorded = teacher if isinstance(teacher, RecordedTeacher) else None
    if first["metrics"].get(DATASET) != (None if recorded is None else recorded.content_sha256):
        raise UserError("the run began with other play than dataset names now; give --out another folder")
    network = teacher.network if recorded is None or recorded.original is None else recorded.original.network
    if (None if network is None else weights_sha256(network.state_dict())) != first["sha256"]:
        where = f"teacher.path {config.teacher.path} holds" if config.teacher.path else "the project's teacher has"
        where = "teacher.path and teacher.more hold" if config.teacher.more else where
        raise UserError(f"{where} other weights than those that this run began with; give --out another folder")
