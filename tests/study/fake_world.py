"""A world for tests of studies: a run of it takes a fifth of a second, and does what its config says."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from polydistill.study.config import StudyConfig
from polydistill.study.worlds import EnsembleWorld, World


@dataclass(frozen=True)
class FakeData:
    made_up: int = 100
    root: str = ""


@dataclass(frozen=True)
class FakeTeacher:
    path: str = ""
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class FakeStudent:
    objective: str = "ban"
    repeat: int = 0
    bonus: float = 0.0
    does: str = "learn"
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.repeat < 0:
            raise ValueError(f"repeat must not be negative, got {self.repeat}")


@dataclass(frozen=True)
class FakeLineage:
    generations: int = 1


@dataclass(frozen=True)
class FakeConfig:
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    data: FakeData = field(default_factory=FakeData)
    teacher: FakeTeacher = field(default_factory=FakeTeacher)
    student: FakeStudent = field(default_factory=FakeStudent)
    lineage: FakeLineage = field(default_factory=FakeLineage)

    def resolve(self, stored: Mapping[str, Any] | None = None) -> FakeConfig:
        precision = (stored or {}).get("precision", "bfloat16") if self.precision == "auto" else self.precision
        return dataclasses.replace(self, precision=precision)


@dataclass(frozen=True)
class FakeEnsemble:
    members: tuple[str, ...]
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    data: FakeData = field(default_factory=FakeData)


FAKE = World(
    name="cifar",
    config_class=FakeConfig,
    default=None,
    command=(sys.executable, str(Path(__file__).with_name("fake_run.py"))),
    product="product_{last}.json",
    trains_teachers=True,
    ensemble=EnsembleWorld(
        FakeEnsemble,
        (sys.executable, str(Path(__file__).with_name("fake_ensemble.py"))),
        "epochs of training",
        lambda config: 1,
        3.0,
        bool,
    ),
    together=(sys.executable, str(Path(__file__).with_name("fake_together.py"))),
)
ARMS = {"labels": {"student.objective": "cross_entropy"}, "ban": {"student.bonus": 0.125}}


def study(**settings: Any) -> StudyConfig:
    """Two arms of two seeds, and what ``settings`` say."""
    return StudyConfig(**{"world": "cifar", "arms": ARMS, "seeds": 2, **settings})
