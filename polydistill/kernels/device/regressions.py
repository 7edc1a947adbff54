r"""Regressions on the teacher's scores, summed over classes: squared distance and Huber's loss.

Symbols: z student scores, t teacher scores, d = z - t, delta where Huber's loss becomes linear.

    squared: loss = sum d^2;                                          d loss / d z = 2 d
    Huber:   loss = sum (d^2 / 2 or delta (|d| - delta / 2));          d loss / d z = d held in [-delta, delta]

A class that the teacher excludes (-inf), or that the mask takes out, adds nothing.
"""

import triton
import triton.language as tl

from polydistill.kernels.device.diagnostics import diagnose
from polydistill.kernels.device.rows import at_least, at_most, find_kept, load_rows, store_gradient
from polydistill.kernels.device.sides import load_scores


@triton.jit(do_not_specialize=["n_rows"])
def regression_kernel(
    student_ptr,  # (rows, cols) in, float32, bfloat16 or float16
    teacher_ptr,  # (rows, cols) in, the same
    labels_ptr,  # (rows,) in, int64, for the diagnostics
    mask_ptr,  # (rows, cols) in, bool: True takes the class out
    permutation_ptr,  # not read
    values_ptr,  # not read
    upstream_ptr,  # (rows,) in, float32: what the gradient is multiplied by
    loss_ptr,  # (rows,) out, float32
    gradient_ptr,  # (rows, cols) out, any float: upstream[r] * d loss[r] / d student[r, c]
    diagnostics_ptr,  # (rows, 5) out, float32
    n_rows,
    n_cols,
    student_row,
    student_col,
    teacher_member,
    teacher_row,
    teacher_col,
    labels_row,
    mask_row,
    mask_col,
    permutation_row,
    permutation_col,
    values_row,
    upstream_row,
    diagnostics_scale,
    delta,
    HUBER: tl.constexpr,
    MEMBERS: tl.constexpr,  # always 1
    HAS_LABELS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_VALUES: tl.constexpr,
    HAS_UPSTREAM: tl.constexpr,
    LOSS: tl.constexpr,
    GRADIENT: tl.constexpr,
    DIAGNOSTICS: tl.constexpr,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    student, mask = (student_ptr, student_row, student_col), (mask_ptr, mask_row, mask_col)
    all_members = (teacher_ptr, teacher_row, teacher_col, teacher_member)
    teacher = (teacher_ptr, teacher_row, teacher_col)
    upstream = load_rows(upstream_ptr, rows, n_rows, upstream_row, HAS_UPSTREAM)
    loss = tl.zeros((ROWS,), tl.float32)
    for start in tl.range(0, n_cols, COLS, num_stages=2):
        cols = start + tl.arange(0, COLS)
        keep = find_kept(mask, rows, cols, n_rows, n_cols, HAS_MASK)
        z = load_scores(student, rows, cols, keep, 1)
        t = load_scores(teacher, rows, cols, keep, 1)
        d = tl.where(keep & (t != float("-inf")), z - t, 0.0)
        if HUBER:
            size = tl.abs(d)
            loss += tl.sum(tl.where(size <= delta, 0.5 * d * d, delta * (size - 0.5 * delta)), axis=1)
            gradient = at_most(at_least(d, -delta), delta)
        else:
            loss += tl.sum(d * d, axis=1)
            gradient = 2.0 * d
        if GRADIENT:
            store_gradient(gradient_ptr, upstream[:, None] * gradient, rows, cols, n_rows, n_cols)
    if LOSS:
        tl.store(loss_ptr + rows, loss, mask=rows < n_rows)
    if DIAGNOSTICS:
        diagnose(
            student, all_members, labels_ptr, labels_row, mask, diagnostics_ptr, rows, n_rows, n_cols,
            diagnostics_scale, 1.0, HAS_LABELS, HAS_MASK, MEMBERS, ROWS, COLS,
        )  # fmt: skip
