r"""Reverse KL and the generalised Jensen-Shannon divergence.

Symbols: z student scores, t teacher scores, T temperature, beta the teacher's share; q = softmax(z),
p = softmax(t / T), m = beta p + (1 - beta) q.

    reverse KL: r_i = ln q_i - ln p_i;            loss = sum q r
    JSD:        r_i = (1 - beta) (ln q_i - ln m_i); loss = sum q r + beta sum p (ln p - ln m)
    both:       d loss / d z_i = q_i (r_i - sum q r)

A row in one tile is read once. A longer one is read twice for the reverse KL: its loss comes with the sums of both
softmaxes (:mod:`~polydistill.kernels.device.streaming`). The gradient does not depend on a constant added to all r_i: r
is computed minus its value in the student's best class, so that no large numbers are subtracted from each other.
For JSD a row is read three times, the second time for the loss: ln m needs both normalised softmaxes in each place.
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
    find_bare,
    find_kept,
    load_rows,
    log_sum,
    store_gradient,
)
from polydistill.kernels.device.sides import load_scores, open_teacher
from polydistill.kernels.device.streaming import add_tile, add_to_divergence, compare_to_best, conclude_divergence


@triton.jit
def compare(z, z_max, z_sum, t, t_max, t_sum, keep, t_scale, beta):
    """``(q, r, the teacher's part of the loss)`` of each place, for JSD."""
    q = divide(exponentiate(z, z_max, 1.0, keep), z_sum[:, None])
    log_q = z - z_max[:, None] - log_sum(z_sum)[:, None]
    excluded = t == float("-inf")
    log_p = tl.where(excluded, LOWEST, at_least((t - t_max[:, None]) * t_scale - log_sum(t_sum)[:, None], LOWEST))
    p = divide(exponentiate(t, t_max, t_scale, keep & (t != float("-inf"))), t_sum[:, None])
    # ln m = ln q + ln(1 - beta) + ln(1 + beta p / ((1 - beta) q)), from the greater of both sides
    high = at_least(log_p + tl.log(beta), log_q + tl.log(1.0 - beta))
    low = at_most(log_p + tl.log(beta), log_q + tl.log(1.0 - beta))
    log_m = high + tl.log(1.0 + tl.exp(at_least(low - high, -100.0)))
    r = tl.where(keep, (1.0 - beta) * (log_q - log_m), 0.0)
    added = tl.where(keep & (p != 0), beta * p * (log_p - log_m), 0.0)
    return q, r, added


@triton.jit
def compare_sides(z, z_max, z_sum, t, t_max, t_sum, t_best, keep, t_scale, beta, JSD: tl.constexpr):
    """``q`` and ``r`` of each place; for the reverse KL ``r`` minus its value in the student's best class."""
    if JSD:
        q, r, _ = compare(z, z_max, z_sum, t, t_max, t_sum, keep, t_scale, beta)
    else:
        q = divide(exponentiate(z, z_max, 1.0, keep), z_sum[:, None])
        r = compare_to_best(z, z_max, 1.0, t, t_best, t_scale)
    return q, r


@triton.jit
def add_sides(z_max, z_sum, t_best, mean_r, t_max, t_sum, z, t, keep, t_scale, JSD: tl.constexpr):
    """The sums of a row, with one more tile added; the mean of ``r`` for the reverse KL alone."""
    if JSD:
        z_max, z_sum = add_tile(z_max, z_sum, z, keep, 1.0)
    else:
        z_max, z_sum, t_best, mean_r = add_to_divergence(z_max, z_sum, t_best, mean_r, z, keep, 1.0, t, t_scale)
    t_max, t_sum = add_tile(t_max, t_sum, t, keep, t_scale)
    return z_max, z_sum, t_best, mean_r, t_max, t_sum


@triton.jit(do_not_specialize=["n_rows"])
def divergence_kernel(
    student_ptr,  # (rows, cols) in, float32, bfloat16 or float16
    teacher_ptr,  # (MEMBERS, rows, cols) in, the same or float32
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
    t_scale,  # 1 / T
    beta,
    JSD: tl.constexpr,
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
        all_members, mask, rows, n_rows, n_cols, t_scale, HAS_MASK, MEMBERS, ROWS, COLS
    )  # fmt: skip
    upstream = load_rows(upstream_ptr, rows, n_rows, upstream_row, HAS_UPSTREAM)
    z_max = tl.zeros((ROWS,), tl.float32)
    z_sum, t_max, t_sum, mean_r, loss, t_best = z_max, z_max, z_max, z_max, z_max, z_max
    if WHOLE:
        cols = tl.arange(0, COLS)
        keep = find_kept(mask, rows, cols, n_rows, n_cols, HAS_MASK)
        z = load_scores(student, rows, cols, keep, 1)
        t = load_scores(teacher, rows, cols, keep, MEMBERS)
        z_max, z_sum, t_best, mean_r, t_max, t_sum = add_sides(
            z_max, z_sum, t_best, mean_r, t_max, t_sum, z, t, keep, t_scale, JSD
        )  # fmt: skip
        if JSD:
            q, r, added = compare(z, z_max, z_sum, t, t_max, t_sum, keep, t_scale, beta)
            mean_r = tl.sum(tl.where(q == 0, 0.0, q * r), axis=1)
            loss = mean_r + tl.sum(added, axis=1)
    else:
        for start in tl.range(0, n_cols, COLS, num_stages=2):
            cols = start + tl.arange(0, COLS)
            keep = find_kept(mask, rows, cols, n_rows, n_cols, HAS_MASK)
            z = load_scores(student, rows, cols, keep, 1)
            t = load_scores(teacher, rows, cols, keep, MEMBERS)
            z_max, z_sum, t_best, mean_r, t_max, t_sum = add_sides(
                z_max, z_sum, t_best, mean_r, t_max, t_sum, z, t, keep, t_scale, JSD
            )  # fmt: skip
        if JSD:
            for start in tl.range(0, n_cols, COLS, num_stages=2):
                cols = start + tl.arange(0, COLS)
                keep = find_kept(mask, rows, cols, n_rows, n_cols, HAS_MASK)
                z = load_scores(student, rows, cols, keep, 1)
                t = load_scores(teacher, rows, cols, keep, MEMBERS)
                q, r, added = compare(z, z_max, z_sum, t, t_max, t_sum, keep, t_scale, beta)
                mean_r += tl.sum(tl.where(q == 0, 0.0, q * r), axis=1)
                loss += tl.sum(added, axis=1)
            loss += mean_r
    if not JSD:
        loss = conclude_divergence(z_sum, t_best, mean_r, t_max, t_sum, t_scale)
        mean_r = tl.where(loss != loss, loss, mean_r)  # a NaN may lie where q is 0
    # a row whose classes are left and all -inf on a side becomes NaN
    is_empty = (z_sum == 0) | (t_sum == 0)
    is_empty = is_empty & ~find_bare(mask, rows, n_rows, n_cols, HAS_MASK, ROWS, COLS)
    loss, upstream = tl.where(is_empty, float("nan"), loss), tl.where(is_empty, float("nan"), upstream)
    if GRADIENT:
        if WHOLE:
            q, r = compare_sides(z, z_max, z_sum, t, t_max, t_sum, t_best, keep, t_scale, beta, JSD)
            gradient = upstream[:, None] * tl.where(q == 0, 0.0, q * (r - mean_r[:, None]))
            store_gradient(gradient_ptr, gradient, rows, cols, n_rows, n_cols)
        else:
            for start in tl.range(0, n_cols, COLS, num_stages=2):
                cols = start + tl.arange(0, COLS)
                keep = find_kept(mask, rows, cols, n_rows, n_cols, HAS_MASK)
                z = load_scores(student, rows, cols, keep, 1)
                t = load_scores(teacher, rows, cols, keep, MEMBERS)
                q, r = compare_sides(z, z_max, z_sum, t, t_max, t_sum, t_best, keep, t_scale, beta, JSD)
                gradient = upstream[:, None] * tl.where(q == 0, 0.0, q * (r - mean_r[:, None]))
                store_gradient(gradient_ptr, gradient, rows, cols, n_rows, n_cols)
    if LOSS:
        tl.store(loss_ptr + rows, loss, mask=rows < n_rows)
    if DIAGNOSTICS:
        diagnose(
            student, all_members, labels_ptr, labels_row, mask, diagnostics_ptr, rows, n_rows, n_cols,
            diagnostics_scale, 1.0, HAS_LABELS, HAS_MASK, MEMBERS, ROWS, COLS,
        )  # fmt: skip
