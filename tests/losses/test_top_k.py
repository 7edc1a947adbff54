"""The k most likely classes and the rest as one: a divergence, by formulas of another form, and never below 0."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from polydistill.losses import TopK, ban, cross_entropy, hinton_kd, keep_top_k, policy_kl, top_k_kd, top_k_kl
from polydistill.losses.blocks import BLOCK
from tests.losses import reference


def groups(scores: list[float], kept: list[int], temperature: float = 1.0) -> list[float]:
    """Log-probabilities of the kept classes and of the sum of the others, class by class."""
    p = reference.softmax([score / temperature for score in scores])
    rest = math.fsum(value for i, value in enumerate(p) if i not in kept)
    return [math.log(value) if value > 0 else -math.inf for value in [*(p[i] for i in kept), rest]]


def by_formula(student: Tensor, teacher: Tensor, k: int, temperature: float = 1.0, both: bool = False) -> list[float]:
    found = []
    for z, t in zip(student.tolist(), teacher.tolist(), strict=True):
        kept = sorted(range(len(t)), key=lambda i: t[i])[-k:]
        log_q = groups(z, kept, temperature if both else 1.0)
        found.append(reference.kl(groups(t, kept, temperature), log_q))
    return found


@pytest.mark.parametrize("k", [1, 2, 5, 6, 7])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_values_are_those_of_the_formula(make_batch, k, temperature) -> None:
    student, teacher, labels = make_batch()
    kept = keep_top_k(teacher, k, temperature=temperature)
    expected = by_formula(student, teacher, k, temperature)
    torch.testing.assert_close(top_k_kl(student, kept), torch.tensor(expected, dtype=torch.float64))
    soft = torch.tensor(by_formula(student, teacher, k, temperature, both=True), dtype=torch.float64)
    loss = top_k_kd(student, teacher, labels, k=k, temperature=temperature, label_weight=0.3, teacher_weight=0.7)
    torch.testing.assert_close(loss, 0.3 * cross_entropy(student, labels) + 0.7 * temperature**2 * soft)


def test_what_is_kept_are_the_teachers_probabilities() -> None:
    probabilities = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.7, 0.1, 0.15, 0.05]], dtype=torch.float64)
    kept = keep_top_k(probabilities.log() * 2.0, 2, temperature=2.0)
    assert kept.indices.tolist() == [[1, 3], [0, 2]]
    torch.testing.assert_close(kept.values.exp(), torch.tensor([[0.4, 0.3], [0.7, 0.15]], dtype=torch.float64))
    torch.testing.assert_close(kept.rest.exp(), torch.tensor([0.3, 0.15], dtype=torch.float64))
    assert not kept.values.requires_grad
    torch.testing.assert_close(kept.spread(4)[0].exp(), torch.tensor([0.15, 0.4, 0.15, 0.3], dtype=torch.float64))


@pytest.mark.parametrize("k", [6, 7])
def test_with_all_classes_or_all_but_one_it_is_the_divergence_over_all(make_batch, k) -> None:
    student, teacher, labels = make_batch()
    torch.testing.assert_close(top_k_kl(student, keep_top_k(teacher, k)), policy_kl(student, teacher, temperature=1.0))
    torch.testing.assert_close(top_k_kd(student, teacher, labels, k=k), hinton_kd(student, teacher, labels))
    torch.testing.assert_close(top_k_kd(student, teacher, labels, k=10**6), hinton_kd(student, teacher, labels))
    mixed = (teacher.flip(0) * 2.0).softmax(-1)  # labels that are probabilities
    torch.testing.assert_close(top_k_kd(student, teacher, mixed, k=k), hinton_kd(student, teacher, mixed))


def test_without_labels_and_tempering_it_has_bans_gradient(make_batch) -> None:
    student, teacher, _ = make_batch()
    (own,) = torch.autograd.grad(top_k_kd(student, teacher, k=6, temperature=1.0, teacher_weight=1.0).sum(), student)
    (its,) = torch.autograd.grad(ban(student, teacher).sum(), student)
    torch.testing.assert_close(own, its)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_gradient_is_that_of_finite_differences_and_of_the_formula(make_batch, k) -> None:
    student, teacher, labels = make_batch()
    kept = keep_top_k(teacher, k)
    assert torch.autograd.gradcheck(lambda z: top_k_kl(z, kept), student)
    assert torch.autograd.gradcheck(lambda z: top_k_kd(z, teacher, labels, k=k), student)
    (gradient,) = torch.autograd.grad(top_k_kl(student, kept).sum(), student)
    q, p = student.detach().softmax(-1), teacher.softmax(-1)
    is_kept = torch.zeros_like(q, dtype=torch.bool).scatter(1, kept.indices, True)
    ratio = (p * ~is_kept).sum(1, keepdim=True) / (q * ~is_kept).sum(1, keepdim=True).clamp_min(1e-300)
    torch.testing.assert_close(gradient, torch.where(is_kept, q - p, q * (1 - ratio)))


@pytest.mark.parametrize("seed", range(20))
def test_it_is_never_negative_grows_with_k_and_is_at_most_the_whole_divergence(make_batch, seed) -> None:
    student, teacher, _ = make_batch(50, 12, scale=0.1 * 2.0 ** (seed % 8), seed=seed)
    losses = torch.stack([top_k_kl(student, keep_top_k(teacher, k)) for k in range(1, 13)])
    assert losses.min() >= -1e-14
    assert (losses.diff(dim=0) >= -1e-12).all()
    assert (losses <= policy_kl(student, teacher, temperature=1.0) + 1e-12).all()


def test_it_is_zero_where_the_groups_agree_and_only_there() -> None:
    teacher = torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.1]], dtype=torch.float64).log()
    agrees = torch.tensor([[0.5, 0.2, 0.25, 0.04, 0.01]], dtype=torch.float64).log()
    swapped = torch.tensor([[0.2, 0.5, 0.1, 0.1, 0.1]], dtype=torch.float64).log()
    kept = keep_top_k(teacher, 2)
    assert abs(top_k_kl(agrees + 3.0, kept).item()) < 1e-15
    assert top_k_kl(swapped, kept).item() > 0.2
    assert policy_kl(agrees, teacher, temperature=1.0).item() > 0.1


def test_it_sees_what_probabilities_divided_by_their_sum_do_not() -> None:
    """A student that gives nine tenths to the rest looks perfect among the k classes alone."""
    teacher = torch.tensor([[0.6, 0.3, 0.05, 0.05]]).log()
    student = torch.tensor([[0.06, 0.03, 0.455, 0.455]]).log()
    among_themselves = policy_kl(student[:, :2], teacher[:, :2], temperature=1.0)
    assert abs(among_themselves.item()) < 1e-6
    assert top_k_kl(student, keep_top_k(teacher, 2)).item() > 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
def test_extremes_stay_finite(make_batch, dtype, scale, temperature) -> None:
    student, teacher, labels = make_batch(8, 100, scale=scale, dtype=dtype)
    for k in (1, 10, 99, 100):
        alone = top_k_kl(student, keep_top_k(teacher, k, temperature=temperature))
        assert alone.min() > -1e-4
        for loss in (alone, top_k_kd(student, teacher, labels, k=k, temperature=temperature)):
            (gradient,) = torch.autograd.grad(loss.sum(), student)
            assert loss.dtype == torch.float32
            assert loss.isfinite().all()
            assert gradient.isfinite().all()


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_classes_that_the_teacher_excludes_or_both_mask_have_no_part(k) -> None:
    lowest = torch.finfo(torch.float32).min
    student = torch.tensor([[1.0, 2.0, lowest, lowest]], requires_grad=True)
    for excluded in (-math.inf, lowest):
        teacher = torch.tensor([[0.0, 1.0, excluded, excluded]])
        loss = top_k_kl(student, keep_top_k(teacher, k))
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        few = top_k_kl(student[:, :2], keep_top_k(teacher[:, :2], min(k, 2)))
        torch.testing.assert_close(loss, few)
        assert gradient.isfinite().all()
        assert gradient[0, 2:].abs().max() == 0


def test_the_rest_is_summed_and_not_one_minus_the_others() -> None:
    """A rest of 1e-12 is lost in float32 by a difference from 1."""
    teacher = torch.tensor([[0.0, math.log(1e-12), -math.inf]])
    student = torch.tensor([[0.0, math.log(1e-6), math.log(1e-6)]])
    kept = keep_top_k(teacher, 1)
    assert kept.rest.item() == pytest.approx(math.log(1e-12), rel=1e-6)
    (gradient,) = torch.autograd.grad(top_k_kl(student.requires_grad_(), kept).sum(), student)
    torch.testing.assert_close(gradient[0, 1:], torch.tensor([1e-6, 1e-6]), rtol=1e-3, atol=0)


def test_what_is_stored_in_float16_still_adds_up_to_one(make_batch) -> None:
    student, teacher, _ = make_batch(64, 50, dtype=torch.float32)
    whole = keep_top_k(teacher, 5)
    stored = TopK(whole.values.half(), whole.indices.to(torch.int32), whole.rest.half())
    torch.testing.assert_close(top_k_kl(student, stored), top_k_kl(student, whole), atol=0.01, rtol=0.01)
    exact = torch.cat([stored.values, stored.rest.unsqueeze(1)], dim=1).float().softmax(1)
    as_student = TopK(exact[:, :-1].log(), whole.indices, exact[:, -1].log()).spread(50)
    assert top_k_kl(as_student, stored).abs().max() < 1e-6


def test_spread_scores_hold_the_same_groups(make_batch) -> None:
    student, teacher, labels = make_batch(16, 30)
    for k in (1, 7, 29, 30):
        spread = keep_top_k(teacher, k, temperature=3.0).spread(30)
        torch.testing.assert_close(
            top_k_kd(student, 3.0 * spread, labels, k=k, temperature=3.0),
            top_k_kd(student, teacher, labels, k=k, temperature=3.0),
        )


def test_sequences_ensembles_padding_and_empty_batches(make_batch) -> None:
    student, teacher, labels = make_batch(6, 9)
    kept = keep_top_k(teacher.view(2, 3, 9), 4)
    in_time = top_k_kl(student.view(2, 3, 9), kept)
    torch.testing.assert_close(in_time.flatten(), top_k_kl(student, keep_top_k(teacher, 4)))
    members = torch.stack([teacher, teacher.flip(1)])
    mean = (members / 4.0).softmax(-1).mean(0).log() * 4.0
    torch.testing.assert_close(top_k_kd(student, members, labels, k=4), top_k_kd(student, mean, labels, k=4))
    padded = torch.where(torch.arange(6) < 2, -100, labels)
    loss = top_k_kd(student, teacher, padded, k=4, ignore_index=-100)
    assert loss[:2].tolist() == [0.0, 0.0]
    torch.testing.assert_close(loss[2:], top_k_kd(student, teacher, labels, k=4)[2:])
    assert top_k_kl(student[:0], keep_top_k(teacher[:0], 4)).shape == (0,)


def test_large_batches_are_computed_in_blocks_with_the_same_result() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2 * BLOCK // 1000, 1000, generator=generator, requires_grad=True)
    teacher = keep_top_k(torch.randn(student.shape, generator=generator), 20)
    whole = top_k_kl(student, teacher)
    some = torch.tensor([0, 1000, len(student) - 1])
    few = top_k_kl(student[some], TopK(*(tensor[some] for tensor in teacher)))
    torch.testing.assert_close(whole[some], few)
    gradients = [torch.autograd.grad(loss, student)[0][some] for loss in (whole[some].sum(), few.sum())]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        ({"k": 0}, ValueError, "k must be from 1 to 7, got 0"),
        ({"k": 8}, ValueError, "k must be from 1 to 7, got 8"),
        ({"k": 2.0}, TypeError, "k must be an integer"),
        ({"temperature": 0.0}, ValueError, "temperature must be from"),
        ({"teacher": [1.0]}, TypeError, "teacher must be a floating tensor"),
    ],
)
def test_what_cannot_be_kept_is_refused(make_batch, change, kind, told) -> None:
    given = {"teacher": make_batch().teacher, "k": 3, "temperature": 1.0} | change
    with pytest.raises(kind, match=told):
        keep_top_k(given["teacher"], given["k"], temperature=given["temperature"])


def test_a_teacher_that_does_not_fit_is_refused(make_batch) -> None:
    student, teacher, _ = make_batch()
    kept = keep_top_k(teacher, 3)
    with pytest.raises(TypeError, match=r"teacher must be a TopK, as keep_top_k\(scores, k\) makes it"):
        top_k_kl(student, teacher)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"teacher\.rest must be of shape \(5,\), got \(4,\)"):
        top_k_kl(student, kept._replace(rest=kept.rest[1:]))
    with pytest.raises(ValueError, match="must have from 1 to 2 classes, got 3"):
        top_k_kl(student[:, :2], kept)
    with pytest.raises(TypeError, match=r"teacher\.indices must be a tensor of integers"):
        top_k_kl(student, kept._replace(indices=kept.values))
    with pytest.raises(ValueError, match="name each class once"):
        top_k_kl(student, kept._replace(indices=torch.zeros_like(kept.indices)), check_values=True)
    with pytest.raises(ValueError, match=r"teacher\.indices must be from 0 to 6"):
        top_k_kl(student, kept._replace(indices=kept.indices + 7), check_values=True)
