"""Properties, each for the losses that have it; those without are shown to be without. PAPERS.md has the table."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from polydistill.losses import OBJECTIVES, draw_permutation
from tests.losses.reference import NAMES

REGRESSIONS = ("policy_kl_q", "policy_mse", "policy_huber")
BATCH_NORMALIZED = ("cwtm", "uniform_confidence")
# options under which the loss is a divergence of the student from the teacher
DIVERGENCES = {
    "hinton_kd": {"label_weight": 0.0},
    "logit_standardized_kd": {"label_weight": 0.0},
    "dkd": {"label_weight": 0.0},
    "reverse_kl": {},
    "jsd": {},
    "policy_kl": {"temperature": 1.0},
    "policy_kl_q": {},
    "policy_mse": {},
    "policy_huber": {},
}
CROSS_ENTROPIES = [name for name in NAMES if name not in DIVERGENCES]

few = settings(max_examples=15, deadline=None, derandomize=True, database=None)


@st.composite
def batches(draw):
    """Student and teacher scores in [-8, 8] and labels; no two scores of a teacher's row are closer than 0.01."""
    n_samples, n_classes = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    shape = (n_samples, n_classes)
    student = draw(arrays(np.float64, shape, elements=st.floats(-8, 8, width=32)))
    steps = draw(arrays(np.int64, shape, elements=st.integers(-20, 20)))
    order = np.stack(
        [np.random.default_rng(draw(st.integers(0, 999))).permutation(n_classes) for _ in range(n_samples)]
    )
    teacher = steps * 0.4 + order * 0.01
    labels = draw(arrays(np.int64, (n_samples,), elements=st.integers(0, n_classes - 1)))
    return torch.from_numpy(student), torch.from_numpy(teacher), torch.from_numpy(labels)


def loss_of(name, student, teacher, labels, **options):
    if OBJECTIVES[name].needs_permutation:
        generator = torch.Generator().manual_seed(0)
        permutation = draw_permutation(4, student.shape[1], generator=generator)[: len(student)]
        options = {"permutation": permutation, **options}
    if name == "policy_kl":
        options = {"temperature": 0.5, **options}
    return OBJECTIVES[name](student, teacher, labels, **options)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@given(batch=batches())
@few
def test_loss_is_never_negative(name, batch) -> None:
    assert (loss_of(name, *batch) >= -1e-12).all()


@pytest.mark.parametrize("name", DIVERGENCES)
@given(batch=batches())
@few
def test_divergence_is_zero_at_equality(name, batch) -> None:
    _, teacher, labels = batch
    assert loss_of(name, teacher, teacher, labels, **DIVERGENCES[name]).abs().max() < 1e-12


@pytest.mark.parametrize("name", DIVERGENCES)
@given(batch=batches())
@few
def test_divergence_is_zero_only_at_equality(name, batch) -> None:
    student, teacher, labels = batch
    if name in REGRESSIONS:
        distance = (student - teacher).abs().amax(dim=1)
    elif name == "logit_standardized_kd":
        student = student + torch.arange(student.shape[1]) * 1e-3  # a deviation to divide by
        z, t = ((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) for x in (student, teacher))
        distance = ((z / 2).softmax(1) - (t / 2).softmax(1)).abs().amax(dim=1)
    else:
        distance = (student.softmax(1) - teacher.softmax(1)).abs().amax(dim=1)
    loss = loss_of(name, student, teacher, labels, **DIVERGENCES[name])
    assert (loss[distance > 0.01] > 1e-6).all()


@pytest.mark.parametrize("name", CROSS_ENTROPIES)
def test_cross_entropies_are_not_zero_at_equality(name) -> None:
    scores = torch.tensor([[1.0, 0.0, 2.0]])
    assert loss_of(name, scores, scores, torch.tensor([0])).item() > 0.1


def test_ban_at_equality_is_the_entropy_of_the_teacher() -> None:
    scores = torch.zeros(1, 8)
    assert OBJECTIVES["ban"](scores, scores, None).item() == pytest.approx(math.log(8))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REGRESSIONS])
@given(batch=batches(), student_shift=st.floats(-50, 50), teacher_shift=st.floats(-50, 50))
@few
def test_shift_of_either_side_changes_nothing(name, batch, student_shift, teacher_shift) -> None:
    student, teacher, labels = batch
    if name == "logit_standardized_kd":
        student = student + torch.arange(student.shape[1])  # a deviation of 0 is all rounding
    shifted = loss_of(name, student + student_shift, teacher + teacher_shift, labels)
    torch.testing.assert_close(shifted, loss_of(name, student, teacher, labels), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", REGRESSIONS)
def test_regressions_feel_a_shift(name) -> None:
    scores = torch.zeros(1, 3)
    assert loss_of(name, scores + 1, scores, None).item() > 1
    assert loss_of(name, scores + 1, scores + 1, None).item() == 0  # but not one of both sides


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dkpp"])
@given(batch=batches(), seed=st.integers(0, 999))
@few
def test_order_of_classes_does_not_matter(name, batch, seed) -> None:
    student, teacher, labels = batch
    order = torch.from_numpy(np.random.default_rng(seed).permutation(student.shape[1]))
    place = order.argsort()
    close(loss_of(name, student[:, order], teacher[:, order], place[labels]), loss_of(name, student, teacher, labels))


def test_dkpp_numbers_classes_so_their_order_matters() -> None:
    student, teacher = torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([[5.0, 1.0, 2.0, 4.0]])
    permutation = torch.tensor([[0, 2, 1]])
    order = torch.tensor([0, 2, 3, 1])
    one = OBJECTIVES["dkpp"](student, teacher, None, permutation=permutation)
    other = OBJECTIVES["dkpp"](student[:, order], teacher[:, order], None, permutation=permutation)
    assert (one - other).abs().item() > 0.01


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BATCH_NORMALIZED])
@given(batch=batches())
@few
def test_samples_do_not_depend_on_their_batch(name, batch) -> None:
    student, teacher, labels = batch
    whole = loss_of(name, student, teacher, labels)
    if name == "dkpp":  # each row takes its permutation along
        permutation = draw_permutation(4, student.shape[1], generator=torch.Generator().manual_seed(0))
        parts = [
            OBJECTIVES[name](student[s : s + 1], teacher[s : s + 1], None, permutation=permutation[s : s + 1])
            for s in range(len(student))
        ]
    else:
        parts = [loss_of(name, student[s : s + 1], teacher[s : s + 1], labels[s : s + 1]) for s in range(len(student))]
    close(whole, torch.cat(parts))


@pytest.mark.parametrize("name", BATCH_NORMALIZED)
def test_batch_normalized_losses_depend_on_their_batch(name) -> None:
    student = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    teacher = torch.tensor([[0.0, 0.1], [5.0, 0.0]])
    labels = torch.tensor([0, 1])
    whole = loss_of(name, student, teacher, labels)
    alone = loss_of(name, student[:1], teacher[:1], labels[:1])
    assert (whole[:1] - alone).abs().item() > 0.1


@pytest.mark.parametrize("name", BATCH_NORMALIZED)
@given(batch=batches(), seed=st.integers(0, 999))
@few
def test_order_of_samples_does_not_matter_even_there(name, batch, seed) -> None:
    student, teacher, labels = batch
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(student)))
    close(loss_of(name, student[order], teacher[order], labels[order]), loss_of(name, student, teacher, labels)[order])


@given(batch=batches(), factor=st.floats(0.1, 10))
@few
def test_standardized_loss_ignores_the_scale_of_either_side(batch, factor) -> None:
    student, teacher, labels = batch
    student = student + 20 * torch.arange(student.shape[1])
    one = loss_of("logit_standardized_kd", student, teacher, labels, label_weight=0.0)
    other = loss_of("logit_standardized_kd", student * factor, teacher / factor, labels, label_weight=0.0)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)  # but for the 1e-7 beside the deviation


@given(batch=batches(), beta=st.floats(0.05, 0.95))
@few
def test_jsd_is_symmetric_and_bounded_by_the_entropy_of_its_weights(batch, beta) -> None:
    student, teacher, labels = batch
    one = loss_of("jsd", student, teacher, labels, beta=beta)
    close(one, loss_of("jsd", teacher, student, labels, beta=1 - beta))
    assert (one <= -beta * math.log(beta) - (1 - beta) * math.log(1 - beta) + 1e-12).all()
