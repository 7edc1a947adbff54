"""Ensembles, quantiles and a proposed temperature."""

from __future__ import annotations

import inspect
import math
import weakref

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from polydistill.losses import OBJECTIVES, average_quantiles, ban, mean_of_teachers, policy_kl, propose_temperature
from tests.losses import reference


def test_mean_of_teachers_is_the_mean_of_probabilities(make_batch) -> None:
    members = [make_batch(4, 6, seed=seed).teacher for seed in range(3)]
    mean = mean_of_teachers(members)
    expected = np.mean([[reference.softmax(row) for row in member.tolist()] for member in members], axis=0)
    np.testing.assert_allclose(mean.exp().numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(mean.softmax(1).numpy(), expected, rtol=1e-12)  # so it serves as scores at T = 1


def test_mean_of_teachers_tempers_each_member(make_batch) -> None:
    members = [make_batch(4, 6, seed=seed).teacher for seed in range(3)]
    cold = mean_of_teachers(members, temperature=0.2)
    torch.testing.assert_close(cold, mean_of_teachers([member / 0.2 for member in members]))
    assert (cold - (mean_of_teachers(members) / 0.2).log_softmax(1)).abs().max() > 0.1


def test_mean_of_one_or_equal_teachers_is_that_teacher(make_batch) -> None:
    student, teacher, _ = make_batch()
    for members in ([teacher], [teacher] * 4):
        torch.testing.assert_close(mean_of_teachers(members), teacher.log_softmax(1))
        torch.testing.assert_close(ban(student, mean_of_teachers(members)), ban(student, teacher))


def test_mean_of_teachers_holds_one_member_at_a_time(make_batch) -> None:
    """When the next one is made, at most the one before is still there."""
    made: list[weakref.ref[torch.Tensor]] = []
    held: list[int] = []

    def members():
        for seed in range(4):
            held.append(sum(one() is not None for one in made))
            member = make_batch(2, 3, seed=seed).teacher.clone()
            made.append(weakref.ref(member))
            yield member
            del member

    listed = [make_batch(2, 3, seed=seed).teacher for seed in range(4)]
    torch.testing.assert_close(mean_of_teachers(members()), mean_of_teachers(listed))
    assert held == [0, 1, 1, 1]


def test_class_excluded_by_one_member_keeps_the_share_of_the_others() -> None:
    members = [torch.tensor([[-math.inf, 0.0, 0.0]]), torch.tensor([[-math.inf, 0.0, -math.inf]])]
    mean = mean_of_teachers(members)
    torch.testing.assert_close(mean.exp(), torch.tensor([[0.0, 0.75, 0.25]]))
    assert policy_kl(torch.zeros(1, 3), mean, temperature=1.0).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mean_of_teachers_is_finite_at_1e4_in_half_precision(dtype) -> None:
    members = [torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype), torch.tensor([[-1e4, 1e4, 0.0]], dtype=dtype)]
    mean = mean_of_teachers(members)
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean.exp(), torch.tensor([[0.5, 0.5, 0.0]]))


def test_mean_of_teachers_has_no_gradient(make_batch) -> None:
    assert not mean_of_teachers([make_batch().student]).requires_grad


@pytest.mark.parametrize(
    ("members", "error", "text"),
    [
        ([], ValueError, "at least one tensor, got none"),
        (
            [torch.zeros(1, 2), torch.zeros(2, 2)],
            ValueError,
            r"teachers\[1\] must be of the first one's shape \(1, 2\)",
        ),
        (
            [torch.zeros(1, 2), torch.zeros(1, 2).double()],
            TypeError,
            r"teachers\[1\] must be .*float32, got torch.float64",
        ),
        ([torch.zeros(1, 2).long()], TypeError, r"teachers\[0\] must be a floating tensor"),
        (
            [torch.zeros(1, 2), torch.zeros(1, 2, device="meta")],
            ValueError,
            r"teachers\[1\] must be on .* cpu, got meta",
        ),
    ],
    ids=["none", "shape", "type", "integers", "device"],
)
def test_unlike_teachers_are_refused(members, error, text) -> None:
    with pytest.raises(error, match=text):
        mean_of_teachers(members)


def test_quantiles_are_averaged_per_action() -> None:
    quantiles = torch.tensor([[[0.0, 10.0], [1.0, 20.0], [5.0, 60.0]]], dtype=torch.bfloat16, requires_grad=True)
    q_values = average_quantiles(quantiles)
    assert q_values.tolist() == [[2.0, 30.0]]
    assert q_values.dtype == torch.float32
    assert not q_values.requires_grad


@pytest.mark.parametrize(
    ("quantiles", "error", "text"),
    [
        (torch.zeros(2, 3), ValueError, r"\(batch, quantiles, actions\), got \(2, 3\)"),
        (torch.zeros(2, 0, 3), ValueError, r"got \(2, 0, 3\)"),
        (torch.zeros(2, 3, 4).long(), TypeError, "quantiles must be a floating tensor, got torch.int64"),
    ],
    ids=["two dimensions", "none", "integers"],
)
def test_wrong_quantiles_are_refused(quantiles, error, text) -> None:
    with pytest.raises(error, match=text):
        average_quantiles(quantiles)


def test_proposed_temperature_gives_the_median_state_its_odds() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn((1001, 6), generator=generator) * 0.05 + 3
    for odds in (2.0, 9.0, 99.0):
        temperature = propose_temperature(scores, odds=odds)
        two = (scores / temperature).softmax(1).topk(2, dim=1).values
        assert (two[:, 0] / two[:, 1]).median().item() == pytest.approx(odds, rel=1e-3)


def test_proposed_temperature_scales_with_the_scores_and_ignores_excluded_actions() -> None:
    scores = torch.randn((99, 4), generator=torch.Generator().manual_seed(0))
    temperature = propose_temperature(scores)
    assert propose_temperature(scores * 10 - 7) == pytest.approx(temperature * 10, rel=1e-4)
    wider = torch.cat([scores, torch.full((99, 1), -math.inf), torch.full((99, 1), 50.0)], dim=1)
    mask = torch.tensor([False] * 5 + [True])
    assert propose_temperature(wider, mask=mask) == temperature
    alone = torch.full((500, 4), -math.inf)
    alone[:, 0] = 0.0  # states with a single action left do not count
    assert propose_temperature(torch.cat([scores, alone])) == temperature


@pytest.mark.parametrize(
    ("scores", "options", "text"),
    [
        (torch.zeros(5, 3), {}, "positive median gap between its two best actions, got 0.0"),
        (torch.zeros(0, 3), {}, "got nan"),
        (torch.zeros(5, 1), {}, r"at least two actions, got \(5, 1\)"),
        (torch.rand(5, 3), {"odds": 1.0}, "odds must be greater than 1, got 1.0"),
        (torch.rand(5, 3), {"odds": -2}, "odds must be positive and finite, got -2"),
        (torch.rand(5), {}, r"teacher_q must be of shape .*, got \(5,\)"),
    ],
    ids=["no gap", "no state", "one action", "odds 1", "odds -2", "shape"],
)
def test_nothing_to_propose_is_said(scores, options, text) -> None:
    with pytest.raises(ValueError, match=text):
        propose_temperature(scores, **options)


ENSEMBLED = ("ban", "ban_l", "hinton_kd", "policy_kl", "reverse_kl", "jsd")


def ensemble(members: int = 3, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(members, *(shape or (5, 7)), generator=generator, dtype=torch.float64) * 2


@pytest.mark.parametrize("name", ENSEMBLED)
@pytest.mark.parametrize("masked", [False, True])
def test_ensemble_as_teacher_is_the_mean_of_its_tempered_softmaxes(make_batch, name, masked) -> None:
    """By probabilities, one member at a time: p = mean of softmax(t_k / T), given as ln p at T = 1."""
    objective, batch, teachers = OBJECTIVES[name], make_batch(5, 7), ensemble()
    teachers[0, 0, 2] = teachers[1, 0, 2] = -math.inf
    options = {"temperature": 0.7} if "temperature" in inspect.signature(objective.function).parameters else {}
    single = {"temperature": 1.0} if objective.tempered else dict(options)
    if masked and name in ("ban", "ban_l", "hinton_kd"):
        pytest.skip("takes no mask")
    kept = torch.ones(7, dtype=torch.bool)
    if masked:
        kept[3] = False
        options["mask"] = single["mask"] = ~kept
    temperature = options.get("temperature", 1.0)
    p = torch.zeros(5, 7, dtype=torch.float64)
    for member in teachers:
        e = (member / temperature).exp() * kept
        p += e / e.sum(1, keepdim=True) / 3
    log_p = p.log() * (temperature if name == "hinton_kd" else 1.0)  # which tempers both sides
    expected = objective(batch.student, log_p, batch.labels, **single)
    found = objective(batch.student, teachers, batch.labels, **options)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss.sum(), batch.student, retain_graph=True)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


class LargestTensor(TorchDispatchMode):
    """Numbers in the largest tensor that is made, not counting views of ``known``."""

    def __init__(self, known: torch.Tensor) -> None:
        super().__init__()
        self.known, self.numbers = known.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() != self.known:
                self.numbers = max(self.numbers, tensor.numel())
        return made


@pytest.mark.parametrize("name", ENSEMBLED)
def test_nothing_of_an_ensembles_size_is_made(make_batch, name) -> None:
    batch, teachers = make_batch(5, 7), ensemble(4)
    with LargestTensor(teachers) as largest:
        loss = OBJECTIVES[name](batch.student, teachers, batch.labels)
        torch.autograd.grad(loss.sum(), batch.student)
    assert largest.numbers == 5 * 7


def test_an_ensemble_of_temporary_size_would_be_seen() -> None:
    teachers = ensemble(4)
    with LargestTensor(teachers) as largest:
        teachers.softmax(-1).mean(0)
    assert largest.numbers == 4 * 5 * 7


@pytest.mark.parametrize("name", ENSEMBLED)
def test_ensemble_of_equal_members_is_that_teacher(make_batch, name) -> None:
    batch = make_batch(5, 7)
    once = OBJECTIVES[name](*batch)
    torch.testing.assert_close(OBJECTIVES[name](batch.student, batch.teacher.expand(4, 5, 7), batch.labels), once)


def test_ensemble_serves_several_students(make_batch) -> None:
    students, teachers = ensemble(2), ensemble(3, 2, 5, 7)
    together = OBJECTIVES["ban"](students, teachers, None)
    apart = [OBJECTIVES["ban"](students[i], teachers[:, i], None) for i in range(2)]
    torch.testing.assert_close(together, torch.stack(apart))


@pytest.mark.parametrize("name", ["cwtm", "uniform_confidence", "dkd", "logit_standardized_kd", "policy_mse"])
def test_objective_that_needs_one_teacher_refuses_several(make_batch, name) -> None:
    batch = make_batch(5, 7)
    with pytest.raises(ValueError, match=r"must be of the student's shape \(5, 7\), got \(3, 5, 7\)"):
        OBJECTIVES[name](batch.student, ensemble(), batch.labels)


def test_ensemble_without_members_and_members_of_another_shape_are_refused(make_batch) -> None:
    batch = make_batch(5, 7)
    for teachers in (ensemble()[:0], ensemble(3, 5, 6), ensemble(2, 3, 5, 7)):
        with pytest.raises(ValueError, match="teacher must be of the student's shape"):
            OBJECTIVES["ban"](batch.student, teachers, None)
