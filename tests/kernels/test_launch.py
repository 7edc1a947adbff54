"""What a launch hands to its kernel, read off without running one."""

from __future__ import annotations

import pytest
import torch

from polydistill.kernels import launch

FAR = 2**30  # two such steps need more than 32 bits


@pytest.fixture
def handed(monkeypatch) -> list[tuple]:
    """The arguments of each launch."""
    seen: list[tuple] = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments, **constants: seen.append(arguments)

    monkeypatch.setattr(launch, "load_kernel", lambda module, name: Kernel())
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
    launch.launch("permuted", (1.0, 0.0, 0.0, 1.0, 1.0), launch.Rows(**given), loss=True)
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
    launch.launch("kl", (1.0, 0.0, 0.0, 1.0, 1.0), launch.Rows(spread(step=2), spread(step=2), mask=mask), loss=True)
    assert handed[0][3].stride() == (0, 1)
