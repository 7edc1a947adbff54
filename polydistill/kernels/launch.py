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
STREAMED_TILE = 8192  # places of a tile where a row takes several
N_SUMS = 5  # of a long row, see device/long_rows.py
LONG_ROW_KERNEL = "long_row_kernel"
_SUMS_KEPT, _SUMS_GIVEN = 1, 2


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


class LongTile(NamedTuple):
    """Lanes, pieces and width of a tile of a long row, and the warps that work on it: a thread for each lane."""

    lanes: int
    pieces: int
    width: int
    warps: int


LONG_TILES: Mapping[int, LongTile] = MappingProxyType(
    {2: LongTile(512, 2, 8, 16), 4: LongTile(512, 8, 4, 16)}  # by the bytes of a score
)
LONG_KINDS = frozenset({"label", "soft", "soft_label", "kl", "kl_label"})


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
    """``loss (rows,)`` float32, ``gradient`` as the student, ``diagnostics (rows, 5)`` float32; None: not asked for.

    ``sums (rows, N_SUMS)`` float32; None where they were not asked for, or would be of no use.
    """

    loss: Tensor | None
    gradient: Tensor | None
    diagnostics: Tensor | None
    sums: Tensor | None = None


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
    keep_sums: bool = False,
    sums: Tensor | None = None,
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
        keep_sums: return the sums of long rows, which the launch for their gradient can use; without ``gradient``.
        sums: of a launch with the same numbers and rows; with ``gradient`` alone.

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
    options = Options(
        tempered=numbers[-1] != 1.0,
        smoothed=len(numbers) > 2 and numbers[2] != 0.0,
        loss=loss,
        gradient=gradient,
        diagnose=diagnose,
        keep_sums=keep_sums,
        sums_given=sums is not None,
    )
    key = (kind, options, *map(form, given), student.device.index)
    prepared = PREPARED.get(key)
    if prepared is None:
        prepared = _prepare(kind, given, options)
        remember(key, prepared)
    last = results.diagnostics
    if keep_sums and prepared.name == LONG_ROW_KERNEL:
        last = torch.empty((n_rows, N_SUMS), dtype=torch.float32, device=student.device)
        results = results._replace(sums=last)
    # what is not there is not read, nor written: the student stands for it
    all_tensors = (*given, results.loss, results.gradient, last if sums is None else sums)
    tensors = tuple(student if tensor is None else tensor for tensor in all_tensors)
    with _on_device(student):
        # never an integer, of which Triton would compile a 1 in
        prepared(tensors, (1.0 / (diagnostics_temperature or 1.0), *map(float, numbers)))
    return results


class Options(NamedTuple):
    """What is compiled in of a launch, besides the form of its tensors."""

    tempered: bool
    smoothed: bool
    loss: bool
    gradient: bool
    diagnose: bool
    keep_sums: bool
    sums_given: bool


def _prepare(kind: str, given: tuple[Tensor | None, ...], options: Options) -> Prepared:
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
        constants["TEMPERED"] = options.tempered
    if _is_long(kind, student, teacher, mask, tiles, options):
        tile = LONG_TILES[student.element_size()]
        constants |= {
            "SMOOTHED": options.smoothed and constants["LABEL"] != 0,
            "HAS_VALUES": values is not None,
            "HAS_UPSTREAM": upstream is not None,
            "LOSS": options.loss,
            "GRADIENT": options.gradient,
            "SUMS": _SUMS_GIVEN if options.sums_given else _SUMS_KEPT if options.keep_sums else 0,
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
        "GRADIENT": options.gradient,
        "DIAGNOSTICS": options.diagnose,
        "WHOLE": tiles.whole,
        "ROWS": tiles.rows,
        "COLS": tiles.cols,
    }
    return Prepared(chosen.module, chosen.kernel, -(-n_rows // tiles.rows), integers, constants, tiles.warps)


def _is_long(
    kind: str, student: Tensor, teacher: Tensor | None, mask: Tensor | None, tiles: Tiles, options: Options
) -> bool:
    """Whether the kernel for long rows computes it."""
    if tiles.whole or kind not in LONG_KINDS or mask is not None or options.diagnose:
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
