"""Bad arguments: one line that names the argument and its value."""

from __future__ import annotations

import inspect
import math
import re

import pytest
import torch

from polydistill.losses import (
    OBJECTIVES,
    ban,
    ban_l,
    cross_entropy,
    cwtm,
    diagnostics,
    dkd,
    dkpp,
    draw_permutation,
    gradient_shares,
    hinton_kd,
    jsd,
    logit_standardized_kd,
    loss_with_diagnostics,
    mean_of_teachers,
    policy_huber,
    policy_kl,
    reverse_kl,
    uniform_confidence,
)
from tests.losses.reference import MASKED, NAMES, ONE_TEACHER

NAN, INF = math.nan, math.inf
WITH_TEACHER = [name for name in NAMES if "teacher" in OBJECTIVES[name].takes]
WITH_LABELS = [name for name in NAMES if "labels" in OBJECTIVES[name].takes]
WITH_TEMPERATURE = [name for name in NAMES if "temperature" in inspect.signature(OBJECTIVES[name].function).parameters]


def call(name, student=None, teacher=None, labels=None, **options):
    student = torch.zeros(2, 3) if student is None else student
    teacher = torch.ones(2, 3) if teacher is None else teacher
    labels = torch.tensor([0, 2]) if labels is None else labels
    if OBJECTIVES[name].needs_permutation:
        options = {"permutation": draw_permutation(2, 3, generator=torch.Generator()), **options}
    return OBJECTIVES[name](student, teacher, labels, **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("student", "error", "text"),
    [
        ([[0.0, 1.0]], TypeError, r"student must be a floating tensor, got \[\[0.0, 1.0\]\] of type list"),
        (torch.zeros(2, 3, dtype=torch.int64), TypeError, "student must be a floating tensor, got .*int64"),
        (torch.zeros(2, 3, dtype=torch.complex64), TypeError, "student must be a floating tensor, got .*complex64"),
        (torch.zeros(3), ValueError, r"student must be of shape \(batch, classes\) or .*, got \(3,\)"),
        (torch.zeros(2, 1, 1, 3), ValueError, r"student must be of shape .*, got \(2, 1, 1, 3\)"),
        (torch.zeros(2, 0), ValueError, r"student must be of shape .*, got \(2, 0\)"),
    ],
    ids=["list", "integers", "complex", "1-D", "4-D", "no class"],
)
def test_wrong_student_is_named(name, student, error, text) -> None:
    with pytest.raises(error, match=text):
        call(name, student=student)


@pytest.mark.parametrize("name", WITH_TEACHER)
@pytest.mark.parametrize(
    ("teacher", "error", "text"),
    [
        ("scores", TypeError, "must be a floating tensor, got 'scores' of type str"),
        (torch.zeros(2, 3, dtype=torch.int64), TypeError, "must be a floating tensor, got .*int64"),
        (torch.zeros(2, 4), ValueError, r"must be of the student's shape \(2, 3\), got \(2, 4\)"),
        (torch.zeros(1, 3), ValueError, r"must be of the student's shape \(2, 3\), got \(1, 3\)"),
        (torch.zeros(2, 3, device="meta"), ValueError, "must be on the student's device cpu, got meta"),
    ],
    ids=["text", "type", "classes", "broadcast", "device"],
)
def test_wrong_teacher_is_named(name, teacher, error, text) -> None:
    argument = "teacher_q" if name.startswith("policy") else "teacher"
    with pytest.raises(error, match=f"^{argument} {text}"):
        call(name, teacher=teacher)


@pytest.mark.parametrize("name", WITH_TEACHER)
@pytest.mark.parametrize("sequence", [list, tuple])
def test_sequence_of_teachers_is_told_what_to_do(name, sequence) -> None:
    """What it says works: the advice is followed."""
    members = sequence([torch.ones(2, 3), torch.arange(6.0).view(2, 3)])
    argument = "teacher_q" if name.startswith("policy") else "teacher"
    with pytest.raises(TypeError, match=f"^{argument} must be one tensor, got a {sequence.__name__} of 2: ") as caught:
        call(name, teacher=members)
    if name in ONE_TEACHER:
        assert str(caught.value).endswith(f"average the members' scores yourself, torch.stack({argument}).mean(0)")
        call(name, teacher=torch.stack(members).mean(0))
    else:
        advice = f"stack the members' scores, torch.stack({argument}), or give mean_of_teachers({argument})"
        assert str(caught.value).endswith(advice)
        call(name, teacher=torch.stack(members))
        call(name, teacher=mean_of_teachers(members))


@pytest.mark.parametrize("name", WITH_LABELS)
@pytest.mark.parametrize(
    ("labels", "error", "text"),
    [
        (torch.zeros(2), TypeError, "labels must be a tensor of integers, got .*float32"),
        (torch.zeros(2, dtype=torch.bool), TypeError, "labels must be a tensor of integers, got .*bool"),
        ([0, 1], TypeError, r"labels must be a tensor of integers, got \[0, 1\]"),
        (torch.zeros(3, dtype=torch.int64), ValueError, r"labels must be of shape \(2,\), got \(3,\)"),
        (torch.zeros(2, 3, dtype=torch.int64), ValueError, r"labels must be of shape \(2,\), got \(2, 3\)"),
        (torch.zeros(2, dtype=torch.int64, device="meta"), ValueError, "labels must be on .* cpu, got meta"),
    ],
    ids=["floats", "bools", "list", "length", "one-hot", "device"],
)
def test_wrong_labels_are_named(name, labels, error, text) -> None:
    with pytest.raises(error, match=text):
        call(name, labels=labels)


@pytest.mark.parametrize("name", WITH_LABELS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32], ids=str)
def test_labels_may_be_any_integers(name, dtype) -> None:
    student = torch.tensor([[1.0, 2.0, 4.0], [0.5, 0.0, 1.0]])
    labels = torch.tensor([2, 1])
    assert torch.equal(call(name, student=student, labels=labels.to(dtype)), call(name, student=student, labels=labels))


@pytest.mark.parametrize("name", WITH_LABELS)
def test_label_minus_100_is_no_silent_zero(name) -> None:
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        call(name, labels=torch.tensor([0, -100]))


@pytest.mark.parametrize("name", WITH_TEMPERATURE)
@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN, INF, 0, -3, 1e-46, 1e-300, 9e-19, 1.1e18, 10**19])
def test_temperature_out_of_range_is_named(name, temperature) -> None:
    with pytest.raises(ValueError, match=f"temperature must be from .*, got {re.escape(str(temperature))}"):
        call(name, temperature=temperature)


@pytest.mark.parametrize("temperature", [1e-46, 1e200])
def test_temperature_out_of_range_is_named_where_there_is_no_loss(temperature) -> None:
    student, teacher = torch.zeros(2, 3), torch.ones(2, 3)
    for ask in (
        lambda: mean_of_teachers([teacher], temperature=temperature),
        lambda: diagnostics(student, teacher, temperature=temperature),
        lambda: gradient_shares(student, teacher, temperature=temperature),
        lambda: loss_with_diagnostics("policy_kl", student, teacher, temperature=temperature),
    ):
        with pytest.raises(ValueError, match=r"temperature must be from 1e-18 to 1e\+18, got 1e"):
            ask()


@pytest.mark.parametrize("name", WITH_TEMPERATURE)
@pytest.mark.parametrize("temperature", [1e-18, 1e18])
def test_temperatures_at_the_ends_give_finite_losses_and_gradients(name, temperature) -> None:
    """In float32, with scores of either sign, the greatest in different classes."""
    student = torch.tensor([[3.0, -2.0, 0.5], [1.0, 4.0, 1.0]], requires_grad=True)
    teacher = torch.tensor([[-1.0, 2.0, 0.0], [5.0, -3.0, 1.0]])
    loss = call(name, student=student, teacher=teacher, temperature=temperature)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", WITH_TEMPERATURE)
@pytest.mark.parametrize(
    "temperature", ["0.01", None, True, torch.tensor(0.01)], ids=["text", "None", "bool", "tensor"]
)
def test_temperature_of_another_type_is_named(name, temperature) -> None:
    with pytest.raises(TypeError, match="temperature must be a number, got"):
        call(name, temperature=temperature)


def test_whole_numbers_and_numpys_are_temperatures() -> None:
    import numpy as np

    expected = call("policy_kl", temperature=2.0)
    assert torch.equal(call("policy_kl", temperature=2), expected)
    assert torch.equal(call("policy_kl", temperature=np.float32(2)), expected)


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (lambda z, t, y: ban_l(z, t, y, label_weight=-1.0), "label_weight must be at least 0 and finite, got -1.0"),
        (lambda z, t, y: ban_l(z, t, y, teacher_weight=INF), "teacher_weight must be at least 0 and finite, got inf"),
        (lambda z, t, y: hinton_kd(z, t, y, label_weight=NAN), "label_weight must be at least 0 and finite, got nan"),
        (lambda z, t, y: hinton_kd(z, t, y, teacher_weight=-2), "teacher_weight must be at least 0 and finite, got -2"),
        (lambda z, t, y: logit_standardized_kd(z, t, label_weight=-1.0), "label_weight must be at least 0"),
        (lambda z, t, y: logit_standardized_kd(z, t, teacher_weight=-1.0), "teacher_weight must be at least 0"),
        (lambda z, t, y: dkd(z, t, y, alpha=-1.0), "alpha must be at least 0 and finite, got -1.0"),
        (lambda z, t, y: dkd(z, t, y, beta=-1.0), "beta must be at least 0 and finite, got -1.0"),
        (lambda z, t, y: dkd(z, t, y, label_weight=-1.0), "label_weight must be at least 0 and finite, got -1.0"),
        (lambda z, t, y: cross_entropy(z, y, label_smoothing=1.5), r"label_smoothing must be in \[0, 1\], got 1.5"),
        (lambda z, t, y: cross_entropy(z, y, label_smoothing=-0.1), r"label_smoothing must be in \[0, 1\], got -0.1"),
        (lambda z, t, y: jsd(z, t, beta=0.0), r"beta must be in \(0, 1\), got 0.0"),
        (lambda z, t, y: jsd(z, t, beta=1), r"beta must be in \(0, 1\), got 1"),
        (lambda z, t, y: policy_huber(z, t, delta=0.0), "delta must be positive and finite, got 0.0"),
        (lambda z, t, y: gradient_shares(z, t, y, temperature=0.0), "temperature must be from 1e-18 to .*, got 0.0"),
        (lambda z, t, y: diagnostics(z, t[:1], y), r"teacher must be of the student's shape \(2, 3\), got \(1, 3\)"),
        (lambda z, t, y: diagnostics(z, t, y[:1]), r"labels must be of shape \(2,\), got \(1,\)"),
        (lambda z, t, y: dkpp(z, t, permutation=torch.zeros(2, 3).long()), r"permutation must be of shape \(2, 2\)"),
        (
            lambda z, t, y: dkpp(z, t, permutation=torch.zeros(2, 2, device="meta").long()),
            "permutation must be on the student's device cpu, got meta",
        ),
    ],
)
def test_option_out_of_range_is_named(loss, text) -> None:
    with pytest.raises(ValueError, match=text):
        loss(torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([0, 1]))


@pytest.mark.parametrize("permutation", [None, torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int32)], ids=str)
def test_permutation_of_another_type_is_named(permutation) -> None:
    with pytest.raises(TypeError, match="permutation must be an int64 tensor, got"):
        dkpp(torch.zeros(2, 3), torch.ones(2, 3), permutation=permutation)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize(
    ("mask", "error", "text"),
    [
        (torch.zeros(2, 3), TypeError, "mask must be a bool tensor, got .*float32"),
        ([True, False, False], TypeError, r"mask must be a bool tensor, got \[True, False, False\]"),
        (torch.zeros(2, dtype=torch.bool), ValueError, r"mask must be of shape \(2, 3\) or \(3,\), got \(2,\)"),
        (torch.zeros(2, 1, dtype=torch.bool), ValueError, r"mask must be of shape \(2, 3\) or \(3,\), got \(2, 1\)"),
        (torch.zeros(3, dtype=torch.bool, device="meta"), ValueError, "mask must be on .* cpu, got meta"),
    ],
    ids=["floats", "list", "rows", "column", "device"],
)
def test_wrong_mask_is_named(name, mask, error, text) -> None:
    with pytest.raises(error, match=text):
        call(name, mask=mask)


# ---- values, on request ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_good_values_pass_and_change_nothing(make_batch, name) -> None:
    batch = make_batch()
    options = batch.options(name)
    assert torch.equal(OBJECTIVES[name](*batch, check_values=True, **options), OBJECTIVES[name](*batch, **options))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_student_that_is_not_finite_is_found_with_its_place(name, value) -> None:
    student = torch.zeros(2, 3)
    student[1, 2] = value
    call(name, student=student)  # not looked at unless asked for
    with pytest.raises(ValueError, match=rf"student must be finite, got {value} at \[1, 2\]"):
        call(name, student=student, check_values=True)


@pytest.mark.parametrize("name", WITH_TEACHER)
@pytest.mark.parametrize("value", [NAN, INF])
def test_teacher_that_is_not_finite_is_found_with_its_place(name, value) -> None:
    teacher = torch.ones(2, 3)
    teacher[0, 1] = value
    with pytest.raises(ValueError, match=rf"^teacher(_q)? must be finite or -inf, got {value} at \[0, 1\]"):
        call(name, teacher=teacher, check_values=True)


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_teacher_that_excludes_every_class_is_found(name) -> None:
    teacher = torch.ones(2, 3)
    teacher[1] = -INF
    with pytest.raises(
        ValueError, match=r"^teacher(_q)? must leave a class in each row, got \[-inf, -inf, -inf\] at \[1\]"
    ):
        call(name, teacher=teacher, check_values=True)


def test_class_that_the_teacher_excludes_is_found_by_reverse_kl_alone() -> None:
    teacher = torch.ones(2, 3)
    teacher[1, 0] = -INF
    mask = torch.tensor([True, False, False])
    for name in WITH_TEACHER:
        if name != "reverse_kl":
            call(name, teacher=teacher, check_values=True)
    call("reverse_kl", teacher=teacher, mask=mask, check_values=True)
    for kept in (None, mask.roll(1)):
        with pytest.raises(ValueError, match="teacher must be finite in each class that mask leaves, got -inf"):
            call("reverse_kl", teacher=teacher, mask=kept, check_values=True)


@pytest.mark.parametrize("name", WITH_LABELS)
@pytest.mark.parametrize("label", [-1, 3, -100])
def test_label_out_of_range_is_found_with_its_place(name, label) -> None:
    with pytest.raises(ValueError, match=rf"labels must be in \[0, 3\), got {label} at \[1\]"):
        call(name, labels=torch.tensor([0, label]), check_values=True)


@pytest.mark.parametrize("name", MASKED)
def test_row_with_every_class_masked_is_found(name) -> None:
    mask = torch.tensor([[False, True, True], [True, True, True]])
    with pytest.raises(ValueError, match=r"mask must leave a class in each row, got \[True, True, True\] at \[1\]"):
        call(name, mask=mask, check_values=True)


@pytest.mark.parametrize("name", MASKED)
def test_scores_of_masked_classes_may_be_anything(name) -> None:
    student, teacher = torch.zeros(2, 3), torch.ones(2, 3)
    student[:, 1], teacher[:, 1] = INF, NAN
    mask = torch.tensor([False, True, False])
    loss = call(name, student=student, teacher=teacher, mask=mask, check_values=True)
    assert torch.equal(loss, call(name, mask=mask))


LOOKS = [diagnostics, gradient_shares]


@pytest.mark.parametrize("look", LOOKS)
def test_diagnostics_of_good_values_are_the_same_when_checked(make_batch, look) -> None:
    batch = make_batch()
    for ours, theirs in zip(look(*batch, check_values=True), look(*batch), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize(
    ("side", "value", "text"),
    [
        ("labels", 3, r"labels must be in \[0, 3\), got 3 at \[1\]"),
        ("labels", -1, r"labels must be in \[0, 3\), got -1 at \[1\]"),
        ("student", INF, r"student must be finite, got inf at \[1, 0\]"),
        ("teacher", NAN, r"teacher must be finite or -inf, got nan at \[1, 0\]"),
    ],
)
def test_bad_values_are_found_by_diagnostics_with_their_place(look, side, value, text) -> None:
    sides = {"student": torch.zeros(2, 3), "teacher": torch.ones(2, 3), "labels": torch.tensor([0, 2])}
    sides[side].view(2, -1)[1, 0] = value
    look(**sides)  # not looked at unless asked for
    with pytest.raises(ValueError, match=text):
        look(**sides, check_values=True)


def test_row_with_every_class_masked_is_found_by_diagnostics() -> None:
    mask = torch.tensor([[False, True, True], [True, True, True]])
    with pytest.raises(ValueError, match=r"mask must leave a class in each row, got .* at \[1\]"):
        diagnostics(torch.zeros(2, 3), torch.ones(2, 3), mask=mask, check_values=True)


def test_row_that_is_no_permutation_is_found() -> None:
    permutation = torch.tensor([[1, 0], [1, 1]])
    with pytest.raises(ValueError, match=r"permutation must order 0 .. 1, got \[1, 1\] in row \[1\]"):
        dkpp(torch.zeros(2, 3), torch.ones(2, 3), permutation=permutation, check_values=True)


def test_teacher_may_come_with_a_gradient_and_leaves_without() -> None:
    teacher = torch.ones(2, 3, requires_grad=True)
    for loss in (ban, policy_kl, reverse_kl, uniform_confidence):
        assert not loss(torch.zeros(2, 3), teacher).requires_grad
    assert not cwtm(torch.zeros(2, 3), teacher, torch.tensor([0, 1])).requires_grad
