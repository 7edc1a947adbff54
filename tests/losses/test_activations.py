"""polydistill.losses.activations: the distance of hidden states, against sums written out, and differences."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from polydistill.losses import activation_l2


def states(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_hand(student: Tensor, teacher: Tensor) -> list[float]:
    """Number by number."""
    rows = zip(student.flatten(1).tolist(), teacher.flatten(1).tolist(), strict=True)
    return [sum((a - b) ** 2 for a, b in zip(*row, strict=True)) / len(row[0]) for row in rows]


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4, 4), (1, 7, 1, 2), (4, 1)])
def test_the_loss_of_each_sample_is_the_mean_square_worked_out_by_hand(shape: tuple[int, ...]) -> None:
    student, teacher = states(0, *shape), states(1, *shape)
    loss = activation_l2(student, teacher)
    assert loss.shape == shape[:1]
    assert loss.tolist() == pytest.approx(by_hand(student, teacher), rel=1e-13)
    assert activation_l2(student, student).tolist() == [0.0] * shape[0]


def test_the_gradient_is_that_of_differences_and_the_teacher_has_none() -> None:
    student, teacher = states(0, 3, 2, 2).requires_grad_(), states(1, 3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: activation_l2(x, teacher), (student,), eps=1e-6, atol=1e-8)
    activation_l2(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert torch.allclose(student.grad, 2 * (student - teacher).detach() / 4, rtol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_short_floats_are_computed_in_float32_and_large_states_stay_finite(dtype: torch.dtype) -> None:
    student, teacher = states(0, 4, 30, dtype=dtype) + 300, states(1, 4, 30, dtype=dtype) - 300
    loss = activation_l2(student, teacher)
    assert loss.dtype == torch.float32
    assert loss.tolist() == pytest.approx(by_hand(student, teacher), rel=1e-6)


def test_an_empty_batch_has_no_losses() -> None:
    assert activation_l2(torch.zeros(0, 3, 2, 2), torch.zeros(0, 3, 2, 2)).shape == (0,)


@pytest.mark.parametrize(
    ("student", "teacher", "error", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), ValueError, "got (2, 3) and (2, 4)"),
        (torch.zeros(3), torch.zeros(3), ValueError, "must both be (batch, ...)"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3), TypeError, "student must be floating"),
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool), TypeError, "teacher must be floating"),
        (torch.zeros(2, 3), torch.zeros(2, 3, device="meta"), ValueError, "student is on cpu, teacher on meta"),
    ],
)
def test_what_is_no_pair_of_states_is_refused(
    student: Tensor, teacher: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        activation_l2(student, teacher)
