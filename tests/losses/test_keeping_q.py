"""What keeps a student's scores Q-values: the second term of ``policy_kl_q``, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from polydistill.losses import diagnostics, loss_with_diagnostics, policy_kl, policy_kl_q, value_and_grad

LAMBDAS = [1e-3, 0.01, 1.0, 100.0]


def descend(loss_of, start: Tensor, rate: float, n_steps: int) -> Tensor:
    """Plain gradient descent."""
    found = start.clone().requires_grad_()
    for _ in range(n_steps):
        (gradient,) = torch.autograd.grad(loss_of(found).sum(), found)
        found = (found - rate * gradient).detach().requires_grad_()
    return found.detach()


@pytest.mark.parametrize("q_weight", LAMBDAS)
@pytest.mark.parametrize("temperature", [0.01, 2.0])
def test_minimiser_is_the_teachers_q_whatever_the_weight(q_weight, temperature) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(3, 5, dtype=torch.float64, generator=generator) * 4 * temperature + 7.0
    found = (torch.randn(3, 5, dtype=torch.float64, generator=generator) * temperature + 7.0).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [found], lr=1.0, max_iter=2000, tolerance_grad=1e-15, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def again() -> Tensor:
        optimizer.zero_grad()
        loss = policy_kl_q(found, teacher, temperature=temperature, q_weight=q_weight).sum()
        loss.backward()
        return loss

    optimizer.step(again)
    torch.testing.assert_close(found.detach(), teacher, rtol=0, atol=1e-3 * temperature)
    at_teacher = value_and_grad("policy_kl_q", teacher, teacher, temperature=temperature, q_weight=q_weight)
    assert not at_teacher.loss.any()
    assert not at_teacher.gradient.any()


def test_it_is_policy_kl_of_the_scores_in_units_of_t_and_the_mean_square_of_their_distance(make_batch) -> None:
    student, teacher, _ = make_batch(6, 4)
    found = policy_kl_q(student, teacher, temperature=0.3, q_weight=0.2)
    squares = ((student - teacher) / 0.3).square().mean(1)
    torch.testing.assert_close(found, policy_kl(student / 0.3, teacher, temperature=0.3) + 0.2 * squares)
    torch.testing.assert_close(found, policy_kl_q(student / 0.3, teacher / 0.3, temperature=1.0, q_weight=0.2))


def test_every_action_has_a_gradient_also_where_its_probability_is_0() -> None:
    """Of both sides: then KL alone has none at all."""
    teacher = torch.tensor([[3.0, 2.5, -9.0]], dtype=torch.float64)
    student = torch.tensor([[3.0, 2.5, -8.5]], dtype=torch.float64)
    assert (teacher / 0.01).softmax(1)[0, 2] == 0
    alone = value_and_grad("policy_kl", student / 0.01, teacher, temperature=0.01).gradient
    found = value_and_grad("policy_kl_q", student, teacher, temperature=0.01, q_weight=0.01).gradient
    assert alone[0, 2] == 0
    assert found[0, 2].item() == pytest.approx(2 * 0.01 * (0.5 / 0.01) / 3 / 0.01, rel=1e-12)


def test_actions_that_leave_add_nothing_and_are_not_counted(make_batch) -> None:
    student, teacher, _ = make_batch(5, 6)
    kept = [0, 2, 3, 5]
    expected = policy_kl_q(student[:, kept], teacher[:, kept], temperature=0.5, q_weight=0.3)
    mask = torch.tensor([False, True, False, False, True, False])
    excluded = teacher.masked_fill(mask, -torch.inf)
    torch.testing.assert_close(policy_kl_q(student, teacher, temperature=0.5, q_weight=0.3, mask=mask), expected)
    torch.testing.assert_close(policy_kl_q(student, excluded, temperature=0.5, q_weight=0.3, mask=mask), expected)
    of_kl, whole = (
        loss(student * scale, excluded, temperature=0.5, **given)
        for loss, scale, given in ((policy_kl, 2.0, {}), (policy_kl_q, 1.0, {"q_weight": 0.3}))
    )
    squares = (2 * (student - teacher)[:, kept]).square().mean(1)
    torch.testing.assert_close(whole, of_kl + 0.3 * squares)


def test_pinning_the_mean_alone_moves_the_bad_actions_error_onto_the_good_ones() -> None:
    """Two good actions and one that nobody takes. KL stops to pull at a bad action as soon as the student no longer
    takes it, long before it has sunk as low as its Q-value. A pinned mean then lowers the good ones by that error."""
    teacher = torch.tensor([[10.0, 9.0, -50.0]], dtype=torch.float64)
    start = torch.zeros_like(teacher)

    def with_mean_pinned(student: Tensor) -> Tensor:
        return policy_kl(student, teacher, temperature=1.0) + 0.1 * (student - teacher).mean(1).square()

    of_mean = descend(with_mean_pinned, start, rate=0.5, n_steps=2000) - teacher
    of_all = descend(lambda z: policy_kl_q(z, teacher, temperature=1.0, q_weight=0.1), start, 0.5, 2000) - teacher
    assert of_mean.mean().abs() < 1e-6  # pinned it is
    assert of_mean[0, 2] > 20.0  # the bad action is still far too good
    torch.testing.assert_close(of_mean[0, :2], -of_mean[0, 2].expand(2) / 2, rtol=1e-3, atol=0)
    assert of_all.abs().max() < 1e-6


def test_kl_alone_leaves_each_state_free_by_a_number(make_batch) -> None:
    student, teacher, _ = make_batch(4, 5)
    shift = torch.tensor([[0.0], [1.0], [-7.0], [100.0]], dtype=torch.float64)
    shifted = policy_kl(student + shift, teacher, temperature=1.0)
    torch.testing.assert_close(shifted, policy_kl(student, teacher, temperature=1.0))
    found = policy_kl_q(teacher + shift, teacher, temperature=1.0, q_weight=0.5)
    torch.testing.assert_close(found, 0.5 * shift[:, 0].square())


def test_diagnostics_temper_both_sides(make_batch) -> None:
    student, teacher, labels = make_batch(6, 5)
    _, found = loss_with_diagnostics("policy_kl_q", student, teacher, labels, temperature=0.4)
    expected = diagnostics(student / 0.4, teacher / 0.4, labels)
    torch.testing.assert_close(tuple(found), tuple(expected))


@pytest.mark.parametrize("q_weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_keeps_nothing_is_refused(make_batch, q_weight) -> None:
    with pytest.raises(ValueError, match="q_weight must be positive and finite"):
        policy_kl_q(*make_batch()[:2], q_weight=q_weight)


def test_an_ensemble_is_refused_in_one_line(make_batch) -> None:
    student, teacher, _ = make_batch()
    with pytest.raises(ValueError, match=r"average the members' scores yourself, teacher_q\.mean\(0\)$"):
        policy_kl_q(student, torch.stack([teacher, teacher]))
