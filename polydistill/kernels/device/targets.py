r"""Cross-entropy and KL with a target of the teacher's softmax, of a label, or of both: one kernel for eleven losses.

Symbols: z student scores, t teacher scores, y label, T_s and T_t temperatures, a, b and c weights, n classes, eps
smoothing; q = softmax(z), q' = softmax(z / T_s), p = softmax(t / T_t), e_y one-hot; m of the classes that neither the
mask nor the teacher takes out.

    loss = a * sum_i p_i (ln p_i [KL only] - ln q'_i) - b * sum_i ((1 - eps) e_y + eps / n)_i ln q_i
         + c / m * sum_i ((z_i - t_i) / T_s)^2 over these m [SQUARES only]
    d loss / d z = a / T_s * (q' - p) + b * (q - (1 - eps) e_y - eps / n) + 2 c / (m T_s^2) * (z - t)

``SOFT`` and ``LABEL`` choose p and y. The row's maximum is subtracted from its scores, so that scores of 1e4 lose no
digits. Equal scores give exactly 0: where the compiler may fuse a product and a difference into one operation, one
factor is a quotient, which is 1 for equal scores. A row in one tile is read once, a longer one twice: for its sums,
from which the loss follows, and for the gradient.
"""

import triton
import triton.language as tl

from polydistill.kernels.device.diagnostics import diagnose
from polydistill.kernels.device.rows import (
    at_least,
    divide,
    find_bare,
    find_kept,
    inverse,
    load_rows,
    log_sum,
    origin,
    power,
    quotient,
    store_gradient,
)
from polydistill.kernels.device.sides import find_best, load_at, load_of_label, load_scores, open_teacher

# SOFT, 0 for none
PLAIN = tl.constexpr(1)
PERMUTED = tl.constexpr(2)  # the classes other than the teacher's best exchange their probabilities
REST = tl.constexpr(3)  # p without y, renormalised; then a = 1 - value and b = value, of the row
# LABEL, 0 for none
GIVEN = tl.constexpr(1)
BEST = tl.constexpr(2)  # the teacher's best class, the first of equal ones
# KL, 0 for a cross-entropy
SQUARES = tl.constexpr(2)  # and the squared distance of the scores, of one teacher


@triton.jit
def load_teacher(
    teacher,
    permutation,  # (ptr, row stride, column stride)
    rows,
    cols,
    label,
    n_cols,
    keep,
    SOFT: tl.constexpr,
    MEMBERS: tl.constexpr,
):
    """The teacher's scores in the places where their probabilities go; -inf where there is none."""
    if SOFT == PERMUTED:
        own = cols[None, :] == label[:, None]
        others = cols[None, :] - (cols[None, :] > label[:, None])  # index among the others, which is permuted
        order = permutation[0] + rows[:, None] * permutation[1] + others * permutation[2]
        source = tl.load(order, mask=keep & ~own, other=0)
        source = tl.where(own, label[:, None], source + (source >= label[:, None]))
        inside = keep & (source >= 0) & (source < n_cols)
        t = load_at(teacher, rows[:, None], source, inside, MEMBERS)
        t = tl.where(keep & ~inside, float("nan"), t)  # an entry that is no permutation makes NaN
    else:
        t = load_scores(teacher, rows, cols, keep, MEMBERS)
    if SOFT == REST:
        t = tl.where(cols[None, :] == label[:, None], float("-inf"), t)
    return t


@triton.jit
def subtract(z, t, keep):
    """``z - t`` where both sides have the class, else 0; and where that is."""
    both = keep & (t != float("-inf"))
    return tl.where(both, z - t, 0.0), both


@triton.jit
def gradient_tile(
    z,
    t,
    keep,
    cols,
    label,
    z_max,
    z_sum,
    z_plain_sum,
    t_max,
    t_sum,
    n_squares,
    a,
    b,
    c,
    smoothing,
    n_cols,
    z_scale,
    t_scale,
    SOFT: tl.constexpr,
    LABEL: tl.constexpr,
    KL: tl.constexpr,
    TEMPERED: tl.constexpr,
    HAS_MASK: tl.constexpr,
):
    distance = z
    if KL == SQUARES:
        distance, _ = subtract(z, t, keep)
    z -= origin(z_max)[:, None]
    e = power(z, z_scale)
    gradient = tl.zeros_like(z)
    if SOFT:
        of_teacher = power(t - origin(t_max)[:, None], t_scale)
        difference = e - of_teacher * quotient(z_sum, t_sum)[:, None]
        gradient += difference * (a * z_scale * inverse(z_sum))[:, None]
    if LABEL:
        if TEMPERED:
            e = power(z, 1.0)
        target = tl.where(cols[None, :] == label[:, None], 1.0 - smoothing, 0.0) + smoothing / n_cols
        if HAS_MASK:
            target = tl.where(keep, target, 0.0)
        gradient += b[:, None] * (e * inverse(z_plain_sum)[:, None] - target)
    if KL == SQUARES:
        gradient += distance * z_scale * (2.0 * c * z_scale * inverse(n_squares))[:, None]
    return gradient


@triton.jit
def load_pair(
    student,
    teacher,
    mask,
    permutation,
    rows,
    cols,
    label,
    n_rows,
    n_cols,
    SOFT: tl.constexpr,
    MEMBERS: tl.constexpr,
    HAS_MASK: tl.constexpr,
):
    """Which places of a tile count, and the scores of both sides there."""
    keep = find_kept(mask, rows, cols, n_rows, n_cols, HAS_MASK)
    z = load_scores(student, rows, cols, keep, 1)
    t = z
    if SOFT:
        t = load_teacher(teacher, permutation, rows, cols, label, n_cols, keep, SOFT, MEMBERS)
    return keep, z, t


@triton.jit
def add_pair(
    z_max,
    z_sum,
    z_plain_sum,
    z_total,
    t_max,
    t_sum,
    cross,
    squares,
    n_squares,
    z,
    t,
    keep,
    n_before,
    z_scale,
    t_scale,
    SOFT: tl.constexpr,
    LABEL: tl.constexpr,
    KL: tl.constexpr,
    TEMPERED: tl.constexpr,
):
    """The sums of each row, with one more tile added.

    Maximum of z, sum of exp(z / T_s), sum of exp(z), sum of z; maximum of t, sum of exp(t / T_t), and that sum with
    each addend times (t - z T_t / T_s), without KL times -z: all less the maxima, which are -inf before the first tile.
    Then the sum of ((z - t) / T_s)^2, and of how many classes.
    """
    if KL == SQUARES:
        distance, both = subtract(z, t, keep)
        distance *= z_scale
        squares += tl.sum(distance * distance, axis=1)
        n_squares += tl.sum(both.to(tl.float32), axis=1)
    new_max = at_least(z_max, tl.max(z, axis=1))
    shift = z_max - origin(new_max)
    z -= origin(new_max)[:, None]
    z_sum = z_sum * power(shift, z_scale) + tl.sum(power(z, z_scale), axis=1)
    if LABEL:
        if TEMPERED:
            z_plain_sum = z_plain_sum * power(shift, 1.0) + tl.sum(power(z, 1.0), axis=1)
        else:
            z_plain_sum = z_sum
        z_total += tl.where(z_max == float("-inf"), 0.0, shift * n_before) + tl.sum(tl.where(keep, z, 0.0), axis=1)
    if SOFT:
        new_t_max = at_least(t_max, tl.max(t, axis=1))
        t_shift = t_max - origin(new_t_max)
        t -= origin(new_t_max)[:, None]
        # by how much the other factor of each earlier addend changes, and that of the new ones
        ratio = quotient(z_scale, t_scale)
        moved = t_shift - shift * ratio if KL else -shift
        difference = t - z * ratio if KL else -z
        e = power(t, t_scale)
        factor = power(t_shift, t_scale)
        before = t_sum * factor
        cross = tl.where(before == 0, 0.0, cross * factor + before * moved)
        cross += tl.sum(tl.where(e == 0, 0.0, e * difference), axis=1)
        t_sum = before + tl.sum(e, axis=1)
        t_max = new_t_max
    return new_max, z_sum, z_plain_sum, z_total, t_max, t_sum, cross, squares, n_squares


@triton.jit(do_not_specialize=["n_rows"])
def target_kernel(
    student_ptr,  # (rows, cols) in, float32, bfloat16 or float16
    teacher_ptr,  # (MEMBERS, rows, cols) in, the same or float32
    labels_ptr,  # (rows,) in, int64
    mask_ptr,  # (rows, cols) in, bool: True takes the class out
    permutation_ptr,  # (rows, cols - 1) in, int64
    values_ptr,  # (rows,) in, float32: a factor of the row's loss, or for REST the label's share
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
    diagnostics_scale,  # 1 / T of the teacher's side in the diagnostics
    teacher_weight,  # a
    label_weight,  # b
    smoothing,  # eps
    t_scale,  # 1 / T_t
    z_scale,  # 1 / T_s
    square_weight,  # c
    SOFT: tl.constexpr,
    LABEL: tl.constexpr,
    KL: tl.constexpr,
    TEMPERED: tl.constexpr,  # T_s is not 1
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
    row_exists = rows < n_rows
    label = tl.full((ROWS,), -1, tl.int32)
    if LABEL == GIVEN:
        label = tl.load(labels_ptr + rows * labels_row, mask=row_exists, other=0)
        label = tl.where((label >= 0) & (label < n_cols), label, -1).to(tl.int32)  # half the work of 64 bits
    student, mask = (student_ptr, student_row, student_col), (mask_ptr, mask_row, mask_col)
    permutation = (permutation_ptr, permutation_row, permutation_col)
    all_members = (teacher_ptr, teacher_row, teacher_col, teacher_member)
    OPENED: tl.constexpr = MEMBERS if (SOFT or LABEL == BEST) else 1  # losses of labels alone use no teacher
    teacher, t_scale = open_teacher(
        all_members, mask, rows, n_rows, n_cols, t_scale, HAS_MASK, OPENED, ROWS, COLS
    )  # fmt: skip
    if LABEL == BEST:
        label, has_best = find_best(teacher, mask, rows, n_rows, n_cols, HAS_MASK, MEMBERS, ROWS, COLS)

    z_max = tl.full((ROWS,), float("-inf"), tl.float32)
    z_sum = tl.zeros((ROWS,), tl.float32)
    t_max, z_plain_sum, z_total, t_sum, cross, squares, n_squares = z_max, z_sum, z_sum, z_sum, z_sum, z_sum, z_sum
    if WHOLE:
        cols = tl.arange(0, COLS)
        keep, z, t = load_pair(
            student, teacher, mask, permutation, rows, cols, label, n_rows, n_cols, SOFT, MEMBERS, HAS_MASK
        )  # fmt: skip
        z_max, z_sum, z_plain_sum, z_total, t_max, t_sum, cross, squares, n_squares = add_pair(
            z_max, z_sum, z_plain_sum, z_total, t_max, t_sum, cross, squares, n_squares, z, t, keep, 0,
            z_scale, t_scale, SOFT, LABEL, KL, TEMPERED,
        )  # fmt: skip
    else:
        for start in tl.range(0, n_cols, COLS, num_stages=2):
            cols = start + tl.arange(0, COLS)
            keep, z, t = load_pair(
                student, teacher, mask, permutation, rows, cols, label, n_rows, n_cols, SOFT, MEMBERS, HAS_MASK
            )  # fmt: skip
            z_max, z_sum, z_plain_sum, z_total, t_max, t_sum, cross, squares, n_squares = add_pair(
                z_max, z_sum, z_plain_sum, z_total, t_max, t_sum, cross, squares, n_squares, z, t, keep, start,
                z_scale, t_scale, SOFT, LABEL, KL, TEMPERED,
            )  # fmt: skip

    a = tl.full((ROWS,), 0.0, tl.float32) + teacher_weight
    b = tl.full((ROWS,), 0.0, tl.float32) + label_weight
    c = tl.full((ROWS,), 0.0, tl.float32) + square_weight
    if SOFT == REST:
        b = tl.load(values_ptr + rows * values_row, mask=row_exists, other=0.0)
        b = tl.where((t_sum == 0) & (b == b), 1.0, b)  # no class is left besides the label; a NaN stays
        a = 1.0 - b
    elif SOFT and HAS_MASK:
        a = tl.where(t_sum == 0, 0.0, a)  # no class is left
    # a row whose classes are left and all -inf becomes NaN
    is_empty = (z_sum == 0) | (t_sum == 0) if SOFT and SOFT != REST else z_sum == 0
    if LABEL == BEST and not SOFT:
        is_empty = is_empty | ~has_best
    is_empty = is_empty & ~find_bare(mask, rows, n_rows, n_cols, HAS_MASK, ROWS, COLS)
    a, b = tl.where(is_empty, float("nan"), a), tl.where(is_empty, float("nan"), b)
    if LOSS:
        loss = tl.zeros((ROWS,), tl.float32)
        if SOFT:
            divergence = divide(cross, t_sum) * (t_scale if KL else z_scale) + log_sum(z_sum)
            if KL:
                divergence -= log_sum(t_sum)
            loss += a * tl.where(t_sum == 0, 0.0, divergence)
        if LABEL:
            z_label = load_of_label(student, rows, label, n_rows, n_cols, 1)
            log_q = (1.0 - smoothing) * (z_label - origin(z_max)) - log_sum(z_plain_sum)
            log_q += tl.where(smoothing == 0, 0.0, smoothing / n_cols * z_total)
            loss -= b * (tl.where(z_sum == 0, 0.0, log_q) if HAS_MASK else log_q)
        if KL == SQUARES:
            loss += c * divide(squares, n_squares)
        loss *= load_rows(values_ptr, rows, n_rows, values_row, HAS_VALUES and SOFT != REST)
        tl.store(loss_ptr + rows, loss, mask=row_exists)
    if GRADIENT:
        factor = load_rows(upstream_ptr, rows, n_rows, upstream_row, HAS_UPSTREAM)
        factor *= load_rows(values_ptr, rows, n_rows, values_row, HAS_VALUES and SOFT != REST)
        a *= factor
        b *= factor
        c *= factor
        if WHOLE:
            gradient = gradient_tile(
                z, t, keep, cols, label, z_max, z_sum, z_plain_sum, t_max, t_sum, n_squares, a, b, c, smoothing, n_cols,
                z_scale, t_scale, SOFT, LABEL, KL, TEMPERED, HAS_MASK,
            )  # fmt: skip
            store_gradient(gradient_ptr, gradient, rows, cols, n_rows, n_cols)
        else:
            last = (n_cols - 1) // COLS * COLS
            for start in tl.range(0, n_cols, COLS, num_stages=2):
                cols = last - start + tl.arange(0, COLS)  # backwards: what was read last may still be in the cache
                keep, z, t = load_pair(
                    student, teacher, mask, permutation, rows, cols, label, n_rows, n_cols, SOFT, MEMBERS, HAS_MASK
                )  # fmt: skip
                gradient = gradient_tile(
                    z, t, keep, cols, label, z_max, z_sum, z_plain_sum, t_max, t_sum, n_squares, a, b, c, smoothing,
                    n_cols, z_scale, t_scale, SOFT, LABEL, KL, TEMPERED, HAS_MASK,
                )  # fmt: skip
                store_gradient(gradient_ptr, gradient, rows, cols, n_rows, n_cols)
    if DIAGNOSTICS:
        diagnose(
            student, all_members, labels_ptr, labels_row, mask, diagnostics_ptr, rows, n_rows, n_cols,
            diagnostics_scale, z_scale if KL == SQUARES else 1.0, HAS_LABELS, HAS_MASK, MEMBERS, ROWS, COLS,
        )  # fmt: skip
