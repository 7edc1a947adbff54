"""What decides a distillation of several teachers into one student: frozen dataclasses and their ranges.

A config of several tasks is those of the single tasks, which :meth:`SeveralTasks.of` gives, and what they share.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from polydistill.config.fields import check_fields
from polydistill.errors import suggest
from polydistill.lineage import LineageConfig
from polydistill.runs.checkpoint import CheckpointConfig
from polydistill.streams import derive_seed
from polydistill_agents.lineage.config import LessonConfig, PlayConfig
from polydistill_agents.lineage.students import AnyConfig
from polydistill_agents.networks.architecture import Architecture
from polydistill_agents.networks.multitask import CONTROLLER

# of a task: its teacher's file; its own temperature, score and weight, where they are not as for the others
OPTIONS: dict[str, Any] = {"teacher": "", "temperature": None, "expected_score": None, "weight": 1.0}


@dataclass(frozen=True)
class TeachersConfig:
    """What all teachers do.

    Args:
        epsilon: probability of a random action while a teacher plays, or the student in its place.
        play: the other actions: greedy, or sample: drawn from the policy of whoever acts.
    """

    epsilon: float = 0.05
    play: Literal["greedy", "sample"] = "greedy"

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon is a probability, got {self.epsilon}")


@dataclass(frozen=True)
class SeveralLessonsConfig(LessonConfig):
    """How a student of several tasks learns; temperature and samples_per_step are of each task.

    Args:
        controller: units of the hidden layers of each task's head.
        heads: own: each task has a head; one: all have the same, and each task its actions among its outputs.
        weighting: how often a batch is from a task: equal, or gap: by the share of its samples in which the student
            does not choose as its teacher. A task's own weight, 1 if it names none, is a factor of it.
    """

    controller: tuple[int, ...] = CONTROLLER
    heads: Literal["own", "one"] = "own"
    weighting: Literal["equal", "gap"] = "equal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.has_teacher:
            raise ValueError("objective td has no teacher: it is not for several tasks")
        if any(width < 1 for width in self.controller):
            raise ValueError(f"controller must hold widths of at least 1, got {list(self.controller)}")

    @property
    def lesson(self) -> dict[str, Any]:
        """What is of every lesson, by name."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(LessonConfig)}


class SeveralTasks(ABC):
    """What configs of several tasks have in common."""

    field_name = ""  # under which the tasks stand
    if TYPE_CHECKING:  # fields of each subclass
        seed: int
        device: Any
        threads: int
        dataset: str | None
        save_dataset: str | None
        teacher: TeachersConfig
        student: Any
        play: PlayConfig
        evaluation: Any
        lineage: LineageConfig
        checkpoint: CheckpointConfig

        @property
        def precision(self) -> Any:
            """Of what a student computes."""

    @property
    @abstractmethod
    def entries(self) -> dict[str, dict[str, Any]]:
        """Options of each task, by its name."""

    @abstractmethod
    def of(self, task: str) -> AnyConfig:
        """The config of a task alone: by it teacher and student are scored there."""

    @abstractmethod
    def torso(self) -> Architecture:
        """What the student's heads share."""

    @abstractmethod
    def resolve(self, stored: Mapping[str, Any] | None = None) -> Any:
        """With device, threads and precision of this machine in the place of auto and 0."""

    @abstractmethod
    def outputs(self, actions: Mapping[str, int]) -> dict[str, tuple[int, ...]] | None:
        """Of one head, the outputs of each task that has so many actions; None: each task has a head."""

    @property
    def names(self) -> list[str]:
        """Their names, in order."""
        return list(self.entries)

    @property
    def may_move(self) -> tuple[str, ...]:
        """Keys that say where something lies, which may change while the weights there do not."""
        return (*(f"{self.field_name}.{name}.teacher" for name in self.names), "dataset")

    def files_of(self, task: str) -> dict[str, Any]:
        """The data set of a task, and where its play goes: files in the folders that are named."""
        folders = {"dataset": self.dataset, "save_dataset": self.save_dataset}
        return {key: folder and str(Path(folder, f"{task}.safetensors")) for key, folder in folders.items()}

    def learning(self, task: str) -> AnyConfig:
        """The config by which a task is played to learn from: with its part of the threads, and streams of its own."""
        one, threads = self.of(task), max(self.threads // len(self.names), 1)
        return dataclasses.replace(one, seed=derive_seed(self.seed, f"play of {task}"), threads=threads)

    def tempered(self, temperatures: Mapping[str, float | None]) -> Any:
        """This config with a temperature for each task."""
        entries = {name: {**entry, "temperature": temperatures[name]} for name, entry in self.entries.items()}
        return dataclasses.replace(self, **{self.field_name: entries})  # type: ignore[type-var]


def read_entries(field_name: str, given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of each task, written out.

    Args:
        field_name: under which they stand, for messages.
        given: of each task its teacher's file, or a mapping of options.
        options: that there are, with their defaults.

    Raises:
        ValueError: naming the task, and what is wrong with it.
    """
    entries: dict[str, dict[str, Any]] = {}
    for name, entry in given.items():
        where = f"{field_name}.{name}"
        if isinstance(entry, list | tuple):
            raise ValueError(f"{where} has {len(entry)} teachers: a task has one")
        entry = {"teacher": entry} if isinstance(entry, str) else {} if entry is None else entry
        if not isinstance(entry, Mapping):
            raise ValueError(f"{where} must be the file of its teacher, or options as {{teacher: FILE}}, got {entry!r}")
        for key in entry:
            if key not in options:
                raise ValueError(f"{where}: unknown option {key}{suggest(str(key), options)}")
        whole = {**options, **entry}
        if isinstance(whole["teacher"], list | tuple):
            raise ValueError(f"{where} has {len(whole['teacher'])} teachers: a task has one")
        _check_entry(where, whole)
        entries[str(name)] = whole
    if len(entries) < 2:
        raise ValueError(f"{field_name} must name two tasks at least, got {len(entries)}: one has a script of its own")
    return entries


def _check_entry(where: str, entry: Mapping[str, Any]) -> None:
    if not isinstance(entry["teacher"], str):
        raise ValueError(f"{where}.teacher must be a file, got {entry['teacher']!r}")
    for key in ("temperature", "expected_score", "weight"):
        value = entry[key]
        if value is None and key != "weight":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise ValueError(f"{where}.{key} must be a number, got {value!r}")
        if key != "expected_score" and not 0 < value < float("inf"):
            raise ValueError(f"{where}.{key} must be positive and finite, got {value}")
