"""What decides a distillation of several Atari games into one student."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from polydistill.config.fields import check_fields
from polydistill.device import MOST_THREADS, Device, Precision, resolve_machine
from polydistill.errors import UserError, require_at_least, require_at_most, require_choice
from polydistill.lineage import LineageConfig
from polydistill.runs.checkpoint import CheckpointConfig
from polydistill_agents.environments.games import JOYSTICK, check_game, joystick_actions
from polydistill_agents.lineage.config import (
    AtariConfig,
    EvaluationConfig,
    PlayConfig,
    StudentConfig,
    TeacherConfig,
    check_datasets,
    check_enough_play,
)
from polydistill_agents.lineage.multitask.config import (
    OPTIONS,
    SeveralLessonsConfig,
    SeveralTasks,
    TeachersConfig,
    read_entries,
)
from polydistill_agents.networks.architecture import Architecture
from polydistill_agents.networks.multitask import TORSOS
from polydistill_agents.networks.nature import SIZES
from polydistill_agents.teachers.zoo import find_teacher

SHARED = ("seed", "device", "threads", "precision", "play", "evaluation", "lineage", "checkpoint")


@dataclass(frozen=True)
class ManyGamesStudentConfig(SeveralLessonsConfig):
    """Who learns, and how.

    Args:
        size: widths of the shared torso: nature, net1, net2, net3, or wide: 64, 64, 64 channels and 1500 units, that of
            ten games (Rusu et al. 2016), whose heads no zip for DQN.load can hold.
    """

    size: str = "nature"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("size", self.size, TORSOS)


@dataclass(frozen=True)
class ManyGamesConfig(SeveralTasks):
    """Distil agents of several Atari games into generations of one student.

    Args:
        games: of each game the file of its teacher, as {pong: pong.zip, breakout: breakout.zip}; or options: teacher,
            temperature (null: student.temperature), expected_score, weight. Pong's may be left out: {pong: null}.
        seed: root of every random stream.
        device: auto, cpu or cuda.
        threads: processor threads of torch and, shared out among the games, of the emulators; 0: as many as it may use
            and its work is worth.
        precision: of the student's convolutions while it learns; auto: bfloat16 where the processor computes in it.
        dataset: a folder that save_dataset has written: generation 1 learns from its file of each task, and nobody else
            plays. Teachers may then be left out; those that are named are scored.
        save_dataset: a folder for the play from which generation 1 learns: of each task a file <task>.safetensors.
        teacher: what all teachers do.
        student: who learns.
        play: the play of each game.
        evaluation: how all are scored.
        lineage: how many generations.
        checkpoint: how often the run is saved.
    """

    field_name = "games"

    games: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: Device = "auto"
    threads: int = 0
    precision: Precision = "auto"
    dataset: str | None = None
    save_dataset: str | None = None
    teacher: TeachersConfig = field(default_factory=TeachersConfig)
    student: ManyGamesStudentConfig = field(default_factory=ManyGamesStudentConfig)
    play: PlayConfig = field(default_factory=PlayConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    lineage: LineageConfig = field(default_factory=LineageConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "games", read_entries("games", _by_rom(self.games), OPTIONS))
        for name, entry in self.games.items():
            if not entry["teacher"] and self.dataset is None:
                _require_shipped(name)
        require_at_least(0, self, "seed", "threads")
        require_at_most(MOST_THREADS, self, "threads")
        check_enough_play(self.student, self.play)
        check_datasets(self.dataset, self.save_dataset, self.student)
        self.lineage.require_students()

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """See :attr:`SeveralTasks.entries`."""
        return self.games

    def of(self, task: str) -> AtariConfig:
        """See :meth:`SeveralTasks.of`."""
        entry = self.games[task]
        lesson = self.student.lesson | ({} if entry["temperature"] is None else {"temperature": entry["temperature"]})
        size = self.student.size if self.student.size in SIZES else "nature"
        return AtariConfig(
            game=task,
            teacher=TeacherConfig(entry["teacher"], self.teacher.epsilon, self.teacher.play, entry["expected_score"]),
            student=StudentConfig(**lesson, size=size),
            **self.files_of(task),
            **{name: getattr(self, name) for name in SHARED},
        )

    def torso(self) -> Architecture:
        """See :meth:`SeveralTasks.torso`."""
        return Architecture(TORSOS[self.student.size], None, (), nn.ReLU)

    def outputs(self, actions: Mapping[str, int]) -> dict[str, tuple[int, ...]] | None:
        """See :meth:`SeveralTasks.outputs`: of the 18 of the joystick."""
        if self.student.heads == "own":
            return None
        every = tuple(range(JOYSTICK))
        return {name: every if count == JOYSTICK else joystick_actions(name) for name, count in actions.items()}

    def resolve(self, stored: Mapping[str, Any] | None = None) -> ManyGamesConfig:
        """See :meth:`SeveralTasks.resolve`.

        Raises:
            UserError: the device is not there.
        """
        work = self.of(self.names[0]).update_work()
        updates = len(self.games) * self.play.steps * self.student.samples_per_step / self.student.batch_size
        machine = resolve_machine(
            self.device, self.threads, self.precision, stored=stored, step=work, run=work * updates
        )
        return dataclasses.replace(self, **machine)


def _by_rom(games: Mapping[str, Any]) -> dict[str, Any]:
    """With the names of ale-py.

    Raises:
        ValueError: a game that is there twice.
    """
    found: dict[str, Any] = {}
    called: dict[str, str] = {}
    for name, entry in games.items():
        rom = check_game(str(name))
        if rom in found:
            raise ValueError(f"games: {rom} is there twice, as {called[rom]} and as {name}: a game has one teacher")
        found[rom], called[rom] = entry, str(name)
    return found


def _require_shipped(game: str) -> None:
    try:
        find_teacher(game)
    except UserError:
        raise ValueError(
            f"games: {game} has no teacher, and none of it is shipped: give its file, {game}: FILE"
        ) from None
