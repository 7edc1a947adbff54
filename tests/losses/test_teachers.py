"""Ensembles, quantiles and a proposed temperature."""

from __future__ import annotations

import inspect
import math
import weakref

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from polydistill.losses import (
    OBJECTIVES,
    average_quantiles,
    ban,
    diagnostics,
    gradient_shares,
    mean_of_teachers,
    policy_kl,
    policy_nll,
    propose_temperature,
    reverse_kl,
)
from tests.losses import reference
from tests.losses.reference import ENSEMBLED, MASKED, ONE_TEACHER


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


@pytest.mark.parametrize("teachers", [None, 3.0, torch.zeros(())], ids=["None", "number", "0-D"])
def test_teachers_that_hold_no_members_are_named(teachers) -> None:
    with pytest.raises(TypeError, match=r"^teachers must be an iterable of tensors, got"):
        mean_of_teachers(teachers)


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


TWICE_TEMPERED = ("hinton_kd", "dkd")
PLAIN_AND_MASKED = [(name, masked) for name in ENSEMBLED for masked in (False, True) if name in MASKED or not masked]


def ensemble(members: int = 3, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(members, *(shape or (5, 7)), generator=generator, dtype=torch.float64) * 2


def options_of(batch, name: str) -> dict[str, object]:
    """With a temperature, where the loss takes one."""
    tempered = "temperature" in inspect.signature(OBJECTIVES[name].function).parameters
    return batch.options(name, {"temperature": 0.7} if tempered else {})


@pytest.mark.parametrize(("name", "masked"), PLAIN_AND_MASKED)
def test_ensemble_as_teacher_is_the_mean_of_its_tempered_softmaxes(make_batch, name, masked) -> None:
    """p = mean of softmax(t_k / T), by loops over probabilities, is given as ln p at T = 1 to the reference."""
    objective, batch, teachers = OBJECTIVES[name], make_batch(5, 7), ensemble()
    teachers[0, 0, 2] = teachers[1, 0, 2] = -math.inf
    if name != "reverse_kl":  # infinite there
        teachers[:, 1, 4] = -math.inf
    options = options_of(batch, name)
    leaves = ()
    if masked:
        options["mask"], leaves = torch.arange(7) == 3, (3,)
    temperature = options.get("temperature", 1.0)
    log_p = reference.log_mean(teachers.tolist(), temperature, leaves)
    single = {**options, "temperature": 1.0} if objective.tempered else options
    scores = torch.tensor(log_p, dtype=torch.float64) * (temperature if name in TWICE_TEMPERED else 1.0)
    arrays = {key: value.numpy() if torch.is_tensor(value) else value for key, value in single.items()}
    expected = reference.compute(
        name, batch.student.detach().numpy(), scores.numpy(), batch.labels.numpy(), **arrays
    )  # fmt: skip
    found = objective(batch.student, teachers, batch.labels, **options)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-10, atol=1e-12)
    of_one = objective(batch.student, scores, batch.labels, **single)
    gradients = [torch.autograd.grad(loss.sum(), batch.student, retain_graph=True)[0] for loss in (found, of_one)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", [name for name in ENSEMBLED if name not in TWICE_TEMPERED])
def test_ensemble_as_teacher_is_mean_of_teachers(make_batch, name) -> None:
    batch, teachers = make_batch(5, 7), ensemble()
    options = options_of(batch, name)
    temperature = options.pop("temperature", 1.0)
    found = OBJECTIVES[name](batch.student, teachers, batch.labels, **options_of(batch, name))
    mean = mean_of_teachers(teachers, temperature=temperature)
    at_one = {**options, "temperature": 1.0} if OBJECTIVES[name].tempered else options
    torch.testing.assert_close(found, OBJECTIVES[name](batch.student, mean, batch.labels, **at_one))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ENSEMBLED)
def test_ensemble_in_half_precision_is_averaged_in_float32(make_batch, name, dtype) -> None:
    batch, teachers = make_batch(5, 7, dtype=dtype), ensemble().to(dtype)
    options = options_of(batch, name)
    found = OBJECTIVES[name](batch.student, teachers, batch.labels, **options)
    expected = OBJECTIVES[name](batch.student.double(), teachers.double(), batch.labels, **options)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


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
    options = batch.options(name)
    with LargestTensor(teachers) as largest:
        loss = OBJECTIVES[name](batch.student, teachers, batch.labels, **options)
        torch.autograd.grad(loss.sum(), batch.student)
    assert largest.numbers == 5 * 7


@pytest.mark.parametrize("look", [diagnostics, gradient_shares])
def test_diagnostics_make_nothing_of_an_ensembles_size(make_batch, look) -> None:
    batch, teachers = make_batch(5, 7), ensemble(4)
    with LargestTensor(teachers) as largest:
        look(batch.student, teachers, batch.labels, temperature=0.3)
    assert largest.numbers == 5 * 7


def test_an_ensemble_of_temporary_size_would_be_seen() -> None:
    teachers = ensemble(4)
    with LargestTensor(teachers) as largest:
        teachers.softmax(-1).mean(0)
    assert largest.numbers == 4 * 5 * 7


@pytest.mark.parametrize("members", [1, 4])
@pytest.mark.parametrize("name", ENSEMBLED)
def test_ensemble_of_equal_members_is_that_teacher(make_batch, name, members) -> None:
    batch = make_batch(5, 7)
    options = options_of(batch, name)
    once = OBJECTIVES[name](*batch, **options)
    together = OBJECTIVES[name](batch.student, batch.teacher.expand(members, 5, 7), batch.labels, **options)
    torch.testing.assert_close(together, once)


@pytest.mark.parametrize("how", ["one call", "vmap"])
@pytest.mark.parametrize("name", ENSEMBLED)
def test_each_student_of_several_has_its_own_ensemble(make_batch, name, how) -> None:
    students, teachers = ensemble(2), ensemble(3, 2, 5, 7)
    labels = torch.tensor([[0, 1, 2, 3, 4], [6, 5, 4, 3, 2]])
    options = options_of(make_batch(5, 7), name)
    apart = [OBJECTIVES[name](students[i], teachers[:, i], labels[i], **options) for i in range(2)]
    if how == "vmap":
        mapped = torch.func.vmap(lambda z, t, y: OBJECTIVES[name](z, t, y, **options), in_dims=(0, 1, 0))
        together = mapped(students, teachers, labels)
    else:
        stacked = {key: torch.stack([v, v]) if torch.is_tensor(v) else v for key, v in options.items()}
        together = OBJECTIVES[name](students, teachers, labels, **stacked)
    torch.testing.assert_close(together, torch.stack(apart))


@pytest.mark.parametrize("name", ENSEMBLED)
def test_vmapped_students_learn_from_one_ensemble(make_batch, name) -> None:
    batch, teachers = make_batch(5, 7), ensemble()
    options = options_of(batch, name)
    students = torch.stack([batch.student.detach(), batch.student.detach().flip(0)])

    def total(z):
        return OBJECTIVES[name](z, teachers, batch.labels, **options).sum()

    mapped = torch.func.vmap(torch.func.grad(total))(students)
    torch.testing.assert_close(mapped, torch.stack([torch.func.grad(total)(one) for one in students]))


@pytest.mark.parametrize("name", ENSEMBLED)
def test_ensemble_gets_no_gradient_and_nothing_of_it_is_read_back(make_batch, name) -> None:
    """Tensors on the meta device have no values to be read."""
    batch = make_batch(5, 7)
    options = {key: v.to("meta") if torch.is_tensor(v) else v for key, v in options_of(batch, name).items()}
    student, teachers = (torch.empty(shape, device="meta", requires_grad=True) for shape in ((5, 7), (3, 5, 7)))
    OBJECTIVES[name](student, teachers, batch.labels.to("meta"), **options).sum().backward()
    assert student.grad is not None
    assert teachers.grad is None


@pytest.mark.parametrize("name", ENSEMBLED)
def test_ensemble_of_no_rows_or_of_one_class(make_batch, name) -> None:
    for shape in ((0, 4), (3, 1)):
        batch = make_batch(*shape)
        loss = OBJECTIVES[name](batch.student, ensemble(3, *shape), batch.labels, **options_of(batch, name))
        loss.sum().backward()
        assert loss.shape == shape[:1]
        assert loss.abs().sum() < 1e-12
        assert batch.student.grad.abs().sum() < 1e-12


@pytest.mark.parametrize("name", ["cwtm", "dkpp", "uniform_confidence", "dkd", "policy_nll"])
def test_loss_of_an_ensemble_compiles_without_a_graph_break(make_batch, name) -> None:
    batch, teachers = make_batch(4, 6, dtype=torch.float32), ensemble(3, 4, 6).float()
    options = options_of(batch, name)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda z, t, y: OBJECTIVES[name](z, t, y, **options), fullgraph=True, backend="aot_eager"
    )  # fmt: skip
    expected = OBJECTIVES[name](batch.student, teachers, batch.labels, **options)
    torch.testing.assert_close(compiled(batch.student, teachers, batch.labels), expected)


def test_greatest_of_an_ensemble_is_that_of_the_mean_softmax_at_t_1() -> None:
    """Two fairly sure of class 1 outvote one that is very sure of class 0, whose score is the greatest on average."""
    teachers = torch.tensor([[[10.0, 0.0]], [[0.0, 3.0]], [[0.0, 3.0]]])
    student = torch.tensor([[0.0, math.log(3)]])  # q = (1/4, 3/4)
    assert policy_nll(student, teachers).item() == pytest.approx(math.log(4 / 3))
    for other in (teachers.mean(0), mean_of_teachers(teachers, temperature=10.0)):
        assert policy_nll(student, other).item() == pytest.approx(math.log(4))


def test_masked_action_leaves_each_member_before_the_mean() -> None:
    """What a member gives to an action that leaves goes to its others, and may be anything."""
    teachers = torch.tensor([[[20.0, 5.0, 0.0]], [[math.nan, 0.0, 1.0]]])
    mask = torch.tensor([True, False, False])
    student = torch.tensor([[0.0, math.log(3), 0.0]])
    assert policy_nll(student, teachers, mask=mask).item() == pytest.approx(math.log(4 / 3))
    found = diagnostics(student, teachers, mask=mask)
    p = (1 / (1 + math.exp(-5)) + 1 / (1 + math.e)) / 2
    assert found.teacher_confidence.item() == pytest.approx(p)
    assert found.agreement.tolist() == [True]


@pytest.mark.parametrize("name", ENSEMBLED)
def test_values_of_each_member_are_checked_on_request(make_batch, name) -> None:
    batch, teachers = make_batch(5, 7), ensemble()
    options = options_of(batch, name)
    checked = OBJECTIVES[name](batch.student, teachers, batch.labels, check_values=True, **options)
    assert torch.equal(checked, OBJECTIVES[name](batch.student, teachers, batch.labels, **options))
    spoilt, silent = teachers.clone(), teachers.clone()
    spoilt[2, 1, 3], silent[1, 4] = math.nan, -math.inf
    for wrong, text in ((spoilt, r"finite or -inf, got nan at \[1, 3\]"), (silent, r"leave a class .* at \[4\]")):
        with pytest.raises(ValueError, match=rf"^teacher(_q)? must (be )?{text}"):
            OBJECTIVES[name](batch.student, wrong, batch.labels, check_values=True, **options)


def test_reverse_kl_refuses_a_class_only_where_every_member_excludes_it() -> None:
    student, teachers = torch.zeros(1, 3), torch.zeros(2, 1, 3)
    teachers[0, 0, 1] = -math.inf
    assert reverse_kl(student, teachers, check_values=True).item() < 1.0
    teachers[1, 0, 1] = -math.inf
    with pytest.raises(ValueError, match="teacher must be finite in each class that mask leaves, got -inf"):
        reverse_kl(student, teachers, check_values=True)
    reverse_kl(student, teachers, mask=torch.tensor([False, True, False]), check_values=True)


@pytest.mark.parametrize("name", ONE_TEACHER)
def test_objective_that_looks_at_scores_refuses_several_and_says_what_to_do(make_batch, name) -> None:
    batch = make_batch(5, 7)
    argument = "teacher_q" if name.startswith("policy") else "teacher"
    text = (
        rf"^{argument} must be of the student's shape \(5, 7\), got \(3, 5, 7\): average the members' scores yourself, "
    )
    with pytest.raises(ValueError, match=rf"{text}{argument}\.mean\(0\)$"):
        OBJECTIVES[name](batch.student, ensemble(), batch.labels)
    OBJECTIVES[name](batch.student, ensemble().mean(0), batch.labels)


@pytest.mark.parametrize("name", [*ENSEMBLED, *ONE_TEACHER])
def test_ensemble_without_members_and_members_of_another_shape_are_refused(make_batch, name) -> None:
    batch = make_batch(5, 7)
    for teachers in (ensemble()[:0], ensemble(3, 5, 6), ensemble(2, 3, 5, 7)):
        with pytest.raises(
            ValueError, match=r"^teacher(_q)? must be of the student's shape \(5, 7\), got \([\d, ]+\)$"
        ):
            OBJECTIVES[name](batch.student, teachers, batch.labels, **options_of(batch, name))
