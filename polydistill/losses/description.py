"""A loss described as a value: one call of a kernel, or a plain formula of the same tensors.

The contract: a description holds checked arguments, and leaves open how the loss is computed. :func:`compute` chooses
that for the loss alone; :mod:`~polydistill.losses.one_pass` reads the description for more.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, ParamSpec

import torch
from torch import Tensor

from polydistill.losses.backend import Rows, fused_loss, numbers, uses_kernels
from polydistill.losses.blocks import BLOCK
from polydistill.losses.checks import are_probabilities
from polydistill.losses.ignored import silence

P = ParamSpec("P")
NONE: Mapping[str, float] = {}


class Description(NamedTuple):
    """A loss of one batch.

    Attributes:
        kind: of the kernel, in :data:`polydistill.kernels.plan.KINDS`.
        numbers: the kernel's own arguments.
        rows: the tensors that kernel and formula read.
        formula: the same loss by plain operations. It takes the tensors in ``rows`` that are not None, in their order.
        options: the formula's keywords.
        counted: ``(..., batch)`` bool, False for a sample that does not count; None: all count.
        closed_form: loss and gradient ``(..., batch, classes)`` of each sample from what ``formula`` takes, without
            autograd; None where there is none.
    """

    kind: str
    numbers: numbers.Numbers
    rows: Rows
    formula: Callable[..., Tensor]
    options: Mapping[str, float] = NONE
    counted: Tensor | None = None
    closed_form: Callable[..., tuple[Tensor, Tensor]] | None = None


def compute(described: Description) -> Tensor:
    """The loss of each sample, ``(..., batch)``. Gradient flows."""
    if by_kernel(described):
        loss = fused_loss(described.kind, described.numbers, described.rows)
    else:
        given = [tensor for tensor in described.rows if tensor is not None]
        loss = described.formula(*given, **described.options)
    return loss if described.counted is None else silence(loss, described.counted)


def by_kernel(described: Description) -> bool:
    """Whether a kernel computes it; none takes labels that are probabilities."""
    return uses_kernels(described.rows.student) and not are_probabilities(described.rows.labels)


def compute_closed(described: Description) -> tuple[Tensor, Tensor] | None:
    """Loss and gradient of each sample, without autograd.

    None where there is no such form, where a kernel computes it, and where there are so many scores that the formula
    computes them in blocks.
    """
    student, teacher, *_ = described.rows
    form = described.closed_form
    if form is None or described.counted is not None or student.numel() > BLOCK or uses_kernels(student):
        return None
    with torch.no_grad():
        return form(student, teacher, **described.options)


def computed(describe: Callable[P, Description]) -> Callable[P, Tensor]:
    """The function that computes what ``describe`` describes, with its arguments and docstring."""

    @functools.wraps(describe)
    def loss(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        return compute(describe(*args, **kwargs))

    named: Any = loss
    named.describe = describe
    named.__annotations__ = describe.__annotations__ | {"return": "Tensor"}
    named.__signature__ = inspect.signature(describe).replace(return_annotation="Tensor")
    return named  # type: ignore[no-any-return]
