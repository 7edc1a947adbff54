r"""The diagnostics of each row, computed by the loss's kernel while the scores are still in the cache.

Symbols: q = softmax(z / T_s), p = softmax(t / T), * the label or the teacher's best class, P the sum of p without *.

    columns of the result: 1 where both have the same greatest score; max p; sum p ln(p / q);
    |p_* (q - e_*)|; |P q - p without *|

1 - p_* and 1 - q_* are sums of the others, so that no digits cancel.
"""

import triton
import triton.language as tl

from polydistill.kernels.device.rows import LOWEST, at_least, exponentiate, find_bare, find_kept, inverse, log_sum
from polydistill.kernels.device.sides import find_best, load_scores, measure_softmax, open_teacher

N_DIAGNOSTICS = tl.constexpr(5)  # columns


@triton.jit
def diagnose(
    student,  # (ptr, row stride, column stride) of (rows, cols)
    teacher,  # (ptr, row stride, column stride, member stride) of (MEMBERS, rows, cols)
    labels_ptr,  # (rows,) int64; not read unless HAS_LABELS
    labels_row,
    mask,
    out_ptr,  # (rows, N_DIAGNOSTICS) float32
    rows,
    n_rows,
    n_cols,
    scale,  # 1 / T
    z_scale,  # 1 / T_s
    HAS_LABELS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    MEMBERS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    teacher, scale = open_teacher(teacher, mask, rows, n_rows, n_cols, scale, HAS_MASK, MEMBERS, ROWS, COLS)
    z_best, _ = find_best(student, mask, rows, n_rows, n_cols, HAS_MASK, 1, ROWS, COLS)
    t_best, _ = find_best(teacher, mask, rows, n_rows, n_cols, HAS_MASK, MEMBERS, ROWS, COLS)
    star = t_best.to(tl.int64)
    if HAS_LABELS:
        star = tl.load(labels_ptr + rows * labels_row, mask=rows < n_rows, other=0)
    z_max, z_sum = measure_softmax(student, mask, rows, n_rows, n_cols, z_scale, HAS_MASK, 1, ROWS, COLS)
    t_max, t_sum = measure_softmax(teacher, mask, rows, n_rows, n_cols, scale, HAS_MASK, MEMBERS, ROWS, COLS)

    kl = tl.zeros((ROWS,), tl.float32)
    p_star, p_others = kl, kl
    q_others, q_others_squared = kl, kl
    for start in tl.range(0, n_cols, COLS, num_stages=2):
        cols = start + tl.arange(0, COLS)
        keep = find_kept(mask, rows, cols, n_rows, n_cols, HAS_MASK)
        z = load_scores(student, rows, cols, keep, 1)
        t = load_scores(teacher, rows, cols, keep, MEMBERS)
        is_star = cols[None, :] == star[:, None]
        q = exponentiate(z, z_max, z_scale, keep) * inverse(z_sum)[:, None]
        p = exponentiate(t, t_max, scale, t != float("-inf")) * inverse(t_sum)[:, None]
        log_q = (z - z_max[:, None]) * z_scale - log_sum(z_sum)[:, None]
        log_p = at_least((t - t_max[:, None]) * scale - log_sum(t_sum)[:, None], LOWEST)
        kl += tl.sum(tl.where(p == 0, 0.0, p * (log_p - log_q)), axis=1)
        p_star += tl.sum(tl.where(is_star, p, 0.0), axis=1)
        p_others += tl.sum(tl.where(is_star, 0.0, p), axis=1)
        q_others += tl.sum(tl.where(is_star, 0.0, q), axis=1)
        q_others_squared += tl.sum(tl.where(is_star, 0.0, q * q), axis=1)
    dark = tl.zeros((ROWS,), tl.float32)
    for start in tl.range(0, n_cols, COLS, num_stages=2):
        cols = start + tl.arange(0, COLS)
        keep = find_kept(mask, rows, cols, n_rows, n_cols, HAS_MASK)
        z = load_scores(student, rows, cols, keep, 1)
        t = load_scores(teacher, rows, cols, keep, MEMBERS)
        q = exponentiate(z, z_max, z_scale, keep) * inverse(z_sum)[:, None]
        p = exponentiate(t, t_max, scale, t != float("-inf")) * inverse(t_sum)[:, None]
        p = tl.where(cols[None, :] == star[:, None], 0.0, p)
        difference = p_others[:, None] * q - p
        dark += tl.sum(difference * difference, axis=1)

    # a row whose classes are left and all -inf on a side becomes NaN
    has_classes = ~find_bare(mask, rows, n_rows, n_cols, HAS_MASK, ROWS, COLS)
    of_teacher = tl.where((t_sum == 0) & has_classes, float("nan"), 0.0)
    of_both = tl.where((z_sum == 0) & has_classes, float("nan"), of_teacher)
    out = out_ptr + rows * N_DIAGNOSTICS
    exists = rows < n_rows
    tl.store(out, (z_best == t_best).to(tl.float32), mask=exists)
    tl.store(out + 1, inverse(t_sum) + of_teacher, mask=exists)
    tl.store(out + 2, kl + of_both, mask=exists)
    tl.store(out + 3, p_star * tl.sqrt(q_others_squared + q_others * q_others) + of_both, mask=exists)
    tl.store(out + 4, tl.sqrt(dark) + of_both, mask=exists)
