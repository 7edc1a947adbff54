"""Which kernel computes what, in tiles of which size; and its launch.

The contract: tensors of rows in, ``(rows, classes)`` with any strides, new tensors out; no wait for the device. Tile
sizes follow from the shape alone, so that no launch is slowed by tuning.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polydistill.kernels.prepared import PREPARED, Prepared, form, remember

N_DIAGNOSTICS = 5
TILE = 2048  # places of a tile of several short rows
LARGEST_TILE = 8192  # classes of a row that is held in registers, which overflow from the next power of 2 on
STREAMED_TILE = 8192  # places of a tile where a row takes several; not tuned on a GPU yet


class Kind(NamedTuple):
    """A kernel and what is fixed of it at compile time; ``numbers`` names its own arguments, in order."""

    module: str
    kernel: str
    numbers: tuple[str, ...]
    constants: Mapping[str, int]


_PLAIN, _PERMUTED, _REST = 1, 2, 3
_GIVEN, _BEST = 1, 2
TARGET_NUMBERS = ("teacher_weight", "label_weight", "smoothing", "t_scale", "z_scale")
STANDARDIZED_NUMBERS = ("temperature", "label_weight", "teacher_weight")


def _target(soft: int = 0, label: int = 0, kl: int = 0) -> Kind:
    return Kind("targets", "target_kernel", TARGET_NUMBERS, MappingProxyType({"SOFT": soft, "LABEL": label, "KL": kl}))


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "label": _target(label=_GIVEN),
        "best": _target(label=_BEST),
        "soft": _target(_PLAIN),
        "soft_label": _target(_PLAIN, _GIVEN),
        "kl": _target(_PLAIN, kl=1),
        "kl_label": _target(_PLAIN, _GIVEN, kl=1),
        "permuted": _target(_PERMUTED, _BEST),
        "rest": _target(_REST, _BEST),
        "reverse_kl": Kind("divergences", "divergence_kernel", ("t_scale", "beta"), {"JSD": 0}),
        "jsd": Kind("divergences", "divergence_kernel", ("t_scale", "beta"), {"JSD": 1}),
        "mse": Kind("regressions", "regression_kernel", ("delta",), {"HUBER": 0}),
        "huber": Kind("regressions", "regression_kernel", ("delta",), {"HUBER": 1}),
        "decoupled": Kind("decoupled", "decoupled_kernel", ("temperature", "label_weight", "alpha", "beta"), {}),
        "standardized": Kind("standardized", "standardized_kernel", STANDARDIZED_NUMBERS, {"LABEL": 0}),
        "standardized_label": Kind("standardized", "standardized_kernel", STANDARDIZED_NUMBERS, {"LABEL": 1}),
    }
)


class Rows(NamedTuple):
    """What a kernel reads: ``(rows, classes)``; labels and values ``(rows,)``, a permutation one class less.

    The teacher may be ``(members, rows, classes)``.
    """

    student: Tensor
    teacher: Tensor | None = None
    labels: Tensor | None = None
    mask: Tensor | None = None
    permutation: Tensor | None = None
    values: Tensor | None = None


class Results(NamedTuple):
    """``loss (rows,)`` float32, ``gradient`` as the student, ``diagnostics (rows, 5)`` float32; None: not asked for."""

    loss: Tensor | None
    gradient: Tensor | None
    diagnostics: Tensor | None


class Tiles(NamedTuple):
    """Rows and places of a tile, whether one holds the row, and the warps that work on it."""

    rows: int
    cols: int
    whole: bool
    warps: int


def plan_tiles(n_rows: int, n_cols: int) -> Tiles:
    """Tiles for a shape: several short rows share one, enough of them to keep a GPU busy; a long row takes several."""
    cols = 1 << max(n_cols - 1, 0).bit_length()
    if cols > LARGEST_TILE:
        return Tiles(1, STREAMED_TILE, False, 8)
    busy = 1 << max(-(-n_rows // 128) - 1, 0).bit_length()  # about 128 programs, one for each multiprocessor
    rows = max(1, min(TILE // cols, busy))
    return Tiles(rows, cols, True, min(max(rows * cols // 256, 4), 32))


def launch(
    kind: str,
    numbers: tuple[float, ...],
    rows: Rows,
    *,
    loss: bool = False,
    gradient: bool = False,
    upstream: Tensor | None = None,
    diagnostics_temperature: float | None = None,
) -> Results:
    """Run one kernel.

    Args:
        kind: name in :data:`KINDS`.
        numbers: its arguments, as :data:`KINDS` names them.
        rows: what it reads.
        loss: return the loss of each row.
        gradient: return its gradient with respect to the student's scores, times ``upstream``.
        upstream: ``(rows,)`` float32; None: 1.
        diagnostics_temperature: return diagnostics with the teacher at this temperature.

    Raises:
        RuntimeError: the scores are on the CPU and Triton was imported without its interpreter.
    """
    student = rows.student
    n_rows, n_cols = student.shape
    diagnose = diagnostics_temperature is not None
    results = Results(
        torch.empty(n_rows, dtype=torch.float32, device=student.device) if loss else None,
        torch.empty((n_rows, n_cols), dtype=student.dtype, device=student.device) if gradient else None,
        torch.empty((n_rows, N_DIAGNOSTICS), dtype=torch.float32, device=student.device) if diagnose else None,
    )
    if n_rows == 0:
        return results
    student = _within_32_bits(student)
    others = (None if tensor is None else _within_32_bits(tensor) for tensor in rows[1:])
    given = (student, *others, upstream)
    tempered = numbers[-1] != 1.0
    key = (kind, tempered, loss, gradient, diagnose, *map(form, given), student.device.index)
    prepared = PREPARED.get(key)
    if prepared is None:
        prepared = _prepare(kind, given, tempered, loss=loss, gradient=gradient, diagnose=diagnose)
        remember(key, prepared)
    # what is not there is not read, nor written: the student stands for it
    tensors = tuple(student if tensor is None else tensor for tensor in (*given, *results))
    with _on_device(student):
        # never an integer, of which Triton would compile a 1 in
        prepared(tensors, (1.0 / (diagnostics_temperature or 1.0), *map(float, numbers)))
    return results


def _prepare(
    kind: str,
    given: tuple[Tensor | None, ...],
    tempered: bool,
    *,
    loss: bool,
    gradient: bool,
    diagnose: bool,
) -> Prepared:
    """For the tensors that :func:`launch` passes on."""
    chosen = KINDS[kind]
    student, teacher, labels, mask, permutation, values, upstream = given
    assert student is not None
    n_rows, n_cols = student.shape
    tiles = plan_tiles(n_rows, n_cols)
    columns, matrices = (labels, values, upstream), (mask, permutation)
    of_labels, of_values, of_upstream = (1 if column is None else column.stride(0) for column in columns)
    of_mask, of_permutation = (student.stride() if matrix is None else matrix.stride() for matrix in matrices)
    integers = (
        *(n_rows, n_cols, *student.stride(), *_strides_of(student if teacher is None else teacher), of_labels),
        *(*of_mask, *of_permutation, of_values, of_upstream),
    )
    constants = dict(chosen.constants)
    if "SOFT" in constants:
        constants["TEMPERED"] = tempered
    constants |= {
        "MEMBERS": 1 if teacher is None else _count_members(teacher),
        "HAS_LABELS": labels is not None,
        "HAS_MASK": mask is not None,
        "HAS_VALUES": values is not None,
        "HAS_UPSTREAM": upstream is not None,
        "LOSS": loss,
        "GRADIENT": gradient,
        "DIAGNOSTICS": diagnose,
        "WHOLE": tiles.whole,
        "ROWS": tiles.rows,
        "COLS": tiles.cols,
    }
    return Prepared(chosen.module, chosen.kernel, -(-n_rows // tiles.rows), integers, constants, tiles.warps)


def launch_confidence(teacher: Tensor) -> Tensor:
    """``max p`` of each row, ``(rows,)`` float32, of ``(rows, classes)`` or ``(members, rows, classes)`` scores."""
    teacher = _within_32_bits(teacher)
    n_rows, n_cols = teacher.shape[-2:]
    result = torch.empty(n_rows, dtype=torch.float32, device=teacher.device)
    if n_rows:
        key = ("confidence", form(teacher), teacher.device.index)
        prepared = PREPARED.get(key)
        if prepared is None:
            tiles = plan_tiles(n_rows, n_cols)
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
    """The tensor; copied where places in a row are so far apart that their distance needs more than 32 bits.

    Numbers of rows, which only labels and values have in their last dimension, are 64 bits wide in the kernels.
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
