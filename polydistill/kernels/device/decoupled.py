r"""Decoupled knowledge distillation: target and non-target knowledge, each with its own weight.

Symbols: z student scores, t teacher scores, y label, T temperature, w label weight, alpha, beta; q = softmax(z).
With T: q_y and q_r = 1 - q_y the binary split of softmax(z / T), q^ the softmax of z / T over the classes other than y;
p_y, p_r, p^ the teacher's.

    loss = -w ln q_y(T=1) + T^2 (alpha (p_y ln(p_y / q_y) + p_r ln(p_r / q_r)) + beta sum p^ ln(p^ / q^))
    d loss / d z_y = w (q_y(T=1) - 1) + alpha T (q_y - p_y)
    d loss / d z_i = w q_i(T=1) - alpha T (q_y - p_y) q^_i + beta T (q^_i - p^_i)

With the margin of y over the logsumexp of the others, the split is (sigmoid(margin), sigmoid(-margin)): nothing is
subtracted from 1. A row in one tile is read once, a longer one twice: for the loss, whose sums are all kept up to date
from tile to tile (:mod:`~polydistill.kernels.device.streaming`), and for the gradient.
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
    load_rows,
    log_sum,
    store_gradient,
)
from polydistill.kernels.device.sides import load_of_label, load_scores, open_teacher
from polydistill.kernels.device.streaming import add_tile, add_to_divergence, conclude_divergence


@triton.jit
def log_sigmoid(x):
    """ln(1 / (1 + exp(-x))), at least LOWEST."""
    size = at_most(tl.abs(x), 100.0)
    return at_least(at_most(x, 0.0) - tl.log(1.0 + tl.exp(-size)), LOWEST)


@triton.jit
def find_margin(of_label, maximum, total, scale):
    """The label's score over the logsumexp of the others, in units of T."""
    margin = (of_label - maximum) * scale - log_sum(total)
    return tl.where(total == 0, -LOWEST, margin)


@triton.jit
def gradient_tile(z, q, p, keep, is_label, off, others_weight, alpha, temperature, plain_max, plain_sum, label_weight):
    soft = tl.where(is_label, alpha * off, others_weight * (q - p) - alpha * off * q)
    plain = divide(exponentiate(z, plain_max, 1.0, keep), plain_sum[:, None])
    return temperature * soft + label_weight * (plain - tl.where(is_label, 1.0, 0.0))


@triton.jit(do_not_specialize=["n_rows"])
def decoupled_kernel(
    student_ptr,  # (rows, cols) in, float32, bfloat16 or float16
    teacher_ptr,  # (MEMBERS, rows, cols) in, the same or float32
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
    MEMBERS: tl.constexpr,
    HAS_LABELS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_VALUES: tl.constexpr,
    HAS_UPSTREAM: tl.constexpr,
    LOSS: tl.constexpr,
    GRADIENT: tl.constexpr,
    DIAGNOSTICS: tl.constexpr,
    WHOLE: tl.constexpr,  # one tile holds the row, and is read once
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    student, mask = (student_ptr, student_row, student_col), (mask_ptr, mask_row, mask_col)
    all_members = (teacher_ptr, teacher_row, teacher_col, teacher_member)
    teacher, t_scale = open_teacher(
        all_members, mask, rows, n_rows, n_cols, 1.0 / temperature, False, MEMBERS, ROWS, COLS
    )  # fmt: skip
    row_exists = rows < n_rows
    upstream = load_rows(upstream_ptr, rows, n_rows, upstream_row, HAS_UPSTREAM)
    label = tl.load(labels_ptr + rows * labels_row, mask=row_exists, other=0)
    z_label = load_of_label(student, rows, label, n_rows, n_cols, 1)
    t_label = load_of_label(teacher, rows, label, n_rows, n_cols, MEMBERS)
    scale = 1.0 / temperature

    # of both sides over the other classes; plain: of the student over all of them, at T = 1
    if WHOLE:
        cols = tl.arange(0, COLS)
        keep = find_kept(mask, rows, cols, n_rows, n_cols, False)
        z = load_scores(student, rows, cols, keep, 1)
        t = load_scores(teacher, rows, cols, keep, MEMBERS)
        is_label = cols[None, :] == label[:, None]
        others = keep & ~is_label
        t_others = others & (t != float("-inf"))
        z_max, t_max, plain_max = find_maximum(z, others), find_maximum(t, t_others), find_maximum(z, keep)
        q, p = exponentiate(z, z_max, scale, others), exponentiate(t, t_max, t_scale, t_others)
        z_sum, t_sum = tl.sum(q, axis=1), tl.sum(p, axis=1)
        q, p = divide(q, z_sum[:, None]), divide(p, t_sum[:, None])
        log_p = tl.where(t_others, (t - t_max[:, None]) * t_scale - log_sum(t_sum)[:, None], 0.0)
        log_q = (z - z_max[:, None]) * scale - log_sum(z_sum)[:, None]
        other_term = tl.sum(tl.where(p == 0, 0.0, p * (log_p - log_q)), axis=1)
        plain_sum = tl.sum(exponentiate(z, plain_max, 1.0, keep), axis=1)
    else:
        z_max = tl.zeros((ROWS,), tl.float32)
        z_sum, t_max, t_sum, z_best, mean, plain_max, plain_sum = z_max, z_max, z_max, z_max, z_max, z_max, z_max
        for start in tl.range(0, n_cols, COLS, num_stages=2):
            cols = start + tl.arange(0, COLS)
            keep = find_kept(mask, rows, cols, n_rows, n_cols, False)
            z = load_scores(student, rows, cols, keep, 1)
            t = load_scores(teacher, rows, cols, keep, MEMBERS)
            others = keep & (cols[None, :] != label[:, None])
            t_max, t_sum, z_best, mean = add_to_divergence(t_max, t_sum, z_best, mean, t, others, t_scale, z, scale)
            z_max, z_sum = add_tile(z_max, z_sum, z, others, scale)
            plain_max, plain_sum = add_tile(plain_max, plain_sum, z, keep, 1.0)
        other_term = conclude_divergence(t_sum, z_best, mean, z_max, z_sum, scale)

    # a row of nothing but -inf becomes NaN
    is_empty = (plain_sum == 0) | ((t_sum == 0) & (t_label == float("-inf")))
    upstream = tl.where(is_empty, float("nan"), upstream)
    z_margin, t_margin = find_margin(z_label, z_max, z_sum, scale), find_margin(t_label, t_max, t_sum, t_scale)
    log_p_label, log_p_rest = log_sigmoid(t_margin), log_sigmoid(-t_margin)
    log_q_label, log_q_rest = log_sigmoid(z_margin), log_sigmoid(-z_margin)
    p_label, p_rest = tl.exp(log_p_label), tl.exp(log_p_rest)
    q_label, q_rest = tl.exp(log_q_label), tl.exp(log_q_rest)
    if LOSS:
        target_term = tl.where(p_label == 0, 0.0, p_label * (log_p_label - log_q_label))
        target_term += tl.where(p_rest == 0, 0.0, p_rest * (log_p_rest - log_q_rest))
        loss = temperature * temperature * (alpha * target_term + beta * other_term)
        loss -= label_weight * (z_label - plain_max - log_sum(plain_sum))
        tl.store(loss_ptr + rows, tl.where(is_empty, float("nan"), loss), mask=row_exists)
    if GRADIENT:
        # of two numbers close to 1, the difference of their complements
        off = tl.where(p_label > 0.5, p_rest - q_rest, q_label - p_label)[:, None]
        others_weight = tl.where(t_sum == 0, 0.0, beta)[:, None]
        if WHOLE:
            gradient = gradient_tile(
                z, q, p, keep, is_label, off, others_weight, alpha, temperature, plain_max, plain_sum, label_weight
            )
            store_gradient(gradient_ptr, upstream[:, None] * gradient, rows, cols, n_rows, n_cols)
        else:
            for start in tl.range(0, n_cols, COLS, num_stages=2):
                cols = start + tl.arange(0, COLS)
                keep = find_kept(mask, rows, cols, n_rows, n_cols, False)
                z = load_scores(student, rows, cols, keep, 1)
                t = load_scores(teacher, rows, cols, keep, MEMBERS)
                is_label = cols[None, :] == label[:, None]
                others = keep & ~is_label
                q = divide(exponentiate(z, z_max, scale, others), z_sum[:, None])
                p = divide(exponentiate(t, t_max, t_scale, others), t_sum[:, None])
                gradient = gradient_tile(
                    z, q, p, keep, is_label, off, others_weight, alpha, temperature, plain_max, plain_sum, label_weight
                )
                store_gradient(gradient_ptr, upstream[:, None] * gradient, rows, cols, n_rows, n_cols)
    if DIAGNOSTICS:
        diagnose(
            student, all_members, labels_ptr, labels_row, mask, diagnostics_ptr, rows, n_rows, n_cols,
            diagnostics_scale, 1.0, HAS_LABELS, HAS_MASK, MEMBERS, ROWS, COLS,
        )  # fmt: skip
