"""The terms of the teacher that losses of distillation have, right and mistaken.

Found in public code: sides swapped, a temperature on one side, another temperature, a softmax too many or over the
batch, a logarithm forgotten, other distances.

Symbols: z student scores, t teacher scores, ``(R, C)``; T temperature; p = softmax(t / T), q = softmax(z / T).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from polydistill.losses.examination.forms import Form, Function

FORWARD, REVERSED = "KL(teacher || student)", "KL(student || teacher)"
OTHER_TEMPERATURES = (
    0.01,
    0.1,
    0.5,
    1.0,
    1.5,
    2.0,
    2.5,
    3.0,
    4.0,
    5.0,
    6.0,
    7.0,
    8.0,
    9.0,
    10.0,
    12.0,
    15.0,
    16.0,
    20.0,
)
SIDES = {
    "both": "both sides tempered",
    "teacher": "only the teacher tempered",
    "student": "only the student tempered",
    "none": "no side tempered",
}
RIGHT = {  # which form is an objective's own: a divergence and its tempered sides, or another form's key
    "hinton_kd": "kl both",
    "ban": "kl both",
    "ban_l": "kl both",
    "policy_kl": "kl teacher",
    "reverse_kl": "reverse teacher",
    "jsd": "jsd teacher",
    "policy_mse": "mse",
    "policy_huber": "huber",
    "policy_nll": "best",
}

Divergence = Callable[[Tensor, Tensor], Tensor]  # of the scores of both sides, tempered


def soft_forms(temperature: float, objective: str) -> Iterator[Form]:
    """Terms of the teacher other than the objective's own.

    Args:
        temperature: T of the objective; 1 if it has none.
        objective: its name.
    """
    own = RIGHT.get(objective, "")
    if temperature == 1.0 and own.partition(" ")[0] in {"kl", "reverse", "jsd"}:
        own = own.partition(" ")[0] + " both"
    forms = [*_divergences(temperature), *_softmax_mistakes(temperature), *_logarithm_mistakes(temperature)]
    forms += _distances(temperature)
    yield from (form for key, form in forms if key != own)


def _kl(z: Tensor, t: Tensor) -> Tensor:
    return F.kl_div(z.log_softmax(-1), t.log_softmax(-1), reduction="sum", log_target=True)


def _reverse(z: Tensor, t: Tensor) -> Tensor:
    return _kl(t, z)


def _jsd(z: Tensor, t: Tensor) -> Tensor:
    log_q, log_p = z.log_softmax(-1), t.log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
    of_both = [F.kl_div(log_m, side, reduction="sum", log_target=True) for side in (log_p, log_q)]
    return 0.5 * (of_both[0] + of_both[1])


def _of(divergence: Divergence, of_student: float, of_teacher: float) -> Function:
    def term(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return divergence(z / of_student, t / of_teacher)

    return term


def _divergences(T: float) -> Iterator[tuple[str, Form]]:
    swapped = "its sides are swapped: F.kl_div takes log_softmax(student) first, softmax(teacher) second"
    temperatures = {"both": (T, T), "teacher": (1.0, T), "student": (T, 1.0), "none": (1.0, 1.0)}
    for side, (of_student, of_teacher) in temperatures.items():
        if T == 1.0 and side != "both":
            continue
        how = f" with {SIDES[side]}" if T != 1.0 else ""
        square = T if side == "both" else 1.0
        fault = f"its soft term has {SIDES[side]} by T = {T:g}" if side != "none" else "no side is tempered"
        yield f"kl {side}", Form(FORWARD + how, fault, _of(_kl, of_student, of_teacher), square)
        yield f"reverse {side}", Form(REVERSED + how, swapped, _of(_reverse, of_student, of_teacher), square)
        fault = "its soft term is another divergence: the objective jsd is that one"
        yield f"jsd {side}", Form(f"Jensen-Shannon divergence{how}", fault, _of(_jsd, of_student, of_teacher), square)
    yield from _temperatures(T)


def _temperatures(T: float) -> Iterator[tuple[str, Form]]:
    for other in OTHER_TEMPERATURES:
        if other not in (T, 1.0):
            meant = f"say temperature={other:g}" if T != 1.0 else "choose an objective that has a temperature"
            fault = f"its soft term has T = {other:g}, not {T:g}: if that is meant, {meant}"
            yield "", Form(f"{FORWARD} at T = {other:g}", fault, _of(_kl, other, other), other)
    if T == 1.0:
        return
    fault = f"the scores of its soft term are multiplied by {T:g}, not divided"
    yield "", Form(f"{FORWARD} at T = 1/{T:g}", fault, _of(_kl, 1.0 / T, 1.0 / T), 1.0 / T)
    fault = "the student's scores are tempered twice"
    yield "", Form(FORWARD, fault, _of(_kl, T * T, T), T)
    fault = "the teacher's scores are tempered twice"
    yield "", Form(FORWARD, fault, _of(_kl, T, T * T), T)


def _softmax_mistakes(T: float) -> Iterator[tuple[str, Form]]:
    def too_many(of_student: bool, of_teacher: bool) -> Function:
        def term(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
            z, t = z.softmax(-1) if of_student else z, t.softmax(-1) if of_teacher else t
            return _kl(z / T, t / T)

        return term

    def over_batch(of_student: bool, of_teacher: bool) -> Function:
        def term(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
            log_q = (z / T).log_softmax(0 if of_student else -1)
            return F.kl_div(log_q, (t / T).log_softmax(0 if of_teacher else -1), reduction="sum", log_target=True)

        return term

    for whose, of_student, of_teacher in (("student", 1, 0), ("teacher", 0, 1), ("both", 1, 1)):
        sides = bool(of_student), bool(of_teacher)
        side = "both sides" if whose == "both" else f"the {whose}'s side"
        fault = f"the softmax of {side} is taken twice: give the soft term scores"
        yield "", Form(f"{FORWARD} of probabilities", fault, too_many(*sides), T)
        fault = f"the softmax of {side} is taken over the batch: say dim=-1"
        yield "", Form(f"{FORWARD} over the batch", fault, over_batch(*sides), T, coupled=True)


def _logarithm_mistakes(T: float) -> Iterator[tuple[str, Form]]:
    def against(of_teacher: Callable[[Tensor], Tensor], of_student: Callable[[Tensor], Tensor]) -> Function:
        def term(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return -(of_teacher(t / T) * of_student(z / T)).sum()

        return term

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
        ("with a log-target", "the target is a log_softmax: say log_target=True", log_softmax, log_softmax),
        (
            "with log_target=True",
            "the target is a softmax: leave log_target=True out",
            lambda x: x.softmax(-1).exp(),
            log_softmax,
        ),
        ("with bare scores as target", "the target's softmax is missing", bare, log_softmax),
    ):
        yield "", Form(f"F.kl_div {name}", fault, against(of_teacher, of_student), T)


def _distances(T: float) -> Iterator[tuple[str, Form]]:
    def squared(z: Tensor, t: Tensor) -> Tensor:
        return (z - t).square().sum()

    def of_probabilities(z: Tensor, t: Tensor) -> Tensor:
        return squared(z.softmax(-1), t.softmax(-1))

    def absolute(z: Tensor, t: Tensor) -> Tensor:
        return (z - t).abs().sum()

    def huber(z: Tensor, t: Tensor) -> Tensor:
        return F.huber_loss(z, t, reduction="sum")

    def cosine(z: Tensor, t: Tensor) -> Tensor:
        return -F.cosine_similarity(z, t).sum()

    def best(z: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(z, t.argmax(-1), reduction="sum")

    def binary(z: Tensor, t: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(z, t.softmax(-1), reduction="sum")

    def sigmoid(z: Tensor, t: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(z, t.sigmoid(), reduction="sum")

    for key, name, function, fault in (
        ("mse", "squared distance of scores", squared, "the objective policy_mse is that one"),
        ("huber", "Huber's distance of scores", huber, "the objective policy_huber is that one"),
        ("best", "cross-entropy with the teacher's best class", best, "the objective policy_nll is that one"),
        ("", "absolute distance of scores", absolute, "take a softmax and a divergence"),
        ("", "cosine distance of scores", cosine, "take a softmax and a divergence"),
        ("", "squared distance of probabilities", of_probabilities, "take a divergence"),
        ("", "binary cross-entropy with the teacher's softmax", binary, "it looks at each class alone"),
        ("", "binary cross-entropy with the teacher's sigmoid", sigmoid, "it looks at each class alone"),
    ):
        yield key, Form(name, f"its soft term is another one: {fault}", _of(function, 1.0, 1.0))
        if T != 1.0 and function not in (squared, absolute, cosine):  # those are not changed, but for a factor
            yield "", Form(f"{name}, tempered", f"its soft term is another one: {fault}", _of(function, T, T), T)
