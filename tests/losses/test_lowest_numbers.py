"""Classes that both sides mask by the lowest number of their type, as callers mask actions and vocabularies.

Such a class has probability 0 on both sides and no gradient, and the others do as if it were not there.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from polydistill.losses import OBJECTIVES, value_and_grad
from tests.losses.reference import NAMES

MASKED, KEPT = [1, 4], [0, 2, 3, 5]
# dkpp exchanges probabilities between all classes: it gives some to a class that is masked, since it cannot know
TRIED = [name for name in NAMES if name != "dkpp"]
TEMPERATURES = {name: [0.01, 0.5, 4.0] if "temperature" in OBJECTIVES[name].options else [None] for name in TRIED}
CASES = [(name, temperature) for name in TRIED for temperature in TEMPERATURES[name]]


def make(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 6, generator=generator).mul_(2).to(dtype) for _ in range(2))
    for scores in (student, teacher):
        scores[:, MASKED] = torch.finfo(dtype).min
    return student, teacher, torch.tensor([0, 3, 5])


def without(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The batch without the masked classes."""
    return student[:, KEPT], teacher[:, KEPT], torch.tensor([KEPT.index(label) for label in labels.tolist()])


def expected_of(name: str, batch: tuple[Tensor, Tensor, Tensor], options: dict[str, float]) -> tuple[Tensor, Tensor]:
    """Loss and gradient without the masked classes; where all classes share something, with the share of all."""
    student, teacher, labels = without(*batch)
    if name == "policy_kl_q":  # the mean of the squares is over all actions
        options = {**options, "q_weight": 0.01 * len(KEPT) / batch[0].shape[1]}
    leaf = student.clone().requires_grad_()
    loss = OBJECTIVES[name](leaf, teacher, labels, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), gradient


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "temperature"), CASES)
def test_a_class_masked_on_both_sides_is_as_if_it_were_not_there(
    name: str, temperature: float | None, dtype: torch.dtype
) -> None:
    batch = make(dtype)
    options = {} if temperature is None else {"temperature": temperature}
    wanted, wanted_gradient = expected_of(name, batch, options)
    leaf = batch[0].clone().requires_grad_()
    loss = OBJECTIVES[name](leaf, *batch[1:], **options)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert not gradient[:, MASKED].any()
    torch.testing.assert_close(loss.detach(), wanted, rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(gradient[:, KEPT], wanted_gradient)
    found = value_and_grad(name, *batch, with_diagnostics=True, **options)
    torch.testing.assert_close(found.loss, wanted, rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(found.gradient, gradient)
    assert all(values.float().isfinite().all() for values in found.diagnostics or ())


@pytest.mark.parametrize(
    "name", ["hinton_kd", "dkd", "logit_standardized_kd", "policy_kl_q", "policy_mse", "policy_huber"]
)
def test_equal_sides_with_masked_classes_are_equal(name: str) -> None:
    """A divergence of equal scores is 0 at any temperature, with no NaN from a class that no side has."""
    student, _, labels = make(torch.float32)
    options = {"temperature": 0.01} if "temperature" in OBJECTIVES[name].options else {}
    if "label_weight" in OBJECTIVES[name].options:
        options["label_weight"] = 0.0
    assert not OBJECTIVES[name](student, student, labels, **options).any()
