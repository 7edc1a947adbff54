"""Mistakes in a divergence, as public code has them: a second softmax, or one over the batch; a missing logarithm; the
scores of other samples or of other classes; a part of the batch.

Symbols: z student scores, t teacher scores, ``(R, C)``; T temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch.nn.functional as F
from torch import Tensor

from polydistill.losses.examination.forms import Form, Function
from polydistill.losses.examination.sides import Divergence, Sides, kl

NAME = "KL(teacher || student)"


def mistakes(sides: Sides) -> Iterator[Form]:
    """Mistakes in KL(teacher || student), with its sides tempered as the objective's are, and with no side tempered."""
    for ways in dict.fromkeys((sides, Sides(1.0, 1.0))):
        bare = "" if ways == sides else "; no side is tempered"
        for form in (*_softmaxes(ways), *_logarithms(ways)):
            yield form._replace(fault=form.fault + bare)
    yield from _rows(sides)
    yield from _classes(sides)


def _softmaxes(sides: Sides) -> Iterator[Form]:
    """A softmax before the temperature, or over the wrong dimension."""

    def twice(of_student: bool, of_teacher: bool) -> Function:
        def term(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
            z, t = z.softmax(-1) if of_student else z, t.softmax(-1) if of_teacher else t
            return kl(z / sides.student, t / sides.teacher)

        return term

    def over_batch(of_student: bool, of_teacher: bool) -> Divergence:
        dims = 0 if of_student else -1, 0 if of_teacher else -1
        return lambda z, t: F.kl_div(z.log_softmax(dims[0]), t.log_softmax(dims[1]), reduction="sum", log_target=True)

    for whose, which in (
        ("the student's side", (True, False)),
        ("the teacher's side", (False, True)),
        ("both sides", (True, True)),
    ):
        fault = f"the softmax of {whose} is taken twice: give the soft term scores"
        yield Form(f"{NAME} of probabilities", fault, twice(*which), sides.square)
        fault = f"the softmax of {whose} is taken over the batch: use dim=-1"
        yield Form(f"{NAME} over the batch", fault, sides.of(over_batch(*which)), sides.square, coupled=True)


def _logarithms(sides: Sides) -> Iterator[Form]:
    def product(of_teacher: Callable[[Tensor], Tensor], of_student: Callable[[Tensor], Tensor]) -> Divergence:
        return lambda z, t: -(of_teacher(t) * of_student(z)).sum()

    def softmax(x: Tensor) -> Tensor:
        return x.softmax(-1)

    def log_softmax(x: Tensor) -> Tensor:
        return x.log_softmax(-1)

    def bare(x: Tensor) -> Tensor:
        return x

    first = "F.kl_div takes log_softmax(student) first"
    for name, fault, of_teacher, of_student in (
        ("without a logarithm", f"the logarithm is missing: {first}", softmax, softmax),
        ("of bare scores", f"the log_softmax is missing: {first}", softmax, bare),
        ("with a log-target", "the target is a log_softmax: pass log_target=True", log_softmax, log_softmax),
        (
            "with log_target=True",
            "the target is a softmax: leave log_target=True out",
            lambda x: x.softmax(-1).exp(),
            log_softmax,
        ),
        ("with bare scores as target", "the target's softmax is missing", bare, log_softmax),
    ):
        yield Form(f"F.kl_div {name}", fault, sides.of(product(of_teacher, of_student)), sides.square)


def _rows(sides: Sides) -> Iterator[Form]:
    """Rows of student and teacher that do not belong together, or not all rows."""
    order = "the teacher's scores are those of other samples ({}): give both networks one batch in one order"
    part = "its soft term sees {} half of the batch only"
    for name, fault, divergence in (
        ("with other samples", order.format("moved on by one"), lambda z, t: kl(z, t.roll(1, 0))),
        ("with other samples", order.format("moved back by one"), lambda z, t: kl(z, t.roll(-1, 0))),
        ("with other samples", order.format("the last comes first"), lambda z, t: kl(z, t.flip(0))),
        (
            "with the batch's mean",
            "its target is one for all, the mean over the batch: check the shapes",
            lambda z, t: -(t.softmax(-1).mean(0) * z.log_softmax(-1)).sum(),
        ),
        ("of a half", part.format("the first"), lambda z, t: _of_half(z, t, slice(0, len(z) // 2))),
        ("of a half", part.format("the second"), lambda z, t: _of_half(z, t, slice(len(z) // 2, None))),
    ):
        yield Form(f"{NAME} {name}", fault, sides.of(divergence), sides.square, coupled=True)


def _of_half(z: Tensor, t: Tensor, half: slice) -> Tensor:
    """The mean over the half, times the number of all rows."""
    return kl(z[half], t[half]) * (len(z) / max(len(z[half]), 1))


def _classes(sides: Sides) -> Iterator[Form]:
    for how, divergence in (
        ("moved up by one", lambda z, t: kl(z, t.roll(1, -1))),
        ("moved down by one", lambda z, t: kl(z, t.roll(-1, -1))),
        ("the last comes first", lambda z, t: kl(z, t.flip(-1))),
    ):
        fault = f"the teacher's classes are in another order ({how})"
        yield Form(f"{NAME} with other classes", fault, sides.of(divergence), sides.square)
