"""What the students of a lineage of classifiers are, and by what they learn: the part of a config that worlds share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from polydistill.config.fields import check_fields
from polydistill.errors import require_choice
from polydistill.learning.lesson import check_options
from polydistill.learning.own_objective import is_own, load_own
from polydistill.losses import OBJECTIVES, Objective

KNOWS = 2  # times the accuracy of guessing: below, something is wrong with a teacher
TWIN = "teacher"  # as a student's network: the same as its teacher's
TEACHER_FILES = ("path", "classes")  # fields of a teacher that name files; not every world has the second
NO_OPTIONS = ("network", "objective", "objective_sha256")  # fields that are no option of an objective


@dataclass(frozen=True)
class TaughtConfig:
    """Every generation that has a teacher. An option that its objective does not have is refused.

    Args:
        network: a name as for the teacher, or teacher: the twin of its own teacher.
        objective: ban, ban_l, hinton_kd, cwtm, dkpp, uniform_confidence, cross_entropy (labels only), dkd, jsd, ...;
            or package.module:function, a loss of one's own of (student, teacher, labels).
        objective_sha256: of the source file of a loss of one's own; filled in, and another one is refused.
        temperature: of hinton_kd, logit_standardized_kd, jsd and others; null: the objective's default (of jsd,
            reverse_kl, policy_kl: 1).
        label_weight: of ban_l, hinton_kd and others: weight of the cross-entropy with the labels; null: its default.
        teacher_weight: of hinton_kd and others: weight of the teacher's term; null: its default.
        label_smoothing: of cross_entropy; null: its default.
        alpha: of dkd: weight of the target class's term; null: its default.
        beta: of dkd the weight of the other classes' term, of jsd the teacher's share of the mixture; null: default.
        delta: of policy_huber: distance of the scores from which the loss is linear; null: its default.
        permutation: of dkpp: fresh in every step, or fixed for each image; null: fresh.
    """

    network: str = TWIN
    objective: str = "ban"
    objective_sha256: str | None = None
    temperature: float | None = None
    label_weight: float | None = None
    teacher_weight: float | None = None
    label_smoothing: float | None = None
    alpha: float | None = None
    beta: float | None = None
    delta: float | None = None
    permutation: Literal["fresh", "fixed"] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if is_own(self.objective):
            self._check_own()
        else:
            self._check_ours()

    def _check_own(self) -> None:
        """Import the loss, and compare its source with the hash, which is filled in where there is none yet."""
        sha256 = load_own(self.objective, self.options())[1]
        if self.objective_sha256 not in (None, sha256):
            raise ValueError(
                f"objective {self.objective} has another source file than the one that objective_sha256 is of"
            )
        object.__setattr__(self, "objective_sha256", sha256)

    def _check_ours(self) -> None:
        require_choice("objective", self.objective, OBJECTIVES)
        if OBJECTIVES[self.objective].needs_q_values:
            raise ValueError(f"objective {self.objective} keeps a DQN's Q-values: a classifier has none")
        if self.objective_sha256 is not None:
            raise ValueError(f"objective_sha256 is for a loss of one's own, and objective is {self.objective}")
        options = self.options()
        try:
            check_options(self.objective, options)
        except ValueError as error:
            raise ValueError(f"{error}{_whose(self.objective, options)}") from None

    def find_objective(self) -> str | Objective:
        """What the students learn by: a name, or the loss of one's own that is meant."""
        return load_own(self.objective, self.options())[0] if is_own(self.objective) else self.objective

    def options(self) -> dict[str, float | str]:
        """The objective's options that are set."""
        names = [field.name for field in dataclasses.fields(TaughtConfig) if field.name not in NO_OPTIONS]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


class TaughtLineage:
    """What configs of lineages of classifiers have alike: a ``teacher`` with network and path, and a ``student``."""

    teacher: Any
    student: Any

    @property
    def student_network(self) -> str:
        """Name of the students' network."""
        return str(self.teacher.network if self.student.network == TWIN else self.student.network)

    def may_move(self, stored: Mapping[str, Any] | None) -> tuple[str, ...]:
        """The keys that may name another place than ``stored``, the config of the run that is continued.

        No file of a teacher may appear or vanish: generation 0 was trained in the run, or read from files.
        """
        before = {} if stored is None else stored.get("teacher", {})
        files = [name for name in TEACHER_FILES if before.get(name) and getattr(self.teacher, name, "")]
        return ("data.root", *(f"teacher.{name}" for name in files))


def foreign_options(objective: str) -> tuple[str, ...]:
    """The fields of :class:`TaughtConfig` that are options of other objectives than the one of this name."""
    ours = OBJECTIVES[objective]
    own = (*NO_OPTIONS, *ours.options, *(["permutation"] if ours.needs_permutation else []))
    return tuple(field.name for field in dataclasses.fields(TaughtConfig) if field.name not in own)


def _whose(objective: str, options: dict[str, float | str]) -> str:
    """Which objectives have the first of ``options`` that ``objective`` does not have; empty: it has all of them."""
    for name in options:
        others = [other for other, its in OBJECTIVES.items() if name in its.options]
        if others and objective not in others:
            return f"; {name} is of {', '.join(others)}"
    return ""


def tell_accuracy(who: str, accuracy: float, samples: str, classes: int, question: str) -> str:
    """How good a teacher that was given is, in a line; of one that guesses it ends with ``question``.

    Args:
        who: the teacher.
        accuracy: on the test samples.
        samples: what they are, in the plural.
        classes: how many there are; of two no guess is known from a bad teacher.
        question: what may be wrong.

    Example:
        >>> tell_accuracy("a.pth", 0.1, "test images", 10, "are its classes in this order?")
        'a.pth is right in 10.00% of the test images, as by chance: are its classes in this order?'
        >>> tell_accuracy("a.pth", 0.9, "test images", 2, "are its classes in this order?")
        'a.pth is right in 90.00% of the test images'
    """
    said = f"{who} is right in {accuracy:.2%} of the {samples}"
    guesses = classes > KNOWS and accuracy <= KNOWS / classes
    return f"{said}, as by chance: {question}" if guesses else said


def network_of(config: Mapping[str, Any], generation: int) -> str:
    """The name of the network of a generation.

    Args:
        config: of a run, as summary.json holds it.
        generation: from 0.
    """
    teacher, student = config["teacher"]["network"], config["student"]["network"]
    return str(teacher if generation == 0 or student == TWIN else student)
