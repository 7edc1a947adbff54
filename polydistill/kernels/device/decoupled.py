r"""Decoupled knowledge distillation: target and non-target knowledge, each with a weight of its own.

Symbols: z student scores, t teacher scores, y label, T temperature, w label weight, alpha, beta; q = softmax(z).
With T: q_y and q_r = 1 - q_y the binary split of softmax(z / T), q^ the softmax of z / T over the classes other than y;
p_y, p_r, p^ the teacher's.

    loss = -w ln q_y(T=1) + T^2 (alpha (p_y ln(p_y / q_y) + p_r ln(p_r / q_r)) + beta sum p^ ln(p^ / q^))
    d loss / d z_y = w (q_y(T=1) - 1) + alpha T (q_y - p_y)
    d loss / d z_i = w q_i(T=1) - alpha T (q_y - p_y) q^_i + beta T (q^_i - p^_i)

With the margin of y over the logsumexp of the others, the split is (sigmoid(margin), sigmoid(-margin)): nothing is
subtracted from 1. One tile holds the row.
"""

import triton
import triton.language as tl

from polydistill.kernels.device.diagnostics import diagnose
from polydistill.kernels.device.rows import (
    LOWEST,
    at_least,
    at_most,
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


@triton.jit
def log_sigmoid(x):
    """ln(1 / (1 + exp(-x))), at least LOWEST."""
    size = at_most(tl.abs(x), 100.0)
    return at_least(at_most(x, 0.0) - tl.log(1.0 + tl.exp(-size)), LOWEST)


@triton.jit
def split(scores, of_label, keep, others, scale):
    """``(margin, maximum, sum of exponentials)``, both of the latter over the other classes."""
    maximum = find_maximum(scores, others)
    total = tl.sum(exponentiate(scores, maximum, scale, others), axis=1)
    margin = (of_label - maximum) * scale - log_sum(total)
    return tl.where(total == 0, -LOWEST, margin), maximum, total


@triton.jit(do_not_specialize=["n_rows"])
def decoupled_kernel(
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
    alpha,
    beta,
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
    label = tl.load(labels_ptr + rows * labels_row, mask=row_exists, other=0)
    z_label = load_of_label(student_ptr, rows, label, n_rows, n_cols, student_row, student_col)
    t_label = load_of_label(teacher_ptr, rows, label, n_rows, n_cols, teacher_row, teacher_col)
    is_label = cols[None, :] == label[:, None]
    others = keep & ~is_label
    t_others = others & (t != float("-inf"))
    scale = 1.0 / temperature

    z_margin, z_max, z_sum = split(z, z_label, keep, others, scale)
    t_margin, t_max, t_sum = split(t, t_label, keep, t_others, scale)
    log_p_label, log_p_rest = log_sigmoid(t_margin), log_sigmoid(-t_margin)
    log_q_label, log_q_rest = log_sigmoid(z_margin), log_sigmoid(-z_margin)
    p_label, p_rest = tl.exp(log_p_label), tl.exp(log_p_rest)
    q_label, q_rest = tl.exp(log_q_label), tl.exp(log_q_rest)
    target_term = tl.where(p_label == 0, 0.0, p_label * (log_p_label - log_q_label))
    target_term += tl.where(p_rest == 0, 0.0, p_rest * (log_p_rest - log_q_rest))
    p = divide(exponentiate(t, t_max, scale, t_others), t_sum[:, None])
    q = divide(exponentiate(z, z_max, scale, others), z_sum[:, None])
    log_p = tl.where(t_others, (t - t_max[:, None]) * scale - log_sum(t_sum)[:, None], 0.0)
    log_q = (z - z_max[:, None]) * scale - log_sum(z_sum)[:, None]
    other_term = tl.sum(tl.where(p == 0, 0.0, p * (log_p - log_q)), axis=1)
    plain_max = find_maximum(z, keep)
    plain_sum = tl.sum(exponentiate(z, plain_max, 1.0, keep), axis=1)
    if LOSS:
        loss = temperature * temperature * (alpha * target_term + beta * other_term)
        loss -= label_weight * (z_label - plain_max - log_sum(plain_sum))
        tl.store(loss_ptr + rows, loss, mask=row_exists)
    if GRADIENT:
        # of two numbers close to 1, the difference of what is left
        off = tl.where(p_label > 0.5, p_rest - q_rest, q_label - p_label)[:, None]
        known_others = tl.where(t_sum == 0, 0.0, beta)[:, None]
        soft = tl.where(is_label, alpha * off, known_others * (q - p) - alpha * off * q)
        plain = divide(exponentiate(z, plain_max, 1.0, keep), plain_sum[:, None])
        gradient = temperature * soft + label_weight * (plain - tl.where(is_label, 1.0, 0.0))
        store_gradient(gradient_ptr, upstream[:, None] * gradient, rows, cols, n_rows, n_cols)
    if DIAGNOSTICS:
        diagnose(
            student_ptr, teacher_ptr, labels_ptr, mask_ptr, diagnostics_ptr, rows, n_rows, n_cols, student_row,
            student_col, teacher_row, teacher_col, labels_row, mask_row, mask_col, diagnostics_scale,
            HAS_LABELS, HAS_MASK, ROWS, COLS,
        )  # fmt: skip
