"""Losses as people write them, right and wrong: the doctor names the fault, and raises no false alarm."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

from polydistill.losses import doctor, hinton_kd


def kl(z, t, T, reduction="batchmean"):
    return F.kl_div((z / T).log_softmax(1), (t / T).softmax(1), reduction=reduction)


def both(a, label, soft):
    return a * label + (1 - a) * soft


ce = F.cross_entropy

FAULTY = {  # the loss of (z, t, y) at temperature T with weights a and 1 - a, and what is said of it
    "no T^2": (lambda z, t, y, T, a: both(a, ce(z, y), kl(z, t, T)), r"soft term without T\^2: its soft term lacks T"),
    "T for T^2": (lambda z, t, y, T, a: both(a, ce(z, y), kl(z, t, T) * T), "multiplied by T = .*, not by T"),
    "T^4": (lambda z, t, y, T, a: both(a, ce(z, y), kl(z, t, T) * T**4), r"soft term has a T\^2 = .* too many"),
    "T^2 on both": (lambda z, t, y, T, a: both(a, ce(z, y), kl(z, t, T)) * T * T, r"label term is multiplied by T\^2"),
    "T^2 on the label": (lambda z, t, y, T, a: both(a, ce(z, y) * T * T, kl(z, t, T)), "label term is multiplied"),
    "mean of kl_div": (
        lambda z, t, y, T, a: both(a, ce(z, y), kl(z, t, T, "none").mean() * T * T),
        "soft term is averaged over the classes too",
    ),
    "mean of kl_div, no T^2": (
        lambda z, t, y, T, a: both(a, ce(z, y), kl(z, t, T, "none").mean()),
        r"soft term is averaged over the classes too.*soft term lacks T\^2",
    ),
    "sum": (
        lambda z, t, y, T, a: both(a, ce(z, y, reduction="sum"), kl(z, t, T, "sum") * T * T),
        "it is summed over the batch",
    ),
    "sum of kl_div": (
        lambda z, t, y, T, a: both(a, ce(z, y), kl(z, t, T, "sum") * T * T),
        "soft term is summed over the batch",
    ),
    "sum of labels": (
        lambda z, t, y, T, a: both(a, ce(z, y, reduction="sum"), kl(z, t, T) * T * T),
        "label term is summed over the batch",
    ),
    "swapped in kl_div": (
        lambda z, t, y, T, a: both(a, ce(z, y), F.kl_div(
            (t / T).log_softmax(1), (z / T).softmax(1), reduction="batchmean") * T * T),
        r"KL\(student \|\| teacher\).*sides are swapped",
    ),
    "swapped, no T^2": (
        lambda z, t, y, T, a: both(a, ce(z, y), kl(t, z, T)), r"sides are swapped.*lacks T\^2"
    ),
    "swapped arguments": (
        lambda z, t, y, T, a: both(a, ce(t, y), kl(t, z, T) * T * T), "sides are swapped"
    ),
    "student not tempered": (
        lambda z, t, y, T, a: both(a, ce(z, y), F.kl_div(
            z.log_softmax(1), (t / T).softmax(1), reduction="batchmean") * T * T),
        "only the teacher tempered",
    ),
    "teacher not tempered": (
        lambda z, t, y, T, a: both(a, ce(z, y), F.kl_div(
            (z / T).log_softmax(1), t.softmax(1), reduction="batchmean") * T * T),
        "only the student tempered",
    ),
    "not tempered": (
        lambda z, t, y, T, a: both(a, ce(z, y), kl(z, t, 1.0) * T * T), "no side is tempered"
    ),
    "multiplied": (lambda z, t, y, T, a: both(a, ce(z, y), kl(z, t, 1 / T) * T * T), "are multiplied by"),
    "another T": (lambda z, t, y, T, a: both(a, ce(z, y), kl(z, t, T + 1) * (T + 1) ** 2), "its soft term has T = "),
    "labels tempered": (lambda z, t, y, T, a: both(a, ce(z / T, y), kl(z, t, T) * T * T), "label term is tempered by"),
    "softmax twice, labels": (
        lambda z, t, y, T, a: both(a, ce(z.softmax(1), y), kl(z, t, T) * T * T),
        "label term is given probabilities",
    ),
    "nll of probabilities": (
        lambda z, t, y, T, a: both(a, F.nll_loss(z.softmax(1), y), kl(z, t, T) * T * T),
        "label term lacks the logarithm",
    ),
    "nll of scores": (
        lambda z, t, y, T, a: both(a, F.nll_loss(z, y), kl(z, t, T) * T * T), "label term lacks the softmax"
    ),
    "softmax twice, teacher": (
        lambda z, t, y, T, a: both(a, ce(z, y), kl(z, t.softmax(1), T) * T * T),
        "softmax of the teacher's side is taken twice",
    ),
    "softmax twice, student": (
        lambda z, t, y, T, a: both(a, ce(z, y), kl(z.softmax(1), t, T) * T * T),
        "softmax of the student's side is taken twice",
    ),
    "softmax twice, both": (
        lambda z, t, y, T, a: both(a, ce(z, y), kl(z.softmax(1), t.softmax(1), T) * T * T),
        "softmax of both sides is taken twice",
    ),
    "softmax over the batch": (
        lambda z, t, y, T, a: both(a, ce(z, y), F.kl_div(
            (z / T).log_softmax(0), (t / T).softmax(0), reduction="batchmean") * T * T),
        "softmax of both sides is taken over the batch",
    ),
    "no logarithm": (
        lambda z, t, y, T, a: both(a, ce(z, y), F.kl_div(
            (z / T).softmax(1), (t / T).softmax(1), reduction="batchmean") * T * T),
        "the logarithm is missing",
    ),
    "no log_softmax": (
        lambda z, t, y, T, a: both(a, ce(z, y), F.kl_div(z / T, (t / T).softmax(1), reduction="batchmean") * T * T),
        "the log_softmax is missing",
    ),
    "log_target missing": (
        lambda z, t, y, T, a: both(a, ce(z, y), F.kl_div(
            (z / T).log_softmax(1), (t / T).log_softmax(1), reduction="batchmean") * T * T),
        "say log_target=True",
    ),
    "log_target too many": (
        lambda z, t, y, T, a: both(a, ce(z, y), F.kl_div(
            (z / T).log_softmax(1), (t / T).softmax(1), reduction="batchmean", log_target=True) * T * T),
        "leave log_target=True out",
    ),
    "wrong sign": (lambda z, t, y, T, a: both(a, ce(z, y), -kl(z, t, T) * T * T), "soft term has the wrong sign"),
    "shifted labels": (
        lambda z, t, y, T, a: both(a, ce(z, (y + 1) % z.shape[1]), kl(z, t, T) * T * T), "labels are shifted by one"
    ),
    "best class only": (
        lambda z, t, y, T, a: both(a, ce(z, y), ce(z, t.argmax(1))), "cross-entropy with the teacher's best class"
    ),
    "distance of scores": (lambda z, t, y, T, a: both(a, ce(z, y), F.mse_loss(z, t)), "squared distance of scores"),
    "distance of probabilities": (
        lambda z, t, y, T, a: both(a, ce(z, y), F.mse_loss(z.softmax(1), t.softmax(1))),
        "squared distance of probabilities",
    ),
    "smoothed labels": (
        lambda z, t, y, T, a: both(a, ce(z, y, label_smoothing=0.1), kl(z, t, T) * T * T), "smooths the labels"
    ),
    "labels only": (lambda z, t, y, T, a: ce(z, y), "the teacher has no say"),
    "student as its own teacher": (
        lambda z, t, y, T, a: both(a, ce(z, y), kl(z, z.detach(), T) * T * T), "the teacher has no say"
    ),
    "entropy too": (
        lambda z, t, y, T, a: both(a, ce(z, y), kl(z, t, T) * T * T) - (z.softmax(1) * z.log_softmax(1)).sum(1).mean(),
        "your loss is another one, and no mistake that is known here",
    ),
}  # fmt: skip

SOUND = {
    "by torch": lambda z, t, y, T, a: both(a, ce(z, y), kl(z, t, T) * T * T),
    "per sample": lambda z, t, y, T, a: both(
        a, ce(z, y, reduction="none"), kl(z, t, T, "none").sum(1) * T * T
    ),
    "by soft cross-entropy": lambda z, t, y, T, a: both(a, ce(z, y), ce(z / T, (t / T).softmax(1)) * T * T),
    "by log_target": lambda z, t, y, T, a: both(a, ce(z, y), F.kl_div(
        (z / T).log_softmax(1), (t / T).log_softmax(1), reduction="batchmean", log_target=True) * T * T),
    "by hand": lambda z, t, y, T, a: (
        -a * z.log_softmax(1)[torch.arange(len(y)), y]
        - (1 - a) * T * T * ((t / T).softmax(1) * (z / T).log_softmax(1)).sum(1)
    ).mean(),
    "ours": lambda z, t, y, T, a: hinton_kd(z, t, y, temperature=T, label_weight=a, teacher_weight=1 - a).mean(),
    "in float32": lambda z, t, y, T, a: both(a, ce(z.float(), y), kl(z.float(), t.float(), T) * T * T),
    "with weights of one type": lambda z, t, y, T, a: both(
        a, ce(z, y, weight=torch.ones(z.shape[1])), kl(z, t, T) * T * T
    ),
    "of a mean of kl_div": lambda z, t, y, T, a: both(a, ce(z, y), kl(z, t, T, "none").mean() * z.shape[1] * T * T),
    "with an epsilon": lambda z, t, y, T, a: both(
        a, ce(z, y), -((t / T).softmax(1) * ((z / T).softmax(1) + 1e-8).log()).sum(1).mean() * T * T
    ),
}  # fmt: skip


def make_batch(seed, classes, batch, spread=3.0):
    """Scores of a student and a teacher who knows most labels, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, classes, generator=generator)
    y = torch.randint(classes, (batch,), generator=generator)
    t = torch.randn(batch, classes, generator=generator)
    t = spread * (t + 3.0 * F.one_hot(y, classes))
    return z, t, y


def examine(loss, T, a, z, t, y, objective="hinton_kd", **options):
    """What is said of a loss, its level first; the weights are not given."""
    report = doctor(
        lambda x: z, lambda x: t, objective, None, y, temperature=T,
        loss_function=lambda z, t, y: loss(z, t, y, T, a), **options,
    )  # fmt: skip
    return [finding for finding in report.findings if finding.text.startswith("your loss")][-1]


@pytest.mark.parametrize(("T", "a", "classes", "batch"), [(4.0, 0.1, 10, 32), (2.0, 0.5, 100, 48), (8.0, 0.5, 3, 40)])
@pytest.mark.parametrize("name", FAULTY)
def test_fault_of_a_loss_is_named(name, T, a, classes, batch) -> None:
    loss, expected = FAULTY[name]
    found = examine(loss, T, a, *make_batch(0, classes, batch))
    assert found.level == "wrong", found
    assert re.search(expected, found.text), found.text


@pytest.mark.parametrize(("T", "a", "classes", "batch"), [(1.0, 0.5, 10, 32), (4.0, 0.1, 100, 48), (8.0, 0.5, 3, 40)])
@pytest.mark.parametrize("name", SOUND)
def test_sound_loss_is_not_called_wrong(name, T, a, classes, batch) -> None:
    found = examine(SOUND[name], T, a, *make_batch(0, classes, batch))
    assert found.level == "fine", found
    assert f"{a:g} x cross-entropy + {1 - a:g} x soft term" in found.text
