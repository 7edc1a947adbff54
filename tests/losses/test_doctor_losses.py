"""Losses as people write them, right and wrong: the doctor names the fault, and raises no false alarm."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

from polydistill.losses import OBJECTIVES, doctor, draw_permutation, hinton_kd


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
        "pass log_target=True",
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
    "smoothed labels": (
        lambda z, t, y, T, a: both(a, ce(z, y, label_smoothing=0.1), kl(z, t, T) * T * T),
        "labels or targets are smoothed",
    ),
    "labels only": (lambda z, t, y, T, a: ce(z, y), "the teacher has no say"),
    "student as its own teacher": (
        lambda z, t, y, T, a: both(a, ce(z, y), kl(z, z.detach(), T) * T * T), "the teacher has no say"
    ),
    "other samples": (
        lambda z, t, y, T, a: both(a, ce(z, y), kl(z, t.roll(1, 0), T) * T * T), "of other samples .moved on by one."
    ),
    "samples reversed": (
        lambda z, t, y, T, a: both(a, ce(z, y), kl(z, t.flip(0), T) * T * T), "of other samples .the last comes first."
    ),
    "labels of other samples": (
        lambda z, t, y, T, a: both(a, ce(z, y.roll(1)), kl(z, t, T) * T * T), "labels are those of the next or last"
    ),
    "other classes": (
        lambda z, t, y, T, a: both(a, ce(z, y), kl(z, t.roll(1, 1), T) * T * T),
        "classes are in another order .moved up by one.",
    ),
    "half of the batch": (
        lambda z, t, y, T, a: both(a, ce(z, y), kl(z[: len(z) // 2], t[: len(z) // 2], T) * T * T),
        "soft term sees the first half of the batch only",
    ),
    "broadcast targets": (
        lambda z, t, y, T, a: both(
            a, ce(z, y), -T * T * ((t / T).softmax(1)[None] * (z / T).log_softmax(1)[:, None]).sum(-1).mean()
        ),
        "target is one for all, the mean over the batch",
    ),
    "hard labels": (
        lambda z, t, y, T, a: ce(z, t.argmax(1)), "a hard label: if that is meant, choose the objective policy_nll"
    ),
    "smoothed targets": (
        lambda z, t, y, T, a: T * T * ce(z / T, 0.9 * (t / T).softmax(1) + 0.1 / z.shape[1]) + ce(z, y),
        "not hinton_kd|targets are smoothed",
    ),
    "rounded student": (lambda z, t, y, T, a: both(a, ce(z, y), kl(z.round(), t, T)), "the teacher has no say"),
    "entropy too": (
        lambda z, t, y, T, a: both(a, ce(z, y), kl(z, t, T) * T * T) - (z.softmax(1) * z.log_softmax(1)).sum(1).mean(),
        "not hinton_kd, nor a known mistake in it: .* cosine .*; fine only if another loss is meant",
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


@pytest.mark.parametrize(("T", "a", "classes", "batch"), [(4.0, 0.1, 10, 32), (8.0, 0.5, 3, 40)])
@pytest.mark.parametrize("name", FAULTY)
def test_fault_of_a_loss_is_named(name, T, a, classes, batch) -> None:
    loss, expected = FAULTY[name]
    found = examine(loss, T, a, *make_batch(0, classes, batch))
    assert found.level == "wrong", found
    assert re.search(expected, found.text), found.text


@pytest.mark.parametrize(("T", "a", "classes", "batch"), [(1.0, 0.5, 10, 32), (4.0, 0.1, 100, 48)])
@pytest.mark.parametrize("name", SOUND)
def test_sound_loss_is_not_called_wrong(name, T, a, classes, batch) -> None:
    found = examine(SOUND[name], T, a, *make_batch(0, classes, batch))
    assert found.level == "fine", found
    assert f"{a:g} x cross-entropy + {1 - a:g} x soft term" in found.text


def symmetric(z, t, T):
    return kl(z, t, T) + kl(t, z, T)


def jensen_shannon(z, t, T):
    p, q = (t / T).softmax(1), (z / T).softmax(1)
    return sum((x * (x / (0.5 * (p + q))).log()).sum(1).mean() / 2 for x in (p, q))


MEANT = {  # another loss, which nobody writes by accident, and what is said of it
    "symmetric": (lambda z, t, y, T, a: both(a, ce(z, y), symmetric(z, t, T) * T * T), "a divergence in both directio"),
    "half of it": (lambda z, t, y, T, a: both(a, ce(z, y), symmetric(z, t, T) / 2), "symmetric KL.*both directions"),
    "jsd": (lambda z, t, y, T, a: both(a, ce(z, y), jensen_shannon(z, t, T)), "the divergence of the objective jsd"),
    "distance of scores": (
        lambda z, t, y, T, a: both(a, ce(z, y), F.mse_loss(z, t)),
        "squared distance of scores: not hinton_kd, but the distance of the objective policy_mse",
    ),
    "distance of probabilities": (
        lambda z, t, y, T, a: both(a, ce(z, y), F.mse_loss(z.softmax(1), t.softmax(1))),
        "squared distance of probabilities",
    ),
    "dkd": (lambda z, t, y, T, a: OBJECTIVES["dkd"](z, t, y, temperature=T).mean(), "but the objective dkd"),
    "standardised": (
        lambda z, t, y, T, a: OBJECTIVES["logit_standardized_kd"](z, t, y).mean(), "the objective logit_standardized_kd"
    ),
    "cwtm": (lambda z, t, y, T, a: OBJECTIVES["cwtm"](z, t, y).mean(), "but the objective cwtm"),
    "uniform": (lambda z, t, y, T, a: OBJECTIVES["uniform_confidence"](z, t, y).mean(), "objective uniform_confidence"),
    "weighted samples": (
        lambda z, t, y, T, a: T * T * (t.softmax(1).amax(1) * kl(z, t, T, "none").sum(1)).mean(),
        r"the objective with a weight for each sample, 0\.\d+ to 1\.\d+ times their mean",
    ),
    "root": (
        lambda z, t, y, T, a: both(a, ce(z, y), kl(z, t, T).sqrt()),
        r"the gradient of 0\.\d x cross-entropy \+ 0.0\d+ x soft term, with other scores other weights: a root",
    ),
    "logarithm": (lambda z, t, y, T, a: kl(z, t, T).log(), "with other scores other weights"),
}  # fmt: skip


@pytest.mark.parametrize(("T", "a", "classes", "batch"), [(4.0, 0.1, 10, 32), (8.0, 0.5, 5, 40)])
@pytest.mark.parametrize("name", MEANT)
def test_loss_that_may_be_meant_is_suspicious_and_named(name, T, a, classes, batch) -> None:
    loss, expected = MEANT[name]
    found = examine(loss, T, a, *make_batch(0, classes, batch))
    assert found.level == "suspicious", found
    assert re.search(expected, found.text), found.text
    assert "fine only if that is meant" in found.text


def test_root_of_a_faulty_loss_is_wrong() -> None:
    found = examine(lambda z, t, y, T, a: kl(t, z, T).sqrt(), 4.0, 0.1, *make_batch(0, 10, 32))
    assert found.level == "wrong"
    assert re.search("sides are swapped.*a root", found.text)


def test_samples_that_a_loss_leaves_out_are_named() -> None:
    z, t, y = make_batch(0, 10, 32)
    loss = lambda z, t, y: SOUND["by torch"](z[:16], t[:16], y[:16], 4.0, 0.1)  # noqa: E731
    report = doctor(lambda x: z, lambda x: t, "hinton_kd", None, y, loss_function=loss)
    said, last = report.findings[-2:]
    text = "your loss has no gradient in 16 of 32 samples (16, 17, 18, ...): fine only if it leaves them out on purpose"
    assert said == ("suspicious", text)
    assert last.text.startswith("of the other samples your loss is the objective")
    report = doctor(
        lambda x: z, lambda x: t, "hinton_kd", None, y,
        loss_function=lambda z, t, y: loss(z, t, y) / 2,
    )  # fmt: skip
    assert report.findings[-1].text == last.text, "a mean over all samples is sound too, as a weight of 0 or 1 has it"


def test_greatest_loss_of_the_batch_is_no_mean_of_it() -> None:
    z, t, y = make_batch(0, 10, 32)
    loss = lambda z, t, y: kl(z, t, 4.0, "none").sum(1).max()  # noqa: E731
    report = doctor(lambda x: z, lambda x: t, "hinton_kd", None, y, loss_function=loss)
    assert any(level == "suspicious" and "no gradient in 31 of 32 samples" in text for level, text in report.findings)


POLICY = {  # mistakes in a loss of which the teacher alone is tempered
    "twice": (lambda z, t: F.kl_div(z.log_softmax(1), (t.softmax(1) / 0.5).softmax(1)), "side is taken twice"),
    "another T": (lambda z, t: F.kl_div(z.log_softmax(1), (t / 3).softmax(1)), "its soft term has T = 3, not 0.5"),
    "no logarithm": (lambda z, t: F.kl_div(z.softmax(1), (t / 0.5).softmax(1)), "the logarithm is missing"),
    "over the batch": (lambda z, t: F.kl_div(z.log_softmax(0), (t / 0.5).softmax(0)), "is taken over the batch"),
    "other classes": (lambda z, t: F.kl_div(z.log_softmax(1), (t / 0.5).roll(1, 1).softmax(1)), "in another order"),
    "swapped": (lambda z, t: F.kl_div((t / 0.5).log_softmax(1), z.softmax(1)), "sides are swapped"),
}  # fmt: skip


@pytest.mark.parametrize("name", POLICY)
@pytest.mark.filterwarnings("ignore:reduction. 'mean'")
def test_fault_of_a_policy_loss_is_named(name) -> None:
    loss, expected = POLICY[name]
    z, t, _ = make_batch(0, 10, 32)
    report = doctor(
        lambda x: z, lambda x: t, "policy_kl", None, temperature=0.5, loss_function=lambda z, t, y: loss(z, t) * 10
    )
    assert any(expected in text for text in report.wrong), str(report)


def test_swapped_sides_of_reverse_kl_are_not_told_to_be_those_of_kl() -> None:
    z, t, _ = make_batch(0, 10, 32)
    report = doctor(
        lambda x: z, lambda x: t, "reverse_kl", None, temperature=1.0, loss_function=lambda z, t, y: kl(z, t, 1.0)
    )
    assert "F.kl_div takes log_softmax(teacher) first; if that is meant, choose the objective policy_kl" in str(
        report.wrong
    )


def test_student_that_is_its_own_target_has_no_gradient() -> None:
    """But for rounding: q - q is 1e-17."""
    z, t, y = make_batch(0, 10, 32)
    report = doctor(lambda x: z, lambda x: t, "ban", None, y, loss_function=lambda z, t, y: kl(z, z.detach(), 1.0))
    assert report.findings[-1] == ("wrong", "the gradient of your loss is 0 in every sample")


def test_weights_the_other_way_round_are_named() -> None:
    found = examine(SOUND["by torch"], 4.0, 0.9, *make_batch(0, 10, 32), label_weight=0.1, teacher_weight=0.9)
    assert found.level == "wrong"
    assert "label_weight and teacher_weight are swapped" in found.text


def test_rows_divided_by_all_of_a_flat_batch_are_said_once() -> None:
    z, t, y = make_batch(0, 10, 32)
    y[::4] = -100
    report = doctor(
        lambda x: z, lambda x: t, "ban", None, y,
        loss_function=lambda z, t, y: kl(z[y >= 0], t[y >= 0], 1.0, "sum") / len(z),
    )  # fmt: skip
    text = "your loss is divided by all 32 rows, those that do not count too: 1.33 times too small"
    assert report.findings[-1] == ("wrong", text)


@pytest.mark.parametrize("epsilon", [1e-8, 1e-6, 1e-4])
def test_epsilon_in_the_logarithm_is_no_fault_and_no_other_weight(epsilon) -> None:
    loss = lambda z, t, y, T, a: both(  # noqa: E731
        a, ce(z, y), -((t / T).softmax(1) * ((z / T).softmax(1) + epsilon).log()).sum(1).mean() * T * T
    )
    assert examine(loss, 4.0, 0.1, *make_batch(0, 10, 32)).level == "fine"


def test_two_classes_or_one_label_are_no_doubt() -> None:
    """Of two classes dkd is hinton_kd; labels of one class are those of other samples, too."""
    assert examine(SOUND["by torch"], 4.0, 0.1, *make_batch(0, 2, 32)).level == "fine"
    z, t, y = make_batch(0, 10, 32)
    assert examine(SOUND["by torch"], 4.0, 0.1, z, t, torch.zeros_like(y)).level == "fine"


def test_small_regulariser_is_not_called_smoothing() -> None:
    loss = lambda z, t, y, T, a: SOUND["by torch"](z, t, y, T, a) + 0.01 * z.square().mean()  # noqa: E731
    found = examine(loss, 4.0, 0.1, *make_batch(0, 10, 32))
    assert found.level == "suspicious"
    assert "nearly the objective, and not quite" in found.text


@pytest.mark.parametrize("spread", [1e-3, 0.02])
def test_commonest_mistake_does_not_pass_as_right_where_targets_are_flat(spread) -> None:
    z, t, y = make_batch(0, 10, 32, spread)
    loss, expected = FAULTY["swapped in kl_div"]
    found = examine(loss, 8.0, 0.1, spread * z, t, y)
    assert found.level == "wrong"
    assert re.search(expected, found.text)


def test_unknown_loss_is_not_called_a_known_one_where_targets_are_flat() -> None:
    z, t, y = make_batch(0, 10, 32, 0.01)
    loss, expected = FAULTY["entropy too"]
    found = examine(loss, 4.0, 0.1, 0.01 * z, t, y)
    assert found.level in {"wrong", "suspicious"}
    assert "its gradient has cosine" in found.text, (found, expected)


def alone_at(z, t, loss):
    """The loss at these scores only: at others it is refused, as one is that looks at something else too."""

    def function(found_z, found_t, y):
        if not (torch.equal(found_z.detach().float(), z) and torch.equal(found_t.float(), t)):
            raise RuntimeError("these are other scores")
        return loss(found_z.float(), found_t.float(), y)

    return function


def test_what_the_batch_alone_cannot_tell_is_not_told() -> None:
    """The targets are the labels: the label term and the soft term are one."""
    z, _, y = make_batch(0, 10, 32)
    t = 1000.0 * F.one_hot(y, 10)
    report = doctor(
        lambda x: z, lambda x: t, "ban_l", None, y,
        loss_function=alone_at(z, t, lambda z, t, y: 0.5 * ce(z, y) + 0.5 * ce(z, t.softmax(1))),
    )  # fmt: skip
    found = report.findings[-1]
    assert found.level in {"cannot tell", "wrong"}
    assert " or " in found.text
    sharp = doctor(
        lambda x: z, lambda x: t, "ban_l", None, y,
        loss_function=lambda z, t, y: 0.5 * ce(z, y) + 0.5 * ce(z, t.softmax(1)),
    )  # fmt: skip
    assert "0.5 x cross-entropy + 0.5 x soft term" in sharp.findings[-1].text


def test_batch_alone_is_enough_where_terms_differ() -> None:
    z, t, y = make_batch(0, 10, 32)
    for name in ("no T^2", "swapped in kl_div", "mean of kl_div"):
        loss, expected = FAULTY[name]
        report = doctor(
            lambda x: z, lambda x: t, "hinton_kd", None, y, temperature=4.0,
            loss_function=alone_at(z, t, lambda z, t, y, loss=loss: loss(z, t, y, 4.0, 0.1)),
        )  # fmt: skip
        assert re.search(expected, report.findings[-1].text)


@pytest.mark.parametrize(
    ("loss", "level", "text"),
    [
        (
            lambda z, t, y: ce(z, y) + 0.5 * kl(z, t, 4.0),
            "cannot tell",
            r"0.03125 x soft term \(or 0.5 x .* without T\^2",
        ),
        (lambda z, t, y: ce(z, y) + kl(z, t, 4.0), "wrong", r"1 x cross-entropy \+ 1 x soft term without T\^2"),
        (lambda z, t, y: 0.9 * ce(z, y) + 0.1 * 9 * kl(z, t, 3.0), "wrong", "pass temperature=3$"),
        (lambda z, t, y: (0.5 * ce(z, y) + 8 * kl(z, t, 4.0)) / 32, "wrong", "divided by the batch twice"),
        (lambda z, t, y: kl(z, t, 4.0, "none"), "wrong", r"lacks T\^2"),
        (
            lambda z, t, y: 0.1 * ce(z.bfloat16(), y) + 14.4 * kl(z.bfloat16(), t.bfloat16(), 4.0),
            "cannot tell",
            "16 bits",
        ),
        (
            lambda z, t, y: ce(z, y, weight=torch.arange(10.0)),
            "wrong",
            "your loss is not hinton_kd, nor a known mistake in it",
        ),
    ],
    ids=["weights or T^2", "no T^2", "another T", "twice", "unreduced", "bfloat16", "weighted classes"],
)
def test_loss_that_is_read_by_its_weights(loss, level, text) -> None:
    z, t, y = make_batch(0, 10, 32)
    report = doctor(lambda x: z, lambda x: t, "hinton_kd", None, y, loss_function=loss)
    assert report.findings[-1].level == level, report.findings[-1]
    assert re.search(text, report.findings[-1].text), report.findings[-1]


def test_value_per_class_is_suspicious() -> None:
    z, t, _ = make_batch(0, 10, 32)
    report = doctor(lambda x: z, lambda x: t, "hinton_kd", None, loss_function=lambda z, t, y: kl(z, t, 4.0, "none"))
    assert any("your loss has a value per class" in text for level, text in report.findings if level == "suspicious")


def test_random_loss_is_not_told() -> None:
    z, t, y = make_batch(0, 10, 32)
    state = torch.get_rng_state()
    report = doctor(
        lambda x: z, lambda x: t, "hinton_kd", None, y, loss_function=lambda z, t, y: kl(F.dropout(z), t, 4.0)
    )
    assert report.findings[-1].level == "cannot tell"
    assert "your loss is random" in report.findings[-1].text
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_that_are_asked_for_are_held_against_the_loss() -> None:
    batch = make_batch(0, 10, 32)
    found = examine(SOUND["by torch"], 4.0, 0.5, *batch, label_weight=0.1)
    assert found.level == "suspicious"
    assert "0.5 x cross-entropy + 0.5 x soft term" in found.text
    found = examine(lambda z, t, y, T, a: kl(z, t, T) * T * T, 4.0, 0.1, *batch, label_weight=0.1, teacher_weight=1.0)
    assert found.level == "wrong"
    assert "it has no label term, of which hinton_kd has 0.1" in found.text


OTHER = {  # of other objectives: the loss, options, the level and what is said
    "ban": (lambda z, t, y: ce(z, t.softmax(1)), {}, "fine", "your loss is the objective, averaged over the batch"),
    "ban_l": (lambda z, t, y: ce(z, y) + ce(z, t.softmax(1)), {}, "fine", r"1 x cross-entropy \+ 1 x soft term"),
    "policy_kl": (lambda z, t, y: F.kl_div(z.log_softmax(1), (t / 0.5).softmax(1), reduction="batchmean"),
                  {"temperature": 0.5}, "fine", "your loss is the objective"),
    "reverse_kl": (lambda z, t, y: kl(t, z, 1.0), {}, "fine", "your loss is the objective"),
    "jsd": (lambda z, t, y: kl(z, t, 1.0), {}, "suspicious", r"KL\(teacher \|\| student\).*: not jsd, but the diverg"),
    "policy_mse": (lambda z, t, y: F.mse_loss(z, t), {}, "wrong", "averaged over the classes too: 10 times too small"),
    "policy_huber": (lambda z, t, y: F.huber_loss(z, t), {}, "wrong", "averaged over the classes too: 10 times too"),
    "policy_nll": (lambda z, t, y: ce(z, t.argmax(1)), {}, "fine", "your loss is the objective"),
    "cross_entropy": (lambda z, t, y: ce(z, y), {}, "fine", "your loss is the objective"),
    "uniform_confidence": (lambda z, t, y: kl(z, t, 1.0), {}, "suspicious", "but the divergence of ban"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_losses_of_other_objectives_are_told_too(name) -> None:
    loss, options, level, text = OTHER[name]
    z, t, y = make_batch(0, 10, 32)
    report = doctor(lambda x: z, lambda x: t, name, None, y, loss_function=loss, **options)
    assert report.findings[-1].level == level, report.findings[-1]
    assert re.search(text, report.findings[-1].text), report.findings[-1]


def own_loss_of(objective):
    def loss(z, t, y):
        extra = {"permutation": draw_permutation(len(z), z.shape[1], generator=torch.Generator().manual_seed(0))}
        return objective(z, t, y, **(extra if objective.needs_permutation else {})).mean()

    return loss


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_is_itself(name) -> None:
    z, t, y = make_batch(0, 10, 32)
    options = {}
    if OBJECTIVES[name].needs_permutation:
        options["permutation"] = draw_permutation(32, 10, generator=torch.Generator().manual_seed(0))
    report = doctor(lambda x: z, lambda x: t, name, None, y, loss_function=own_loss_of(OBJECTIVES[name]), **options)
    assert report.findings[-1].level == "fine", report.findings[-1]


def test_mask_that_is_left_out_is_named() -> None:
    z, t, _ = make_batch(0, 10, 32)
    mask = torch.arange(10) >= 7
    report = doctor(
        lambda x: z, lambda x: t, "policy_kl", None, temperature=2.0, mask=mask,
        loss_function=lambda z, t, y: F.kl_div(z.log_softmax(1), (t / 2).softmax(1), reduction="batchmean"),
    )  # fmt: skip
    assert report.findings[-1].level == "wrong"
    assert "the mask is left out" in report.findings[-1].text


@pytest.mark.parametrize(
    ("loss", "level", "text"),
    [
        (lambda z, t, y: ce(z.flatten(0, 1), y.flatten()), "wrong", "the teacher has no say"),
        (lambda z, t, y: 0.1 * ce(z.flatten(0, 1), y.flatten()) + 0.9 * 16 * kl(z[y >= 0], t[y >= 0], 4.0),
         "fine", "0.1 x cross-entropy + 0.9 x soft term"),
        (lambda z, t, y: 0.1 * ce(z.flatten(0, 1), y.flatten()) + 0.9 * 16 * F.kl_div(
            (z / 4).log_softmax(2), (t / 4).softmax(2), reduction="none")[y >= 0].sum() / len(z),
         "wrong", "soft term is divided by the first dimension only, not by all 72 rows: 9 times too large"),
    ],
    ids=["labels", "sound", "batchmean"],
)  # fmt: skip
def test_loss_of_tokens_is_told(loss, level, text) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(10, (8, 12), generator=generator)
    t = 4.0 * F.one_hot(y, 10) + torch.randn(8, 12, 10, generator=generator)
    z = torch.randn(8, 12, 10, generator=generator)
    y[:, 9:] = -100
    report = doctor(lambda x: z, lambda x: t, "hinton_kd", None, y, loss_function=loss)
    assert report.findings[-1].level == level, report.findings[-1]
    assert text in report.findings[-1].text


def test_padding_in_the_soft_term_is_suspicious() -> None:
    z, t, y = make_batch(0, 10, 32)
    y[::4] = -100
    report = doctor(lambda x: z, lambda x: t, "hinton_kd", None, y, loss_function=lambda z, t, y: kl(z, t, 4.0) * 16)
    assert any("has a gradient at rows whose label is -100" in text for _, text in report.findings)
