"""What decides a distillation of several environments of gymnasium, of one form of observations, into one student."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from polydistill.config.fields import check_fields
from polydistill.device import MOST_THREADS, Device, resolve_machine
from polydistill.errors import UserError, require_at_least, require_at_most
from polydistill.lineage import LineageConfig
from polydistill.runs.checkpoint import CheckpointConfig
from polydistill_agents.distillation.settings import fitting_policy
from polydistill_agents.distillation.student_policy import STOCK
from polydistill_agents.environments.gym_config import EnvironmentConfig
from polydistill_agents.lineage.agent_config import (
    LARGEST_LAYER,
    AgentConfig,
    AgentScoringConfig,
    AgentStudentConfig,
    AgentTeacherConfig,
)
from polydistill_agents.lineage.config import PlayConfig, check_datasets, check_enough_play
from polydistill_agents.lineage.multitask.config import (
    OPTIONS,
    SeveralLessonsConfig,
    SeveralTasks,
    TeachersConfig,
    read_entries,
)
from polydistill_agents.networks.architecture import Architecture

ENVIRONMENT = {each.name: each.default for each in dataclasses.fields(EnvironmentConfig)}
NAME = re.compile(r"\w+")  # of a task: a part of tags, keys and file names
SHARED = ("seed", "device", "threads", "play", "evaluation", "lineage", "checkpoint")


@dataclass(frozen=True)
class ManyTasksStudentConfig(SeveralLessonsConfig):
    """Who learns, and how.

    Args:
        net_arch: widths of the shared hidden layers, like [64, 64]; null: as wide as Stable-Baselines3's own.
    """

    temperature: float | None = None
    samples_per_step: float = 16.0
    controller: tuple[int, ...] = (64,)
    net_arch: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.net_arch is not None and any(width < 1 for width in self.net_arch):
            raise ValueError(f"net_arch must hold widths of at least 1, got {list(self.net_arch)}")


@dataclass(frozen=True)
class ManyTasksConfig(SeveralTasks):
    """Distil agents of several environments into generations of one student.

    Args:
        tasks: of each task, under a name of your own, its environment and teacher, as {light: {env: CartPole-v1,
            teacher: a.zip}, heavy: {env: CartPole-v1, env_kwargs: [gravity=20], teacher: b.zip}}. Further options:
            env_package, env_max_steps, wrappers, temperature, expected_score, weight.
        seed: root of every random stream.
        device: auto, cpu or cuda.
        threads: processor threads of torch; 0: as many as it may use and its work is worth.
        dataset: a folder that save_dataset has written: generation 1 learns from its file of each task, and nobody else
            plays. Teachers may then be left out; those that are named are scored.
        save_dataset: a folder for the play from which generation 1 learns: of each task a file <task>.safetensors.
        teacher: what all teachers do.
        student: who learns.
        play: the play of each task.
        evaluation: how all are scored.
        lineage: how many generations.
        checkpoint: how often the run is saved.
    """

    field_name = "tasks"

    tasks: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: Device = "auto"
    threads: int = 0
    dataset: str | None = None
    save_dataset: str | None = None
    teacher: TeachersConfig = field(default_factory=TeachersConfig)
    student: ManyTasksStudentConfig = field(default_factory=ManyTasksStudentConfig)
    play: PlayConfig = field(
        default_factory=lambda: PlayConfig(steps=20_000, replay_steps=20_000, warmup_steps=2_000, n_envs=8)
    )
    evaluation: AgentScoringConfig = field(default_factory=AgentScoringConfig)
    lineage: LineageConfig = field(default_factory=LineageConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "tasks", read_entries("tasks", self.tasks, {**ENVIRONMENT, **OPTIONS}))
        for name in self.tasks:
            self._check(name)
        require_at_least(0, self, "seed", "threads")
        require_at_most(MOST_THREADS, self, "threads")
        check_enough_play(self.student, self.play)
        check_datasets(self.dataset, self.save_dataset, self.student)
        self.lineage.require_students()
        if self.student.heads == "one" and len({one.task.action_counts for one in self._alone.values()}) > 1:
            raise ValueError("student.heads one: all tasks must have the same number of actions, these have not")

    def _check(self, name: str) -> None:
        """The task's name, and its own config.

        Raises:
            ValueError: naming the task.
        """
        if not NAME.fullmatch(name):
            raise ValueError(f"tasks: a name has letters, digits and _ alone, got {name!r}")
        if not self.tasks[name]["teacher"] and self.dataset is None:
            raise ValueError(f"tasks.{name} has no teacher: give its file, {name}: {{env: ID, teacher: FILE}}")
        try:
            one = self._alone[name] = self._make(name)
        except (ValueError, UserError, TypeError) as error:
            raise ValueError(f"tasks.{name}: {error}") from error
        self.tasks[name] |= {"env": one.env, "env_package": one.env_package}

    @cached_property
    def _alone(self) -> dict[str, AgentConfig]:
        """The config of each task, once: an environment is opened to see what it shows."""
        return {}

    def _make(self, name: str) -> AgentConfig:
        entry = self.tasks[name]
        lesson = self.student.lesson | ({} if entry["temperature"] is None else {"temperature": entry["temperature"]})
        own: dict[str, Any] = {
            key: tuple(entry[key]) if isinstance(entry[key], list) else entry[key] for key in ENVIRONMENT
        }
        return AgentConfig(
            **own,
            teacher=AgentTeacherConfig(
                entry["teacher"], self.teacher.epsilon, self.teacher.play, entry["expected_score"]
            ),
            student=AgentStudentConfig(**lesson, net_arch=self.student.net_arch),
            **self.files_of(name),
            **{key: getattr(self, key) for key in SHARED},
        )

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """See :attr:`SeveralTasks.entries`."""
        return self.tasks

    @property
    def precision(self) -> str:
        """Of what a student computes."""
        return "float32"

    def of(self, task: str) -> AgentConfig:
        """See :meth:`SeveralTasks.of`."""
        return self._alone[task]

    def torso(self) -> Architecture:
        """See :meth:`SeveralTasks.torso`."""
        stock = STOCK[fitting_policy(self.of(self.names[0]).task.observation_space)]
        return stock if self.student.net_arch is None else stock._replace(net_arch=self.student.net_arch)

    def outputs(self, actions: Mapping[str, int]) -> dict[str, tuple[int, ...]] | None:
        """See :meth:`SeveralTasks.outputs`: the same of all."""
        if self.student.heads == "own":
            return None
        return {name: tuple(range(count)) for name, count in actions.items()}

    def resolve(self, stored: Mapping[str, Any] | None = None) -> ManyTasksConfig:
        """See :meth:`SeveralTasks.resolve`.

        Raises:
            UserError: the device is not there.
        """
        update = self.student.batch_size * 3 * LARGEST_LAYER
        updates = len(self.tasks) * self.play.steps * self.student.samples_per_step / self.student.batch_size
        machine = resolve_machine(
            self.device, self.threads, "float32", stored=stored, step=update, run=update * updates
        )
        return dataclasses.replace(self, device=machine["device"], threads=machine["threads"])
