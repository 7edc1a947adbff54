r"""Cross-entropy and KL with a target made of the teacher's softmax, of a label, or of both: one kernel for ten losses.

Symbols: z student scores, t teacher scores, y label, T_s and T_t temperatures, a and b weights, n classes, eps
smoothing; q = softmax(z), q' = softmax(z / T_s), p = softmax(t / T_t), e_y one-hot.

    loss = a * sum_i p_i (ln p_i [KL only] - ln q'_i) - b * sum_i ((1 - eps) e_y + eps / n)_i ln q_i
    d loss / d z = a / T_s * (q' - p) + b * (q - (1 - eps) e_y - eps / n)

Which p and which y is a matter of ``SOFT`` and ``LABEL``. Scores are taken less their row's maximum, so that equal
scores give exactly 0 and scores of 1e4 lose no digits.
"""

import triton
import triton.language as tl

from polydistill.kernels.device.diagnostics import diagnose
from polydistill.kernels.device.rows import (
    divide,
    exponentiate,
    find_best,
    find_kept,
    find_maximum,
    load_ensemble,
    load_of_label,
    load_rows,
    load_tile,
    log_sum,
    merge_maxima,
    rescale,
    store_gradient,
)

# SOFT, 0 for none
PLAIN = tl.constexpr(1)
PERMUTED = tl.constexpr(2)  # the classes other than the teacher's best exchange their probabilities
REST = tl.constexpr(3)  # p without y, renormalised; then a = 1 - value and b = value, of the row
# LABEL, 0 for none
GIVEN = tl.constexpr(1)
BEST = tl.constexpr(2)  # the teacher's best class, the first of equal ones


@triton.jit
def load_teacher(
    teacher_ptr,
    permutation_ptr,
    rows,
    cols,
    label,
    teacher_row,
    teacher_col,
    permutation_row,
    permutation_col,
    teacher_member,
    t_scale,
    n_cols,
    keep,
    SOFT: tl.constexpr,
    MEMBERS: tl.constexpr,
):
    """The teacher's scores in the places where their probabilities go, and which of them count."""
    if MEMBERS > 1:
        t = load_ensemble(teacher_ptr, rows, cols, teacher_member, teacher_row, teacher_col, keep, t_scale, MEMBERS)
    elif SOFT == PERMUTED:
        own = cols[None, :] == label[:, None]
        others = cols[None, :] - (cols[None, :] > label[:, None])  # its number among the others, which is permuted
        order = permutation_ptr + rows[:, None] * permutation_row + others * permutation_col
        source = tl.load(order, mask=keep & ~own, other=0)
        source = tl.where(own, label[:, None], source + (source >= label[:, None]))
        places = teacher_ptr + rows[:, None] * teacher_row + source * teacher_col
        inside = keep & (source >= 0) & (source < n_cols)  # what is no permutation makes NaN
        t = tl.load(places, mask=inside, other=float("nan")).to(tl.float32)
        t = tl.where(keep, t, 0.0)
    else:
        t = load_tile(teacher_ptr, rows, cols, teacher_row, teacher_col, keep)
    if SOFT == REST:
        keep = keep & (cols[None, :] != label[:, None])
    return t, keep & (t != float("-inf"))


@triton.jit
def measure_student(z, keep, scale, TEMPERED: tl.constexpr):
    """Maximum, sum of exp(z / T_s), sum of exp(z), and sum of z, all less the maximum."""
    maximum = find_maximum(z, keep)
    tempered = tl.sum(exponentiate(z, maximum, scale, keep), axis=1)
    plain = tl.sum(exponentiate(z, maximum, 1.0, keep), axis=1) if TEMPERED else tempered
    return maximum, tempered, plain, tl.sum(tl.where(keep, z - maximum[:, None], 0.0), axis=1)


@triton.jit
def measure_target(z, z_max, z_scale, t, t_keep, t_scale, KL: tl.constexpr):
    """Maximum of t, sum of exp(t / T_t), and that sum with each addend times (t / T_t [KL only] - z / T_s)."""
    maximum = find_maximum(t, t_keep)
    e = exponentiate(t, maximum, t_scale, t_keep)
    difference = -(z - z_max[:, None]) * z_scale
    if KL:
        difference += tl.where(t_keep, (t - maximum[:, None]) * t_scale, 0.0)
    return maximum, tl.sum(e, axis=1), tl.sum(tl.where(e == 0, 0.0, e * difference), axis=1)


@triton.jit
def gradient_tile(
    z,
    t,
    keep,
    t_keep,
    cols,
    label,
    z_max,
    z_sum,
    z_plain_sum,
    t_max,
    t_sum,
    a,
    b,
    smoothing,
    n_cols,
    z_scale,
    t_scale,
    SOFT: tl.constexpr,
    LABEL: tl.constexpr,
    TEMPERED: tl.constexpr,
):
    q = divide(exponentiate(z, z_max, z_scale, keep), z_sum[:, None])
    gradient = tl.zeros_like(z)
    if SOFT:
        p = divide(exponentiate(t, t_max, t_scale, t_keep), t_sum[:, None])
        gradient += (a * z_scale)[:, None] * (q - p)
    if LABEL:
        if TEMPERED:
            q = divide(exponentiate(z, z_max, 1.0, keep), z_plain_sum[:, None])
        target = tl.where(cols[None, :] == label[:, None], 1.0 - smoothing, 0.0) + smoothing / n_cols
        gradient += b[:, None] * tl.where(keep, q - target, 0.0)
    return gradient


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
    SOFT: tl.constexpr,
    LABEL: tl.constexpr,
    KL: tl.constexpr,
    TEMPERED: tl.constexpr,  # T_s is not 1
    MEMBERS: tl.constexpr,  # above 1 only if WHOLE
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
    label = tl.full((ROWS,), -1, tl.int64)
    if LABEL == GIVEN:
        label = tl.load(labels_ptr + rows * labels_row, mask=row_exists, other=0)
    if LABEL == BEST:
        label = find_best(
            teacher_ptr, mask_ptr, rows, n_rows, n_cols, teacher_row, teacher_col, mask_row, mask_col,
            HAS_MASK, ROWS, COLS,
        ).to(tl.int64)  # fmt: skip

    if WHOLE:
        cols = tl.arange(0, COLS)
        keep = find_kept(mask_ptr, rows, cols, n_rows, n_cols, mask_row, mask_col, HAS_MASK)
        z = load_tile(student_ptr, rows, cols, student_row, student_col, keep)
        z_max, z_sum, z_plain_sum, z_total = measure_student(z, keep, z_scale, TEMPERED)
        t, t_keep = z, keep
        t_max, t_sum, cross = z_max, z_sum, tl.zeros_like(z_sum)
        if SOFT:
            t, t_keep = load_teacher(
                teacher_ptr, permutation_ptr, rows, cols, label, teacher_row, teacher_col,
                permutation_row, permutation_col, teacher_member, t_scale, n_cols, keep, SOFT, MEMBERS,
            )  # fmt: skip
            if MEMBERS > 1:
                t_scale = 1.0  # what the members give is tempered
            t_max, t_sum, cross = measure_target(z, z_max, z_scale, t, t_keep, t_scale, KL)
    else:
        z_max = tl.zeros((ROWS,), tl.float32)
        z_sum, z_plain_sum, z_total, t_max, t_sum, cross = z_max, z_max, z_max, z_max, z_max, z_max
        for start in range(0, n_cols, COLS):
            cols = start + tl.arange(0, COLS)
            keep = find_kept(mask_ptr, rows, cols, n_rows, n_cols, mask_row, mask_col, HAS_MASK)
            z = load_tile(student_ptr, rows, cols, student_row, student_col, keep)
            part_max, part_sum, part_plain, part_total = measure_student(z, keep, z_scale, TEMPERED)
            new_max = merge_maxima(z_max, z_sum, part_max, part_sum)
            n_after = tl.minimum(n_cols - start, COLS)
            z_total += tl.where(z_sum == 0, 0.0, (z_max - new_max) * start)
            z_total += tl.where(part_sum == 0, 0.0, part_total + (part_max - new_max) * n_after)
            if SOFT:
                t, t_keep = load_teacher(
                    teacher_ptr, permutation_ptr, rows, cols, label, teacher_row, teacher_col,
                    permutation_row, permutation_col, teacher_member, t_scale, n_cols, keep, SOFT, 1,
                )  # fmt: skip
                part_t_max, part_t_sum, part_cross = measure_target(z, new_max, z_scale, t, t_keep, t_scale, KL)
                new_t_max = merge_maxima(t_max, t_sum, part_t_max, part_t_sum)
                # earlier addends were taken less the old maxima; both sums then shrink with exp(t / T_t)
                cross += tl.where(z_sum == 0, 0.0, t_sum * (new_max - z_max) * z_scale)
                if KL:
                    cross += tl.where(t_sum == 0, 0.0, t_sum * (t_max - new_t_max) * t_scale)
                    part_cross += tl.where(part_t_sum == 0, 0.0, part_t_sum * (part_t_max - new_t_max) * t_scale)
                old_factor = rescale(tl.full((ROWS,), 1.0, tl.float32), t_max, new_t_max, t_scale)
                part_factor = rescale(tl.full((ROWS,), 1.0, tl.float32), part_t_max, new_t_max, t_scale)
                cross = tl.where(t_sum == 0, 0.0, cross * old_factor)
                cross += tl.where(part_t_sum == 0, 0.0, part_cross * part_factor)
                t_sum = rescale(t_sum, t_max, new_t_max, t_scale)
                t_sum += rescale(part_t_sum, part_t_max, new_t_max, t_scale)
                t_max = new_t_max
            z_sum = rescale(z_sum, z_max, new_max, z_scale) + rescale(part_sum, part_max, new_max, z_scale)
            if TEMPERED:
                z_plain_sum = rescale(z_plain_sum, z_max, new_max, 1.0)
                z_plain_sum += rescale(part_plain, part_max, new_max, 1.0)
            else:
                z_plain_sum = z_sum
            z_max = new_max

    a = tl.full((ROWS,), 0.0, tl.float32) + teacher_weight
    b = tl.full((ROWS,), 0.0, tl.float32) + label_weight
    if SOFT == REST:
        b = tl.load(values_ptr + rows * values_row, mask=row_exists, other=0.0)
        b = tl.where(t_sum == 0, 1.0, b)  # nothing is left beside the label
        a = 1.0 - b
    elif SOFT:
        a = tl.where(t_sum == 0, 0.0, a)  # the teacher leaves no class
    if LOSS:
        loss = tl.zeros((ROWS,), tl.float32)
        if SOFT:
            divergence = divide(cross, t_sum) + log_sum(z_sum)
            if KL:
                divergence -= log_sum(t_sum)
            loss += a * tl.where(t_sum == 0, 0.0, divergence)
        if LABEL:
            z_label = load_of_label(student_ptr, rows, label, n_rows, n_cols, student_row, student_col)
            log_q = (1.0 - smoothing) * (z_label - z_max) + smoothing / n_cols * z_total - log_sum(z_plain_sum)
            loss -= b * tl.where(z_sum == 0, 0.0, log_q)
        loss *= load_rows(values_ptr, rows, n_rows, values_row, HAS_VALUES and SOFT != REST)
        tl.store(loss_ptr + rows, loss, mask=row_exists)
    if GRADIENT:
        factor = load_rows(upstream_ptr, rows, n_rows, upstream_row, HAS_UPSTREAM)
        factor *= load_rows(values_ptr, rows, n_rows, values_row, HAS_VALUES and SOFT != REST)
        a *= factor
        b *= factor
        if WHOLE:
            gradient = gradient_tile(
                z, t, keep, t_keep, cols, label, z_max, z_sum, z_plain_sum, t_max, t_sum, a, b, smoothing, n_cols,
                z_scale, t_scale, SOFT, LABEL, TEMPERED,
            )  # fmt: skip
            store_gradient(gradient_ptr, gradient, rows, cols, n_rows, n_cols)
        else:
            for start in range(0, n_cols, COLS):
                cols = start + tl.arange(0, COLS)
                keep = find_kept(mask_ptr, rows, cols, n_rows, n_cols, mask_row, mask_col, HAS_MASK)
                z = load_tile(student_ptr, rows, cols, student_row, student_col, keep)
                t, t_keep = z, keep
                if SOFT:
                    t, t_keep = load_teacher(
                        teacher_ptr, permutation_ptr, rows, cols, label, teacher_row, teacher_col,
                        permutation_row, permutation_col, teacher_member, t_scale, n_cols, keep, SOFT, 1,
                    )  # fmt: skip
                gradient = gradient_tile(
                    z, t, keep, t_keep, cols, label, z_max, z_sum, z_plain_sum, t_max, t_sum, a, b, smoothing, n_cols,
                    z_scale, t_scale, SOFT, LABEL, TEMPERED,
                )  # fmt: skip
                store_gradient(gradient_ptr, gradient, rows, cols, n_rows, n_cols)
    if DIAGNOSTICS:
        diagnose(
            student_ptr, teacher_ptr, labels_ptr, mask_ptr, diagnostics_ptr, rows, n_rows, n_cols, student_row,
            student_col, teacher_row, teacher_col, labels_row, mask_row, mask_col, diagnostics_scale,
            HAS_LABELS, HAS_MASK, ROWS, COLS,
        )  # fmt: skip
