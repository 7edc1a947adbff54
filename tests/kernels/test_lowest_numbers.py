"""Classes that both sides mask by the lowest number of their type: the kernels do with them what the formulas do."""

from __future__ import annotations

import pytest
import torch

from polydistill.losses import OBJECTIVES, use_backend, value_and_grad

COLS, MASKED = 20, [1, 4, 11, 17, 18, 19]
CASES = [
    *((name, {}) for name in ("cross_entropy", "ban", "ban_l", "cwtm", "uniform_confidence", "policy_nll")),
    *((name, {"temperature": 0.01}) for name in ("policy_kl", "policy_kl_q", "reverse_kl", "jsd")),
    *((name, {"temperature": t}) for name in ("hinton_kd", "dkd", "logit_standardized_kd") for t in (0.1, 4.0)),
    *((name, {}) for name in ("policy_mse", "policy_huber")),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_kernels_leave_a_class_out_that_both_sides_mask(name, options, dtype, device, tiles) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, COLS, generator=generator).mul_(2).to(dtype) for _ in range(2))
    for scores in (student, teacher):
        scores[:, MASKED] = torch.finfo(dtype).min
    batch = [student.to(device), teacher.to(device), torch.tensor([0, 3, 16], device=device)]
    with use_backend("torch"):
        wanted = value_and_grad(name, *batch, with_diagnostics=True, **options)
    found = value_and_grad(name, *batch, with_diagnostics=True, **options)
    slack = {} if dtype is torch.float32 else {"rtol": 2 * torch.finfo(dtype).eps, "atol": torch.finfo(dtype).eps / 4}
    torch.testing.assert_close(found.loss, wanted.loss, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(found.gradient, wanted.gradient, **slack)
    assert not found.gradient[:, MASKED].any()
    for ours, theirs in zip(found.diagnostics, wanted.diagnostics, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)
    leaf = batch[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(OBJECTIVES[name](leaf, *batch[1:], **options).sum(), leaf)
    torch.testing.assert_close(gradient, wanted.gradient, **slack)
