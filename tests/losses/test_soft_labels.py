"""Labels that are probabilities: mixed images, and smoothing by the data."""

from __future__ import annotations

import math

import pytest
import torch

from polydistill.losses import OBJECTIVES, cross_entropy, loss_with_diagnostics, value_and_grad
from tests.losses.reference import NAMES

WITH_LABELS = [name for name in NAMES if "labels" in OBJECTIVES[name].takes and name != "dkd"]


def one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    return torch.eye(classes, dtype=torch.float64)[labels]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dkd"])
def test_certain_probabilities_are_the_class(make_batch, name) -> None:
    batch = make_batch()
    options = batch.options(name)
    soft = batch._replace(labels=one_hot(batch.labels, batch.student.shape[1]))
    expected, found = (OBJECTIVES[name](*given, **options) for given in (batch, soft))
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss.sum(), batch.student)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", WITH_LABELS)
def test_a_mixture_of_labels_is_the_mixture_of_their_losses(make_batch, name) -> None:
    batch = make_batch()
    other = (batch.labels + 1) % batch.student.shape[1]
    share = torch.rand(len(other), dtype=torch.float64)
    mixed = share[:, None] * one_hot(batch.labels, batch.student.shape[1])
    mixed += (1 - share)[:, None] * one_hot(other, batch.student.shape[1])
    first, second = (OBJECTIVES[name](batch.student, batch.teacher, labels) for labels in (batch.labels, other))
    found = OBJECTIVES[name](batch.student, batch.teacher, mixed)
    torch.testing.assert_close(found, share * first + (1 - share) * second)


def test_what_the_data_smooth_is_what_label_smoothing_does(make_batch) -> None:
    student, _, labels = make_batch(6, 4)
    smooth = 0.8 * one_hot(labels, 4) + 0.05
    torch.testing.assert_close(cross_entropy(student, smooth), cross_entropy(student, labels, label_smoothing=0.2))
    half = cross_entropy(student, one_hot(labels, 4), label_smoothing=0.2)
    torch.testing.assert_close(half, cross_entropy(student, labels, label_smoothing=0.2))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dkd"])
def test_a_row_of_zeros_counts_for_nothing(make_batch, name) -> None:
    batch = make_batch()
    padded = batch.labels.clone()
    padded[2] = -100
    soft = one_hot(batch.labels, batch.student.shape[1])
    soft[2] = 0.0
    options = batch.options(name) | {"ignore_index": -100}
    expected = OBJECTIVES[name](batch.student, batch.teacher, padded, **options)
    found = OBJECTIVES[name](batch.student, batch.teacher, soft, check_values=True, **options)
    torch.testing.assert_close(found, expected)
    assert not found[2]
    one_pass = value_and_grad(name, batch.student, batch.teacher, soft, with_diagnostics=True, **options)
    torch.testing.assert_close(one_pass.loss, expected.detach())
    assert not one_pass.gradient[2].any()
    assert not one_pass.diagnostics.label_norm[2]


def test_labels_may_lie_in_any_order_of_memory(make_batch) -> None:
    batch = make_batch(6, 5)
    soft = one_hot(batch.labels, 5).double().t().contiguous().t()
    twice = torch.stack([batch.student, -batch.student]), torch.stack([soft, soft]).transpose(0, 1).contiguous()
    found = cross_entropy(twice[0], twice[1].transpose(0, 1))
    torch.testing.assert_close(found[0], cross_entropy(batch.student, batch.labels))


def test_a_student_of_half_precision_takes_labels_of_float32(make_batch) -> None:
    batch = make_batch()
    student, soft = batch.student.detach().half(), one_hot(batch.labels, batch.student.shape[1]).float()
    torch.testing.assert_close(cross_entropy(student, soft), cross_entropy(student, batch.labels))


def test_diagnostics_go_by_the_most_likely_class(make_batch) -> None:
    batch = make_batch()
    soft = 0.9 * one_hot(batch.labels, batch.student.shape[1]) + 0.1 / batch.student.shape[1]
    expected = loss_with_diagnostics("ban_l", *batch)[1]
    found = loss_with_diagnostics("ban_l", batch.student, batch.teacher, soft)[1]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_no_kernel_is_asked(make_batch, monkeypatch) -> None:
    monkeypatch.setattr("polydistill.losses.description.uses_kernels", lambda student: True)
    monkeypatch.setattr("polydistill.losses.description.fused_loss", lambda *_: pytest.fail("a kernel was called"))
    student, _, labels = make_batch(4, 3)
    assert cross_entropy(student, one_hot(labels, 3)).shape == (4,)


def test_an_objective_that_needs_the_class_says_which_do_not(make_batch) -> None:
    batch = make_batch()
    with pytest.raises(
        ValueError, match=r"objective dkd needs the class .* cross_entropy, ban_l, hinton_kd, cwtm, logit_s"
    ):
        OBJECTIVES["dkd"](batch.student, batch.teacher, one_hot(batch.labels, batch.student.shape[1]))


def test_what_is_no_probability_is_refused(make_batch) -> None:
    student, _, labels = make_batch(4, 3)
    soft = one_hot(labels, 3)
    with pytest.raises(ValueError, match=r"must be of the student's shape \(4, 3\), got \(4, 2\)"):
        cross_entropy(student, soft[:, :2])
    for wrong in (soft * 2, soft - 1, soft * math.nan):
        with pytest.raises(ValueError, match="that are probabilities must be at least 0 and add up to 1"):
            cross_entropy(student, wrong, check_values=True)
    cross_entropy(student, soft.bfloat16() * 0.3 + 0.7 / 3, check_values=True)
