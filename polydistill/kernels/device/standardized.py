r"""Knowledge distillation on standardised scores.

Symbols: z student scores, t teacher scores, y label, T temperature, w and a weights, n classes; c = z - mean z,
s = |c| / sqrt(n - 1), Z = c / (s + 1e-7) and the same for t; q = softmax(Z(z) / T), p = softmax(Z(t) / T).

    loss = -w ln softmax(z)_y + a T^2 sum p ln(p / q)
    g = a T (q - p), which sums to 0
    d loss / d z_i = w (softmax(z)_i - [i = y]) + g_i / (s + 1e-7) - Z_i sum(g Z) / ((n - 1) s)

A class that the teacher excludes (-inf) has no part in its mean and deviation; one that both sides mask by the lowest
number of their type has none in anything. A row in one tile is read once. A longer
one is read three times, since no softmax can begin before mean and deviation are known: for the maximum, the mean and
the deviation of both sides; for the softmaxes of Z and the loss; for the gradient. Sums of squares are never
subtracted: the deviations of two parts of a row are joined by the distance of their means (Chan et al. 1979). Means
keep the digits that a float32 rounds away: neither scores of 1e4 nor one such score among small ones lose digits.
"""

import triton
import triton.language as tl

from polydistill.kernels.device.diagnostics import diagnose
from polydistill.kernels.device.rows import (
    at_least,
    divide,
    exponentiate,
    find_kept,
    find_maximum,
    inverse,
    load_rows,
    log_sum,
    merge_maxima,
    quotient,
    store_gradient,
)
from polydistill.kernels.device.sides import load_of_label, load_scores

EPSILON = tl.constexpr(1e-7)  # the paper's, added to the standard deviation


@triton.jit
def lowest_of(ptr):
    """The lowest number of the type that ``ptr`` points to, as float32."""
    if ptr.dtype.element_ty == tl.float16:
        return -65504.0
    elif ptr.dtype.element_ty == tl.bfloat16:
        return -3.3895313892515355e38
    else:
        return -3.4028234663852886e38


@triton.jit
def find_scored(student, teacher, z, t, keep):
    """The places of a tile that count for the student, and for the teacher."""
    keep = keep & ~((z == lowest_of(student[0])) & (t == lowest_of(teacher[0])))
    return keep, keep & (t != float("-inf"))


@triton.jit
def measure_spread(scores, keep):
    """``(count, maximum, mean, rest, |c|)`` of each row of a tile; ``rest`` is what rounding took from the mean."""
    count = tl.sum(keep.to(tl.float32), axis=1)
    maximum = find_maximum(scores, keep)
    below = tl.where(keep, scores - maximum[:, None], 0.0)
    mean = maximum + tl.sum(below, axis=1) / tl.maximum(count, 1.0)
    distance = tl.where(keep, scores - mean[:, None], 0.0)
    rest = tl.sum(distance, axis=1) / tl.maximum(count, 1.0)
    centred = tl.where(keep, distance - rest[:, None], 0.0)
    span = tl.max(-below, axis=1)  # squares of scores of 1e30 would overflow
    unit = divide(centred, span[:, None])
    return count, maximum, mean, rest, span * tl.sqrt(tl.sum(unit * unit, axis=1))


@triton.jit
def merge_spreads(count, maximum, mean, rest, norm, part_count, part_maximum, part_mean, part_rest, part_norm):
    """The result of :func:`measure_spread` for a row, from its results for two parts."""
    merged_max = merge_maxima(maximum, count, part_maximum, part_count)
    total = count + part_count
    share = divide(part_count, total)
    between = (part_mean - mean) + (part_rest - rest)
    between = tl.where((count == 0) | (part_count == 0), 0.0, between)
    rest += between * share
    merged_mean = mean + rest
    merged_rest = tl.where(count == 0, part_rest, rest - (merged_mean - mean))
    merged_mean = tl.where(count == 0, part_mean, merged_mean)
    between = tl.abs(between) * tl.sqrt(count * share)
    largest = at_least(at_least(norm, part_norm), between)
    norm, part_norm, between = divide(norm, largest), divide(part_norm, largest), divide(between, largest)
    merged_norm = largest * tl.sqrt(norm * norm + part_norm * part_norm + between * between)
    return total, merged_max, merged_mean, merged_rest, merged_norm


@triton.jit
def standardize(scores, keep, mean, rest, width):
    """``Z`` of a tile, 0 where it does not count; ``width`` is s + 1e-7."""
    return tl.where(keep, (scores - mean[:, None]) - rest[:, None], 0.0) / width[:, None]


@triton.jit
def weigh(z, t, q, p, z_top, t_top, scale):
    """Sums over a tile of Z: of q, p, both times Z(z), and p ln(p / q); less their maxima, not yet normalised."""
    below = z - z_top[:, None]
    difference = ((t - t_top[:, None]) - below) * scale
    return (
        tl.sum(q, axis=1),
        tl.sum(p, axis=1),
        tl.sum(q * below, axis=1),
        tl.sum(p * below, axis=1),
        tl.sum(tl.where(p == 0, 0.0, p * difference), axis=1),
    )


@triton.jit
def gradient_tile(
    z, scaled, q, p, keep, cols, label, z_max, z_sum, t_sum, plain_sum, soft_weight, width, slope, label_weight,
    LABEL: tl.constexpr,
):  # fmt: skip
    difference = q - p * quotient(z_sum, t_sum)[:, None]  # exactly 0 for equal scores
    g = difference * (soft_weight * inverse(z_sum))[:, None]
    gradient = g / width[:, None] - scaled * slope[:, None]
    if LABEL:
        plain = divide(exponentiate(z, z_max, 1.0, keep), plain_sum[:, None])
        gradient += label_weight * (plain - tl.where(cols[None, :] == label[:, None], 1.0, 0.0))
    return gradient


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
    MEMBERS: tl.constexpr,  # always 1
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
    teacher = (teacher_ptr, teacher_row, teacher_col)
    row_exists = rows < n_rows
    upstream = load_rows(upstream_ptr, rows, n_rows, upstream_row, HAS_UPSTREAM)
    scale = 1.0 / temperature
    label = tl.zeros((ROWS,), tl.int64)
    if LABEL:
        label = tl.load(labels_ptr + rows * labels_row, mask=row_exists, other=0)

    if WHOLE:
        cols = tl.arange(0, COLS)
        keep = find_kept(mask, rows, cols, n_rows, n_cols, False)
        z = load_scores(student, rows, cols, keep, 1)
        t = load_scores(teacher, rows, cols, keep, 1)
        z_keep, t_keep = find_scored(student, teacher, z, t, keep)
        z_count, z_max, z_mean, z_rest, z_norm = measure_spread(z, z_keep)
        t_count, t_max, t_mean, t_rest, t_norm = measure_spread(t, t_keep)
    else:
        z_count = tl.zeros((ROWS,), tl.float32)
        z_max, z_mean, z_rest, z_norm = z_count, z_count, z_count, z_count
        t_count, t_max, t_mean, t_rest, t_norm = z_count, z_count, z_count, z_count, z_count
        for start in tl.range(0, n_cols, COLS, num_stages=2):
            cols = start + tl.arange(0, COLS)
            keep = find_kept(mask, rows, cols, n_rows, n_cols, False)
            z = load_scores(student, rows, cols, keep, 1)
            t = load_scores(teacher, rows, cols, keep, 1)
            z_keep, t_keep = find_scored(student, teacher, z, t, keep)
            count, maximum, mean, rest, norm = measure_spread(z, z_keep)
            z_count, z_max, z_mean, z_rest, z_norm = merge_spreads(
                z_count, z_max, z_mean, z_rest, z_norm, count, maximum, mean, rest, norm
            )
            count, maximum, mean, rest, norm = measure_spread(t, t_keep)
            t_count, t_max, t_mean, t_rest, t_norm = merge_spreads(
                t_count, t_max, t_mean, t_rest, t_norm, count, maximum, mean, rest, norm
            )

    upstream = tl.where(t_count == 0, float("nan"), upstream)  # a row of nothing but -inf becomes NaN
    freedom = tl.maximum(z_count - 1.0, 1.0)
    deviation = z_norm / tl.sqrt(freedom)
    z_width = deviation + EPSILON
    t_width = t_norm / tl.sqrt(tl.maximum(t_count - 1.0, 1.0)) + EPSILON
    z_top, t_top = ((z_max - z_mean) - z_rest) / z_width, ((t_max - t_mean) - t_rest) / t_width  # the greatest Z

    plain_sum = tl.zeros((ROWS,), tl.float32)
    if WHOLE:
        z_scaled = standardize(z, z_keep, z_mean, z_rest, z_width)
        t_scaled = standardize(t, t_keep, t_mean, t_rest, t_width)
        q, p = exponentiate(z_scaled, z_top, scale, z_keep), exponentiate(t_scaled, t_top, scale, t_keep)
        z_sum, t_sum, q_below, p_below, cross = weigh(z_scaled, t_scaled, q, p, z_top, t_top, scale)
        if LABEL:
            plain_sum = tl.sum(exponentiate(z, z_max, 1.0, keep), axis=1)
    else:
        z_sum, t_sum, q_below, p_below, cross = plain_sum, plain_sum, plain_sum, plain_sum, plain_sum
        for start in tl.range(0, n_cols, COLS, num_stages=2):
            cols = start + tl.arange(0, COLS)
            keep = find_kept(mask, rows, cols, n_rows, n_cols, False)
            z = load_scores(student, rows, cols, keep, 1)
            t = load_scores(teacher, rows, cols, keep, 1)
            z_keep, t_keep = find_scored(student, teacher, z, t, keep)
            z_scaled = standardize(z, z_keep, z_mean, z_rest, z_width)
            t_scaled = standardize(t, t_keep, t_mean, t_rest, t_width)
            q, p = exponentiate(z_scaled, z_top, scale, z_keep), exponentiate(t_scaled, t_top, scale, t_keep)
            part_z, part_t, part_q_below, part_p_below, part_cross = weigh(
                z_scaled, t_scaled, q, p, z_top, t_top, scale
            )
            z_sum += part_z
            t_sum += part_t
            q_below += part_q_below
            p_below += part_p_below
            cross += part_cross
            if LABEL:
                plain_sum += tl.sum(exponentiate(z, z_max, 1.0, keep), axis=1)

    if LOSS:
        divergence = divide(cross, t_sum) + log_sum(quotient(z_sum, t_sum))
        loss = divergence * (teacher_weight * temperature * temperature)
        if LABEL:
            z_label = load_of_label(student, rows, label, n_rows, n_cols, 1)
            loss -= label_weight * (z_label - z_max - log_sum(plain_sum))
        tl.store(loss_ptr + rows, tl.where(t_count == 0, float("nan"), loss), mask=row_exists)
    if GRADIENT:
        soft_weight = tl.where(t_sum == 0, 0.0, teacher_weight * temperature)
        # sum(g Z) is that of g times the distance of Z from its maximum, since g sums to 0
        of_both = (q_below - p_below * quotient(z_sum, t_sum)) * inverse(z_sum)
        slope = divide(soft_weight * of_both, freedom * deviation)
        if WHOLE:
            gradient = gradient_tile(
                z, z_scaled, q, p, keep, cols, label, z_max, z_sum, t_sum, plain_sum, soft_weight, z_width, slope,
                label_weight, LABEL,
            )  # fmt: skip
            store_gradient(gradient_ptr, upstream[:, None] * gradient, rows, cols, n_rows, n_cols)
        else:
            for start in tl.range(0, n_cols, COLS, num_stages=2):
                cols = start + tl.arange(0, COLS)
                keep = find_kept(mask, rows, cols, n_rows, n_cols, False)
                z = load_scores(student, rows, cols, keep, 1)
                t = load_scores(teacher, rows, cols, keep, 1)
                z_keep, t_keep = find_scored(student, teacher, z, t, keep)
                z_scaled = standardize(z, z_keep, z_mean, z_rest, z_width)
                t_scaled = standardize(t, t_keep, t_mean, t_rest, t_width)
                q, p = exponentiate(z_scaled, z_top, scale, z_keep), exponentiate(t_scaled, t_top, scale, t_keep)
                gradient = gradient_tile(
                    z, z_scaled, q, p, keep, cols, label, z_max, z_sum, t_sum, plain_sum, soft_weight, z_width, slope,
                    label_weight, LABEL,
                )  # fmt: skip
                store_gradient(gradient_ptr, upstream[:, None] * gradient, rows, cols, n_rows, n_cols)
    if DIAGNOSTICS:
        diagnose(
            student, all_members, labels_ptr, labels_row, mask, diagnostics_ptr, rows, n_rows, n_cols,
            diagnostics_scale, 1.0, HAS_LABELS, HAS_MASK, MEMBERS, ROWS, COLS,
        )  # fmt: skip
