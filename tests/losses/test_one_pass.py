"""Loss and gradient in one pass, by the plain formulas: what it gives, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from polydistill.losses import OBJECTIVES, gradient_shares, loss_with_diagnostics, value_and_grad
from tests.losses import reference
from tests.losses.reference import ENSEMBLED, MASKED, NAMES, ONE_TEACHER


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_that_of_the_weighted_sum(make_batch, name) -> None:
    batch = make_batch(4, 6)
    options = batch.options(name)
    weights = torch.tensor([0.5, 0.0, 2.0, 1.0], dtype=torch.float64)
    found = value_and_grad(name, *batch, row_weights=weights, **options)
    loss = OBJECTIVES[name](*batch, **options)
    (expected,) = torch.autograd.grad((loss * weights).sum(), batch.student)
    torch.testing.assert_close(found.loss, loss.detach())
    torch.testing.assert_close(found.gradient, expected)
    assert (found.gradient[1] == 0).all()
    assert found.diagnostics is None
    assert not found.loss.requires_grad


@pytest.mark.parametrize(
    ("weights", "error", "text"),
    [
        (torch.ones(3), ValueError, r"row_weights must be of shape \(2,\), got \(3,\)"),
        (torch.ones(2, 1), ValueError, r"row_weights must be of shape \(2,\), got \(2, 1\)"),
        (torch.ones(()), ValueError, r"row_weights must be of shape \(2,\), got \(\)"),
        (torch.ones(2, dtype=torch.int64), TypeError, "row_weights must be a floating tensor, got torch.int64"),
        ([1.0, 1.0], TypeError, r"row_weights must be a floating tensor, got \[1.0, 1.0\]"),
        (0.5, TypeError, "row_weights must be a floating tensor, got 0.5"),
        (torch.ones(2, device="meta"), ValueError, "row_weights must be on the student's device cpu, got meta"),
    ],
    ids=["length", "column", "one for all", "integers", "list", "number", "device"],
)
def test_wrong_weights_are_named(weights, error, text) -> None:
    with pytest.raises(error, match=text):
        value_and_grad("ban", torch.zeros(2, 3), torch.ones(2, 3), row_weights=weights)


@pytest.mark.parametrize("name", [name for name in NAMES if "teacher" in OBJECTIVES[name].takes])
def test_missing_teacher_is_named(name) -> None:
    options = {"permutation": torch.tensor([[0, 1]] * 2)} if OBJECTIVES[name].needs_permutation else {}
    with pytest.raises(TypeError, match=r"^teacher(_q)? must be a floating tensor, got None"):
        value_and_grad(name, torch.zeros(2, 3), None, torch.tensor([0, 1]), **options)


def test_diagnostics_without_a_teacher_are_refused() -> None:
    for function in (lambda *b: value_and_grad(*b, with_diagnostics=True), loss_with_diagnostics):
        with pytest.raises(ValueError, match="diagnostics compare with a teacher, and cross_entropy was given none"):
            function("cross_entropy", torch.zeros(2, 3), None, torch.tensor([0, 1]))


@pytest.mark.parametrize("name", ["cross_entropy", *ENSEMBLED])
@pytest.mark.parametrize("labelled", [True, False])
def test_diagnostics_of_an_ensemble_are_those_of_its_mean(make_batch, name, labelled) -> None:
    """At the objective's temperature where the teacher's side alone has one, at T = 1 otherwise."""
    objective, batch = OBJECTIVES[name], make_batch(6, 5)
    if not labelled and "labels" in objective.takes:
        pytest.skip("takes labels")
    members = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    members[0, 1, 2] = members[1, 1, 2] = -math.inf
    options = batch.options(name, {"temperature": 0.3} if objective.tempered else {})
    leaves = ()
    if name in MASKED:
        options["mask"], leaves = torch.arange(5) == 3, (3,)
    labels = (batch.labels % 3) if labelled else None
    expected = reference.diagnose(
        batch.student.tolist(), members.tolist(), labels, options.get("temperature", 1.0), leaves
    )  # fmt: skip
    loss, found = loss_with_diagnostics(name, batch.student, members, labels, **options)
    in_one_pass = value_and_grad(name, batch.student, members, labels, with_diagnostics=True, **options)
    torch.testing.assert_close(loss, objective(batch.student, members, labels, **options))
    torch.testing.assert_close(in_one_pass.gradient, torch.autograd.grad(loss.sum(), batch.student)[0])
    assert len({one.agreement for one in expected}) == 2
    for each in (found, in_one_pass.diagnostics):
        for ours, theirs in zip(each, zip(*expected, strict=True), strict=True):
            torch.testing.assert_close(ours, torch.tensor(theirs, dtype=ours.dtype), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("labelled", [True, False])
def test_gradient_shares_of_an_ensemble_are_those_of_its_mean(make_batch, labelled) -> None:
    batch = make_batch(6, 5)
    members = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    labels = batch.labels if labelled else None
    found = gradient_shares(batch.student, members, labels, temperature=0.3)
    for s, one in enumerate(reference.diagnose(batch.student.tolist(), members.tolist(), labels, 0.3)):
        assert found.label_norm[s].item() == pytest.approx(one.label_norm, rel=1e-9)
        assert found.dark_knowledge_norm[s].item() == pytest.approx(one.dark_knowledge_norm, rel=1e-9)


@pytest.mark.parametrize("name", ONE_TEACHER)
def test_diagnostics_do_not_make_an_ensemble_of_a_loss_that_takes_none(name) -> None:
    with pytest.raises(ValueError, match=r"average the members' scores yourself, teacher(_q)?\.mean\(0\)$"):
        value_and_grad(name, torch.zeros(2, 3), torch.ones(4, 2, 3), with_diagnostics=True)


def test_objective_and_student_are_checked_first() -> None:
    with pytest.raises(ValueError, match="unknown objective 'bann'"):
        value_and_grad("bann", torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(TypeError, match="student must be a floating tensor"):
        value_and_grad("ban", torch.zeros(2, 3).long(), torch.ones(2, 3))
    with pytest.raises(ValueError, match="objective ban_l needs labels, got None"):
        value_and_grad("ban_l", torch.zeros(2, 3), torch.ones(2, 3))


BOTH = {
    "value_and_grad": lambda *batch, **options: value_and_grad(*batch, with_diagnostics=True, **options),
    "loss_with_diagnostics": loss_with_diagnostics,
}


@pytest.mark.parametrize("function", BOTH.values(), ids=BOTH)
@pytest.mark.parametrize("name", NAMES)
def test_good_values_pass_with_diagnostics_too(make_batch, function, name) -> None:
    batch = make_batch(4, 6)
    options = batch.options(name)
    found, checked = function(name, *batch, **options), function(name, *batch, check_values=True, **options)
    torch.testing.assert_close(checked, found, rtol=0, atol=0)


@pytest.mark.parametrize("function", BOTH.values(), ids=BOTH)
@pytest.mark.parametrize("name", [name for name in NAMES if "labels" not in OBJECTIVES[name].takes])
def test_labels_for_the_diagnostics_alone_are_checked_on_request(make_batch, function, name) -> None:
    batch = make_batch(2, 6)
    options, labels = batch.options(name), torch.tensor([0, 9])
    assert function(name, batch.student, batch.teacher, labels, **options)[-1].label_norm.isnan().tolist() == [
        False,
        True,
    ]
    with pytest.raises(ValueError, match=r"labels must be in \[0, 6\), got 9 at \[1\]"):
        function(name, batch.student, batch.teacher, labels, check_values=True, **options)


@pytest.mark.parametrize("function", BOTH.values(), ids=BOTH)
@pytest.mark.parametrize("members", [(), (3,)], ids=["one", "ensemble"])
def test_teacher_for_the_diagnostics_alone_is_checked_on_request(function, members) -> None:
    student, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    teacher = torch.ones(*members, 2, 3)
    teacher[..., 1, 2] = math.nan
    function("cross_entropy", student, teacher, labels)
    with pytest.raises(ValueError, match=r"teacher must be finite or -inf, got nan at \[1, 2\]"):
        function("cross_entropy", student, teacher, labels, check_values=True)


@pytest.mark.parametrize("function", BOTH.values(), ids=BOTH)
def test_scores_of_masked_classes_may_be_anything_for_the_diagnostics_too(function) -> None:
    student, teacher = torch.zeros(2, 3), torch.ones(2, 3)
    student[:, 1], teacher[:, 1] = math.inf, math.nan
    found = function("policy_kl", student, teacher, mask=torch.tensor([False, True, False]), check_values=True)
    assert all(value.isfinite().all() for value in found[-1])


@pytest.mark.parametrize("function", BOTH.values(), ids=BOTH)
def test_wrong_mask_is_named_before_its_values_are_looked_at(function) -> None:
    mask = torch.tensor([False, True])
    with pytest.raises(ValueError, match=r"mask must be of shape \(2, 3\) or \(3,\), got \(2,\)"):
        function("policy_kl", torch.zeros(2, 3), torch.ones(2, 3), mask=mask, check_values=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_found_on_request(value) -> None:
    sides, weights = (torch.zeros(2, 3), torch.ones(2, 3)), torch.tensor([1.0, value])
    value_and_grad("ban", *sides, row_weights=weights)
    with pytest.raises(ValueError, match=rf"row_weights must be finite, got {value} at \[1\]"):
        value_and_grad("ban", *sides, row_weights=weights, check_values=True)
