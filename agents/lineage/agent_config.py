"""What decides a distillation in any environment of gymnasium: frozen dataclasses and their ranges.

Nothing but the teacher and the environment must be named: what is left open is found in the teacher's file or measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from polydistill.config.fields import check_fields
from polydistill.device import MOST_THREADS, Device, resolve_machine
from polydistill.errors import require_at_least, require_at_most
from polydistill.lineage import LineageConfig
from polydistill.runs.checkpoint import CheckpointConfig
from polydistill_agents.distillation.learning_on import LearningOnConfig
from polydistill_agents.distillation.settings import fitting_policy
from polydistill_agents.environments.gym_config import EnvironmentConfig
from polydistill_agents.environments.gym_task import OWN, GymTask
from polydistill_agents.lineage.config import (
    LessonConfig,
    PlayConfig,
    TeacherConfig,
    check_datasets,
    check_enough_play,
    check_generations,
    fill_defaults,
)
from polydistill_agents.networks.fitting import tell_space
from polydistill_agents.networks.nature import read_size

LARGEST_LAYER = 1e5  # multiply-adds of a forward pass that are assumed for a plan: a perceptron of two wide layers


@dataclass(frozen=True)
class AgentTeacherConfig(TeacherConfig):
    """Who teaches generation 1.

    Args:
        path: a zip of Stable-Baselines3 or sb3-contrib (.zip may be left out), or a table of weights; a path, hf:// or
            https://.
    """


@dataclass(frozen=True)
class AgentStudentConfig(LessonConfig):
    """Who learns, and how.

    Args:
        net_arch: widths of the hidden layers, like [32, 32]; null: the teacher's own.
        size: of frames alone: widths of the Nature-CNN: nature, net1, net2, net3 (Rusu et al. 2016), or three channels
            and the hidden units, like 8x16x16x64; null: the teacher's own.
    """

    temperature: float | None = None
    samples_per_step: float = 16.0
    net_arch: tuple[int, ...] | None = None
    size: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.net_arch is not None and any(width < 1 for width in self.net_arch):
            raise ValueError(f"net_arch must hold widths of at least 1, got {list(self.net_arch)}")
        if self.size is not None:
            read_size(self.size)


@dataclass(frozen=True)
class AgentScoringConfig:
    """How teacher and students are scored: full games in the environment as it is.

    Args:
        episodes: games for the table.
        curve_every_steps: steps between two points of the student's curve; 0: no curve.
        curve_episodes: games per point of the curve; its last point is the table's.
        play: how all act: greedy, or sample: from their policies.
    """

    episodes: int = 100
    curve_every_steps: int = 5_000
    curve_episodes: int = 10
    play: Literal["greedy", "sample"] = "greedy"

    def __post_init__(self) -> None:
        check_fields(self)
        require_at_least(1, self, "episodes", "curve_episodes")
        require_at_least(0, self, "curve_every_steps")

    @property
    def protocol(self) -> str:
        """The environment's own."""
        return OWN


@dataclass(frozen=True)
class AgentConfig(EnvironmentConfig):
    """Distil an agent of any environment with discrete actions into generations of students.

    Args:
        teacher_wrappers: those through which the teacher looks where it sees another view than the student.
        seed: root of every random stream.
        device: auto, cpu or cuda.
        threads: processor threads of torch; 0: as many as it may use and its work is worth.
        dataset: a file that save_dataset has written, from which generation 1 learns: its games are played again, and
            nobody else plays. teacher.path may then be left out; where it is given, that teacher is scored.
        save_dataset: a file for the play from which generation 1 learns, written at the end of its course.
        teacher: who teaches.
        student: who learns.
        play: the play from which a student learns.
        evaluation: how all are scored.
        lineage: how many generations.
        learn_on: what the last student does after that.
        checkpoint: how often the run is saved.
    """

    teacher_wrappers: tuple[str, ...] = ()
    seed: int = 0
    device: Device = "auto"
    threads: int = 0
    dataset: str | None = None
    save_dataset: str | None = None
    teacher: AgentTeacherConfig = field(default_factory=AgentTeacherConfig)
    student: AgentStudentConfig = field(default_factory=AgentStudentConfig)
    play: PlayConfig = field(
        default_factory=lambda: PlayConfig(steps=20_000, replay_steps=20_000, warmup_steps=2_000, n_envs=8)
    )
    evaluation: AgentScoringConfig = field(default_factory=AgentScoringConfig)
    lineage: LineageConfig = field(default_factory=LineageConfig)
    learn_on: LearningOnConfig = field(default_factory=LearningOnConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        require_at_least(0, self, "seed", "threads")
        require_at_most(MOST_THREADS, self, "threads")
        if not self.teacher.path and self.dataset is None:
            raise ValueError(
                "teacher.path is needed: the file of the agent that teaches (--teacher.path dqn.zip --env CartPole-v1)"
            )
        if self.teacher_wrappers and self.lineage.generations > 1:
            raise ValueError(
                "teacher_wrappers need lineage.generations = 1: later students have teachers that see what they see"
            )
        self.store_names(self.task)
        self._check_size()
        check_enough_play(self.student, self.play)
        check_generations(self.student, self.lineage)
        check_datasets(self.dataset, self.save_dataset, self.student)
        object.__setattr__(self, "student", fill_defaults(self.student, target_update_interval=250))
        self._check_learning_on()

    def _check_size(self) -> None:
        space = self.task.observation_space if self.student.size is not None else None
        if space is not None and fitting_policy(space) != "CnnPolicy":
            raise ValueError(
                f"student.size is of a Nature-CNN of frames, and {self.env} shows {tell_space(space)}: give the widths "
                "of its layers, as --student.net_arch [32, 32]"
            )

    def _check_learning_on(self) -> None:
        if self.learn_on.steps is not None and self.evaluation.play == "sample":
            raise ValueError("learn_on.steps makes the student a DQN, which acts greedily: leave evaluation.play out")
        object.__setattr__(self, "learn_on", self.learn_on.filled())

    @cached_property
    def task(self) -> GymTask:
        """What teacher and students play."""
        return self.open_environment(self.teacher_wrappers)

    @property
    def precision(self) -> str:
        """Of what a student computes."""
        return "float32"

    def resolve(self, stored: Mapping[str, Any] | None = None) -> AgentConfig:
        """The config with device and threads of this machine in the place of auto and 0.

        Args:
            stored: the config of the run that is continued, whose words are kept.

        Raises:
            UserError: the device is not there.
        """
        update = self.student.batch_size * 3 * LARGEST_LAYER
        updates = self.play.steps * self.student.samples_per_step / self.student.batch_size
        machine = resolve_machine(
            self.device, self.threads, "float32", stored=stored, step=update, run=update * updates
        )
        return dataclasses.replace(self, device=machine["device"], threads=machine["threads"])
