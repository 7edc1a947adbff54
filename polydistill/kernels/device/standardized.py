r"""Knowledge distillation on standardised scores.

Symbols: z student scores, t teacher scores, y label, T temperature, w and a weights, n classes; c = z - mean z,
s = |c| / sqrt(n - 1), Z = c / (s + 1e-7) and the same for t; q = softmax(Z(z) / T), p = softmax(Z(t) / T).

    loss = -w ln softmax(z)_y + a T^2 sum p ln(p / q)
    g = a T (q - p)
    d loss / d z_i = w (softmax(z)_i - [i = y]) + (g_i - mean g) / (s + 1e-7) - c_i sum(g c) / ((s + 1e-7)^2 (n - 1) s)

A class that the teacher excludes (-inf) has no part in its mean and deviation. One tile holds the row.
"""

import triton
import triton.language as tl

from polydistill.kernels.device.diagnostics import diagnose
from polydistill.kernels.device.rows import (
    divide,
    exponentiate,
    find_kept,
    find_maximum,
    load_of_label,
    load_rows,
    load_tile,
    log_sum,
    store_gradient,
)

EPSILON = tl.constexpr(1e-7)  # the paper's, added to the standard deviation


@triton.jit
def standardize(scores, keep):
    """``(c, s, count - 1)``: centred scores, 0 where they do not count, and their unbiased deviation."""
    count = tl.sum(keep.to(tl.float32), axis=1)
    mean = tl.sum(tl.where(keep, scores, 0.0), axis=1) / tl.maximum(count, 1.0)
    centred = tl.where(keep, scores - mean[:, None], 0.0)
    freedom = tl.maximum(count - 1.0, 1.0)
    largest = tl.max(tl.abs(centred), axis=1)  # squares of scores of 1e30 would overflow
    unit = divide(centred, largest[:, None])
    return centred, largest * tl.sqrt(tl.sum(unit * unit, axis=1) / freedom), freedom


@triton.jit(do_not_specialize=["n_rows"])
def standardized_kernel(
    student_ptr,  # (rows, cols) in, float32, bfloat16 or float16
    teacher_ptr,  # (rows, cols) in, the same
    labels_ptr,  # (rows,) in, int64
    mask_ptr,  # not read
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
    temperature,
    label_weight,
    teacher_weight,
    LABEL: tl.constexpr,
    HAS_LABELS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_VALUES: tl.constexpr,
    HAS_UPSTREAM: tl.constexpr,
    LOSS: tl.constexpr,
    GRADIENT: tl.constexpr,
    DIAGNOSTICS: tl.constexpr,
    WHOLE: tl.constexpr,  # always: one tile holds the row
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_exists = rows < n_rows
    upstream = load_rows(upstream_ptr, rows, n_rows, upstream_row, HAS_UPSTREAM)
    cols = tl.arange(0, COLS)
    keep = find_kept(mask_ptr, rows, cols, n_rows, n_cols, mask_row, mask_col, False)
    z = load_tile(student_ptr, rows, cols, student_row, student_col, keep)
    t = load_tile(teacher_ptr, rows, cols, teacher_row, teacher_col, keep)
    t_keep = keep & (t != float("-inf"))
    z_centred, z_deviation, freedom = standardize(z, keep)
    t_centred, t_deviation, _ = standardize(t, t_keep)
    z_scaled = z_centred / (z_deviation + EPSILON)[:, None]
    t_scaled = t_centred / (t_deviation + EPSILON)[:, None]
    scale = 1.0 / temperature
    z_max, t_max = find_maximum(z_scaled, keep), find_maximum(t_scaled, t_keep)
    q, p = exponentiate(z_scaled, z_max, scale, keep), exponentiate(t_scaled, t_max, scale, t_keep)
    z_sum, t_sum = tl.sum(q, axis=1), tl.sum(p, axis=1)
    q, p = divide(q, z_sum[:, None]), divide(p, t_sum[:, None])
    plain_max = find_maximum(z, keep)
    plain = exponentiate(z, plain_max, 1.0, keep)
    plain_sum = tl.sum(plain, axis=1)
    label = tl.zeros((ROWS,), tl.int64)
    if LABEL:
        label = tl.load(labels_ptr + rows * labels_row, mask=row_exists, other=0)
    if LOSS:
        log_p = tl.where(t_keep, (t_scaled - t_max[:, None]) * scale - log_sum(t_sum)[:, None], 0.0)
        log_q = (z_scaled - z_max[:, None]) * scale - log_sum(z_sum)[:, None]
        loss = tl.sum(tl.where(p == 0, 0.0, p * (log_p - log_q)), axis=1) * (teacher_weight * temperature * temperature)
        if LABEL:
            z_label = load_of_label(student_ptr, rows, label, n_rows, n_cols, student_row, student_col)
            loss -= label_weight * (z_label - plain_max - log_sum(plain_sum))
        tl.store(loss_ptr + rows, loss, mask=row_exists)
    if GRADIENT:
        g = tl.where((t_sum == 0)[:, None], 0.0, teacher_weight * temperature * (q - p))
        width = z_deviation + EPSILON
        slope = divide(tl.sum(g * z_centred, axis=1), width * width * freedom * z_deviation)
        gradient = (g - (tl.sum(g, axis=1) / n_cols)[:, None]) / width[:, None] - z_centred * slope[:, None]
        if LABEL:
            target = tl.where(cols[None, :] == label[:, None], 1.0, 0.0)
            gradient += label_weight * (divide(plain, plain_sum[:, None]) - target)
        store_gradient(gradient_ptr, upstream[:, None] * gradient, rows, cols, n_rows, n_cols)
    if DIAGNOSTICS:
        diagnose(
            student_ptr, teacher_ptr, labels_ptr, mask_ptr, diagnostics_ptr, rows, n_rows, n_cols, student_row,
            student_col, teacher_row, teacher_col, labels_row, mask_row, mask_col, diagnostics_scale,
            HAS_LABELS, HAS_MASK, ROWS, COLS,
        )  # fmt: skip
