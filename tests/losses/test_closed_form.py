"""Losses whose gradient is there without autograd: the same values, in the same extremes."""

from __future__ import annotations

import math

import pytest
import torch

from polydistill.losses import OBJECTIVES, use_backend, value_and_grad
from polydistill.losses.blocks import BLOCK
from polydistill.losses.description import compute, compute_closed
from tests.losses.reference import NAMES, ONE_TEACHER

CLOSED = [name for name in NAMES if OBJECTIVES[name].has_closed_form]


@pytest.mark.parametrize("name", NAMES)
def test_an_objective_says_whether_it_has_a_closed_form(make_batch, name) -> None:
    batch = make_batch(4, 6)
    described = OBJECTIVES[name].describe(*batch, **batch.options(name))
    assert (described.closed_form is not None) == OBJECTIVES[name].has_closed_form


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("shape", [(5, 7), (300, 18), (2, 5, 7)])
@pytest.mark.parametrize("temperature", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("members", [0, 3])
def test_it_is_what_autograd_finds(name, shape, temperature, members) -> None:
    if members and name in ONE_TEACHER:
        pytest.skip("takes no ensemble")
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
    teacher = torch.randn((members, *shape) if members else shape, dtype=torch.float64, generator=generator)
    teacher[..., 0, 2] = -math.inf  # an action that is excluded
    described = OBJECTIVES[name].describe(student, teacher, None, temperature=temperature)
    loss, gradient = compute_closed(described)
    expected = compute(described)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), student)[0])
    assert not loss.requires_grad
    assert not gradient.requires_grad


@pytest.mark.parametrize("name", CLOSED)
def test_a_broken_row_is_nan_and_alone(name) -> None:
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    teacher[1] = -math.inf
    teacher[2, 0] = math.nan
    loss, gradient = compute_closed(OBJECTIVES[name].describe(student, teacher, None))
    assert loss.isnan().tolist() == [False, True, True, False]
    assert gradient.isnan().all(dim=1).tolist() == [False, True, True, False]


@pytest.mark.parametrize("name", [name for name in CLOSED if OBJECTIVES[name].score_kind == "logits"])
def test_extreme_scores_stay_finite(name) -> None:
    student = torch.tensor([[1e38, -1e38], [0.0, 0.0]])
    teacher = torch.tensor([[1e30, -1e30], [1e-30, 0.0]])
    loss, gradient = compute_closed(OBJECTIVES[name].describe(student, teacher, None))
    torch.testing.assert_close(loss, torch.zeros(2))
    torch.testing.assert_close(gradient, torch.zeros(2, 2))


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_gradient_is_rounded_once(name, dtype) -> None:
    student, teacher = (torch.randn(6, 5, generator=torch.Generator().manual_seed(k)).to(dtype) for k in (1, 2))
    weights = torch.full((6,), 1 / 3)
    found = value_and_grad(name, student, teacher, row_weights=weights, temperature=1.0)
    exact = value_and_grad(name, student.float(), teacher.float(), row_weights=weights, temperature=1.0)
    assert found.gradient.dtype is dtype
    assert torch.equal(found.gradient, exact.gradient.to(dtype))


@pytest.mark.parametrize("name", CLOSED)
def test_where_something_else_is_faster_there_is_none(name, monkeypatch) -> None:
    few, mask = torch.zeros(2, 3), torch.tensor([True, False, False])
    assert compute_closed(OBJECTIVES[name].describe(few, few, None)) is not None
    assert compute_closed(OBJECTIVES[name].describe(few, few, None, mask=mask)) is None
    many = torch.zeros(BLOCK // 2 + 1, 2)
    assert compute_closed(OBJECTIVES[name].describe(many, many, None)) is None
    monkeypatch.setattr("polydistill.losses.description.uses_kernels", lambda scores: True)
    with use_backend("torch"):
        assert compute_closed(OBJECTIVES[name].describe(few, few, None)) is None
