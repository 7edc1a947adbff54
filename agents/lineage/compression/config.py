"""What decides a sweep of sizes. It is a study whose arms are sizes: the runs, and how they go on, are a study's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from polydistill.config.fields import check_fields
from polydistill.config.plain_yaml import flatten
from polydistill.errors import require_at_least
from polydistill.study.config import StudyConfig

OF_THE_SWEEP = {  # keys of a run that the sweep sets itself
    "student.size": "--sizes says it",
    "student.net_arch": "--sizes says it",
    "teacher.path": "--teacher.path says it",
    "teacher.more": "a sweep has one teacher",
    "game": "--game says it",
    "env": "--env says it",
}


@dataclass(frozen=True)
class SweptTeacherConfig:
    """Whose students.

    Args:
        path: a zip of Stable-Baselines3 or sb3-contrib (.zip may be left out), or a table of weights; a path, hf:// or
            https://; empty: the project's own teacher of the game.
    """

    path: str = ""


@dataclass(frozen=True)
class CompressionConfig:
    """Find how small a student of an agent can be.

    Args:
        game: ROM id of ale-py, like pong. Empty: pong, or env.
        env: id of gymnasium, like CartPole-v1, instead of a game of Atari.
        teacher: whose students.
        sizes: of the students: teacher (as large as it), a fraction of its widths like 1/4, or widths: of linear layers
            like 32x32; of a Nature-CNN net1, net2, net3, or three channels and the hidden units like 8x16x16x64. Empty:
            of frames teacher, net1, net2 and net3, else teacher, 1/2, 1/4 and 1/8.
        keep: share of the teacher's score, above that of random play, that is enough.
        seeds: students of each size. With one, intervals are over its games; with more, over the seeds.
        first_seed: the first of them.
        settings: further keys of distill_atari.py or distill_agent.py for all students, like {play.steps: 100000}.
        workers: runs at once, of one core each; 0: as many as there are cores.
    """

    game: str = ""
    env: str = ""
    teacher: SweptTeacherConfig = field(default_factory=SweptTeacherConfig)
    sizes: tuple[str | int, ...] = ()
    keep: float = 0.95
    seeds: int = 1
    first_seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    workers: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.game and self.env:
            raise ValueError(f"game {self.game} and env {self.env} are both there: a sweep plays one of them")
        if self.env and not self.teacher.path:
            raise ValueError("teacher.path is needed: the file of the agent that teaches (--teacher.path dqn.zip)")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep is a share of the teacher's score, above 0 and at most 1, got {self.keep}")
        require_at_least(1, self, "seeds")
        for key, _ in flatten(self.settings):
            if key in OF_THE_SWEEP:
                raise ValueError(f"settings: {key} cannot be set: {OF_THE_SWEEP[key]}")

    @property
    def wanted(self) -> tuple[str, ...]:
        """The sizes as texts: a single layer may be written as a number."""
        return tuple(map(str, self.sizes))

    @property
    def world(self) -> str:
        """Whose runs they are, see :data:`polydistill._environment.WORLDS`."""
        return "agent" if self.env else "atari"

    @property
    def played(self) -> str:
        """Name of the game or environment."""
        return self.env or self.game or "pong"

    @property
    def all_settings(self) -> dict[str, Any]:
        """The keys that all runs share, with dots."""
        played = {"env": self.env} if self.env else {"game": self.played}
        given = {"teacher.path": self.teacher.path} if self.teacher.path else {}
        return {**played, **given, **dict(flatten(self.settings))}

    def study(self, arms: Mapping[str, Mapping[str, Any]]) -> StudyConfig:
        """The study whose arms are the sizes.

        Args:
            arms: name of a size -> the keys that make a student of it.
        """
        return SweepConfig(
            world=self.world,
            settings=self.all_settings,
            arms=dict(arms),
            seeds=self.seeds,
            first_seed=self.first_seed,
            workers=self.workers,
        )


@dataclass(frozen=True)
class SweepConfig(StudyConfig):
    """A study that describes its arms and compares none: one size in one seed will do."""

    fewest_seeds, fewest_arms = 1, 1
