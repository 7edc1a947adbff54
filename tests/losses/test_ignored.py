"""Padding, and teachers of another float type: what losses do with rows that do not count, and with cached scores."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from polydistill.losses import OBJECTIVES, cross_entropy, cwtm, hinton_kd, loss_with_diagnostics, value_and_grad
from polydistill.losses.ignored import find_counted
from tests.losses.reference import NAMES, compute

PAD = -100
WITH_TEACHER = [name for name in NAMES if "teacher" in OBJECTIVES[name].takes]
COUNTED = [0, 1, 3, 4]  # rows of five, the third is padding


def padded(make_batch, name, pad=PAD):
    """A batch whose third sample is padding, the batch without it, and the objective's options for each."""
    batch = make_batch()
    labels = batch.labels.clone()
    labels[2] = pad
    options = batch.options(name)
    kept = [tensor.detach()[COUNTED].requires_grad_(tensor.requires_grad) for tensor in batch]
    return batch._replace(labels=labels), kept, options, {key: value[COUNTED] for key, value in options.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pad", [PAD, 6])
def test_padding_changes_no_other_sample_and_has_neither_loss_nor_gradient(make_batch, name, pad) -> None:
    batch, kept, options, fewer = padded(make_batch, name, pad)
    keep = batch.labels != pad
    loss = OBJECTIVES[name](*batch, ignore_index=pad, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), batch.student)
    found = value_and_grad(name, *batch, ignore_index=pad, **options)
    torch.testing.assert_close(found.loss, loss.detach())
    torch.testing.assert_close(found.gradient, gradient)
    assert not loss[~keep].any()
    assert not gradient[~keep].any()
    if pad == PAD:
        expected = OBJECTIVES[name](*kept, **fewer)
        torch.testing.assert_close(loss[keep], expected)
        torch.testing.assert_close(gradient[keep], torch.autograd.grad(expected.sum(), kept[0])[0])


def test_the_mean_over_what_counts_is_torchs(make_batch) -> None:
    student, _, labels = make_batch(6, 4)
    labels[[0, 4]] = PAD
    loss = cross_entropy(student, labels, ignore_index=PAD, label_smoothing=0.2)
    expected = F.cross_entropy(student, labels, label_smoothing=0.2)  # ignores -100 by itself
    torch.testing.assert_close(loss.sum() / (labels != PAD).sum(), expected)


def test_a_batch_of_padding_alone_has_loss_0_and_gradient_0(make_batch) -> None:
    for name in NAMES:
        batch = make_batch()
        labels = torch.full_like(batch.labels, PAD)
        loss = OBJECTIVES[name](batch.student, batch.teacher, labels, ignore_index=PAD, **batch.options(name))
        (gradient,) = torch.autograd.grad(loss.sum(), batch.student)
        assert not loss.any(), name
        assert not gradient.any(), name


def test_weights_of_one_pass_and_diagnostics_leave_padding_out(make_batch) -> None:
    batch, kept, _, _ = padded(make_batch, "ban_l")
    weights = torch.rand(5, dtype=torch.float64)
    found = value_and_grad("ban_l", *batch, row_weights=weights, with_diagnostics=True, ignore_index=PAD)
    expected = value_and_grad("ban_l", *kept, row_weights=weights[COUNTED], with_diagnostics=True)
    torch.testing.assert_close(found.gradient[COUNTED], expected.gradient)
    assert not found.gradient[2].any()
    _, of_loss = loss_with_diagnostics("ban", *batch, ignore_index=PAD)
    for named in (found.diagnostics, of_loss):
        assert all(not values[2] for values in named)
        for values, wanted in zip(named, expected.diagnostics, strict=True):
            torch.testing.assert_close(values[COUNTED], wanted)


def test_tokens_are_ignored_one_by_one(make_batch) -> None:
    batch = make_batch(6, 4)
    shaped = [batch.student.view(2, 3, 4), batch.teacher.view(2, 3, 4), batch.labels.view(2, 3).clone()]
    shaped[2][1, 2] = PAD
    loss = hinton_kd(*shaped, ignore_index=PAD)
    expected = hinton_kd(*batch).view(2, 3)
    assert loss[1, 2] == 0
    torch.testing.assert_close(loss.flatten()[:5], expected.flatten()[:5])


def test_without_ignore_index_a_label_of_minus_100_is_still_refused(make_batch) -> None:
    batch, _, _, _ = padded(make_batch, "cwtm")
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        cwtm(*batch)


def test_a_wrong_ignore_index_is_named(make_batch) -> None:
    batch = make_batch()
    with pytest.raises(TypeError, match="ignore_index must be an integer, got 'pad'"):
        cross_entropy(batch.student, batch.labels, ignore_index="pad")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ignore_index is -100, and labels is None: pass labels"):
        hinton_kd(batch.student, batch.teacher, ignore_index=PAD)
    with pytest.raises(TypeError, match="labels must be a tensor of integers"):
        find_counted(torch.zeros(2), PAD)
    with pytest.raises(ValueError, match=r"rows must be of shape \(5,\), got \(4,\)"):
        OBJECTIVES["uniform_confidence"].function(batch.student, batch.teacher, rows=torch.ones(4, dtype=torch.bool))
    with pytest.raises(TypeError, match="rows must be a bool tensor, got"):
        OBJECTIVES["uniform_confidence"].function(batch.student, batch.teacher, rows=torch.ones(5))


TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
PAIRS = [(student, teacher) for student in TYPES for teacher in TYPES if student is not teacher]


@pytest.mark.parametrize("name", WITH_TEACHER)
@pytest.mark.parametrize(("of_student", "of_teacher"), PAIRS, ids=str)
def test_a_teacher_of_another_float_type_is_computed_as_the_student_is(
    make_batch, name, of_student, of_teacher
) -> None:
    batch = make_batch(4, 6)
    student = batch.student.detach().to(of_student).requires_grad_()
    teacher = batch.teacher.to(of_teacher)
    options = batch.options(name)
    loss = OBJECTIVES[name](student, teacher, batch.labels, **options)
    assert loss.dtype is (torch.float64 if of_student is torch.float64 else torch.float32)
    plain = [tensor.detach().double().numpy() for tensor in (student, teacher)]
    numbers = {key: value.numpy() for key, value in options.items()}
    if name != "dkpp":  # the order of equal scores, which rounding makes, is not the subject
        expected = compute(name, *plain, batch.labels.numpy(), **numbers)
        torch.testing.assert_close(loss.double(), torch.as_tensor(expected), rtol=2e-4, atol=2e-4)
    found = value_and_grad(name, student, teacher, batch.labels, with_diagnostics=True, **options)
    assert found.gradient.dtype is of_student
    again, diagnosed = loss_with_diagnostics(name, student, teacher, batch.labels, **options)
    torch.testing.assert_close(again, found.loss)
    assert all(map(torch.equal, diagnosed, found.diagnostics))


@pytest.mark.parametrize("name", ["ban", "cwtm", "uniform_confidence"])
def test_padding_and_another_float_type_compile_without_a_graph_break(make_batch, name) -> None:
    batch, _, options, _ = padded(make_batch, name)
    student = batch.student.detach().float().requires_grad_()

    def total(student, teacher):
        return OBJECTIVES[name](student, teacher, batch.labels, ignore_index=PAD, **options).sum()

    torch._dynamo.reset()
    found = torch.compile(total, fullgraph=True, backend="aot_eager")(student, batch.teacher.half())
    expected = total(student, batch.teacher.half())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (found, expected)))
