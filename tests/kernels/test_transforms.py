"""The kernels under autograd, torch.func, torch.compile, autocast and the one-pass functions."""

from __future__ import annotations

import contextlib
import math
import warnings

import pytest
import torch
from torch.func import grad, vmap

from polydistill.kernels import autograd
from polydistill.losses import (
    OBJECTIVES,
    current_backend,
    diagnostics,
    loss_with_diagnostics,
    use_backend,
    value_and_grad,
)
from tests.kernels.test_values import Inputs, compute, half_temperature, make_inputs, make_members, with_permutation
from tests.losses import reference
from tests.losses.reference import ENSEMBLED, MASKED, NAMES

COUPLED = {"cwtm", "uniform_confidence"}


def temperature_of(name):
    """Of the teacher's side in the diagnostics."""
    return OBJECTIVES[name].default("temperature") if OBJECTIVES[name].sharpens else 1.0


def temperatures_of(name, temperature):
    """Of both sides, where that is the teacher's."""
    return {"temperature": temperature, "student_temperature": OBJECTIVES[name].temperature_of_student(temperature)}


@pytest.mark.parametrize("few_scores", [4 * 18, 4 * 18 - 1])
@pytest.mark.parametrize("name", NAMES)
def test_one_launch_gives_loss_and_gradient_or_of_many_scores_two(
    device, monkeypatch, launches, name, few_scores
) -> None:
    """And one more where the batch's mean confidence is needed first."""
    monkeypatch.setattr(autograd, "FEW_SCORES", few_scores)
    inputs = make_inputs((4, 18), device, dtype=torch.bfloat16)
    options = with_permutation(name, {}, (4, 18), device)
    loss, gradient = compute(name, inputs, options, "triton")
    assert len(launches) == (few_scores < 4 * 18) + (2 if name in COUPLED else 1)
    monkeypatch.setattr(autograd, "FEW_SCORES", 0)
    again = compute(name, inputs, options, "triton")
    assert torch.equal(loss, again[0])
    # float32 is rounded once more, before the one rounding to bfloat16, which may then fall on its neighbour
    torch.testing.assert_close(gradient, again[1], rtol=2**-7, atol=1e-9)


def test_few_scores_learn_nothing_where_no_gradient_is_wanted(device, launches, monkeypatch) -> None:
    inputs = make_inputs((4, 18), device)
    asked = []
    original = autograd.launch
    monkeypatch.setattr(autograd, "launch", lambda *a, **options: asked.append(options) or original(*a, **options))
    OBJECTIVES["policy_kl"](inputs.student, inputs.teacher, None)
    with torch.no_grad():
        OBJECTIVES["policy_kl"](inputs.student.requires_grad_(), inputs.teacher, None)
    assert [(each["gradient"], each["keep_sums"]) for each in asked] == [(False, False)] * 2


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
    assert len(launches) == (2 if name in COUPLED else 1)
    torch.testing.assert_close(found.loss.double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.gradient.double(), expected[1], rtol=1e-5, atol=1e-5)
    assert not found.loss.requires_grad
    plain = diagnostics(inputs.student, inputs.teacher, inputs.labels, **temperatures_of(name, temperature_of(name)))
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


def assert_diagnosed_as_plainly(name, inputs, options):
    """As the plain formulas in float64 say it of the same scores, but for a float32's rounding."""
    found = loss_with_diagnostics(name, inputs.student, inputs.teacher, inputs.labels, **options)[1]
    temperature = options.get("temperature", temperature_of(name))
    exact = diagnostics(
        inputs.student.double(), inputs.teacher.double(), inputs.labels, mask=options.get("mask"),
        **temperatures_of(name, temperature),
    )  # fmt: skip
    for field, ours, theirs in zip(exact._fields, found, exact, strict=True):
        wanted = theirs if theirs.dtype is torch.bool else theirs.float()
        torch.testing.assert_close(ours, wanted, rtol=2e-5, atol=1e-6, msg=lambda text, f=field: f"{f}: {text}")


@pytest.mark.parametrize("name", ["policy_kl", "policy_mse", "dkd", "logit_standardized_kd"])
@pytest.mark.parametrize("shape", [(6, 20), (2, 3, 20)], ids=str)
def test_diagnostics_of_a_teacher_that_excludes_classes(device, tiles, name, shape) -> None:
    """The label's class among them, in one row."""
    inputs = make_inputs(shape, device)
    rows = inputs.teacher.view(-1, 20)
    rows[0, 3] = rows[1, :19] = rows[2, ::2] = rows[3, int(inputs.labels.view(-1)[3])] = -math.inf
    assert_diagnosed_as_plainly(name, inputs, with_permutation(name, {}, shape, device))


@pytest.mark.parametrize("name", ["policy_kl", "reverse_kl", "jsd", "policy_nll"])
def test_diagnostics_of_an_ensemble_leave_out_what_the_mask_does(device, tiles, name) -> None:
    inputs = make_inputs((5, 18), device, seed=4)._replace(teacher=make_members(name, (5, 18), device, scale=3.0))
    mask = torch.rand(5, 18, generator=torch.Generator().manual_seed(0)).to(device) < 0.4
    assert_diagnosed_as_plainly(name, inputs, {"mask": mask})


@pytest.mark.parametrize("name", ["policy_kl", "dkd", "logit_standardized_kd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [2.0, 1e4 / 4])
def test_diagnostics_in_each_type_and_at_1e4(device, tiles, name, dtype, scale) -> None:
    assert_diagnosed_as_plainly(name, make_inputs((5, 18), device, dtype=dtype, scale=scale), {})


@pytest.mark.parametrize("name", ["policy_kl", "jsd", "policy_mse"])
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("masked", [False, True])
def test_diagnostics_of_a_row_of_minus_infinity_are_nan_as_plainly(device, tiles, name, side, masked) -> None:
    inputs = make_inputs((3, 20), device)
    inputs.labels[1] = 2  # which the mask takes out
    mask = torch.zeros(3, 20, dtype=torch.bool, device=device)
    mask[1, ::2] = masked
    getattr(inputs, side)[1, 1 if masked else 0 :: 2 if masked else 1] = -math.inf
    found = []
    for backend in ("torch", "triton"):
        with use_backend(backend):
            found.append(loss_with_diagnostics(name, *inputs[:3], mask=mask if masked else None)[1])
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=2e-5, atol=1e-6, equal_nan=True)
    assert found[0].kl.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("name", ["policy_kl", "jsd", "policy_mse"])
def test_diagnostics_of_a_row_without_a_class_are_0(device, tiles, name) -> None:
    """But for the agreement: both have no greatest score."""
    inputs = make_inputs((3, 20), device)
    mask = torch.zeros(3, 20, dtype=torch.bool, device=device)
    mask[1] = True
    with use_backend("torch"):
        plain = loss_with_diagnostics(name, inputs.student, inputs.teacher, mask=mask)[1]
    fused = loss_with_diagnostics(name, inputs.student, inputs.teacher, mask=mask)[1]
    for found in (plain, fused):
        assert [float(field[1]) for field in found] == [1.0, 0.0, 0.0, 0.0, 0.0]
    for ours, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["with the graph", "one pass"])
@pytest.mark.parametrize("name", ["cross_entropy", *ENSEMBLED])
def test_diagnostics_of_an_ensemble_are_those_of_its_mean(device, tiles, name, how) -> None:
    """By loops over probabilities in float64; beside the loss and gradient of the kernel."""
    members = make_members(name, (5, 18), device, scale=3.0)
    inputs = make_inputs((5, 18), device)._replace(teacher=members)
    options = with_permutation(name, {} if name == "cross_entropy" else half_temperature(name), (5, 18), device)
    loss, gradient = compute(name, inputs, options, "triton")
    student = inputs.student.clone().requires_grad_()
    if how == "one pass":
        found = value_and_grad(
            name, student, members, inputs.labels, row_weights=inputs.weights, with_diagnostics=True, **options
        )  # fmt: skip
        ours, own, diagnosed = found
    else:
        ours, diagnosed = loss_with_diagnostics(name, student, members, inputs.labels, **options)
        (own,) = torch.autograd.grad((ours * inputs.weights).sum(), student)
    torch.testing.assert_close(ours.detach().double(), loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(own.double(), gradient, rtol=1e-6, atol=1e-6)
    temperature = options.get("temperature", 1.0) if OBJECTIVES[name].tempered else 1.0
    expected = reference.diagnose(inputs.student.tolist(), members.tolist(), inputs.labels.tolist(), temperature)
    for field, theirs in zip(diagnosed, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(field.cpu(), torch.tensor(theirs, dtype=field.dtype), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_diagnostics_come_with_the_graph_of_the_loss(device, launches, name) -> None:
    inputs = make_inputs((4, 18), device)
    options = with_permutation(name, {}, (4, 18), device)
    expected = compute(name, inputs, options, "torch")
    launches.clear()
    student = inputs.student.clone().requires_grad_()
    loss, found = loss_with_diagnostics(name, student, inputs.teacher, inputs.labels, **options)
    (loss * inputs.weights).sum().backward()
    assert len(launches) == (2 if name in COUPLED else 1)
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
    torch.testing.assert_close(found.double(), compute(name, inputs, options, "triton")[1], rtol=1e-6, atol=1e-7)


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


@pytest.mark.parametrize("name", NAMES)
def test_vmap_gives_each_student_its_own_teacher(device, name) -> None:
    inputs = [make_inputs((3, 5), device, seed=seed) for seed in (1, 2)]
    options = with_permutation(name, {}, (3, 5), device)
    students, teachers, labels = (torch.stack([each[i] for each in inputs]) for i in range(3))

    def weighted(student, teacher, label):
        return (OBJECTIVES[name](student, teacher, label, **options) * inputs[0].weights).sum()

    mapped = vmap(grad(weighted))(students, teachers, labels)
    for i in range(2):
        _, gradient = compute(name, inputs[i]._replace(weights=inputs[0].weights), options, "triton")
        torch.testing.assert_close(mapped[i].double(), gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ENSEMBLED)
def test_vmap_over_students_shares_an_ensemble_or_gives_each_its_own(device, name) -> None:
    inputs = make_inputs((3, 5), device)
    options = with_permutation(name, {}, (3, 5), device)
    members = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(7)).to(device)
    students = torch.stack([inputs.student, inputs.student * 2])
    own = torch.stack([members, members.flip(0) * 3], dim=1)

    def weighted(student, teacher):
        return (OBJECTIVES[name](student, teacher, inputs.labels, **options) * inputs.weights).sum()

    for teachers, dim in ((members, None), (own, 1)):
        found = vmap(grad(weighted), in_dims=(0, dim))(students, teachers)
        for i in range(2):
            teacher = teachers if dim is None else teachers[:, i]
            _, expected = compute(name, inputs._replace(student=students[i], teacher=teacher), options, "triton")
            torch.testing.assert_close(found[i].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated")  # the compiler does
@pytest.mark.parametrize("name", ["cwtm", "dkpp", "uniform_confidence", "dkd", "policy_nll", "ban"])
def test_loss_of_an_ensemble_compiles_without_a_graph_break(device, name) -> None:
    inputs = make_inputs((3, 5), device)
    inputs = inputs._replace(teacher=torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(7)).to(device))
    options = with_permutation(name, {}, (3, 5), device)
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
    def compiled(student, teachers, labels):
        return OBJECTIVES[name](student * 1.0, teachers, labels, **options)

    student = inputs.student.clone().requires_grad_()
    loss = compiled(student, inputs.teacher, inputs.labels)
    (loss * inputs.weights).sum().backward()
    expected = compute(name, inputs, options, "triton")
    torch.testing.assert_close(loss.detach().double(), expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(student.grad.double(), expected[1], rtol=1e-5, atol=1e-6)


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


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated")  # the compiler does
@pytest.mark.parametrize("tiles", ["streamed"], indirect=True)
@pytest.mark.parametrize("name", ["dkd", "logit_standardized_kd", "reverse_kl", "jsd"])
def test_rows_in_parts_are_mapped_and_compiled(device, tiles, name) -> None:
    inputs = make_inputs((3, 18), device)
    students = torch.stack([inputs.student, inputs.student * 2])

    def weighted(student):
        return (OBJECTIVES[name](student, inputs.teacher, inputs.labels) * inputs.weights).sum()

    torch._dynamo.reset()
    mapped = vmap(grad(weighted))(students)
    for i in range(2):
        _, expected = compute(name, inputs._replace(student=students[i]), {}, "torch")
        torch.testing.assert_close(mapped[i].double(), expected, rtol=1e-5, atol=1e-6)
        compiled = torch.compile(grad(weighted), fullgraph=True, backend="aot_eager")(students[i])
        torch.testing.assert_close(compiled, mapped[i], rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated")  # the compiler does
@pytest.mark.parametrize("name", ["policy_kl", "cwtm", "dkpp"])
def test_compiles_where_no_gradient_is_wanted(device, name) -> None:
    inputs = make_inputs((3, 5), device)
    options = with_permutation(name, {}, (3, 5), device)
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(student):
        return OBJECTIVES[name](student, inputs.teacher, inputs.labels, **options)

    expected = compute(name, inputs, options, "triton")[0]
    torch.testing.assert_close(compiled(inputs.student).double(), expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(compiled(inputs.student).double(), expected, rtol=1e-5, atol=1e-6)


def test_gradients_of_a_loss_computed_before_are_mapped(device) -> None:
    """The rows of the Jacobian, by a backward pass inside vmap."""
    inputs = make_inputs((3, 5), device)
    student = inputs.student.requires_grad_()
    loss = OBJECTIVES["policy_kl"](student, inputs.teacher, None)

    def pull(upstream):
        return torch.autograd.grad(loss, student, upstream, retain_graph=True)[0]

    found = torch.func.vmap(pull)(torch.eye(3, device=device))
    _, gradient = compute("policy_kl", inputs._replace(weights=torch.ones(3, device=device)), {}, "triton")
    expected = torch.diag_embed(gradient.t()).permute(1, 2, 0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


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


def test_float64_is_computed_plainly(device, launches) -> None:
    compute("ban", make_inputs((2, 5), device), {}, "triton", torch.float64)
    assert launches == []


def test_chosen_backend_ends_with_its_block() -> None:
    assert current_backend() == "triton"
    with use_backend("torch"):
        assert current_backend() == "torch"
    assert current_backend() == "triton"


def test_plain_backend_launches_nothing(device, launches) -> None:
    compute("ban", make_inputs((2, 5), device), {}, "torch")
    compute("ban", make_inputs((2, 5), device), {}, "triton")
    assert launches == ["target_kernel"]


def test_weights_that_are_one_number_for_all(device) -> None:
    """The gradient of a mean comes as one number with stride 0."""
    inputs = make_inputs((4, 5), device)
    student = inputs.student.clone().requires_grad_()
    OBJECTIVES["ban"](student, inputs.teacher, None).mean().backward()
    expected = compute("ban", Inputs(*inputs[:3], torch.full((4,), 0.25, device=device)), {}, "triton")[1]
    torch.testing.assert_close(student.grad.double(), expected)


@contextlib.contextmanager
def waiting_is_an_error():
    """While this lasts, whatever waits for the GPU fails."""
    with warnings.catch_warnings():
        # said once, after the mode is set: as an error it would leave the mode behind for all tests that follow
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype feature")
        try:
            torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("fault", [None, "inside", "while setting"])
def test_mode_in_which_waiting_fails_never_stays(monkeypatch, fault) -> None:
    modes = []

    def set_mode(mode):
        modes.append(mode)
        if mode == "error":
            warnings.warn("Synchronization debug mode is a prototype feature and does not yet detect all", stacklevel=1)
            if fault == "while setting":
                raise RuntimeError(fault)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    expected = contextlib.nullcontext() if fault is None else pytest.raises(RuntimeError, match=fault)
    with expected, waiting_is_an_error():
        if fault == "inside":
            raise RuntimeError(fault)
    assert modes == ["error", "default"]


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["autograd", "one pass", "diagnostics"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_for_the_gpu_and_all_is_captured(name, how) -> None:
    """In a CUDA graph, with new scores at each replay."""
    inputs = make_inputs((256, 18), "cuda")
    options = with_permutation(name, {}, (256, 18), "cuda")
    # a leaf of this test alone, and no graph kept: what accumulates its gradient belongs to the stream that made it
    student = inputs.student.clone().requires_grad_()

    def step():
        if how == "one pass":
            return value_and_grad(
                name, student, inputs.teacher, inputs.labels,
                row_weights=inputs.weights, with_diagnostics=True, **options,
            )  # fmt: skip
        found = None
        if how == "diagnostics":
            loss, found = loss_with_diagnostics(name, student, inputs.teacher, inputs.labels, **options)
        else:
            loss = OBJECTIVES[name](student, inputs.teacher, inputs.labels, **options)
        (gradient,) = torch.autograd.grad((loss * inputs.weights).sum(), student)
        return loss.detach(), gradient, found

    step()  # compiles
    torch.cuda.synchronize()
    with waiting_is_an_error():
        step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, gradient, found = step()
    inputs.teacher.copy_(torch.randn_like(inputs.teacher))
    graph.replay()
    expected = compute(name, inputs, options, "triton")
    torch.testing.assert_close(loss.double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected[1], rtol=1e-5, atol=1e-5)
    assert (found is None) == (how == "autograd")
    if found is not None:
        plain = diagnostics(
            inputs.student, inputs.teacher, inputs.labels, **temperatures_of(name, temperature_of(name))
        )
        for ours, theirs in zip(found, plain, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
