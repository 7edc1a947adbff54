"""Gradients: against finite differences, against closed forms, and none for the teacher."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from polydistill.losses import (
    OBJECTIVES,
    ban,
    ban_l,
    cross_entropy,
    cwtm,
    diagnostics,
    dkd,
    dkpp,
    gradient_shares,
    hinton_kd,
    jsd,
    logit_standardized_kd,
    policy_huber,
    policy_kl,
    policy_kl_q,
    policy_mse,
    policy_nll,
    reverse_kl,
    uniform_confidence,
)
from tests.losses.reference import CASES, ENSEMBLED, MASKED, NAMES, case_id

SHARP = [("policy_kl", {}), ("policy_kl_q", {})]  # at their T of 0.01 no finite difference is small enough


def grad(loss, student):
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    return gradient


def one_hot(labels, n_classes):
    return torch.nn.functional.one_hot(labels, n_classes).double()


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_first_and_second_derivatives_are_those_of_finite_differences(make_batch, case) -> None:
    name, given = case
    student, teacher, labels = batch = make_batch(2, 4, scale=0.7)
    options = batch.options(name, {"temperature": 0.8} if case in SHARP else given)

    def loss(z):
        return OBJECTIVES[name](z, teacher, labels, **options)

    assert torch.autograd.gradcheck(loss, student)
    assert torch.autograd.gradgradcheck(loss, student)


@pytest.mark.parametrize("name", MASKED)
def test_derivatives_under_a_mask_are_those_of_finite_differences(make_batch, name) -> None:
    student, teacher, labels = make_batch(2, 4, scale=0.7)
    mask = torch.tensor([[False, True, False, False], [False, False, False, False]])
    options = {"temperature": 0.8} if (name, {}) in SHARP else {}
    assert torch.autograd.gradcheck(lambda z: OBJECTIVES[name](z, teacher, labels, mask=mask, **options), student)


def decoupled_gradient(z, t, y, temperature, label_weight, alpha, beta):
    """w (q - e) + T (alpha (q_y - p_y) (e - q^) + beta (q^ - p^)), q^ and p^ over the other classes, 0 at y."""
    e = one_hot(y, z.shape[1])
    q, p = (z / temperature).softmax(1), (t / temperature).softmax(1)
    q_label, p_label = (q * e).sum(1, keepdim=True), (p * e).sum(1, keepdim=True)
    q_rest, p_rest = q * (1 - e) / (1 - q_label), p * (1 - e) / (1 - p_label)
    soft = alpha * (q_label - p_label) * (e - q_rest) + beta * (q_rest - p_rest)
    return label_weight * (z.softmax(1) - e) + temperature * soft


def standardized_gradient(z, t, y, temperature, label_weight, teacher_weight):
    """w (q - e) + g / (s + 1e-7) - Z sum(g Z) / ((n - 1) s) with g = a T (q^T - p^T) of the standardised scores."""
    n_classes = z.shape[1]
    (ours, deviation), (theirs, _) = (
        ((scores - scores.mean(1, keepdim=True)) / (spread + 1e-7), spread)
        for scores, spread in ((z, z.std(1, keepdim=True)), (t, t.std(1, keepdim=True)))
    )
    pull = teacher_weight * temperature * ((ours / temperature).softmax(1) - (theirs / temperature).softmax(1))
    of_deviation = ours * (pull * ours).sum(1, keepdim=True) / ((n_classes - 1) * deviation)
    return label_weight * (z.softmax(1) - one_hot(y, n_classes)) + pull / (deviation + 1e-7) - of_deviation


def test_gradients_have_their_closed_forms(make_batch) -> None:
    z, t, y = make_batch(6, 5)
    q, p = z.detach().softmax(1), t.softmax(1)
    e = one_hot(y, 5)
    sharp = (t / 0.3).softmax(1)
    q4, p4 = (z.detach() / 4).softmax(1), (t / 4).softmax(1)
    permutation = torch.tensor([[1, 2, 3, 0]]).expand(6, 4)
    confidence = p.amax(1, keepdim=True)
    best = p == confidence
    # eq. 11: the maximum stays; here the others move on by one place
    target = p.clone()
    for row in range(6):
        others = (~best[row]).nonzero().flatten()
        target[row, others] = p[row, others[[1, 2, 3, 0]]]
    mean = confidence.mean()
    levelled = torch.where(best, mean, p / (1 - confidence) * (1 - mean))
    log_ratio = (q / sharp).log()
    m = 0.3 * sharp + 0.7 * q
    log_mixed = (q / m).log()
    difference = z.detach() - t
    closed = {
        "cross_entropy (eq. 6)": (cross_entropy(z, y), q - e),
        "cross_entropy smoothed": (cross_entropy(z, y, label_smoothing=0.2), q - 0.8 * e - 0.2 / 5),
        "ban (eq. 5)": (ban(z, t), q - p),
        "ban_l": (ban_l(z, t, y, label_weight=0.3, teacher_weight=2.0), 0.3 * (q - e) + 2 * (q - p)),
        "hinton_kd": (hinton_kd(z, t, y), 0.1 * (q - e) + 0.9 * 4 * (q4 - p4)),  # T^2 / T
        "cwtm (eq. 10)": (cwtm(z, t, y), 6 * confidence / confidence.sum() * (q - e)),
        "dkpp (eq. 11)": (dkpp(z, t, permutation=permutation), q - target),
        "uniform_confidence": (uniform_confidence(z, t), q - levelled),
        "policy_kl": (policy_kl(z, t, temperature=0.3), q - sharp),
        "policy_kl_q": (
            policy_kl_q(z, t, temperature=0.3, q_weight=0.2),
            ((z.detach() / 0.3).softmax(1) - sharp + 2 * 0.2 / 5 * difference / 0.3) / 0.3,
        ),
        "policy_nll": (policy_nll(z, t), q - best.double()),
        "policy_mse": (policy_mse(z, t), 2 * difference),
        "policy_huber": (policy_huber(z, t, delta=0.5), difference.clamp(-0.5, 0.5)),
        "reverse_kl": (
            reverse_kl(z, t, temperature=0.3),
            q * (log_ratio - (q * log_ratio).sum(1, keepdim=True)),
        ),
        "jsd": (
            jsd(z, t, beta=0.3, temperature=0.3),
            0.7 * q * (log_mixed - (q * log_mixed).sum(1, keepdim=True)),
        ),
        "dkd": (dkd(z, t, y), decoupled_gradient(z.detach(), t, y, 4.0, 1.0, 1.0, 8.0)),
        "dkd weighted": (
            dkd(z, t, y, temperature=1.5, label_weight=0.3, alpha=0.7, beta=2.0),
            decoupled_gradient(z.detach(), t, y, 1.5, 0.3, 0.7, 2.0),
        ),
        "logit_standardized_kd": (
            logit_standardized_kd(z, t, y),
            standardized_gradient(z.detach(), t, y, 2.0, 0.1, 9.0),
        ),
        "logit_standardized_kd without labels": (
            logit_standardized_kd(z, t, temperature=0.7, teacher_weight=3.0),
            standardized_gradient(z.detach(), t, y, 0.7, 0.0, 3.0),
        ),
    }
    for name, (loss, expected) in closed.items():
        torch.testing.assert_close(
            grad(loss, z), expected, rtol=1e-10, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_mean_over_the_batch_of_cwtm_has_the_gradient_of_equation_9(make_batch) -> None:
    z, t, y = make_batch(4, 3)
    (gradient,) = torch.autograd.grad(cwtm(z, t, y).mean(), z)
    weights = [max(row.softmax(0).tolist()) for row in t]
    for s in range(4):
        q = z[s].softmax(0)[y[s]].item()
        assert gradient[s, y[s]].item() == pytest.approx(weights[s] / sum(weights) * (q - 1), rel=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_teacher_gets_no_gradient(make_batch, name) -> None:
    batch = make_batch()
    teacher = batch.teacher.clone().requires_grad_()
    OBJECTIVES[name](batch.student, teacher, batch.labels, **batch.options(name)).sum().backward()
    assert teacher.grad is None
    assert batch.student.grad is not None


def teachers_of(batch, members):
    return batch.teacher if members == 0 else torch.stack([batch.teacher * (k + 1) for k in range(members)])


# torch.func's first forward-mode derivative in a process loads formulas that torch compiles with its own old compiler
in_forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning:torch.jit")
WITH_MEMBERS = [
    (name, members)
    for name in NAMES
    for members in (0, 1, 3)
    if "teacher" in OBJECTIVES[name].takes and (members == 0 or name in ENSEMBLED)
]


@in_forward_mode
@pytest.mark.parametrize(("name", "members"), WITH_MEMBERS)
def test_teachers_forward_tangent_ends_in_the_loss(make_batch, name, members) -> None:
    """A dual tensor does not require a gradient, and yet has one."""
    batch = make_batch(3, 4)
    student, options = batch.student.detach(), batch.options(name)

    def loss(t):
        return OBJECTIVES[name](student, t, batch.labels, **options)

    teachers = teachers_of(batch, members)
    assert (torch.func.jacfwd(lambda t: loss(t).sum())(teachers) == 0).all()
    value, tangent = torch.func.jvp(loss, (teachers,), (torch.ones_like(teachers).cumsum(-1),))
    assert torch.equal(value, loss(teachers))
    assert (tangent == 0).all()


@in_forward_mode
@pytest.mark.parametrize(("name", "members"), WITH_MEMBERS)
def test_students_forward_tangent_is_its_gradient(make_batch, name, members) -> None:
    batch = make_batch(3, 4)
    options, teachers = batch.options(name), teachers_of(batch, members)

    def total(z):
        return OBJECTIVES[name](z, teachers, batch.labels, **options).sum()

    torch.testing.assert_close(
        torch.func.jacfwd(total)(batch.student.detach()), grad(total(batch.student), batch.student)
    )


@in_forward_mode
@pytest.mark.parametrize("look", [diagnostics, gradient_shares])
def test_forward_tangents_end_in_diagnostics(make_batch, look) -> None:
    batch = make_batch(3, 4)
    sides = batch.student.detach(), batch.teacher
    for values in torch.func.jacfwd(lambda z, t: look(z, t, batch.labels)[1:], argnums=(0, 1))(*sides):
        assert all((value == 0).all() for value in values)


@pytest.mark.parametrize("name", NAMES)
def test_one_tensor_on_both_sides_learns_as_from_a_copy(make_batch, name) -> None:
    batch = make_batch()
    options = batch.options(name)
    same = OBJECTIVES[name](batch.student, batch.student, batch.labels, **options)
    copy = OBJECTIVES[name](batch.student, batch.student.detach().clone(), batch.labels, **options)
    assert torch.equal(grad(same, batch.student), grad(copy, batch.student))


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_as_they_were(make_batch, name) -> None:
    batch = make_batch()
    before = [tensor.detach().clone() for tensor in batch]
    OBJECTIVES[name](*batch, **batch.options(name)).sum().backward()
    assert all(torch.equal(tensor.detach(), old) for tensor, old in zip(batch, before, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_torch_func_agrees_with_autograd(make_batch, name) -> None:
    """grad, the diagonal of jacrev, and vmap over three students of one teacher."""
    student, teacher, labels = batch = make_batch(3, 4)
    options = batch.options(name)

    def loss(z):
        return OBJECTIVES[name](z, teacher, labels, **options)

    expected = grad(loss(student), student)
    z = student.detach()
    torch.testing.assert_close(torch.func.grad(lambda z: loss(z).sum())(z), expected)
    jacobian = torch.func.jacrev(loss)(z)
    torch.testing.assert_close(jacobian[torch.arange(3), torch.arange(3)], expected)
    students = torch.stack([z, z.flip(0), 2 * z])
    torch.testing.assert_close(torch.func.vmap(loss)(students), torch.stack([loss(one) for one in students]))
    gradients = torch.func.vmap(torch.func.grad(lambda z: loss(z).sum()))(students)
    torch.testing.assert_close(gradients[0], expected)


@pytest.mark.parametrize("name", NAMES)
def test_each_student_of_a_stack_has_its_own_teacher_under_vmap(make_batch, name) -> None:
    batches = [make_batch(3, 4, seed=seed) for seed in (1, 2)]
    options = batches[0].options(name)
    students, teachers, labels = (torch.stack([batch[i].detach() for batch in batches]) for i in range(3))
    stacked = torch.func.vmap(lambda z, t, y: OBJECTIVES[name](z, t, y, **options))(students, teachers, labels)
    torch.testing.assert_close(
        stacked, torch.stack([OBJECTIVES[name](*batch, **options).detach() for batch in batches])
    )


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_read_back_from_the_device(make_batch, name) -> None:
    """Tensors on the meta device have no values: whatever looks at one, as a hidden wait for a GPU does, fails."""
    batch = make_batch()
    options = {key: v.to("meta") if torch.is_tensor(v) else v for key, v in batch.options(name).items()}
    if "mask" in inspect.signature(OBJECTIVES[name].function).parameters:
        options["mask"] = torch.zeros(5, 7, dtype=torch.bool, device="meta")
    student = torch.empty(5, 7, device="meta", requires_grad=True)
    teacher = torch.empty(5, 7, device="meta")
    loss = OBJECTIVES[name](student, teacher, batch.labels.to("meta"), **options)
    loss.sum().backward()
    assert loss.shape == (5,)
    assert student.grad.shape == (5, 7)


def test_compiled_without_a_graph_break(make_batch) -> None:
    student, teacher, labels = make_batch(4, 6, dtype=torch.float32)
    for name in ("policy_kl", "hinton_kd", "dkd"):
        torch.compiler.reset()
        compiled = torch.compile(OBJECTIVES[name].function, fullgraph=True, backend="eager")
        arguments = (student, teacher, labels)[: 2 if name == "policy_kl" else 3]
        torch.testing.assert_close(compiled(*arguments), OBJECTIVES[name].function(*arguments))


# ---- shares of the gradient ------------------------------------------------------------------------------------


def split_by_autograd(z, t, y):
    """The two parts as gradients: p* CE(y, q), and (1 - p*) CE(p~, q)."""
    p = t.softmax(1)
    of_label, of_others = [], []
    for s in range(len(y)):
        one, label = z[s].detach().clone().requires_grad_(), y[s]
        (first,) = torch.autograd.grad(-p[s, label] * one.log_softmax(0)[label], one)
        others = [i for i in range(z.shape[1]) if i != label]
        rest = p[s, others] / p[s, others].sum()
        (second,) = torch.autograd.grad(-(1 - p[s, label]) * (rest * one.log_softmax(0)[others]).sum(), one)
        of_label.append(first)
        of_others.append(second)
    return torch.stack(of_label), torch.stack(of_others)


@pytest.mark.parametrize("labelled", [True, False])
def test_gradient_shares_are_the_norms_of_both_gradients(make_batch, labelled) -> None:
    z, t, y = make_batch()
    first, second = split_by_autograd(z, t, y if labelled else t.argmax(1))
    shares = gradient_shares(z, t, y if labelled else None)
    torch.testing.assert_close(shares.label_norm, first.norm(dim=1))
    torch.testing.assert_close(shares.dark_knowledge_norm, second.norm(dim=1))
    torch.testing.assert_close(shares.label_share, first.norm(dim=1) / (first.norm(dim=1) + second.norm(dim=1)))
    torch.testing.assert_close(first + second, grad(ban(z, t), z))  # the parts are all there is
    assert not shares.label_share.requires_grad


def test_gradient_shares_keep_their_digits_where_teacher_and_student_are_sure() -> None:
    """1 - p* and 1 - q* are 1e-13 here: subtracted from 1 in float32, they would be 0."""
    student = torch.tensor([[30.0, 0.0, -1.0]])
    teacher = torch.tensor([[30.0, 0.5, -2.0]])
    single, double = gradient_shares(student, teacher), gradient_shares(student.double(), teacher.double())
    assert double.label_norm.item() < 1e-12
    torch.testing.assert_close(single.label_norm.double(), double.label_norm, rtol=1e-5, atol=0)
    torch.testing.assert_close(single.dark_knowledge_norm.double(), double.dark_knowledge_norm, rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_gradient_shares_of_equal_scores_are_one_half(make_batch, scale) -> None:
    _, teacher, labels = make_batch(scale=scale, dtype=torch.float32)
    torch.testing.assert_close(gradient_shares(teacher, teacher, labels).label_share, torch.full((5,), 0.5))


def test_shares_of_a_sharpened_teacher_take_its_temperature(make_batch) -> None:
    z, t, _ = make_batch()
    torch.testing.assert_close(gradient_shares(z, t, temperature=0.3), gradient_shares(z, t / 0.3))


def test_diagnostics_are_what_the_losses_and_shares_say(make_batch) -> None:
    z, t, y = make_batch(40, 3)
    found = diagnostics(z, t, y)
    torch.testing.assert_close(found.kl, policy_kl(z, t, temperature=1.0).detach())
    torch.testing.assert_close(found.teacher_confidence, t.softmax(1).amax(1))
    assert found.agreement.tolist() == [
        a.index(max(a)) == b.index(max(b)) for a, b in zip(z.tolist(), t.tolist(), strict=True)
    ]
    assert 0 < found.agreement.sum() < 40
    shares = gradient_shares(z, t, y)
    assert torch.equal(found.label_norm, shares.label_norm)
    assert torch.equal(found.dark_knowledge_norm, shares.dark_knowledge_norm)
    assert not any(value.requires_grad for value in found)


@pytest.mark.parametrize("label", [7, -1, -100, 2**40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_row_whose_label_is_none_has_nan_for_what_depends_on_it(make_batch, label, dtype) -> None:
    """No index out of bounds, which would end a process's use of its GPU; and the other rows stay as they are."""
    z, t, y = make_batch(4, 7, dtype=dtype)
    shares, found = gradient_shares(z, t, y), diagnostics(z, t, y)
    wrong = y.clone()
    wrong[2] = label
    with_shares, with_found = gradient_shares(z, t, wrong), diagnostics(z, t, wrong)
    for before, after in ((shares, with_shares), (found[3:], with_found[3:])):
        for ours, theirs in zip(after, before, strict=True):
            assert ours.isnan().tolist() == [False, False, True, False]
            assert torch.equal(ours[[0, 1, 3]], theirs[[0, 1, 3]])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(with_found[:3], found[:3], strict=True))


def test_diagnostics_of_a_row_without_a_class_are_0_but_for_the_agreement(make_batch) -> None:
    """A class that leaves has probability 0, in a row where all leave too."""
    z, t, y = make_batch(3, 4)
    mask = torch.tensor([[False, True, False, False], [True] * 4, [False] * 4])
    found = diagnostics(z, t, y, mask=mask)
    assert [float(field[1]) for field in found] == [1.0, 0.0, 0.0, 0.0, 0.0]
    kept = diagnostics(z[:1, [0, 2, 3]], t[:1, [0, 2, 3]], mask=None)
    without_labels = diagnostics(z, t, mask=mask)
    for ours, theirs in zip(without_labels, kept, strict=True):
        torch.testing.assert_close(ours[:1], theirs)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_diagnostics_of_a_row_of_minus_infinity_are_nan(make_batch, side) -> None:
    """But for what the other side alone says."""
    z, t, y = make_batch(3, 4)
    mask = torch.tensor([[False, True, False, False], [False] * 4, [False] * 4])
    with torch.no_grad():
        (z if side == "student" else t)[0, [0, 2, 3]] = (z if side == "student" else t)[1] = -math.inf
    for labels in (y, None):
        found = diagnostics(z, t, labels, mask=mask)
        assert found.teacher_confidence.isnan().tolist() == [side == "teacher"] * 2 + [False]
        for field in found[2:]:
            assert field.isnan().tolist() == [True, True, False]


def test_policy_gradient_stays_finite_where_the_teacher_excludes_actions(make_batch) -> None:
    z, t, _ = make_batch(2, 3)
    t[:, 1] = -math.inf
    expected = z.detach().softmax(1) - (t / 0.5).softmax(1)
    torch.testing.assert_close(grad(policy_kl(z, t, temperature=0.5), z), expected)
