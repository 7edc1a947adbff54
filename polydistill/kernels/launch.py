"""The launch of a kernel.

The contract: tensors of rows in, ``(rows, classes)`` with any strides, new tensors out; no wait for the device.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polydistill.kernels import plan
from polydistill.kernels.numbers import Numbers, Target
from polydistill.kernels.plan import KINDS, LONG_ROW_KERNEL, N_DIAGNOSTICS, N_SUMS, SUMS_GIVEN, SUMS_KEPT
from polydistill.kernels.prepared import PREPARED, Prepared, form, remember

ALIGNED = 16  # bytes of an address, and elements of a stride: Triton compiles other code for multiples


class Rows(NamedTuple):
    """The tensors of a kernel: ``(rows, classes)``; labels and values ``(rows,)``, a permutation one class less.

    The teacher may be ``(members, rows, classes)``.
    """

    student: Tensor
    teacher: Tensor | None = None
    labels: Tensor | None = None
    mask: Tensor | None = None
    permutation: Tensor | None = None
    values: Tensor | None = None


class Results(NamedTuple):
    """The results that were wanted; None for the others.

    Attributes:
        loss: ``(rows,)`` float32.
        gradient: of the student's shape.
        diagnostics: ``(rows, 5)`` float32.
        sums: ``(rows, N_SUMS)`` float32; None also for a kernel that keeps none.
    """

    loss: Tensor | None
    gradient: Tensor | None
    diagnostics: Tensor | None
    sums: Tensor | None = None


def launch(
    kind: str,
    numbers: Numbers,
    rows: Rows,
    *,
    loss: bool = False,
    gradient: bool = False,
    gradient_type: torch.dtype | None = None,
    upstream: Tensor | None = None,
    diagnostics_temperature: float | None = None,
    keep_sums: bool = False,
    sums: Tensor | None = None,
) -> Results:
    """Run one kernel.

    Args:
        kind: name in :data:`KINDS`.
        numbers: its own arguments, of the type that :data:`KINDS` names.
        rows: the tensors that it reads.
        loss: return the loss of each row.
        gradient: return its gradient with respect to the student's scores, times ``upstream``.
        gradient_type: of the gradient; None: the student's.
        upstream: ``(rows,)`` float32; None: 1.
        diagnostics_temperature: return diagnostics with the teacher at this temperature.
        keep_sums: return the sums of long rows, which the launch for their gradient can use; without ``gradient``.
        sums: of a launch with the same numbers and rows; with ``gradient`` alone.

    Raises:
        RuntimeError: the scores are on the CPU and Triton was imported without its interpreter.
    """
    student = rows.student
    n_rows, n_cols = student.shape
    diagnose = diagnostics_temperature is not None
    gradient_type = gradient_type or student.dtype
    results = Results(
        torch.empty(n_rows, dtype=torch.float32, device=student.device) if loss else None,
        torch.empty((n_rows, n_cols), dtype=gradient_type, device=student.device) if gradient else None,
        torch.empty((n_rows, N_DIAGNOSTICS), dtype=torch.float32, device=student.device) if diagnose else None,
    )
    if n_rows == 0:
        return results
    tempered = isinstance(numbers, Target) and numbers.z_scale != 1.0
    smoothed = isinstance(numbers, Target) and numbers.smoothing != 0.0
    computed = gradient_type if gradient else None
    options = Options(tempered, smoothed, loss, computed, diagnose, keep_sums, sums is not None)
    prepared, rows = _look_up(kind, options, rows, upstream)
    student = rows.student
    last = results.diagnostics
    if keep_sums and prepared.name == LONG_ROW_KERNEL:
        last = torch.empty((n_rows, N_SUMS), dtype=torch.float32, device=student.device)
        results = results._replace(sums=last)
    # a missing tensor is neither read nor written: the student is passed in its place
    all_tensors = (*rows, upstream, results.loss, results.gradient, last if sums is None else sums)
    tensors = [student if tensor is None else tensor for tensor in all_tensors]
    with _on_device(student):
        # never an integer: Triton would compile a 1 in as a constant
        prepared(tensors, (1.0 / (diagnostics_temperature or 1.0), *map(float, numbers)))
    return results


class Options(NamedTuple):
    """What a compiled launch depends on, besides the form of its tensors."""

    tempered: bool
    smoothed: bool
    loss: bool
    gradient: torch.dtype | None
    diagnose: bool
    keep_sums: bool
    sums_given: bool


def _look_up(kind: str, options: Options, rows: Rows, upstream: Tensor | None) -> tuple[Prepared, Rows]:
    """The launch for these tensors, and the tensors: copies, where strides need more than 32 bits."""
    key = (kind, options, *map(form, rows), form(upstream), rows.student.device.index)
    prepared = PREPARED.get(key)
    if prepared is None:
        near = Rows._make(None if tensor is None else _within_32_bits(tensor) for tensor in rows)
        if any(copy is not tensor for copy, tensor in zip(near, rows, strict=True)):
            return _look_up(kind, options, near, upstream)
        prepared = _prepare(kind, options, rows, upstream)
        remember(key, prepared)
    return prepared, rows


def _prepare(kind: str, options: Options, rows: Rows, upstream: Tensor | None) -> Prepared:
    chosen = KINDS[kind]
    student, teacher, labels, mask, permutation, values = rows
    n_rows, n_cols = student.shape
    tiles = plan.plan_tiles(n_rows, n_cols)
    columns, matrices = (labels, values, upstream), (mask, permutation)
    of_labels, of_values, of_upstream = (1 if column is None else column.stride(0) for column in columns)
    of_mask, of_permutation = (student.stride() if matrix is None else matrix.stride() for matrix in matrices)
    integers = (
        *(n_rows, n_cols, *student.stride(), *_strides_of(student if teacher is None else teacher), of_labels),
        *(*of_mask, *of_permutation, of_values, of_upstream),
    )
    constants = dict(chosen.constants)
    if "SOFT" in constants:
        constants["TEMPERED"] = options.tempered
    if _is_long(kind, student, teacher, mask, tiles, options):
        one_pass = options.loss and options.gradient is not None
        tile = plan.plan_long_tile(
            student.element_size(),
            one_pass=one_pass,
            labels=constants["LABEL"] != 0,
            aligned=n_cols % ALIGNED == 0 and all(map(_begins_aligned, (student, teacher))),
        )
        constants |= {
            "SMOOTHED": options.smoothed and constants["LABEL"] != 0,
            "HAS_VALUES": values is not None,
            "HAS_UPSTREAM": upstream is not None,
            "LOSS": options.loss,
            "GRADIENT": options.gradient is not None,
            "SUMS": SUMS_GIVEN if options.sums_given else SUMS_KEPT if options.keep_sums else 0,
            "LANES": tile.lanes,
            "PIECES": tile.pieces,
            "WIDTH": tile.width,
        }
        return Prepared("long_rows", LONG_ROW_KERNEL, n_rows, integers, constants, tile.warps)
    constants |= {
        "MEMBERS": 1 if teacher is None else _count_members(teacher),
        "HAS_LABELS": labels is not None,
        "HAS_MASK": mask is not None,
        "HAS_VALUES": values is not None,
        "HAS_UPSTREAM": upstream is not None,
        "LOSS": options.loss,
        "GRADIENT": options.gradient is not None,
        "DIAGNOSTICS": options.diagnose,
        "WHOLE": tiles.whole,
        "ROWS": tiles.rows,
        "COLS": tiles.cols,
    }
    return Prepared(chosen.module, chosen.kernel, -(-n_rows // tiles.rows), integers, constants, tiles.warps)


def _begins_aligned(side: Tensor | None) -> bool:
    """Whether Triton knows that the first 16 bytes of each row can be loaded at once."""
    return side is None or (side.data_ptr() % ALIGNED == 0 and side.stride(0) % ALIGNED == 0)


def _is_long(
    kind: str, student: Tensor, teacher: Tensor | None, mask: Tensor | None, tiles: plan.Tiles, options: Options
) -> bool:
    """Whether the kernel for long rows computes this loss."""
    if tiles.whole or kind not in plan.LONG_KINDS or mask is not None or options.diagnose:
        return False
    sides = (student,) if teacher is None else (student, teacher)
    return all(side.dim() == 2 and side.stride(1) == 1 for side in sides)


def launch_confidence(teacher: Tensor) -> Tensor:
    """``max p`` of each row, ``(rows,)`` float32, of ``(rows, classes)`` or ``(members, rows, classes)`` scores."""
    teacher = _within_32_bits(teacher)
    n_rows, n_cols = teacher.shape[-2:]
    result = torch.empty(n_rows, dtype=torch.float32, device=teacher.device)
    if n_rows:
        key = ("confidence", form(teacher), teacher.device.index)
        prepared = PREPARED.get(key)
        if prepared is None:
            tiles = plan.plan_tiles(n_rows, n_cols)
            integers = (n_rows, n_cols, *_strides_of(teacher))
            constants = {"MEMBERS": _count_members(teacher), "ROWS": tiles.rows, "COLS": tiles.cols}
            programs = -(-n_rows // tiles.rows)
            prepared = Prepared("confidence", "confidence_kernel", programs, integers, constants, tiles.warps)
            remember(key, prepared)
        with _on_device(teacher):
            prepared((teacher, result), ())
    return result


def _count_members(teacher: Tensor) -> int:
    return len(teacher) if teacher.dim() == 3 else 1


def _strides_of(teacher: Tensor) -> tuple[int, ...]:
    """From one member to the next, one row to the next, one class to the next."""
    return teacher.stride() if teacher.dim() == 3 else (0, *teacher.stride())


def _within_32_bits(tensor: Tensor) -> Tensor:
    """The tensor; copied where classes of a row are so far apart in memory that the distance needs more than
    32 bits.

    Row indices are 64 bits wide in the kernels, so one-dimensional tensors need no copy.
    """
    if tensor.dim() == 1 or (tensor.shape[-1] - 1) * tensor.stride(-1) < 2**31:
        return tensor
    return tensor.contiguous()


_HERE = contextlib.nullcontext()


def _on_device(scores: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be that of the scores."""
    if not scores.is_cuda or scores.device.index == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(scores.device)
