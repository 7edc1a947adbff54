"""The generation loop: a teacher teaches a student, which teaches the next (Furlanello et al. 2018, section 3.1).

What is taught, and how, is a :class:`Domain`'s business; the loop sees to what must hold in every world: each student
is a network of its own, the teacher is frozen and comes out of the lesson bit for bit as it went in, and each
generation is named by a hash of its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from polydistill.config.fields import check_fields
from polydistill.errors import UserError
from polydistill.learning.networks import freeze, share_weights
from polydistill.provenance import weights_sha256

Member = TypeVar("Member")
Metrics = Mapping[str, Any]
MOST_GENERATIONS = 1000


@dataclass(frozen=True)
class LineageConfig:
    """How long a lineage is.

    Args:
        generations: students to train, each taught by the one before, at most 1000; 0, for classifiers alone: none, the
            run ends with generation 0.
    """

    generations: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        name = "lineage.generations counts the students and must be"
        if self.generations < 0:
            raise ValueError(f"{name} at least 0, got {self.generations}")
        if self.generations > MOST_GENERATIONS:
            raise ValueError(f"{name} at most {MOST_GENERATIONS}, got {self.generations}")

    def require_students(self) -> None:
        """Refuse a lineage that ends with generation 0, where that one is given and nothing would be trained.

        Raises:
            ValueError: it has no student.
        """
        if not self.generations:
            raise ValueError(
                "lineage.generations counts the students and must be at least 1, got 0: the teacher is there already"
            )


class Domain(Protocol[Member]):
    """A world in which generations teach each other. ``Member`` is whatever it takes for one: a module, or more."""

    @property
    def objective(self) -> str:
        """Name of the objective by which students learn."""

    def first(self) -> Member:
        """Generation 0: given, or trained on labels or rewards alone."""

    def teach(self, teacher: Member, generation: int) -> Member:
        """Train a student of its own weights, initialised for ``generation``, from ``teacher``."""

    def network(self, member: Member) -> nn.Module | None:
        """The network of ``member``; None for a bare function."""

    def evaluate(self, member: Member, teacher: Member | None, generation: int) -> Metrics:
        """What is reported of ``member``; ``teacher`` is None for generation 0."""


class Generation(NamedTuple, Generic[Member]):
    """One generation of a lineage, as it stands in ``summary.json``.

    ``sha256`` and ``parameters`` are None for a bare function; ``teacher_sha256`` and ``objective`` for generation 0.
    """

    generation: int
    member: Member
    sha256: str | None
    teacher_sha256: str | None
    objective: str | None
    parameters: int | None
    metrics: Metrics

    def summary(self) -> dict[str, Any]:
        """The generation as plain JSON values; ``Generation(member=member, **summary)`` is it again."""
        return {key: value for key, value in self._asdict().items() if key != "member"}


class Lineage(Generic[Member]):
    """Generations 0 to ``generations``, trained one after another while being iterated.

    Args:
        domain: the world.
        config: how many generations.
        done: generations 0, 1, ... that an earlier run has finished, with their members read back, as
            ``Generation(member=member, **summary)``; iterating gives those after them.

    Raises:
        UserError: the weights of one of ``done`` are not those that it was finished with.
        RuntimeError: while iterating, if a student shares weights with its teacher or a lesson changed the teacher.
    """

    def __init__(self, domain: Domain[Member], config: LineageConfig, done: Sequence[Generation[Member]] = ()) -> None:
        self.domain, self.config = domain, config
        self._last = done[-1] if done else None
        for index, generation in enumerate(done):
            self._check_done(generation, index)

    def __iter__(self) -> Iterator[Generation[Member]]:
        teacher = self._last
        if teacher is None:
            teacher = self._describe(self.domain.first(), None, 0)
            yield teacher
        for generation in range(teacher.generation + 1, self.config.generations + 1):
            member = self.domain.teach(teacher.member, generation)
            self._check_lesson(teacher, member, generation)
            teacher = self._describe(member, teacher, generation)
            yield teacher

    def _describe(self, member: Member, teacher: Generation[Member] | None, generation: int) -> Generation[Member]:
        network = self.domain.network(member)
        if network is not None:
            _settle(network)
        return Generation(
            generation=generation,
            member=member,
            sha256=None if network is None else weights_sha256(network.state_dict()),
            teacher_sha256=None if teacher is None else teacher.sha256,
            objective=None if teacher is None else self.domain.objective,
            parameters=None if network is None else sum(p.numel() for p in network.parameters()),
            metrics=self.domain.evaluate(member, None if teacher is None else teacher.member, generation),
        )

    def _check_done(self, done: Generation[Member], index: int) -> None:
        if done.generation != index:
            raise ValueError(f"`done` must hold generations 0, 1, ... in order, got {done.generation} at {index}")
        network = self.domain.network(done.member)
        if network is not None:
            _settle(network)
            if weights_sha256(network.state_dict()) != done.sha256:
                raise UserError(f"generation {index} is not what it was when it was finished: its sha256 differs")

    def _check_lesson(self, teacher: Generation[Member], member: Member, generation: int) -> None:
        taught, learned = self.domain.network(teacher.member), self.domain.network(member)
        if taught is None or learned is None:
            return
        if share_weights(taught, learned):
            raise RuntimeError(
                f"generation {generation} shares weights with its teacher: it must be a network of its own"
            )
        if weights_sha256(taught.state_dict()) != teacher.sha256:
            raise RuntimeError(f"the teacher of generation {generation} changed while teaching: it must be frozen")


def _settle(network: nn.Module) -> None:
    """Freeze it, and where processes hold copies of it the buffers of the first in all of them.

    ``DistributedDataParallel`` would copy them in its next forward pass, so that a network that only teaches would
    change, in every process but the first.
    """
    freeze(network)
    for part in network.modules():
        if isinstance(part, DistributedDataParallel) and part.broadcast_buffers:
            group = part.process_group
            for buffer in part.module.buffers():
                dist.broadcast(buffer, dist.get_global_rank(group, 0), group)
