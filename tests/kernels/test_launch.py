"""What a launch hands to its kernel, read off without running one."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from polydistill.kernels import launch, plan, prepared
from polydistill.kernels.numbers import Target

FAR = 2**30  # two such steps need more than 32 bits


@pytest.fixture
def handed(monkeypatch) -> list[tuple]:
    """The arguments of each launch."""
    seen: list[tuple] = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments, **constants: seen.append(arguments)

    monkeypatch.setattr(prepared, "load_kernel", lambda module, name: Kernel())
    return seen


def spread(dtype=torch.float32, *, columns=3, step=FAR):
    """``(2, columns)`` without values, whose places in a row lie ``step`` apart."""
    return torch.empty_strided((2, columns), (1, step), dtype=dtype, device="meta")


@pytest.mark.parametrize("field", ["student", "teacher", "mask", "permutation"])
def test_places_too_far_apart_for_32_bits_are_brought_together(handed, field) -> None:
    near = spread(step=2)
    given = {
        "student": near, "teacher": near, "mask": spread(torch.bool, step=2),
        "permutation": spread(torch.int64, columns=2, step=2),
    }  # fmt: skip
    far = {"mask": spread(torch.bool), "permutation": spread(torch.int64, columns=2, step=2 * FAR)}
    given[field] = far.get(field, spread())
    launch.launch("permuted", Target(1.0), launch.Rows(**given), loss=True)
    student, teacher, _, mask, permutation = handed[0][:5]
    for name, tensor in {"student": student, "teacher": teacher, "mask": mask, "permutation": permutation}.items():
        assert tensor.stride() == ((tensor.shape[1], 1) if name == field else (1, 2)), name


def test_confidence_brings_places_together_too(handed) -> None:
    launch.launch_confidence(spread())
    assert handed[0][0].stride() == (3, 1)
    launch.launch_confidence(spread(step=FAR - 1))
    assert handed[1][0].stride() == (1, FAR - 1)


def test_one_row_of_a_mask_for_all_is_not_copied(handed) -> None:
    mask = torch.empty(3, dtype=torch.bool, device="meta").expand(2, 3)
    launch.launch("kl", Target(1.0), launch.Rows(spread(step=2), spread(step=2), mask=mask), loss=True)
    assert handed[0][3].stride() == (0, 1)


def test_codes_that_stand_in_the_plan_and_in_the_kernels_are_equal() -> None:
    from polydistill.kernels.device import diagnostics, long_rows, targets

    pairs = [
        (plan.SOFT_PLAIN, targets.PLAIN),
        (plan.SOFT_PERMUTED, targets.PERMUTED),
        (plan.SOFT_REST, targets.REST),
        (plan.LABEL_GIVEN, targets.GIVEN),
        (plan.LABEL_BEST, targets.BEST),
        (plan.SUMS_KEPT, long_rows.KEPT),
        (plan.SUMS_GIVEN, long_rows.GIVEN),
        (plan.N_SUMS, long_rows.N_SUMS),
        (plan.N_DIAGNOSTICS, diagnostics.N_DIAGNOSTICS),
    ]
    assert [code for code, _ in pairs] == [code.value for _, code in pairs]


class Compiled:
    """Stands for a kernel and for what is compiled of it, as Triton has them on a GPU; writes down how it is run."""

    def __init__(self, real) -> None:
        self.names, self.first, self.later = real.arg_names, [], []

    def __getitem__(self, grid):
        return self._compile

    def _compile(self, *arguments, num_warps, **constants):
        self.first.append(dict(zip(self.names, arguments, strict=False)) | constants)
        return defaultdict(lambda: self._run)  # by grid

    def _run(self, *arguments):
        self.later.append(dict(zip(self.names, arguments, strict=True)))


@pytest.fixture
def compiled(monkeypatch) -> list[Compiled]:
    """The kernels that were loaded, one for each form of tensors."""
    load, kernels = prepared.load_kernel, []

    def stand_in(module, name):
        kernels.append(Compiled(load(module, name)))
        return kernels[-1]

    monkeypatch.setattr(prepared, "load_kernel", stand_in)
    return kernels


def make_rows(kind: str, *, seed: int = 0, n_rows: int = 2) -> launch.Rows:
    """All that a kernel of this kind may read."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn((2, n_rows, 5), generator=generator).unbind()
    return launch.Rows(
        student,
        torch.stack([teacher] * 3) if kind in {"kl", "jsd", "decoupled"} else teacher,
        torch.randint(5, (n_rows,), generator=generator),
        torch.zeros(n_rows, 5, dtype=torch.bool) if kind in {"kl", "best", "mse"} else None,
        torch.arange(4).expand(n_rows, 4) if kind == "permuted" else None,
        torch.rand(n_rows, generator=generator) if kind == "rest" else None,
    )


@pytest.mark.parametrize("kind", plan.KINDS)
def test_second_launch_hands_over_all_arguments_in_the_kernels_order(compiled, kind) -> None:
    """Triton binds those of the first by name; what it compiled takes them by place."""
    family = plan.KINDS[kind].numbers
    numbers = [float(place + 2) for place in range(len(family._fields))]
    for factor, seed in ((1.0, 0), (3.0, 1)):
        found = launch.launch(
            kind, family(*(factor * number for number in numbers)), make_rows(kind, seed=seed), loss=True,
            gradient=True, upstream=torch.full((2,), factor), diagnostics_temperature=1.0 / factor,
        )  # fmt: skip
    (kernel,) = compiled
    (first,), (later,) = kernel.first, kernel.later
    assert list(later) == kernel.names
    assert set(first) == set(kernel.names)
    after = kernel.names.index("diagnostics_scale") + 1
    assert tuple(kernel.names[after : after + len(numbers)]) == family._fields
    for name in kernel.names:
        if torch.is_tensor(first[name]):
            assert first[name].shape == later[name].shape
        elif name == "diagnostics_scale" or name in family._fields:
            assert later[name] == 3.0 * first[name]
        else:
            assert later[name] == first[name], name
    assert later["student_ptr"] is not first["student_ptr"]
    assert later["loss_ptr"] is found.loss
    assert later["gradient_ptr"] is found.gradient
    assert later["diagnostics_ptr"] is found.diagnostics


def test_confidence_is_prepared_too(compiled) -> None:
    for _ in range(2):
        launch.launch_confidence(torch.randn(3, 2, 5))
    (kernel,) = compiled
    assert kernel.first[0] | {"teacher_ptr": 0, "confidence_ptr": 0} == kernel.later[0] | {
        "teacher_ptr": 0,
        "confidence_ptr": 0,
    }


def test_what_triton_compiles_anew_is_prepared_anew(compiled) -> None:
    """Another number of rows, type, stride, alignment, members, a mask, a tempered student, or other results."""
    numbers = Target(1.0)
    scores = torch.randn(2, 8)
    plain = launch.Rows(scores, scores)
    offset = torch.randn(17)[1:].view(2, 8)
    assert offset.data_ptr() % 16
    forms = [
        plain,
        plain._replace(student=torch.randn(3, 8), teacher=torch.randn(3, 8)),
        plain._replace(student=scores.bfloat16()),
        plain._replace(student=torch.randn(8, 2).t()),
        plain._replace(student=offset),
        plain._replace(teacher=torch.randn(2, 2, 8)),
        plain._replace(teacher=torch.randn(3, 2, 8)),
        plain._replace(mask=torch.zeros(2, 8, dtype=torch.bool)),
        plain._replace(mask=torch.zeros(8, dtype=torch.bool).expand(2, 8)),
    ]
    for rows in forms * 2:
        launch.launch("soft", numbers, rows, loss=True)
    launch.launch("soft", numbers._replace(z_scale=0.5), plain, loss=True)
    launch.launch("soft", numbers, plain, gradient=True)
    launch.launch("soft", numbers, plain, loss=True, upstream=torch.ones(2))
    launch.launch("soft", numbers, plain, loss=True, diagnostics_temperature=1.0)
    assert [len(kernel.first) for kernel in compiled] == [1] * (len(forms) + 4)
    assert [len(kernel.later) for kernel in compiled] == [1] * len(forms) + [0] * 4


def test_integers_among_the_numbers_are_handed_over_as_floats(handed) -> None:
    """Triton would compile an integer 1 in, for good."""
    scores = torch.randn(2, 5)
    launch.launch("kl", Target(1, 0, 0, 1, 1), launch.Rows(scores, scores), loss=True)
    assert [type(number) for number in handed[0][-6:]] == [float] * 6


def test_no_more_is_prepared_than_memory_is_good_for(compiled, monkeypatch) -> None:
    monkeypatch.setattr(prepared, "MOST_PREPARED", 3)
    for n_rows in range(1, 9):
        launch.launch_confidence(torch.randn(n_rows, 5))
        assert len(prepared.PREPARED) <= 3


@pytest.mark.parametrize(("n_cols", "offset", "width"), [(32, 0, 4), (33, 0, 1), (32, 1, 1), (40, 0, 1)])
def test_long_rows_are_loaded_16_bytes_at_once_where_all_begin_so(compiled, monkeypatch, n_cols, offset, width) -> None:
    """40 classes of float32 do too, but of strides Triton looks at multiples of 16 places alone."""
    monkeypatch.setattr(plan, "LARGEST_TILE", 0)
    student = torch.zeros(2 * n_cols + 1)[offset : offset + 2 * n_cols].view(2, n_cols)
    launch.launch("kl", Target(1.0, t_scale=2.0), launch.Rows(student, torch.zeros(2, n_cols)), loss=True)
    (given,) = compiled[0].first
    assert given["WIDTH"] == width
    assert given["LANES"] * given["PIECES"] * given["WIDTH"] == 512 * 8 * 4
