"""Values: against formulas written independently, in every precision, shape and corner that the contract allows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from polydistill.losses import OBJECTIVES, dkd, hinton_kd, jsd, logit_standardized_kd, policy_kl, policy_nll, reverse_kl
from tests.losses import reference
from tests.losses.reference import CASES, MASKED, NAMES, ONE_TEACHER, case_id

INF = math.inf


def expect(name, batch, options):
    """The reference for a batch, with tensors among the options as arrays."""
    arrays = {key: value.numpy() if torch.is_tensor(value) else value for key, value in options.items()}
    return reference.compute(
        name, batch.student.detach().double().numpy(), batch.teacher.double().numpy(), batch.labels.numpy(), **arrays
    )


@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (5, 7), (3, 100)], ids=str)
def test_loss_is_the_formula_in_float64(make_batch, case, shape) -> None:
    name, given = case
    if shape[1] == 1 and name in {"uniform_confidence", "dkd", "logit_standardized_kd"}:
        pytest.skip("the formula divides by zero; test_one_class_teaches_nothing has this corner")
    batch = make_batch(*shape)
    options = batch.options(name, given)
    loss = OBJECTIVES[name](*batch, **options)
    assert loss.dtype == torch.float64
    np.testing.assert_allclose(loss.detach().numpy(), expect(name, batch, options), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-5), (torch.float16, 1e-5)], ids=str
)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_loss_is_computed_in_float32_at_least(make_batch, case, dtype, tolerance) -> None:
    name, given = case
    batch = make_batch(4, 10, dtype=dtype)
    options = batch.options(name, given)
    loss = OBJECTIVES[name](*batch, **options)
    assert loss.dtype == torch.float32
    np.testing.assert_allclose(loss.detach().numpy(), expect(name, batch, options), rtol=tolerance, atol=tolerance)
    loss.sum().backward()
    assert batch.student.grad.dtype == dtype


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_no_digit(make_batch, name) -> None:
    batch = make_batch(4, 10, dtype=torch.float32)
    options = batch.options(name)
    expected = OBJECTIVES[name](*batch, **options)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(OBJECTIVES[name](*batch, **options), expected)


@pytest.mark.parametrize("name", NAMES)
def test_memory_order_does_not_matter(make_batch, name) -> None:
    batch = make_batch(6, 8)
    options = batch.options(name)
    spread = torch.empty(6, 16, dtype=torch.float64)[:, ::2].copy_(batch.teacher)
    column_major = batch.student.detach().t().contiguous().t()
    loss = OBJECTIVES[name](column_major, spread, batch.labels, **options)
    torch.testing.assert_close(loss, OBJECTIVES[name](*batch, **options).detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_several_students_in_one_call_are_a_loop_over_them(make_batch, name) -> None:
    """(students, batch, classes): each with its own teacher, labels, permutation and batch mean."""
    batches = [make_batch(4, 6, seed=seed) for seed in (1, 2, 3)]
    options = [{key: value.roll(i, 0) for key, value in b.options(name).items()} for i, b in enumerate(batches)]
    student, teacher, labels = (torch.stack([batch[i].detach() for batch in batches]) for i in range(3))
    student.requires_grad_()
    together = {key: torch.stack([each[key] for each in options]) for key in options[0]}
    loss = OBJECTIVES[name](student, teacher, labels, **together)
    assert loss.shape == (3, 4)
    loss.sum().backward()
    for i, batch in enumerate(batches):
        alone = OBJECTIVES[name](*batch, **options[i])
        alone.sum().backward()
        torch.testing.assert_close(loss[i], alone)
        torch.testing.assert_close(student.grad[i], batch.student.grad)


@pytest.mark.parametrize("name", NAMES)
def test_empty_batch_gives_empty_loss_and_gradient(make_batch, name) -> None:
    batch = make_batch(0, 4)
    loss = OBJECTIVES[name](*batch, **batch.options(name))
    assert loss.shape == (0,)
    loss.sum().backward()
    assert batch.student.grad.shape == (0, 4)


@pytest.mark.parametrize("name", [name for name in NAMES if OBJECTIVES[name].score_kind == "logits"])
def test_one_class_teaches_nothing(make_batch, name) -> None:
    batch = make_batch(3, 1)
    loss = OBJECTIVES[name](*batch, **batch.options(name))
    loss.sum().backward()
    assert loss.tolist() == [0, 0, 0]
    assert batch.student.grad.tolist() == [[0], [0], [0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("temperature", [None, 1e-3], ids=["default T", "T 1e-3"])
@pytest.mark.parametrize("name", NAMES)
def test_scores_of_1e4_give_the_formula_and_a_finite_gradient(make_batch, name, temperature, dtype) -> None:
    batch = make_batch(6, 9, scale=1e4 / 4, dtype=dtype)
    with torch.no_grad():
        batch.student[0, :2] = torch.tensor([1e4, -1e4])
        batch.teacher[0, :2] = torch.tensor([-1e4, 1e4])
    has_temperature = any(case_name == name and "temperature" in given for case_name, given in CASES)
    if temperature is not None and not has_temperature:
        pytest.skip("takes no temperature")
    options = batch.options(name, {} if temperature is None else {"temperature": temperature})
    loss = OBJECTIVES[name](*batch, **options)
    if name == "uniform_confidence":  # the formula's own remainder underflows at this scale
        assert loss.isfinite().all()
    else:
        tolerance = 1e-9 if dtype == torch.float64 else 2e-5
        np.testing.assert_allclose(loss.detach().numpy(), expect(name, batch, options), rtol=tolerance, atol=1e-3)
    if OBJECTIVES[name].needs_q_values and dtype == torch.float16:
        return  # a distance of 2e4 has a gradient of 4e5 at T = 0.01, and float16 ends at 65,504
    loss.sum().backward()
    assert batch.student.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_131072_classes_keep_float32_accuracy(make_batch, name) -> None:
    batch = make_batch(2, 131_072, dtype=torch.float32)
    options = batch.options(name)
    loss = OBJECTIVES[name](*batch, **options).detach()
    np.testing.assert_allclose(loss.numpy(), expect(name, batch, options), rtol=1e-5, atol=1e-6)


# ---- classes that the teacher excludes -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if case[0] != "reverse_kl"], ids=case_id)
def test_excluded_class_has_probability_zero(make_batch, case, dtype) -> None:
    name, given = case
    batch = make_batch(5, 6, dtype=dtype)
    batch.teacher[0, 2] = batch.teacher[1, :2] = batch.teacher[2, 3:] = -INF
    options = batch.options(name, given)
    loss = OBJECTIVES[name](*batch, **options)
    tolerance = 1e-11 if dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(loss.detach().numpy(), expect(name, batch, options), rtol=tolerance, atol=tolerance)
    loss.sum().backward()
    assert batch.student.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "reverse_kl"])
def test_teacher_with_one_class_left_is_a_label(make_batch, name) -> None:
    batch = make_batch(4, 5)
    batch.teacher.fill_(-INF)
    batch.teacher[torch.arange(4), batch.labels] = 0.5
    loss = OBJECTIVES[name](*batch, **batch.options(name))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert batch.student.grad.isfinite().all()
    nll = -batch.student.detach().log_softmax(1)[torch.arange(4), batch.labels]
    if name in {"ban", "policy_kl", "policy_nll", "cwtm", "uniform_confidence"}:
        torch.testing.assert_close(loss.detach(), nll)


def test_dkd_without_other_classes_of_the_teacher_has_only_the_target_term(make_batch) -> None:
    student, _, labels = make_batch(1, 3)
    teacher = torch.full((1, 3), -INF, dtype=torch.float64)
    teacher[0, labels] = 0.0
    loss = dkd(student, teacher, labels, temperature=1.0, label_weight=0.0, alpha=1.0, beta=100.0)
    expected = -student.log_softmax(1)[0, labels]
    torch.testing.assert_close(loss, expected)


def test_reverse_kl_of_an_excluded_class_is_prohibitive_unless_masked(make_batch) -> None:
    student, teacher, _ = make_batch(1, 4)
    teacher[0, 1] = -INF
    assert reverse_kl(student, teacher).item() > 1e30
    mask = torch.tensor([False, True, False, False])
    kept = [0, 2, 3]
    torch.testing.assert_close(reverse_kl(student, teacher, mask=mask), reverse_kl(student[:, kept], teacher[:, kept]))


@pytest.mark.parametrize("per_row", [False, True], ids=["one mask for all", "a mask per row"])
@pytest.mark.parametrize("case", [case for case in CASES if case[0] in MASKED], ids=case_id)
def test_masked_classes_leave_both_sides(make_batch, case, per_row) -> None:
    name, given = case
    batch = make_batch(4, 6)
    mask = torch.zeros(6, dtype=torch.bool)
    mask[[1, 4]] = True
    if per_row:
        mask = torch.stack([mask, mask.roll(1), ~mask, torch.zeros_like(mask)])
    with torch.no_grad():
        batch.student[0, 1] = 50.0  # what leaves may be anything, for either side
        batch.teacher[0, 4] = 60.0
        batch.teacher[0, 1] = -INF
    options = {"mask": mask, **given}
    loss = OBJECTIVES[name](*batch, **options)
    np.testing.assert_allclose(loss.detach().numpy(), expect(name, batch, options), rtol=1e-11, atol=1e-12)
    loss.sum().backward()
    gone = mask.expand(4, 6)
    assert (batch.student.grad[gone] == 0).all()
    assert (batch.student.grad[~gone] != 0).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("teacher", [None, -INF, math.nan])
def test_row_without_any_class_adds_nothing(make_batch, name, dtype, teacher) -> None:
    """Neither to the loss nor to the gradient, whatever the teacher says of it."""
    batch = make_batch(2, 4, scale=1e3, dtype=dtype)
    if teacher is not None:
        batch.teacher[0] = teacher
    mask = torch.tensor([[True] * 4, [False] * 4])
    loss = OBJECTIVES[name](*batch, mask=mask)
    loss.sum().backward()
    assert loss[0].item() == 0.0
    assert loss[1].item() > 0.0
    assert batch.student.grad[0].tolist() == [0, 0, 0, 0]
    assert batch.student.grad.isfinite().all()


@pytest.mark.parametrize("members", [0, 2], ids=["one teacher", "ensemble"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("name", [name for name in MASKED if name not in {"policy_mse", "policy_huber"}])
def test_row_of_minus_infinity_where_classes_are_left_is_nan(make_batch, name, side, masked, members) -> None:
    """The classes that leave do not get its probability, nor is there a best among them."""
    if members and name in ONE_TEACHER:
        pytest.skip("takes no ensemble")
    batch = make_batch(3, 4)
    mask = torch.tensor([False, True, False, False]) if masked else None
    left = [0, 2, 3] if masked else [0, 1, 2, 3]
    with torch.no_grad():
        getattr(batch, side)[1, left] = -INF
    teacher = torch.stack([batch.teacher, batch.teacher + 1.0]) if members else batch.teacher
    loss = OBJECTIVES[name](batch.student, teacher, None, mask=mask)
    loss.sum().backward()
    assert loss.isnan().tolist() == [False, True, False]
    assert batch.student.grad[:, left].isnan().all(dim=1).tolist() == [False, True, False]
    assert batch.student.grad[[0, 2]].isfinite().all()


@pytest.mark.parametrize("value", [math.nan, INF, -INF])
def test_policy_nll_of_a_teacher_without_a_finite_best_is_nan(make_batch, value) -> None:
    """Else its first action would be learned, or the one of a NaN."""
    batch = make_batch(3, 4)
    batch.teacher[1] = value
    loss = policy_nll(batch.student, batch.teacher)
    loss.sum().backward()
    assert loss.isnan().tolist() == batch.student.grad.isnan().all(dim=1).tolist() == [False, True, False]


# ---- values that can be checked by hand ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # p = (3/4, 1/4) against q = (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2
        (lambda z, t: policy_kl(z, t, temperature=1.0), 0.75 * math.log(1.5) + 0.25 * math.log(0.5)),
        # ... and the other way round: 1/2 ln 2/3 + 1/2 ln 2
        (lambda z, t: reverse_kl(z, t), 0.5 * math.log(2 / 3) + 0.5 * math.log(2)),
        # T = 1/2 makes odds of 3 odds of 9: p = (9/10, 1/10)
        (lambda z, t: policy_kl(z, t, temperature=0.5), 0.9 * math.log(1.8) + 0.1 * math.log(0.2)),
        # T = 1/2 on both sides, times 1/4
        (
            lambda z, t: hinton_kd(z, t, temperature=0.5, teacher_weight=1.0),
            (0.9 * math.log(1.8) + 0.1 * math.log(0.2)) / 4,
        ),
        # m = (5/8, 3/8)
        (
            lambda z, t: jsd(z, t),
            (0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3) + 0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3)) / 2,
        ),
    ],
    ids=["policy_kl", "reverse_kl", "policy_kl at T 1/2", "hinton_kd at T 1/2", "jsd"],
)
def test_three_to_one_against_even(loss, expected) -> None:
    student, teacher = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[3.0, 1.0]], dtype=torch.float64).log()
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_standardized_scores_are_those_of_the_unbiased_deviation() -> None:
    teacher = torch.tensor(
        [[1.0, 2.0, 3.0]], dtype=torch.float64
    )  # Z = (-1, 0, 1), with the biased one 1.22 times that
    student = torch.tensor([[-7.0, 0.0, 7.0]], dtype=torch.float64)
    mirrored = logit_standardized_kd(-student, teacher, temperature=1.0, teacher_weight=1.0)
    weights = [math.exp(-1), 1.0, math.exp(1)]
    p = [w / sum(weights) for w in weights]
    assert mirrored.item() == pytest.approx(p[2] * 2 - p[0] * 2, rel=1e-6)  # sum p (Z_i + Z_i)
