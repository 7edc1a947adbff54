"""Values and gradients of the kernels: no further from float64 than the plain formulas are in the same type."""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from polydistill.kernels import autograd
from polydistill.losses import OBJECTIVES, draw_permutation, loss_with_diagnostics, use_backend, value_and_grad
from polydistill.losses.backend import fused_confidence
from tests.losses.reference import CASES, ENSEMBLED, MASKED, NAMES, case_id

INF = math.inf
TYPES = [torch.float32, torch.bfloat16, torch.float16]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Inputs(NamedTuple):
    student: Tensor
    teacher: Tensor
    labels: Tensor
    weights: Tensor


def make_inputs(shape, device, *, dtype=torch.float32, scale=2.0, seed=0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn((2, *shape), generator=generator) * scale
    labels = torch.randint(shape[-1], shape[:-1], generator=generator)
    weights = torch.rand(shape[:-1], generator=generator) + 0.5
    student, teacher = scores.to(dtype)
    return Inputs(*(x.to(device) for x in (student, teacher, labels, weights)))


def with_permutation(name, options, shape, device):
    if not OBJECTIVES[name].needs_permutation:
        return options
    rows = math.prod(shape[:-1])
    drawn = draw_permutation(rows, shape[-1], generator=torch.Generator().manual_seed(1))
    return {**options, "permutation": drawn.view(*shape[:-1], shape[-1] - 1).to(device)}


def compute(name, inputs, options, backend, dtype=None):
    """Loss and gradient of the weighted sum, as float64."""
    dtype = dtype or inputs.student.dtype
    student = inputs.student.detach().to(dtype).requires_grad_()
    with use_backend(backend):
        loss = OBJECTIVES[name](student, inputs.teacher.to(dtype), inputs.labels, **options)
        (loss * inputs.weights.to(loss.dtype)).sum().backward()
    return loss.detach().double(), student.grad.double()


def assert_no_worse_than_plain(name, inputs, options):
    """The kernel's error against float64 is at most the plain formula's, plus what a type must be allowed.

    Slack: of the loss 4e-6 of its size or of 1 (twice that for dkd, which multiplies logarithms by T^2 beta = 128; a
    GPU's quick ones are good to 2.4e-7); of the gradient 2e-6 of its largest entry or of 0.01, since it is made
    of differences of logarithms. Half precision needs no more: where the kernel rounds to another neighbour than the
    plain formula, both are half a unit off. But the interpreter truncates to bfloat16: a whole unit of the largest.
    """
    truth = compute(name, inputs, options, "torch", torch.float64)
    plain = compute(name, inputs, options, "torch")
    fused = compute(name, inputs, options, "triton")
    truncated = INTERPRETED and inputs.student.dtype is torch.bfloat16
    slacks = (8e-6 if name == "dkd" else 4e-6, torch.finfo(torch.bfloat16).eps if truncated else 2e-6)
    for what, exact, eager, ours, slack in zip(("loss", "gradient"), truth, plain, fused, slacks, strict=True):
        scale = exact.abs().amax().clamp(min=1.0 if what == "loss" else 1e-2) if exact.numel() else 1.0
        worst, allowed = (ours - exact).abs(), (eager - exact).abs().amax() if exact.numel() else 0.0
        assert ours.isfinite().all(), f"{what} of {name}: {ours}"
        assert (worst <= allowed + slack * scale).all(), f"{what} of {name}: off by {worst.max()}, eager by {allowed}"


@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("shape", [(1, 2), (5, 18), (3, 37)], ids=str)
def test_kernel_is_as_exact_as_the_formula(device, tiles, case, shape) -> None:
    name, options = case
    assert_no_worse_than_plain(name, make_inputs(shape, device), with_permutation(name, options, shape, device))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_kernel_takes_half_precision(device, case, dtype) -> None:
    name, options = case
    inputs = make_inputs((4, 18), device, dtype=dtype)
    assert_no_worse_than_plain(name, inputs, with_permutation(name, options, (4, 18), device))


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("broadcast", [True, False])
def test_mask_takes_classes_out(device, tiles, name, broadcast) -> None:
    inputs = make_inputs((6, 20), device, seed=2)
    shape = (20,) if broadcast else (6, 20)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device) < 0.5
    inputs.student[:, mask if broadcast else 0] = 3.0
    assert_no_worse_than_plain(name, inputs, {"mask": mask})
    _, gradient = compute(name, inputs, {"mask": mask}, "triton")
    assert (gradient[mask.expand(6, 20)] == 0).all()


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("teacher", [None, -INF, math.nan])
def test_row_without_a_class_adds_nothing(device, tiles, name, teacher) -> None:
    inputs = make_inputs((3, 20), device)
    if teacher is not None:
        inputs.teacher[1] = teacher
    mask = torch.zeros(3, 20, dtype=torch.bool, device=device)
    mask[1] = True
    loss, gradient = compute(name, inputs, {"mask": mask}, "triton")
    assert loss[1] == 0
    assert loss.isfinite().all()
    assert (gradient[1] == 0).all()
    assert (gradient[0] != 0).any()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {"cross_entropy", "reverse_kl"}])
def test_class_that_the_teacher_excludes_has_probability_0(device, tiles, name) -> None:
    inputs = make_inputs((4, 20), device)
    inputs.teacher[0, 3] = inputs.teacher[1, :19] = inputs.teacher[2, ::2] = -INF
    assert_no_worse_than_plain(name, inputs, with_permutation(name, {}, (4, 20), device))


@pytest.mark.parametrize("case", [(name, {}) for name in NAMES], ids=case_id)
@pytest.mark.parametrize("scale", [1e4, 1e-3])
def test_large_and_small_scores(device, tiles, case, scale) -> None:
    name, options = case
    inputs = make_inputs((4, 18), device, scale=scale)
    assert_no_worse_than_plain(name, inputs, with_permutation(name, options, (4, 18), device))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("tiles", "largest"), [("streamed", 4.0), ("streamed", 1e4), ("four rows", 1e4)], indirect=["tiles"]
)
def test_half_precision_in_parts_and_with_large_scores(device, tiles, name, dtype, largest) -> None:
    inputs = make_inputs((4, 18), device, scale=largest / 4, dtype=dtype)
    inputs.student[0, :2] = torch.tensor([largest, -largest])
    inputs.teacher[0, :2] = torch.tensor([-largest, largest])
    options = {"temperature": 1.0} if OBJECTIVES[name].needs_q_values else {}  # else no float16 holds the gradient
    assert_no_worse_than_plain(name, inputs, with_permutation(name, options, (4, 18), device))


@pytest.mark.parametrize(
    "name", ["policy_kl", "policy_kl_q", "reverse_kl", "jsd", "hinton_kd", "dkd", "logit_standardized_kd"]
)
@pytest.mark.parametrize("scale", [2.0, 1e4])
def test_smallest_temperature(device, tiles, name, scale) -> None:
    inputs = make_inputs((4, 18), device, scale=scale)
    assert_no_worse_than_plain(name, inputs, {"temperature": 1e-3})


def test_reverse_kl_keeps_its_digits_at_a_low_temperature(device, tiles) -> None:
    """Its r is in the thousands, and what they differ by is not."""
    assert_no_worse_than_plain("reverse_kl", make_inputs((16, 18), device, scale=30.0), {"temperature": 0.01})


@pytest.mark.parametrize("name", NAMES)
def test_one_class(device, tiles, name) -> None:
    inputs = make_inputs((3, 1), device)
    assert_no_worse_than_plain(name, inputs, with_permutation(name, {}, (3, 1), device))


@pytest.mark.parametrize("name", NAMES)
def test_no_rows(device, name, launches) -> None:
    inputs = make_inputs((0, 7), device)
    loss, gradient = compute(name, inputs, with_permutation(name, {}, (0, 7), device), "triton")
    assert loss.shape == (0,)
    assert gradient.shape == (0, 7)


@pytest.mark.parametrize(
    "name",
    ["policy_kl", "policy_kl_q", "reverse_kl", "jsd", "policy_mse", "policy_huber", "dkd", "logit_standardized_kd"],
)
def test_equal_scores_give_0(device, tiles, name) -> None:
    inputs = make_inputs((4, 18), device)
    options = {"temperature": 1.0} if OBJECTIVES[name].tempered else {}
    options |= {"label_weight": 0.0} if name in {"dkd", "logit_standardized_kd"} else {}
    loss, gradient = compute(name, inputs._replace(teacher=inputs.student), options, "triton")
    assert loss.abs().max() <= (1e-7 if name == "jsd" else 0.0)
    # standardised scores come from a quick division, which a chip does not always round alike
    assert gradient.abs().max() <= {"jsd": 1e-7, "logit_standardized_kd": 3e-7}.get(name, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_strides_do_not_matter(device, tiles, name) -> None:
    inputs = make_inputs((6, 36), device)
    options = with_permutation(name, {}, (6, 18), device)
    strided = Inputs(
        inputs.student[:, ::2], inputs.teacher.t().contiguous().t()[:, 1::2], inputs.labels % 18, inputs.weights
    )
    packed = Inputs(*(x.contiguous() for x in strided))
    student = strided.student.requires_grad_()
    loss = OBJECTIVES[name](student, strided.teacher, strided.labels.repeat_interleave(2)[::2], **options)
    (gradient,) = torch.autograd.grad((loss * strided.weights).sum(), student)
    expected = compute(name, packed, options, "triton")
    # on a chip the order of a sum depends on the strides; and long rows whose columns lie apart have their own kernel
    same = INTERPRETED and tiles != "streamed"
    for found, packed_one in zip((loss, gradient), expected, strict=True):
        slack = 0.0 if same else 1e-6 * float(packed_one.abs().max().clamp(min=1.0))
        torch.testing.assert_close(found.detach().double(), packed_one, rtol=0.0 if same else 1e-6, atol=slack)


@pytest.mark.parametrize("name", ["cross_entropy", "dkd", "logit_standardized_kd"])
def test_label_out_of_range_is_no_silent_zero(device, tiles, name) -> None:
    inputs = make_inputs((3, 18), device)
    labels = torch.tensor([4, -100, 18], device=device)
    loss = OBJECTIVES[name](inputs.student, inputs.teacher, labels)
    assert loss.isfinite().tolist() == [True, False, False]


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_several_students_are_those_of_each(device, whole_tiles, name) -> None:
    """(students, batch, classes) in one call: the same as one call per student."""
    inputs = make_inputs((3, 4, 18), device)
    options = with_permutation(name, {}, (3, 4, 18), device)
    loss, gradient = compute(name, inputs, options, "triton")
    for i in range(3):
        own = {key: value[i] if torch.is_tensor(value) else value for key, value in options.items()}
        alone = compute(name, Inputs(*(x[i] for x in inputs)), own, "triton")
        torch.testing.assert_close(loss[i], alone[0], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(gradient[i], alone[1], rtol=1e-6, atol=1e-7)


LONG = ("reverse_kl", "jsd", "dkd", "logit_standardized_kd")  # whose sums over a row in parts are their own


@pytest.mark.parametrize("name", ["policy_kl", "policy_kl_q", "cross_entropy", "ban", "policy_mse", *LONG])
@pytest.mark.parametrize("few_scores", [0, autograd.FEW_SCORES])
def test_many_rows_and_long_ones(device, monkeypatch, launches, name, few_scores) -> None:
    """Many programs; and the shape from which rows are streamed on the chip."""
    monkeypatch.setattr(autograd, "FEW_SCORES", few_scores)
    assert_no_worse_than_plain(name, make_inputs((131, 130), device), {})
    assert_no_worse_than_plain(name, make_inputs((2, 40_000), device), {})
    assert_no_worse_than_plain(name, make_inputs((1, 131_072), device), {})
    assert len(launches) == (3 if few_scores else 6)


@pytest.mark.parametrize("tiles", ["streamed"], indirect=True)
@pytest.mark.parametrize("name", ["cross_entropy", "ban", "ban_l", "hinton_kd", "cwtm", "policy_kl"])
def test_long_rows_have_a_kernel_of_their_own(device, tiles, launches, name) -> None:
    """Its gradient from the sums that the loss kept, from none where there may be a second derivative, along with the
    loss, and from a teacher of another type: the same, and that of the kernel that takes any row."""
    options = {"label_smoothing": 0.2} if name == "cross_entropy" else {}
    inputs = make_inputs((5, 37), device, seed=6)
    found = [compute(name, inputs, options, "triton")]
    student = inputs.student.clone().requires_grad_()
    loss = OBJECTIVES[name](student, inputs.teacher, inputs.labels, **options)
    (gradient,) = torch.autograd.grad((loss * inputs.weights).sum(), student, create_graph=True)
    found.append((loss.detach().double(), gradient.detach().double()))
    one = value_and_grad(name, inputs.student, inputs.teacher, inputs.labels, row_weights=inputs.weights, **options)
    found.append((one.loss.double(), one.gradient.double()))
    assert set(launches) - {"confidence_kernel"} == {"long_row_kernel"}
    launches.clear()
    one = value_and_grad(
        name, inputs.student, inputs.teacher, inputs.labels,
        row_weights=inputs.weights, with_diagnostics=True, **options,
    )  # fmt: skip
    assert set(launches) - {"confidence_kernel"} == {"target_kernel"}
    for loss, gradient in found:
        torch.testing.assert_close(loss, one.loss.double(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradient, one.gradient.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tiles", ["streamed"], indirect=True)
@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize(("scale", "location"), [(2.0, 0.0), (2.0, -1e4), (1e4, 0.0), (1e-3, 1e4)])
def test_row_of_many_tiles_of_which_the_last_holds_one_class(device, tiles, name, scale, location) -> None:
    """The greatest scores of either side, and the label, each in the first tile, in the last and in between."""
    places = torch.tensor([[3, 40, 64], [40, 64, 3], [64, 3, 40], [64, 64, 64], [3, 64, 5]])
    inputs = make_inputs((5, 65), device, scale=scale, seed=3)
    for scores, place in zip((inputs.student, inputs.teacher), places.t()[:2], strict=True):
        scores[torch.arange(5), place] += 3.5 * scale
        scores += location
    assert_no_worse_than_plain(name, inputs._replace(labels=places[:, 2].to(device)), {})


@pytest.mark.parametrize("tiles", ["streamed"], indirect=True)
@pytest.mark.parametrize("name", ["jsd", "dkd", "logit_standardized_kd"])
def test_tiles_that_the_teacher_excludes_count_for_nothing(device, tiles, name) -> None:
    """The first, all but the last, all but one class of the second; at the teacher's greatest score or not."""
    inputs = make_inputs((6, 25), device)
    inputs.teacher[:3, 24] += 20.0
    for row, kept in enumerate((slice(8, 25), slice(24, 25), slice(11, 12)) * 2):
        scores = inputs.teacher[row, kept].clone()
        inputs.teacher[row] = -INF
        inputs.teacher[row, kept] = scores
    assert_no_worse_than_plain(name, inputs, {})


def test_deviation_of_0_divides_nothing(device, tiles) -> None:
    """The student's scores are equal, the teacher's, or both: what is left is the 1e-7 beside the deviation."""
    inputs = make_inputs((4, 18), device)
    inputs.student[0], inputs.student[1] = 3.0, 10_000.0
    inputs.teacher[1], inputs.teacher[2] = 5.0, -7.0
    assert_no_worse_than_plain("logit_standardized_kd", inputs, {})


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("outlier", [1e4, -1e4])
def test_one_large_score_takes_no_digit_from_the_others(device, tiles, name, outlier) -> None:
    inputs = make_inputs((4, 36), device, scale=1.0)
    inputs.student[:, 11], inputs.teacher[:2, 11], inputs.teacher[2:, 30] = outlier, outlier, outlier
    assert_no_worse_than_plain(name, inputs, {"temperature": 0.01} if name == "logit_standardized_kd" else {})


@pytest.mark.parametrize("name", ["dkd", "logit_standardized_kd"])
def test_scores_of_1e30_overflow_no_square(device, tiles, name) -> None:
    inputs = make_inputs((4, 18), device, scale=1e30)
    assert_no_worse_than_plain(name, inputs, {})


@pytest.mark.parametrize("excluded", [[2], [20], [4, 9, 20], list(range(8)), list(range(7, 25))], ids=str)
def test_reverse_kl_counts_what_the_teacher_excludes_with_the_largest_number(device, tiles, excluded) -> None:
    """Loss and gradient, wherever the student's best class is; not NaN, and no sum of it overflows."""
    inputs = make_inputs((5, 25), device, scale=1.0)
    inputs.student[torch.arange(5), torch.tensor([2, 7, 8, 20, 24])] += 6.0
    inputs.teacher[:, excluded] = -INF
    loss, gradient = compute("reverse_kl", inputs, {"temperature": 2.0}, "triton")
    q = inputs.student.double().softmax(1)
    largest = torch.finfo(torch.float32).max
    part = q[:, excluded].sum(1)
    torch.testing.assert_close(loss, part * largest, rtol=2e-6, atol=0.0)
    r = torch.zeros_like(q)
    r[:, excluded] = largest
    expected = q * (r - part[:, None] * largest) * inputs.weights[:, None].double()
    torch.testing.assert_close(gradient, expected, rtol=2e-5, atol=1e-7 * largest)


@pytest.mark.parametrize("location", [0.0, 1e4])
@pytest.mark.parametrize("temperature", [1.0, 1e-3])
def test_reverse_kl_of_a_sure_student_has_no_gradient(device, tiles, temperature, location) -> None:
    """The whole of q in one class: the gradient is 0, though the loss is large and the teacher's best is elsewhere."""
    inputs = make_inputs((5, 25), device, scale=50.0)
    inputs.student[torch.arange(5), torch.tensor([2, 7, 8, 20, 24])] = 2000.0
    inputs = inputs._replace(student=inputs.student + location, teacher=inputs.teacher + location)
    options = {"temperature": temperature}
    assert_no_worse_than_plain("reverse_kl", inputs, options)
    assert (compute("reverse_kl", inputs, options, "triton")[1] == 0).all()


def make_members(name, shape, device, *, dtype=torch.float32, scale=30.0):
    """Three, of which some or all exclude a class."""
    members = torch.randn(3, *shape, generator=torch.Generator().manual_seed(7)) * scale
    members[0, ..., 4] = members[1, ..., 4] = -INF
    if name != "reverse_kl":  # infinite there
        members[:, ..., 6] = -INF
    return members.to(device, dtype)


def n_launches(name):
    """Of the loss: those that normalise over the batch look at the teacher's confidence first."""
    return 2 if name in {"cwtm", "uniform_confidence"} else 1


def half_temperature(name):
    return {"temperature": 0.5} if name in {"hinton_kd", "dkd", "policy_kl", "reverse_kl", "jsd"} else {}


@pytest.mark.parametrize("name", ENSEMBLED)
@pytest.mark.parametrize("shape", [(5, 18), (2, 3, 20)], ids=str)
def test_ensemble_of_teachers_is_averaged_in_the_kernel(device, tiles, launches, name, shape) -> None:
    inputs = make_inputs(shape, device)._replace(teacher=make_members(name, shape, device))
    assert_no_worse_than_plain(name, inputs, with_permutation(name, half_temperature(name), shape, device))
    assert len(launches) == n_launches(name) + (tiles != "whole rows")


@pytest.mark.parametrize("name", ["cross_entropy", *ENSEMBLED])
def test_mean_of_an_ensemble_is_never_made(device, tiles, launches, monkeypatch, name) -> None:
    """Neither for the loss, nor for its gradient, nor for diagnostics, which come with both from one launch."""
    inputs = make_inputs((5, 18), device)._replace(teacher=make_members(name, (5, 18), device, scale=3.0))
    options = with_permutation(name, {}, (5, 18), device)
    expected = value_and_grad(name, *inputs[:3], with_diagnostics=True, **options)
    launches.clear()
    monkeypatch.setattr("polydistill.losses.probabilities.ensemble_log_probabilities", None)
    found = value_and_grad(name, *inputs[:3], with_diagnostics=True, **options)
    assert len(launches) == n_launches(name)
    torch.testing.assert_close(tuple(found.diagnostics), tuple(expected.diagnostics), rtol=0.0, atol=0.0)
    loss_with_diagnostics(name, *inputs[:3], **options)
    compute(name, inputs, options, "triton")


@pytest.mark.parametrize("name", ENSEMBLED)
@pytest.mark.parametrize("n_members", [1, 2, 5])
def test_ensembles_of_other_sizes(device, name, n_members) -> None:
    inputs = make_inputs((4, 7), device)
    members = torch.randn(n_members, 4, 7, generator=torch.Generator().manual_seed(7)).to(device) * 3
    options = with_permutation(name, half_temperature(name), (4, 7), device)
    assert_no_worse_than_plain(name, inputs._replace(teacher=members), options)


@pytest.mark.parametrize("name", ENSEMBLED)
def test_ensemble_of_any_strides(device, name) -> None:
    inputs = make_inputs((4, 14), device)
    strided = torch.randn(14, 4, 6, generator=torch.Generator().manual_seed(7)).to(device).permute(2, 1, 0)[::2]
    options = with_permutation(name, {}, (4, 14), device)
    found = compute(name, inputs._replace(teacher=strided), options, "triton")
    expected = compute(name, inputs._replace(teacher=strided.contiguous()), options, "triton")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")  # the interpreter's numpy
@pytest.mark.parametrize("name", ENSEMBLED)
def test_member_of_minus_infinity_is_not_hidden(device, tiles, name) -> None:
    """A network that gives no class a chance has failed, and its ensemble with it."""
    members = torch.randn(3, 4, 18, generator=torch.Generator().manual_seed(7)).to(device)
    members[1, 2] = -INF
    inputs = make_inputs((4, 18), device)._replace(teacher=members)
    assert_seen_as_plainly(name, inputs, with_permutation(name, {}, (4, 18), device))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ENSEMBLED)
def test_mean_of_an_ensemble_in_half_precision_stays_in_float32(device, tiles, name, dtype) -> None:
    """Rounded to the student's type it would be off by more than the plain formula is."""
    members = make_members(name, (5, 18), device, dtype=dtype, scale=4.0)
    inputs = make_inputs((5, 18), device, dtype=dtype)._replace(teacher=members)
    options = with_permutation(name, half_temperature(name), (5, 18), device)
    assert_no_worse_than_plain(name, inputs, options)


@pytest.mark.parametrize("scale", [1e4, 1e-3])
@pytest.mark.parametrize("name", ENSEMBLED)
def test_ensemble_of_large_and_small_scores(device, tiles, name, scale) -> None:
    inputs = make_inputs((4, 18), device, scale=scale)
    members = torch.randn(3, 4, 18, generator=torch.Generator().manual_seed(7)).to(device) * scale
    options = with_permutation(name, {}, (4, 18), device)
    assert_no_worse_than_plain(name, inputs._replace(teacher=members), options)


@pytest.mark.parametrize("name", ["policy_kl", "policy_nll", "reverse_kl", "jsd"])
@pytest.mark.parametrize("broadcast", [True, False])
def test_ensemble_with_a_mask(device, tiles, name, broadcast) -> None:
    inputs = make_inputs((5, 18), device)
    members = torch.randn(2, 5, 18, generator=torch.Generator().manual_seed(7)).to(device) * 3
    mask = torch.zeros((18,) if broadcast else (5, 18), dtype=torch.bool, device=device)
    mask[..., :5] = True
    members[0, :, 3] = math.nan  # what leaves may be anything
    options = {"mask": mask} if name == "policy_nll" else {"mask": mask, "temperature": 0.1}
    assert_no_worse_than_plain(name, inputs._replace(teacher=members), options)


def test_confidence_is_that_of_each_row(device, tiles) -> None:
    inputs = make_inputs((6, 20), device)
    inputs.teacher[1, 3:] = inputs.teacher[4, ::2] = -INF
    found = fused_confidence(inputs.student, inputs.teacher)
    torch.testing.assert_close(found, inputs.teacher.softmax(1).amax(1), rtol=1e-5, atol=1e-7)
    members = torch.stack([inputs.teacher, inputs.student, inputs.teacher * 3])
    found = fused_confidence(inputs.student, members)
    torch.testing.assert_close(found, members.softmax(2).mean(0).amax(1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ENSEMBLED)
def test_ensemble_of_long_rows_is_averaged_as_they_are_streamed(device, launches, name) -> None:
    inputs = make_inputs((1, 20_000), device)
    members = torch.randn(2, 1, 20_000, generator=torch.Generator().manual_seed(7)).to(device)
    options = with_permutation(name, half_temperature(name), (1, 20_000), device)
    assert_no_worse_than_plain(name, inputs._replace(teacher=members), options)
    assert len(launches) == n_launches(name)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter's numpy
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [math.nan, INF])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_score_that_is_not_finite_is_not_hidden(device, tiles, name, value, side) -> None:
    """Wherever the plain loss or gradient is not finite, so is the fused one: a GradScaler must see it."""
    inputs = make_inputs((3, 20), device)
    getattr(inputs, side)[1, 5] = getattr(inputs, side)[2, 19] = value  # in the first tile and in the last
    assert_seen_as_plainly(name, inputs, with_permutation(name, {}, (3, 20), device))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_row_of_minus_infinity_is_not_hidden(device, tiles, name, side) -> None:
    """Unlike one without a class that a mask leaves, which is 0."""
    inputs = make_inputs((3, 20), device)
    getattr(inputs, side)[1] = -INF
    assert_seen_as_plainly(name, inputs, with_permutation(name, {}, (3, 20), device))


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("members", [1, 3])
def test_row_left_with_minus_infinity_by_a_mask_is_not_hidden(device, tiles, name, side, members) -> None:
    """Nor is that of one member."""
    if members > 1 and name not in ENSEMBLED:
        pytest.skip("takes no ensemble")
    inputs = make_inputs((3, 20), device)
    if members > 1:
        inputs = inputs._replace(teacher=torch.stack([inputs.teacher, inputs.teacher + 1.0, inputs.student]))
    mask = torch.zeros(3, 20, dtype=torch.bool, device=device)
    mask[:, 3] = mask[1, ::2] = mask[2] = True
    scores = getattr(inputs, side)
    of_member = scores[1] if side == "teacher" and members > 1 else scores
    of_member[1, 1::2] = -INF
    assert_seen_as_plainly(name, inputs, {"mask": mask})


@pytest.mark.parametrize("value", [math.nan, INF, -INF])
def test_policy_nll_of_a_teacher_without_a_finite_best_is_nan(device, tiles, value) -> None:
    inputs = make_inputs((3, 20), device)
    inputs.teacher[1] = value
    inputs.teacher[2, 19] = INF if value == INF else math.nan
    loss, gradient = compute("policy_nll", inputs, {}, "triton")
    assert loss.isnan().tolist() == gradient.isnan().all(dim=1).tolist() == [False, True, True]


def assert_seen_as_plainly(name, inputs, options) -> None:
    """In the rows where the plain loss or its gradient is not finite, the kernel's are not either."""
    plain, fused = (compute(name, inputs, options, backend) for backend in ("torch", "triton"))
    for ours, theirs in zip(fused, plain, strict=True):
        of_row = [x if x.dim() == 1 else x.sum(dim=1) for x in (ours, theirs)]
        assert (of_row[0].isfinite() <= of_row[1].isfinite()).all(), (ours, theirs)


@pytest.mark.parametrize("name", [name for name in NAMES if OBJECTIVES[name].score_kind == "logits"])
@pytest.mark.parametrize("sides", ["student", "teacher", "student teacher"])
def test_lowest_scores_do_not_overflow(device, tiles, name, sides) -> None:
    """They fill the first tile, so that the greatest score rises by 3e38 in the next one."""
    if "student" in sides and (name == "dkpp" or (sides == "student" and name not in {"cross_entropy", "policy_nll"})):
        pytest.skip("the target has classes that such a student excludes: the loss is 3e38, or more")
    inputs = make_inputs((2, 20), device)
    for side in sides.split():
        getattr(inputs, side)[:, :9] = torch.finfo(torch.float32).min
    options = with_permutation(name, {}, (2, 20), device)
    plain, fused = (compute(name, inputs, options, backend) for backend in ("torch", "triton"))
    for ours, theirs in zip(fused, plain, strict=True):
        assert (theirs.isfinite() <= ours.isfinite()).all(), (ours, theirs)
        near = theirs.isfinite() & (theirs.abs() < 1e30)
        torch.testing.assert_close(ours[near], theirs[near], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter's numpy
def test_what_is_no_permutation_reads_nothing_foreign(device, tiles) -> None:
    inputs = make_inputs((2, 20), device)
    permutation = torch.arange(19, device=device).expand(2, 19).clone()
    permutation[0, 3], permutation[1, 4] = 400_000, -5
    loss, _ = compute("dkpp", inputs, {"permutation": permutation}, "triton")
    assert loss.isnan().all()


@pytest.mark.parametrize("name", NAMES)
def test_padding_has_neither_loss_nor_gradient_and_changes_no_other_row(device, name) -> None:
    inputs = make_inputs((6, 5), device)
    labels = inputs.labels.clone()
    labels[[1, 4]] = -100
    options = with_permutation(name, {"ignore_index": -100}, (6, 5), device)
    assert_no_worse_than_plain(name, inputs._replace(labels=labels), options)
    loss, gradient = compute(name, inputs._replace(labels=labels), options, "triton")
    assert not loss[[1, 4]].any()
    assert not gradient[[1, 4]].any()
    with use_backend("triton"):
        one_pass = value_and_grad(
            name, inputs.student, inputs.teacher, labels, row_weights=inputs.weights, with_diagnostics=True, **options
        )
    torch.testing.assert_close(one_pass.loss.double(), loss, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(one_pass.gradient.double(), gradient, rtol=1e-6, atol=1e-7)
    assert all(not values[[1, 4]].any() for values in one_pass.diagnostics)


@pytest.mark.parametrize("name", [name for name in NAMES if "teacher" in OBJECTIVES[name].takes])
@pytest.mark.parametrize("types", [(0, 1), (1, 3)], ids=str)
def test_a_teacher_of_another_float_type_gives_what_the_formula_gives(device, name, types) -> None:
    of_student, of_teacher = ([*TYPES, torch.float64][index] for index in types)
    inputs = make_inputs((5, 6), device)
    student, teacher = inputs.student.to(of_student), inputs.teacher.to(of_teacher)
    options = with_permutation(name, {}, (5, 6), device)
    found = []
    for backend in ("torch", "triton"):
        with use_backend(backend):
            found.append(value_and_grad(name, student, teacher, inputs.labels, with_diagnostics=True, **options))
    plain, fused = found
    slack = 2e-2 if of_student is torch.bfloat16 else 2e-3 if of_student is torch.float16 else 1e-5
    torch.testing.assert_close(fused.loss, plain.loss, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(fused.gradient, plain.gradient, rtol=slack, atol=slack)
    for ours, formula in zip(fused.diagnostics, plain.diagnostics, strict=True):
        torch.testing.assert_close(ours, formula, rtol=1e-4, atol=1e-5)
