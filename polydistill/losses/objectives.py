"""Every objective by name, behind one signature: the names that a config may hold."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polydistill.losses.backend import use_backend
from polydistill.losses.batch_normalized import cwtm, uniform_confidence
from polydistill.losses.checks import are_probabilities, describe
from polydistill.losses.classification import ban, ban_l, cross_entropy, hinton_kd
from polydistill.losses.decoupled import dkd
from polydistill.losses.description import Description
from polydistill.losses.divergences import jsd, reverse_kl
from polydistill.losses.ignored import find_counted, silence
from polydistill.losses.options import Option, read_options, refuse_unknown
from polydistill.losses.permuted import dkpp
from polydistill.losses.policy import policy_huber, policy_kl, policy_kl_q, policy_mse, policy_nll
from polydistill.losses.standardized import logit_standardized_kd

ScoreKind = Literal["logits", "teacher"]


@dataclass(frozen=True)
class Objective:
    """A named function of (student scores, teacher scores, labels), one loss per sample.

    Args:
        name: its key in :data:`OBJECTIVES`.
        function: the loss behind it.
        takes: which of "teacher" and "labels" follow the student in the function's signature.
        score_kind: kind of the student's scores after training: "logits" where the loss goes through a softmax, or
            "teacher" where it is a regression, so that the student's scores are of the teacher's kind.
        tempered: takes ``temperature`` for the teacher's side alone, in the unit of its scores. (The losses that
            temper both sides take a ``temperature`` too, which is no property of the teacher.)
        needs_q_values: the teacher's scores must be Q-values, as the student's are then: ``temperature`` is of both
            sides, in their unit.
        needs_labels: labels must be given.
        needs_class: labels must be classes; the others take probabilities of the classes, too.
        needs_permutation: ``permutation=`` must be given.
        batch_coupled: normalises over the batch, so that data-parallel training passes it ``group=``.
        has_closed_form: its gradient is there without autograd, see
            :func:`~polydistill.losses.description.compute_closed`.
    """

    name: str
    function: Callable[..., Tensor]
    takes: tuple[str, ...]
    score_kind: ScoreKind = "logits"
    tempered: bool = False
    needs_q_values: bool = False
    needs_labels: bool = False
    needs_class: bool = False
    needs_permutation: bool = False
    batch_coupled: bool = False
    has_closed_form: bool = False

    def __call__(
        self,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor | None,
        *,
        ignore_index: int | None = None,
        **options: Any,
    ) -> Tensor:
        """The loss per sample, ``(batch,)``; ``options`` are the keywords of the function.

        With ``ignore_index`` a sample of that label does not count, whether or not the function takes labels, see
        :mod:`~polydistill.losses.ignored`.

        Raises:
            ValueError: labels are needed and missing, or what the function raises.
            TypeError: an option that the function does not know, or what the function raises.
        """
        given, options, counted = self._arguments(teacher, labels, ignore_index, options)
        return silence(self.function(student, *given, **options), counted)

    def describe(self, student: Tensor, teacher: Tensor | None, labels: Tensor | None, **options: Any) -> Description:
        """What a call with these arguments computes; of an objective of ours."""
        given, options, counted = self._arguments(teacher, labels, options.pop("ignore_index", None), options)
        loss: Any = self.function
        described: Description = loss.describe(student, *given, **options)
        return described if counted is None else described._replace(counted=counted)

    def _arguments(
        self, teacher: Tensor | None, labels: Tensor | None, ignore_index: int | None, options: dict[str, Any]
    ) -> tuple[list[Tensor | None], dict[str, Any], Tensor | None]:
        """What the function takes after the student, and which samples count where it cannot know of padding."""
        if self.needs_labels and labels is None:
            raise ValueError(f"objective {self.name} needs labels, got None")
        self.accept_label_kind(labels)
        values = {"teacher": teacher, "labels": labels}
        given = [values[name] for name in self.takes]
        if ignore_index is None:
            return given, options, None
        if "labels" in self.takes:
            return given, {**options, "ignore_index": ignore_index}, None
        counted = find_counted(labels, ignore_index)
        return (given, {**options, "rows": counted}, None) if self.batch_coupled else (given, options, counted)

    def accept_label_kind(self, labels: Tensor | None) -> None:
        """Refuse labels that are probabilities where the objective needs the class.

        Raises:
            ValueError: naming those that do not.
        """
        if self.needs_class and are_probabilities(labels):
            others = ", ".join(one.name for one in _ALL if "labels" in one.takes and not one.needs_class)
            raise ValueError(
                f"objective {self.name} needs the class of each sample, but the labels are probabilities. These take "
                f"them: {others}; so does every objective without labels"
            )

    def default(self, option: str) -> Any:
        """The default of a keyword of the function.

        Raises:
            KeyError: it has no such keyword.
        """
        return inspect.signature(self.function).parameters[option].default

    @property
    def sharpens(self) -> bool:
        """Whether its ``temperature`` is a property of the teacher: in the unit of the teacher's scores."""
        return self.tempered or self.needs_q_values

    def temperature_of_student(self, temperature: float) -> float:
        """T at which the softmax of the student's scores is its policy, where ``temperature`` is the teacher's."""
        return temperature if self.needs_q_values else 1.0

    @property
    def options(self) -> Mapping[str, Option]:
        """The numbers that it takes by keyword, with default, meaning and allowed values; see :func:`check_options`.

        Example:
            >>> OBJECTIVES["jsd"].options["beta"]
            Option(default=0.5, meaning="the teacher's share of the mixture", allowed='between 0 and 1')
        """
        return read_options(self.name, self.function)


@dataclass(frozen=True)
class OwnObjective(Objective):
    """A function of one's own, of ``(student, teacher, labels)``; see :func:`as_objective`.

    Raises:
        ValueError: it is a module, or a method of one, with parameters that want a gradient: nobody would train them.
    """

    def __post_init__(self) -> None:
        function: Any = self.function
        while isinstance(function, functools.partial):
            function = function.func
        owner = getattr(function, "__self__", function)
        learning = isinstance(owner, nn.Module) and [n for n, p in owner.named_parameters() if p.requires_grad]
        if learning:
            raise ValueError(
                f"objective {self.name} has parameters of its own ({', '.join(learning)}), that no optimiser trains: "
                "give the module to the student, or call requires_grad_(False) on it"
            )

    def __call__(
        self,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor | None,
        *,
        ignore_index: int | None = None,
        **options: Any,
    ) -> Tensor:
        """The loss per sample, ``(batch,)``.

        With ``ignore_index`` the function gets only the samples that count: it need not know of padding. (This waits
        for a GPU, since the number of these samples must be known.)

        Raises:
            TypeError: the function returns no floating tensor.
            ValueError: it returns a shape other than ``(batch,)``.
        """
        counted = find_counted(labels, ignore_index)
        if counted is None or labels is None:
            return self._call(student, teacher, labels, options)
        found = self._call(student[counted], None if teacher is None else teacher[counted], labels[counted], options)
        return torch.zeros(counted.shape, dtype=found.dtype, device=found.device).masked_scatter(counted, found)

    def _call(
        self, student: Tensor, teacher: Tensor | None, labels: Tensor | None, options: Mapping[str, Any]
    ) -> Tensor:
        values = {"teacher": teacher, "labels": labels}
        found: object = self.function(student, *(values[name] for name in self.takes), **options)
        if not isinstance(found, Tensor) or not found.dtype.is_floating_point:
            raise TypeError(f"objective {self.name} must return a tensor of losses, got {describe(found)}")
        if found.shape != student.shape[:-1]:
            hint = ": do not reduce it, the mean is taken afterwards" if found.dim() == 0 else ""
            expected, got = tuple(student.shape[:-1]), tuple(found.shape)
            raise ValueError(f"objective {self.name} must return one loss per sample, {expected}, got {got}{hint}")
        return found


_LABELS, _TEACHER, _BOTH = ("labels",), ("teacher",), ("teacher", "labels")

_ALL = (
    Objective("cross_entropy", cross_entropy, _LABELS, needs_labels=True),
    Objective("ban", ban, _TEACHER),
    Objective("ban_l", ban_l, _BOTH, needs_labels=True),
    Objective("hinton_kd", hinton_kd, _BOTH),
    Objective("cwtm", cwtm, _BOTH, needs_labels=True, batch_coupled=True),
    Objective("dkpp", dkpp, _TEACHER, needs_permutation=True),
    Objective("uniform_confidence", uniform_confidence, _TEACHER, batch_coupled=True),
    Objective("dkd", dkd, _BOTH, needs_labels=True, needs_class=True),
    Objective("logit_standardized_kd", logit_standardized_kd, _BOTH),
    Objective("reverse_kl", reverse_kl, _TEACHER, tempered=True),
    Objective("jsd", jsd, _TEACHER, tempered=True),
    Objective("policy_kl", policy_kl, _TEACHER, tempered=True, has_closed_form=True),
    Objective("policy_kl_q", policy_kl_q, _TEACHER, score_kind="teacher", needs_q_values=True, has_closed_form=True),
    Objective("policy_nll", policy_nll, _TEACHER),
    Objective("policy_mse", policy_mse, _TEACHER, score_kind="teacher"),
    Objective("policy_huber", policy_huber, _TEACHER, score_kind="teacher"),
)

OBJECTIVES: Mapping[str, Objective] = MappingProxyType({objective.name: objective for objective in _ALL})


def get_objective(name: str) -> Objective:
    """The objective of that name.

    Raises:
        ValueError: there is none; with the nearest name as a suggestion.

    Example:
        >>> get_objective("policy_kl").score_kind
        'logits'
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    close = difflib.get_close_matches(str(name).lower().replace("-", "_"), OBJECTIVES, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown objective {name!r}, there are {', '.join(OBJECTIVES)}{hint}")


def as_objective(objective: str | Callable[..., Tensor]) -> Objective:
    """The objective of that name, or one made of a function of one's own.

    Args:
        objective: a name in ``OBJECTIVES``, or a function of ``(student, teacher, labels)``, ``(batch, classes)`` twice
            and ``(batch,)``, that returns ``(batch,)``, not reduced. Options are bound with ``functools.partial``. In
            metrics its name is its ``__name__``. The functions of :mod:`polydistill.losses` get the arguments of
            their own signature, and keep their defaults.

    Raises:
        ValueError: an unknown name, or a module with parameters that want a gradient.
        TypeError: neither a name nor a function.

    Example:
        >>> def squares(student, teacher, labels, power=2):
        ...     return (student - teacher).abs().pow(power).sum(dim=1)
        >>> own = as_objective(functools.partial(squares, power=1))
        >>> own.name, own(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([0])).tolist()
        ('squares', [2.0])
    """
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, str):
        return get_objective(objective)
    if not callable(objective):
        raise TypeError(f"objective must be a name or a function of (student, teacher, labels), got {objective!r}")
    named: Any = objective
    while isinstance(named, functools.partial):
        named = named.func
    takes = next((known.takes for known in _ALL if known.function is named), _BOTH)
    return OwnObjective(str(getattr(named, "__name__", type(named).__name__)), objective, takes)


def check_options(name: str, /, **options: Any) -> None:
    """Refuse what the objective would refuse: an option that it does not have, or a value out of its range.

    Args:
        name: of the objective, in ``OBJECTIVES``.
        options: numbers, as :attr:`Objective.options` lists them.

    Raises:
        ValueError: an unknown objective; an option that it does not take, naming the nearest one; a value that is
            out of range, NaN or infinite; or one so large that the loss is not finite.
        TypeError: a value that is no number.

    Example:
        >>> check_options("jsd", beta=0.3)
        >>> check_options("jsd", betta=0.3)
        Traceback (most recent call last):
        ValueError: objective jsd has no option betta; it has beta, temperature; did you mean beta?
    """
    objective = get_objective(name)
    refuse_unknown(name, options, objective.options)
    try:
        total = float(_try(objective, options).numpy().sum())
    except (TypeError, ValueError) as error:
        raise type(error)(f"objective {name}: {error}") from None
    except (OverflowError, RuntimeError):  # a number that no float32 holds
        total = math.inf
    if not math.isfinite(total):
        given = ", ".join(f"{option}={value}" for option, value in options.items())
        raise ValueError(f"objective {name} with {given} gives a loss that is not finite; choose other values")


def _try(objective: Objective, options: Mapping[str, Any]) -> Tensor:
    """The losses of two made-up samples, on the CPU, whatever torch's default device is."""
    with use_backend("torch"), torch.device("cpu"):
        student, teacher = torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.5]] * 2)
        given = dict(options)
        if objective.needs_permutation:
            given["permutation"] = torch.tensor([[0, 1]] * 2)
        return objective(student, teacher, torch.tensor([0, 1]), **given)
