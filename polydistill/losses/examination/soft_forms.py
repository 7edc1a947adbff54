"""The terms of the teacher that a loss may have instead of the objective's own: divergences.

Mistakes in them are in :mod:`~polydistill.losses.examination.mistakes`, other losses in
:mod:`~polydistill.losses.examination.other_losses`.

Symbols: z student scores, t teacher scores, ``(R, C)``; T temperature; p = softmax(t / T), q = softmax(z / T).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from polydistill.losses.examination.forms import Form
from polydistill.losses.examination.mistakes import mistakes
from polydistill.losses.examination.other_losses import distances, other_objectives
from polydistill.losses.examination.sides import Divergence, Sides, kl
from polydistill.losses.objectives import Objective

OTHER_TEMPERATURES = (
    0.01, 0.1, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0, 15.0, 16.0, 20.0
)  # fmt: skip
RIGHT = {  # objective -> key of its own form: a divergence's, or another form's
    "hinton_kd": "kl",
    "ban": "kl",
    "ban_l": "kl",
    "policy_kl": "kl",
    "reverse_kl": "reverse",
    "jsd": "jsd",
    "policy_mse": "mse",
    "policy_huber": "huber",
    "policy_nll": "best",
}
TEMPERED = {
    "both": "both sides tempered",
    "teacher": "only the teacher tempered",
    "student": "only the student tempered",
    "none": "no side tempered",
}
KL_AS = "its sides are swapped: F.kl_div takes {} first; if that is meant, choose the objective {}"
SWAPPED = {  # key of the objective's divergence -> the fault where the loss has the other direction
    "kl": KL_AS.format("log_softmax(student)", "reverse_kl"),
    "reverse": KL_AS.format("log_softmax(teacher)", "policy_kl"),
}


def soft_forms(objective: Objective, temperature: float, labelled: bool) -> Iterator[Form]:
    """Terms of the teacher other than the objective's own.

    Args:
        objective: what is meant.
        temperature: its T; 1 if it has none.
        labelled: there are labels, so that objectives that need them are among the other losses.
    """
    own = RIGHT.get(objective.name, "")
    sides = Sides(1.0 if objective.tempered else temperature, temperature)
    yield from _divergences(own, sides)
    yield from _other_temperatures(own, sides)
    yield from mistakes(sides)
    yield from (form for key, form in distances(temperature) if key != own)
    yield from other_objectives(objective.name, temperature, labelled)


def _reverse(z: Tensor, t: Tensor) -> Tensor:
    return kl(t, z)


def _jsd(z: Tensor, t: Tensor) -> Tensor:
    log_q, log_p = z.log_softmax(-1), t.log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
    of_both = [F.kl_div(log_m, side, reduction="sum", log_target=True) for side in (log_p, log_q)]
    return 0.5 * (of_both[0] + of_both[1])


def _symmetric(z: Tensor, t: Tensor) -> Tensor:
    return kl(z, t) + kl(t, z)


DIVERGENCES: dict[str, tuple[str, Divergence]] = {
    "kl": ("KL(teacher || student)", kl),
    "reverse": ("KL(student || teacher)", _reverse),
    "jsd": ("Jensen-Shannon divergence", _jsd),
    "symmetric": ("symmetric KL (sum of both directions)", _symmetric),
}
ANOTHER = {
    "kl": "but the divergence of ban, hinton_kd and policy_kl",
    "reverse": "but the divergence of the objective reverse_kl",
    "jsd": "but the divergence of the objective jsd",
    "symmetric": "but a divergence in both directions",
}


def _divergences(own: str, sides: Sides) -> Iterator[Form]:
    """Each divergence, tempered in each way, without the objective's own."""
    T = sides.teacher
    ways = {"both": Sides(T, T), "teacher": Sides(1.0, T), "student": Sides(T, 1.0), "none": Sides(1.0, 1.0)}
    for way, others in ways.items():
        if T == 1.0 and way != "both":
            continue
        how = f" with {TEMPERED[way]}" if T != 1.0 else ""
        for key, (name, divergence) in DIVERGENCES.items():
            if key == own and others == sides:
                continue
            fault, another = "", ""
            if key == own:
                fault = "no side is tempered" if way == "none" else f"its soft term has {TEMPERED[way]} by T = {T:g}"
            elif {key, own} == {"kl", "reverse"}:
                fault = SWAPPED[own]
            else:
                another = ANOTHER[key]
            yield Form(f"{name}{how}", fault, others.of(divergence), others.square, another=another)


def _other_temperatures(own: str, sides: Sides) -> Iterator[Form]:
    """The objective's own divergence, or KL where it has none, tempered in its own way by another T."""
    T, both = sides.teacher, sides.student == sides.teacher
    name, divergence = DIVERGENCES.get(own, DIVERGENCES["kl"])
    another = "" if own in DIVERGENCES else ANOTHER["kl"]

    def at(other: float, how: str, fault: str) -> Form:
        others = Sides(other if both else 1.0, other)
        fault = fault if not another else ""
        return Form(f"{name} at T = {how}", fault, others.of(divergence), others.square, another=another)

    for other in OTHER_TEMPERATURES:
        if other not in (T, 1.0):
            meant = f"pass temperature={other:g}" if T != 1.0 else "choose an objective that has a temperature"
            yield at(other, f"{other:g}", f"its soft term has T = {other:g}, not {T:g}: if that is meant, {meant}")
    if T == 1.0 or another:
        return
    yield at(1.0 / T, f"{1.0 / T:g}", f"the scores of its soft term are multiplied by {T:g}, not divided")
    for whose, others in (("student", Sides(T * T, T)), ("teacher", Sides(sides.student, T * T))):
        if both or whose == "teacher":
            fault = f"the {whose}'s scores are tempered twice"
            yield Form(name, fault, others.of(divergence), T if both else 1.0)
