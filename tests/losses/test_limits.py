"""Where losses turn into each other: limits and identities that the papers state."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from polydistill.losses import (
    OBJECTIVES,
    ban,
    ban_l,
    cross_entropy,
    cwtm,
    dkd,
    dkpp,
    hinton_kd,
    jsd,
    logit_standardized_kd,
    policy_kl,
    policy_nll,
    reverse_kl,
    uniform_confidence,
)


def soft(student, teacher, temperature):
    return hinton_kd(student, teacher, temperature=temperature, label_weight=0.0, teacher_weight=1.0)


def test_hinton_kd_tends_to_half_the_squared_distance_of_centred_scores_over_the_classes(make_batch) -> None:
    z, t, _ = make_batch()
    centred = [scores - scores.mean(1, keepdim=True) for scores in (z, t)]
    limit = (centred[0] - centred[1]).square().sum(1) / (2 * 7)
    errors = [((soft(z, t, temperature) - limit) / limit).abs().max().item() for temperature in (30.0, 300.0, 3000.0)]
    assert errors[0] < 0.3
    assert errors[1] < errors[0] / 5  # the error falls as 1 / T
    assert errors[2] < errors[1] / 5


def test_policy_kl_tends_to_nll_of_the_greedy_action(make_batch) -> None:
    z, t, _ = make_batch()
    gap = t.topk(2, dim=1).values.diff(dim=1).abs().min().item()
    errors = [(policy_kl(z, t, temperature=gap / x) - policy_nll(z, t)).abs().max().item() for x in (5, 10, 40)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-12


def test_policy_kl_at_one_is_hinton_kd_at_one_and_ban_less_the_entropy(make_batch) -> None:
    z, t, _ = make_batch()
    entropy = -(t.softmax(1) * t.softmax(1).log()).sum(1)
    torch.testing.assert_close(policy_kl(z, t, temperature=1.0), soft(z, t, 1.0))
    torch.testing.assert_close(policy_kl(z, t, temperature=1.0), ban(z, t) - entropy)


def test_temperature_of_a_policy_is_the_teachers_alone(make_batch) -> None:
    z, t, _ = make_batch()
    torch.testing.assert_close(policy_kl(z, t, temperature=0.2), policy_kl(z, t / 0.2, temperature=1.0))
    torch.testing.assert_close(reverse_kl(z, t, temperature=0.2), reverse_kl(z, t / 0.2))
    torch.testing.assert_close(jsd(z, t, temperature=0.2), jsd(z, t / 0.2))
    torch.testing.assert_close(soft(z, t, 0.2), 0.04 * policy_kl(z / 0.2, t, temperature=0.2))


def test_hinton_gradient_keeps_its_size_when_the_temperature_grows(make_batch) -> None:
    z, t, _ = make_batch()
    norms = [
        torch.autograd.grad(soft(z, t, temperature).sum(), z)[0].norm().item() for temperature in (100.0, 10_000.0)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


@pytest.mark.parametrize("loss", [hinton_kd, logit_standardized_kd])
def test_weights_mix_linearly_up_to_their_ends(make_batch, loss) -> None:
    z, t, y = make_batch()
    ends = [loss(z, t, y, label_weight=1.0 - a, teacher_weight=a, temperature=3.0) for a in (0.0, 1.0)]
    torch.testing.assert_close(ends[0], cross_entropy(z, y))
    torch.testing.assert_close(ends[1], loss(z, t, temperature=3.0, teacher_weight=1.0))
    for a in (1e-9, 0.25, 1 - 1e-9):  # no jump near the ends: T^2 is there at every weight
        mixed = loss(z, t, y, label_weight=1.0 - a, teacher_weight=a, temperature=3.0)
        torch.testing.assert_close(mixed, (1.0 - a) * ends[0] + a * ends[1], rtol=1e-7, atol=1e-7)


def test_ban_l_is_the_weighted_sum_of_its_parts(make_batch) -> None:
    z, t, y = make_batch()
    torch.testing.assert_close(ban_l(z, t, y), cross_entropy(z, y) + ban(z, t))
    torch.testing.assert_close(ban_l(z, t, y, label_weight=0.0, teacher_weight=2.0), 2 * ban(z, t))


def test_cwtm_with_equal_confidences_is_cross_entropy(make_batch) -> None:
    z, t, y = make_batch()
    rotated = torch.stack([t[0].roll(s) for s in range(5)])  # the same maximum, on other and on wrong classes
    torch.testing.assert_close(cwtm(z, rotated, y), cross_entropy(z, y))


def test_cwtm_weights_have_mean_one_and_order_of_confidence(make_batch) -> None:
    z, t, y = make_batch()
    weights = cwtm(z, t, y) / cross_entropy(z, y)
    assert weights.mean().item() == pytest.approx(1.0)
    assert weights.argsort().tolist() == t.softmax(1).amax(1).argsort().tolist()


def test_mean_over_all_permutations_of_dkpp_is_the_smoothed_target(make_batch) -> None:
    z, t, _ = make_batch(3, 5)
    orders = [torch.tensor(order) for order in itertools.permutations(range(4))]
    mean = torch.stack([dkpp(z, t, permutation=order.expand(3, 4)) for order in orders]).mean(0)
    confidence, best = t.softmax(1).max(1, keepdim=True)
    target = ((1 - confidence) / 4).expand(3, 5).scatter(1, best, confidence)
    torch.testing.assert_close(mean, -(target * z.log_softmax(1)).sum(1))


def test_dkpp_with_the_identity_is_ban(make_batch) -> None:
    z, t, _ = make_batch()
    torch.testing.assert_close(dkpp(z, t, permutation=torch.arange(6).expand(5, 6)), ban(z, t))


def test_uniform_confidence_of_one_sample_or_of_equal_confidences_is_ban(make_batch) -> None:
    z, t, _ = make_batch()
    torch.testing.assert_close(uniform_confidence(z[:1], t[:1]), ban(z[:1], t[:1]))
    rotated = torch.stack([t[0].roll(s) for s in range(5)])
    torch.testing.assert_close(uniform_confidence(z, rotated), ban(z, rotated))


def test_dkd_with_the_coupled_weight_is_hinton_kd(make_batch) -> None:
    """KL = TCKD + (1 - p_y) NCKD."""
    z, t, y = make_batch()
    parts = [dkd(z, t, y, temperature=2.0, label_weight=0.0, alpha=a, beta=1.0 - a) for a in (1.0, 0.0)]
    p_label = (t / 2).softmax(1)[torch.arange(5), y]
    torch.testing.assert_close(parts[0] + (1 - p_label) * parts[1], soft(z, t, 2.0))


def test_dkd_at_scores_of_1e4_has_its_value_where_probabilities_underflow() -> None:
    """Margins of -1e4 and 1e4 at T = 4: TCKD = 2,500; the other two classes: p^ = (1, 0), q^ = (0, 1), so 2,500 too."""
    student = torch.tensor([[0.0, 0.0, 1e4]])
    teacher = torch.tensor([[2e4, 1e4, 0.0]])
    labels = torch.tensor([0])
    target, others = (dkd(student, teacher, labels, label_weight=0.0, alpha=a, beta=1 - a) for a in (1.0, 0.0))
    assert target.item() == pytest.approx(16 * 2500)
    assert others.item() == pytest.approx(16 * 2500)


def test_jsd_over_its_weight_tends_to_kl_at_either_end(make_batch) -> None:
    z, t, _ = make_batch()
    beta = 1e-6
    torch.testing.assert_close(jsd(z, t, beta=beta) / beta, policy_kl(z, t, temperature=1.0), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(jsd(z, t, beta=1 - beta) / beta, reverse_kl(z, t), rtol=1e-3, atol=1e-6)


def test_jsd_is_a_quarter_of_kl_near_equality(make_batch) -> None:
    """Both are quadratic there."""
    _, t, _ = make_batch()
    z = t + 1e-4 * torch.linspace(-1, 1, 7, dtype=torch.float64)
    torch.testing.assert_close(jsd(z, t), policy_kl(z, t, temperature=1.0) / 4, rtol=1e-3, atol=0)


def test_fully_smoothed_labels_are_uniform(make_batch) -> None:
    z, _, y = make_batch()
    torch.testing.assert_close(cross_entropy(z, y, label_smoothing=1.0), -z.log_softmax(1).mean(1))


def test_mean_over_the_batch_is_independent_of_classes_that_nobody_predicts(make_batch) -> None:
    """A KL averaged over classes would shrink when hopeless classes are added."""
    z, t, y = make_batch()
    filler = torch.full((5, 93), -1e4, dtype=torch.float64)
    wide = torch.cat([z, filler], 1), torch.cat([t, filler], 1)
    for loss in (policy_kl, reverse_kl, jsd, ban):
        torch.testing.assert_close(loss(*wide), loss(z, t))
    torch.testing.assert_close(hinton_kd(*wide, y), hinton_kd(z, t, y))
    assert math.isfinite(hinton_kd(*wide, y).mean().item())


WEIGHTS = [
    (name, option)
    for name, objective in OBJECTIVES.items()
    for option in ("label_weight", "teacher_weight", "alpha", "beta", "label_smoothing")
    if option in objective.options and (name, option) != ("jsd", "beta")  # which is never 0
]


@pytest.mark.parametrize(("name", "option"), WEIGHTS)
def test_a_weight_of_0_is_the_limit_of_small_weights(make_batch, name: str, option: str) -> None:
    student, teacher, labels = make_batch()
    permutation = {"permutation": torch.arange(7).expand(5, 7)} if OBJECTIVES[name].needs_permutation else {}
    at_0, near_0 = (
        OBJECTIVES[name](student, teacher, labels, **{option: weight}, **permutation) for weight in (0.0, 1e-7)
    )
    assert torch.allclose(at_0, near_0, rtol=1e-4, atol=1e-5)
