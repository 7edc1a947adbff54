r"""What a kernel says of each row besides its loss, from scores that are still in the cache.

Symbols: q = softmax(z), p = softmax(t / T), * the label or the teacher's best class, P the sum of p without *.

    columns of the result: 1 where both have the same greatest score; max p; sum p ln(p / q);
    |p_* (q - e_*)|; |P q - p without *|

1 - p_* and 1 - q_* are sums of the others, so that no digits cancel.
"""

import triton
import triton.language as tl

from polydistill.kernels.device.rows import (
    LOWEST,
    at_least,
    exponentiate,
    find_best,
    find_kept,
    inverse,
    load_tile,
    log_sum,
)
from polydistill.kernels.device.streaming import add_tile


@triton.jit
def measure_softmax(
    scores_ptr,
    mask_ptr,
    rows,
    n_rows,
    n_cols,
    row_stride,
    col_stride,
    mask_row,
    mask_col,
    scale,
    HAS_MASK: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Maximum and sum of ``exp((score - maximum) * scale)`` of each row; scores of -inf do not count."""
    maximum = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for start in tl.range(0, n_cols, COLS, num_stages=2):
        cols = start + tl.arange(0, COLS)
        keep = find_kept(mask_ptr, rows, cols, n_rows, n_cols, mask_row, mask_col, HAS_MASK)
        scores = load_tile(scores_ptr, rows, cols, row_stride, col_stride, keep)
        maximum, total = add_tile(maximum, total, scores, keep & (scores != float("-inf")), scale)
    return maximum, total


@triton.jit
def diagnose(
    student_ptr,  # (rows, cols)
    teacher_ptr,  # (rows, cols)
    labels_ptr,  # (rows,) int64; not read unless HAS_LABELS
    mask_ptr,  # (rows, cols) bool; not read unless HAS_MASK
    out_ptr,  # (rows, 5) float32
    rows,
    n_rows,
    n_cols,
    student_row,
    student_col,
    teacher_row,
    teacher_col,
    labels_row,
    mask_row,
    mask_col,
    scale,  # 1 / T
    HAS_LABELS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    z_best = find_best(
        student_ptr, mask_ptr, rows, n_rows, n_cols, student_row, student_col, mask_row, mask_col, HAS_MASK, ROWS, COLS
    )
    t_best = find_best(
        teacher_ptr, mask_ptr, rows, n_rows, n_cols, teacher_row, teacher_col, mask_row, mask_col, HAS_MASK, ROWS, COLS
    )
    star = t_best.to(tl.int64)
    if HAS_LABELS:
        star = tl.load(labels_ptr + rows * labels_row, mask=rows < n_rows, other=0)
    z_max, z_sum = measure_softmax(
        student_ptr, mask_ptr, rows, n_rows, n_cols, student_row, student_col, mask_row, mask_col, 1.0,
        HAS_MASK, ROWS, COLS,
    )  # fmt: skip
    t_max, t_sum = measure_softmax(
        teacher_ptr, mask_ptr, rows, n_rows, n_cols, teacher_row, teacher_col, mask_row, mask_col, scale,
        HAS_MASK, ROWS, COLS,
    )  # fmt: skip

    kl = tl.zeros((ROWS,), tl.float32)
    p_star, p_others = kl, kl
    q_others, q_others_squared = kl, kl
    for start in tl.range(0, n_cols, COLS, num_stages=2):
        cols = start + tl.arange(0, COLS)
        keep = find_kept(mask_ptr, rows, cols, n_rows, n_cols, mask_row, mask_col, HAS_MASK)
        z = load_tile(student_ptr, rows, cols, student_row, student_col, keep)
        t = load_tile(teacher_ptr, rows, cols, teacher_row, teacher_col, keep)
        is_star = cols[None, :] == star[:, None]
        q = exponentiate(z, z_max, 1.0, keep) * inverse(z_sum)[:, None]
        p = exponentiate(t, t_max, scale, keep & (t != float("-inf"))) * inverse(t_sum)[:, None]
        log_q = z - z_max[:, None] - log_sum(z_sum)[:, None]
        log_p = at_least((t - t_max[:, None]) * scale - log_sum(t_sum)[:, None], LOWEST)
        kl += tl.sum(tl.where(p == 0, 0.0, p * (log_p - log_q)), axis=1)
        p_star += tl.sum(tl.where(is_star, p, 0.0), axis=1)
        p_others += tl.sum(tl.where(is_star, 0.0, p), axis=1)
        q_others += tl.sum(tl.where(is_star, 0.0, q), axis=1)
        q_others_squared += tl.sum(tl.where(is_star, 0.0, q * q), axis=1)
    dark = tl.zeros((ROWS,), tl.float32)
    for start in tl.range(0, n_cols, COLS, num_stages=2):
        cols = start + tl.arange(0, COLS)
        keep = find_kept(mask_ptr, rows, cols, n_rows, n_cols, mask_row, mask_col, HAS_MASK)
        z = load_tile(student_ptr, rows, cols, student_row, student_col, keep)
        t = load_tile(teacher_ptr, rows, cols, teacher_row, teacher_col, keep)
        q = exponentiate(z, z_max, 1.0, keep) * inverse(z_sum)[:, None]
        p = exponentiate(t, t_max, scale, keep & (t != float("-inf"))) * inverse(t_sum)[:, None]
        p = tl.where(cols[None, :] == star[:, None], 0.0, p)
        difference = p_others[:, None] * q - p
        dark += tl.sum(difference * difference, axis=1)

    out = out_ptr + rows * 5
    exists = rows < n_rows
    tl.store(out, (z_best == t_best).to(tl.float32), mask=exists)
    tl.store(out + 1, inverse(t_sum), mask=exists)
    tl.store(out + 2, kl, mask=exists)
    tl.store(out + 3, p_star * tl.sqrt(q_others_squared + q_others * q_others), mask=exists)
    tl.store(out + 4, tl.sqrt(dark), mask=exists)
