"""What the losses accept, checked before anything is computed.

Shapes, types, devices and options are always checked: that costs no wait for a GPU. Values (finite scores, labels
in range, a class left in each row) are checked only with ``check_values=True``, since reading them makes the
host wait for the GPU. Each fault is a ``ValueError`` or ``TypeError`` that names the argument and its value.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

FULL_PRECISION = (torch.float32, torch.float64)
FLOATING = (*FULL_PRECISION, torch.bfloat16, torch.float16)  # the usual ones; others take the longer check
LEAST_TEMPERATURE, GREATEST_TEMPERATURE = 1e-18, 1e18


def accept_single(scores: Tensor, name: str = "student") -> Tensor:
    """Scores of one side, as they are.

    Args:
        scores: ``(batch, classes)`` or ``(students, batch, classes)``, floating, classes >= 1; ``batch`` may be 0.
        name: what the caller's signature calls them.

    Raises:
        TypeError: not a tensor of floats.
        ValueError: another number of dimensions, or no class.
    """
    if not isinstance(scores, Tensor) or not scores.dtype.is_floating_point:
        raise TypeError(f"{name} must be a floating tensor, got {describe(scores)}")
    if not 2 <= scores.dim() <= 3 or scores.shape[-1] < 1:
        raise ValueError(
            f"{name} must be of shape (batch, classes) or (students, batch, classes), got {tuple(scores.shape)}"
        )
    return scores


def promote(scores: Tensor) -> Tensor:
    """The scores in at least float32: what the plain formulas compute in. Gradient flows."""
    return scores if scores.dtype in FULL_PRECISION else scores.float()


def accept_pair(
    student: Tensor,
    teacher: Tensor,
    name: str = "teacher",
    *,
    members: bool = True,
    mask: Tensor | None = None,
    check_values: bool = False,
) -> tuple[Tensor, Tensor]:
    """Scores of both sides, the teacher's detached.

    Args:
        student: ``(batch, classes)`` or ``(students, batch, classes)``, floating.
        teacher: the same shape and device. Detached. If it has another floating type, it is cast to the type that the
            student's scores are computed in, float32 or float64.
        name: what the caller's signature calls the teacher's scores.
        members: the teacher may be an ensemble, with a dimension of members before the others. False where the loss
            uses the scores themselves: an ensemble has a mean of probabilities, and no scores.
        mask: see :func:`check_mask`.
        check_values: see :func:`inspect_values`.

    Raises:
        TypeError: not tensors of floats.
        ValueError: the shapes or devices differ, or a shape is none of these.
    """
    if not _are_a_plain_pair(student, teacher):
        _check_pair(student, teacher, name, members)
        if teacher.dtype is not student.dtype:  # as autocast and cached scores leave it
            teacher = teacher.to(torch.promote_types(student.dtype, torch.float32))
    if mask is not None:
        check_mask(student, mask)
    if check_values:
        inspect_values(student, teacher, mask=mask, name=name)
    return student, teacher.detach()  # whatever requires_grad says: a forward-mode tangent does not set it


def _are_a_plain_pair(student: object, teacher: object) -> bool:
    """Whether these are two sound tensors of one shape, type and device: the usual case, in as few checks as possible,
    since with few scores each check takes a hundredth of the loss's time."""
    if not (isinstance(student, Tensor) and isinstance(teacher, Tensor)):
        return False
    dtype, shape = student.dtype, student.shape
    same = teacher.dtype is dtype and teacher.shape == shape and teacher.device == student.device
    return same and dtype in FLOATING and 2 <= len(shape) <= 3 and shape[-1] > 0


def _check_pair(student: Tensor, teacher: object, name: str, members: bool) -> None:
    accept_single(student)
    if isinstance(teacher, list | tuple):
        advice = f"stack the members' scores, torch.stack({name}), or give mean_of_teachers({name})"
        if not members:
            advice = f"average the members' scores yourself, torch.stack({name}).mean(0)"
        raise TypeError(f"{name} must be one tensor, got a {type(teacher).__name__} of {len(teacher)}: {advice}")
    if not isinstance(teacher, Tensor) or not teacher.dtype.is_floating_point:
        raise TypeError(f"{name} must be a floating tensor, got {describe(teacher)}")
    ensemble = teacher.dim() == student.dim() + 1 and len(teacher) > 0 and teacher.shape[1:] == student.shape
    if teacher.shape != student.shape and not (ensemble and members):
        advice = f": average the members' scores yourself, {name}.mean(0)" if ensemble else ""
        raise ValueError(
            f"{name} must be of the student's shape {tuple(student.shape)}, got {tuple(teacher.shape)}{advice}"
        )
    if teacher.device != student.device:
        raise ValueError(f"{name} must be on the student's device {student.device}, got {teacher.device}")


def accept_labels(student: Tensor, labels: Tensor, *, probabilities: bool = False) -> Tensor:
    """Labels as int64, or as floats where they are probabilities.

    Args:
        student: ``(..., batch, classes)`` scores.
        labels: ``(..., batch)`` integers in ``[0, classes)``, on the student's device.
        probabilities: they may be ``(..., batch, classes)`` floats, too.

    Raises:
        TypeError: not a tensor of integers, nor such floats.
        ValueError: another shape or device.
    """
    soft = probabilities and are_probabilities(labels)
    if not soft:
        check_integers("labels", labels)
    elif labels.shape != student.shape:
        expected, got = tuple(student.shape), tuple(labels.shape)
        raise ValueError(f"labels that are probabilities must be of the student's shape {expected}, got {got}")
    if not soft and labels.shape != student.shape[:-1]:
        raise ValueError(f"labels must be of shape {tuple(student.shape[:-1])}, got {tuple(labels.shape)}")
    if labels.device != student.device:
        raise ValueError(f"labels must be on the student's device {student.device}, got {labels.device}")
    if soft:
        return labels
    return labels if labels.dtype is torch.int64 else labels.long()


def are_probabilities(labels: object) -> bool:
    """Whether labels are floats, ``(..., batch, classes)``: how much each class is the sample's."""
    return isinstance(labels, Tensor) and labels.dtype.is_floating_point and labels.dim() > 1


def check_mask(student: Tensor, mask: Tensor) -> None:
    """``mask`` is bool, ``(classes,)`` or of the student's shape, on the student's device.

    Raises:
        TypeError: not a tensor of bools.
        ValueError: another shape or device.
    """
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        raise TypeError(f"mask must be a bool tensor, got {describe(mask)}")
    if mask.shape != student.shape and mask.shape != student.shape[-1:]:
        allowed = f"{tuple(student.shape)} or {tuple(student.shape[-1:])}"
        raise ValueError(f"mask must be of shape {allowed}, got {tuple(mask.shape)}")
    if mask.device != student.device:
        raise ValueError(f"mask must be on the student's device {student.device}, got {mask.device}")


def check_integers(name: str, values: object) -> None:
    """``values`` is a tensor of integers; bools do not count as integers.

    Raises:
        TypeError: anything else.
    """
    if not isinstance(values, Tensor) or values.dtype is torch.bool or _is_fractional(values.dtype):
        raise TypeError(f"{name} must be a tensor of integers, got {describe(values)}")


def check_integer(name: str, value: Any, least: int, most: int | None = None) -> None:
    """``value`` is a whole number from ``least`` to ``most``; None: no upper bound.

    Raises:
        TypeError: it is no integer.
        ValueError: it is out of range.
    """
    whole = isinstance(value, Integral | torch.SymInt) and not isinstance(value, bool)
    if not whole:
        raise TypeError(f"{name} must be an integer, got {describe(value)}")
    if value < least or (most is not None and value > most):
        allowed = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be {allowed}, got {value}")


def check_temperature(value: float) -> None:
    """``value`` is a number in [1e-18, 1e18]: T^2 and 1 / T are normal float32 numbers.

    Raises:
        TypeError: not a number (a tensor would have to be read, which stalls a GPU).
        ValueError: out of range.
    """
    _check_number("temperature", value)
    if not LEAST_TEMPERATURE <= value <= GREATEST_TEMPERATURE:
        raise ValueError(f"temperature must be from {LEAST_TEMPERATURE:g} to {GREATEST_TEMPERATURE:g}, got {value}")


def check_positive(name: str, value: float) -> None:
    """``value`` is a number in (0, inf).

    Raises:
        TypeError: not a number (a tensor would have to be read, which stalls a GPU).
        ValueError: out of range.
    """
    _check_number(name, value)
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


def check_weight(name: str, value: float) -> None:
    """``value`` is a number in [0, inf).

    Raises:
        TypeError: not a number.
        ValueError: out of range.
    """
    _check_number(name, value)
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite, got {value}")


def check_fraction(name: str, value: float, *, ends: bool = True) -> None:
    """``value`` is a number in [0, 1], or in (0, 1) without its ``ends``.

    Raises:
        TypeError: not a number.
        ValueError: out of range.
    """
    _check_number(name, value)
    if not (0.0 <= value <= 1.0 if ends else 0.0 < value < 1.0):
        raise ValueError(f"{name} must be in {'[0, 1]' if ends else '(0, 1)'}, got {value}")


def inspect_values(
    student: Tensor,
    teacher: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    name: str = "teacher",
) -> None:
    """Scores are finite (the teacher's may be -inf), labels in range, and a class is left in each row.

    Scores of classes in ``mask`` may be anything. Waits for the device.

    Raises:
        ValueError: naming the argument, the first faulty place and its value.
    """
    if teacher is not None and teacher.dim() > student.dim():
        for member in teacher:
            inspect_values(student, member, labels, mask=mask, name=name)
        return
    kept = torch.ones_like(student, dtype=torch.bool) if mask is None else ~mask.expand_as(student)
    require("mask", kept.any(dim=-1), "must leave a class in each row", ~kept)
    require("student", student.isfinite() | ~kept, "must be finite", student)
    if teacher is not None:
        excluded = teacher == -math.inf
        require(name, teacher.isfinite() | excluded | ~kept, "must be finite or -inf", teacher)
        require(name, (kept & ~excluded).any(dim=-1), "must leave a class in each row", teacher)
    if labels is not None and are_probabilities(labels):
        require("labels", sum_to_one(labels), "that are probabilities must be at least 0 and add up to 1", labels)
    elif labels is not None:
        n_classes = student.shape[-1]
        require("labels", (labels >= 0) & (labels < n_classes), f"must be in [0, {n_classes})", labels)


def sum_to_one(labels: Tensor) -> Tensor:
    """``(..., batch)`` bool: whether the probabilities ``(..., batch, classes)`` are that: up to rounding, which in the
    shorter float types is more than a thousandth. NaN is none."""
    rounding = max(1e-3, 2 * torch.finfo(labels.dtype).eps)
    return (labels >= 0).all(dim=-1) & ((labels.double().sum(dim=-1) - 1).abs() <= rounding)


def require(name: str, good: Tensor, rule: str, values: Tensor) -> None:
    """``good``, one for each of the ``values`` (or of their rows), is True everywhere. Waits for the device.

    Raises:
        ValueError: naming the argument, the first faulty place and its value.
    """
    if good.all():
        return
    place = tuple((~good).nonzero()[0].tolist())
    raise ValueError(f"{name} {rule}, got {values[place].tolist()} at {list(place)}")


def describe(value: object) -> str:
    """A value of the wrong type, in the words of an error message."""
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} and shape {tuple(value.shape)}"
    return f"{value!r} of type {type(value).__name__}"


def _check_number(name: str, value: object) -> None:
    if type(value) is float:
        return  # isinstance of Real takes longer than most tensor operations on a small batch
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {describe(value)}")


def _is_fractional(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex
