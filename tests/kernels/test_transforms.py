"""The kernels under autograd, torch.func, torch.compile, autocast and the one-pass functions."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, vmap

from polydistill.losses import (
    OBJECTIVES,
    current_backend,
    diagnostics,
    loss_with_diagnostics,
    use_backend,
    value_and_grad,
)
from tests.kernels.test_values import Inputs, compute, make_inputs, with_permutation
from tests.losses.reference import MASKED, NAMES

COUPLED = {"cwtm", "uniform_confidence"}


@pytest.mark.parametrize("name", NAMES)
def test_two_launches_give_loss_and_gradient(device, launches, name) -> None:
    """And a third where the batch's mean confidence is needed first."""
    inputs = make_inputs((4, 18), device)
    compute(name, inputs, with_permutation(name, {}, (4, 18), device), "triton")
    assert len(launches) == (3 if name in COUPLED else 2)


@pytest.mark.parametrize("name", NAMES)
def test_one_launch_gives_everything(device, tiles, launches, name) -> None:
    inputs = make_inputs((4, 18), device)
    options = with_permutation(name, {}, (4, 18), device)
    expected = compute(name, inputs, options, "torch")
    launches.clear()
    found = value_and_grad(
        name, inputs.student, inputs.teacher, inputs.labels,
        row_weights=inputs.weights, with_diagnostics=True, **options,
    )  # fmt: skip
    if tiles == "whole rows" or name not in {"dkd", "logit_standardized_kd"}:
        assert len(launches) == (2 if name in COUPLED else 1)
    torch.testing.assert_close(found.loss.double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.gradient.double(), expected[1], rtol=1e-5, atol=1e-5)
    assert not found.loss.requires_grad
    temperature = OBJECTIVES[name].default("temperature") if OBJECTIVES[name].tempered else 1.0
    plain = diagnostics(inputs.student, inputs.teacher, inputs.labels, temperature=temperature)
    for field, ours, theirs in zip(plain._fields, found.diagnostics, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=lambda text, f=field: f"{f}: {text}")


@pytest.mark.parametrize("name", MASKED)
def test_diagnostics_leave_out_what_the_mask_does(device, tiles, name) -> None:
    inputs = make_inputs((5, 18), device, seed=4)
    mask = torch.rand(5, 18, generator=torch.Generator().manual_seed(0)).to(device) < 0.4
    with use_backend("torch"):
        expected = loss_with_diagnostics(name, inputs.student, inputs.teacher, mask=mask)[1]
    found = loss_with_diagnostics(name, inputs.student, inputs.teacher, mask=mask)[1]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_diagnostics_come_with_the_graph_of_the_loss(device, launches, name) -> None:
    inputs = make_inputs((4, 18), device)
    options = with_permutation(name, {}, (4, 18), device)
    expected = compute(name, inputs, options, "torch")
    launches.clear()
    student = inputs.student.clone().requires_grad_()
    loss, found = loss_with_diagnostics(name, student, inputs.teacher, inputs.labels, **options)
    (loss * inputs.weights).sum().backward()
    assert len(launches) == (3 if name in COUPLED else 2)
    assert not found.kl.requires_grad
    torch.testing.assert_close(student.grad.double(), expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivative_is_refused_not_wrong(device, name) -> None:
    inputs = make_inputs((3, 5), device)
    student = inputs.student.requires_grad_()
    options = with_permutation(name, {}, (3, 5), device)
    loss = OBJECTIVES[name](student, inputs.teacher, inputs.labels, **options).sum()
    (first,) = torch.autograd.grad(loss, student, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative; choose the plain formulas"):
        first.square().sum().backward()


def test_teacher_gets_no_gradient(device) -> None:
    inputs = make_inputs((3, 5), device)
    teacher = inputs.teacher.requires_grad_()
    OBJECTIVES["policy_kl"](inputs.student.requires_grad_(), teacher, None).sum().backward()
    assert teacher.grad is None


@pytest.mark.parametrize("name", NAMES)
def test_func_grad_is_autograd(device, name) -> None:
    inputs = make_inputs((3, 5), device)
    options = with_permutation(name, {}, (3, 5), device)
    found = grad(lambda z: (OBJECTIVES[name](z, inputs.teacher, inputs.labels, **options) * inputs.weights).sum())(
        inputs.student
    )
    torch.testing.assert_close(found.double(), compute(name, inputs, options, "triton")[1])


@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_students_is_a_loop_over_them(device, name) -> None:
    """Students in dimension 1 of the scores, one teacher for all; with its gradient inside the map."""
    inputs = make_inputs((3, 5), device)
    options = with_permutation(name, {}, (3, 5), device)
    students = torch.stack([inputs.student, inputs.student * 2, inputs.student.flip(1)], dim=1)

    def weighted(student):
        return (OBJECTIVES[name](student, inputs.teacher, inputs.labels, **options) * inputs.weights).sum()

    mapped = vmap(grad(weighted), in_dims=1)(students)
    values = vmap(weighted, in_dims=1)(students)
    for i in range(3):
        loss, gradient = compute(name, inputs._replace(student=students[:, i]), options, "triton")
        torch.testing.assert_close(mapped[i].double(), gradient, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(values[i].double(), (loss * inputs.weights.double()).sum(), rtol=1e-5, atol=1e-6)


def test_vmap_over_students_shares_an_ensemble(device) -> None:
    inputs = make_inputs((3, 5), device)
    members = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(7)).to(device)
    students = torch.stack([inputs.student, inputs.student * 2])
    found = vmap(lambda student: OBJECTIVES["ban"](student, members, None))(students)
    for i in range(2):
        expected = compute("ban", inputs._replace(student=students[i], teacher=members), {}, "triton")[0]
        torch.testing.assert_close(found[i].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated")  # the compiler does
@pytest.mark.parametrize("name", NAMES)
def test_compiles_without_a_graph_break(device, name) -> None:
    inputs = make_inputs((3, 5), device)
    options = with_permutation(name, {}, (3, 5), device)
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
    def weighted(student, teacher, labels, weights):
        return (OBJECTIVES[name](student * 1.0, teacher, labels, **options) * weights).sum()

    student = inputs.student.clone().requires_grad_()
    loss = weighted(student, inputs.teacher, inputs.labels, inputs.weights)
    loss.backward()
    expected = compute(name, inputs, options, "triton")
    torch.testing.assert_close(loss.double(), (expected[0] * inputs.weights.double()).sum(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(student.grad.double(), expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_no_digit(device, name) -> None:
    inputs = make_inputs((3, 5), device)
    options = with_permutation(name, {}, (3, 5), device)
    expected = compute(name, inputs, options, "triton")
    with torch.autocast(device, torch.bfloat16):
        found = compute(name, inputs, options, "triton")
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated")  # the compiler does
@pytest.mark.parametrize("name", ["ban", "policy_kl", "cwtm"])
def test_compiled_func_grad_is_func_grad(device, name) -> None:
    inputs = make_inputs((3, 5), device)
    torch._dynamo.reset()

    def weighted(student):
        return (OBJECTIVES[name](student, inputs.teacher, inputs.labels) * inputs.weights).sum()

    found = torch.compile(grad(weighted), fullgraph=True, backend="aot_eager")(inputs.student)
    torch.testing.assert_close(found, grad(weighted)(inputs.student))


def test_float64_and_rows_too_long_are_computed_plainly(device, launches) -> None:
    inputs = make_inputs((2, 5), device)
    compute("ban", inputs, {}, "triton", torch.float64)
    long = make_inputs((1, 32_769), device)
    compute("dkd", long, {}, "triton")
    compute("logit_standardized_kd", long, {}, "triton")
    assert launches == []


def test_chosen_backend_ends_with_its_block() -> None:
    assert current_backend() == "triton"
    with use_backend("torch"):
        assert current_backend() == "torch"
    assert current_backend() == "triton"


def test_plain_backend_launches_nothing(device, launches) -> None:
    compute("ban", make_inputs((2, 5), device), {}, "torch")
    compute("ban", make_inputs((2, 5), device), {}, "triton")
    assert launches == ["target_kernel"] * 2


def test_weights_that_are_one_number_for_all(device) -> None:
    """The gradient of a mean comes as one number with stride 0."""
    inputs = make_inputs((4, 5), device)
    student = inputs.student.clone().requires_grad_()
    OBJECTIVES["ban"](student, inputs.teacher, None).mean().backward()
    expected = compute("ban", Inputs(*inputs[:3], torch.full((4,), 0.25, device=device)), {}, "triton")[1]
    torch.testing.assert_close(student.grad.double(), expected)


@pytest.mark.gpu
def test_loss_and_gradient_wait_for_nothing_and_are_captured() -> None:
    """In a CUDA graph, with new scores at each replay."""
    inputs = make_inputs((256, 18), "cuda")
    student = inputs.student.requires_grad_()
    for name in NAMES:
        options = with_permutation(name, {}, (256, 18), "cuda")

        def step(name=name, options=options):
            loss = OBJECTIVES[name](student, inputs.teacher, inputs.labels, **options)
            return loss, torch.autograd.grad((loss * inputs.weights).sum(), student)[0]

        step()  # compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss, gradient = step()
        inputs.teacher.copy_(torch.randn_like(inputs.teacher))
        graph.replay()
        expected = compute(name, inputs, options, "triton")
        torch.testing.assert_close(loss.detach().double(), expected[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient.double(), expected[1], rtol=1e-5, atol=1e-5)
