r"""The losses of :mod:`~polydistill.kernels.device.targets` for rows that no tile holds, at the speed of the memory:
for one teacher, without a mask, and without permuted classes.

Symbols as there. A tile is ``(LANES, PIECES, WIDTH)``, a lane for each thread: of ``LANES * WIDTH`` places side by side
each lane has ``WIDTH``, as many as one load takes. Each lane keeps its own maxima, and its sums relative to these; they
are joined once at the row's end, so that no thread waits for another in between. All places of a tile exist, except in
the last tile. A maximum begins at LOWEST, not at -inf, so that a difference from it is never NaN.

The sums of a row can be kept (``SUMS``, where only the loss is computed) and given back for the gradient, which then
reads the row once.
"""

import triton
import triton.language as tl

from polydistill.kernels.device.rows import LOWEST, divide, inverse, log_sum, power, quotient

# SUMS
KEPT = tl.constexpr(1)
GIVEN = tl.constexpr(2)
N_SUMS = tl.constexpr(5)  # z_max, z_sum, z_plain_sum, t_max, t_sum


@triton.jit
def greatest(x):
    """Of each lane."""
    return tl.max(tl.max(x, axis=2), axis=1)


@triton.jit
def add_up(x):
    """For each lane."""
    return tl.sum(tl.sum(x, axis=2), axis=1)


@triton.jit
def _greater_two(a, b, other_a, other_b):
    return tl.maximum(a, other_a), tl.maximum(b, other_b)


@triton.jit
def _add_three(a, b, c, other_a, other_b, other_c):
    return a + other_a, b + other_b, c + other_c


@triton.jit
def maxima_of_two(a, b):
    """Of all lanes, of both at once: its threads wait for each other once, not twice."""
    return tl.reduce((a, b), 0, _greater_two)


@triton.jit
def sums_of_three(a, b, c):
    """Likewise. In Triton's interpreter it adds lane after lane: not for tiles of many columns."""
    return tl.reduce((a, b, c), 0, _add_three)


@triton.jit
def load_tile(ptr, places, n_cols, EXISTS: tl.constexpr):
    """``(LANES, PIECES, WIDTH)`` float32; -inf beyond the row's end."""
    if EXISTS:
        return tl.load(ptr + places).to(tl.float32)
    else:
        return tl.load(ptr + places, mask=places < n_cols, other=float("-inf")).to(tl.float32)


@triton.jit
def add_tile(
    z_max,  # (LANES,), and so are the others
    z_sum,  # of exp(z / T_s)
    z_plain_sum,  # of exp(z)
    z_total,  # of z
    t_max,
    t_sum,  # of exp(t / T_t)
    cross,  # the same sum with each addend times (t - z T_t / T_s), without KL times -z
    student_ptr,
    teacher_ptr,
    places,
    n_before,  # places that each lane has seen
    n_cols,
    z_scale,
    t_scale,
    SOFT: tl.constexpr,
    LABEL: tl.constexpr,
    KL: tl.constexpr,
    TEMPERED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    EXISTS: tl.constexpr,
):
    """The first seven arguments, with one more tile; all less the maxima."""
    z = load_tile(student_ptr, places, n_cols, EXISTS)
    new_max = tl.maximum(z_max, greatest(z))
    shift = z_max - new_max
    z -= new_max[:, None, None]
    z_sum = z_sum * power(shift, z_scale) + add_up(power(z, z_scale))
    if LABEL and TEMPERED:
        z_plain_sum = z_plain_sum * power(shift, 1.0) + add_up(power(z, 1.0))
    if SMOOTHED:
        z_total += tl.where(n_before == 0, 0.0, shift * n_before)
        z_total += add_up(z if EXISTS else tl.where(places < n_cols, z, 0.0))
    if SOFT:
        t = load_tile(teacher_ptr, places, n_cols, EXISTS)
        new_t_max = tl.maximum(t_max, greatest(t))
        t_shift = t_max - new_t_max
        t -= new_t_max[:, None, None]
        ratio = quotient(z_scale, t_scale)
        moved = t_shift - shift * ratio if KL else -shift
        difference = t - z * ratio if KL else -z
        e = power(t, t_scale)
        factor = power(t_shift, t_scale)
        before = t_sum * factor
        cross = tl.where(before == 0, 0.0, cross * factor + before * moved) + add_up(
            tl.where(e == 0, 0.0, e * difference)
        )
        t_sum = before + add_up(e)
        t_max = new_t_max
    return new_max, z_sum, z_plain_sum, z_total, t_max, t_sum, cross


@triton.jit
def write_gradient(
    student_ptr,
    teacher_ptr,
    gradient_ptr,
    places,
    n_cols,
    z_max,
    t_max,
    of_teacher,  # z_sum / t_sum
    a,  # factor of exp(z / T_s) - exp(t / T_t) of_teacher
    b,  # factor of exp(z)
    smoothing,  # taken off each
    z_scale,
    t_scale,
    SOFT: tl.constexpr,
    LABEL: tl.constexpr,
    TEMPERED: tl.constexpr,
    EXISTS: tl.constexpr,
):
    """The gradient of a tile, or of one place, without the label's own part."""
    z = load_tile(student_ptr, places, n_cols, EXISTS) - z_max
    e = power(z, z_scale)
    gradient = e * b - smoothing  # of the label's loss at T = 1
    if LABEL and TEMPERED:
        gradient = power(z, 1.0) * b - smoothing
    if SOFT:
        t = load_tile(teacher_ptr, places, n_cols, EXISTS) - t_max
        of_both = (e - power(t, t_scale) * of_teacher) * a
        gradient = gradient + of_both if LABEL else of_both
    if EXISTS:
        tl.store(gradient_ptr + places, gradient)
    else:
        tl.store(gradient_ptr + places, gradient, mask=places < n_cols)


@triton.jit(do_not_specialize=["n_rows"])
def long_row_kernel(
    student_ptr,  # (rows, cols) in, float32, bfloat16 or float16; columns side by side, and so are the teacher's
    teacher_ptr,  # (rows, cols) in, the same or float32
    labels_ptr,  # (rows,) in, int64
    mask_ptr,  # not read
    permutation_ptr,  # not read
    values_ptr,  # (rows,) in, float32: a factor of the row's loss
    upstream_ptr,  # (rows,) in, float32: what the gradient is multiplied by
    loss_ptr,  # (rows,) out, float32
    gradient_ptr,  # (rows, cols) out, any float: upstream[r] * d loss[r] / d student[r, c]
    sums_ptr,  # (rows, N_SUMS) out or in, float32
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
    diagnostics_scale,  # not read
    teacher_weight,  # a
    label_weight,  # b
    smoothing,  # eps
    t_scale,  # 1 / T_t
    z_scale,  # 1 / T_s
    square_weight,  # not read
    SOFT: tl.constexpr,
    LABEL: tl.constexpr,
    KL: tl.constexpr,
    TEMPERED: tl.constexpr,  # T_s is not 1
    SMOOTHED: tl.constexpr,  # eps is not 0
    HAS_VALUES: tl.constexpr,
    HAS_UPSTREAM: tl.constexpr,
    LOSS: tl.constexpr,
    GRADIENT: tl.constexpr,
    SUMS: tl.constexpr,
    LANES: tl.constexpr,
    PIECES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    student_ptr += row * student_row
    teacher_ptr += row * teacher_row
    gradient_ptr += row * n_cols
    sums_ptr += row * N_SUMS
    lane, piece, place = tl.arange(0, LANES), tl.arange(0, PIECES), tl.arange(0, WIDTH)
    of_piece = piece[None, :, None] * (LANES * WIDTH)
    places = of_piece + (lane[:, None, None] * WIDTH + place[None, None, :])
    TILE: tl.constexpr = LANES * PIECES * WIDTH
    whole_tiles = n_cols // TILE * TILE

    label, of_label = -1, float("nan")  # a label that is no class makes the loss NaN
    if LABEL:
        label = tl.load(labels_ptr + row * labels_row)
        label = tl.where((label >= 0) & (label < n_cols), label, -1).to(tl.int32)
        of_label = tl.load(student_ptr + label, mask=label >= 0, other=float("nan")).to(tl.float32)

    if SUMS == GIVEN:
        z_max, z_sum, z_plain_sum = tl.load(sums_ptr), tl.load(sums_ptr + 1), tl.load(sums_ptr + 2)
        t_max, t_sum, z_total, cross = tl.load(sums_ptr + 3), tl.load(sums_ptr + 4), 0.0, 0.0
    else:
        z_maxima = tl.full((LANES,), LOWEST, tl.float32)
        z_sums = tl.zeros((LANES,), tl.float32)
        z_plain_sums, z_totals, t_maxima, t_sums, crosses = z_sums, z_sums, z_maxima, z_sums, z_sums
        for start in tl.range(0, whole_tiles, TILE, num_stages=1):
            z_maxima, z_sums, z_plain_sums, z_totals, t_maxima, t_sums, crosses = add_tile(
                z_maxima, z_sums, z_plain_sums, z_totals, t_maxima, t_sums, crosses, student_ptr, teacher_ptr,
                start + places, start // LANES, n_cols, z_scale, t_scale, SOFT, LABEL, KL, TEMPERED, SMOOTHED, True,
            )  # fmt: skip
        if whole_tiles < n_cols:
            z_maxima, z_sums, z_plain_sums, z_totals, t_maxima, t_sums, crosses = add_tile(
                z_maxima, z_sums, z_plain_sums, z_totals, t_maxima, t_sums, crosses, student_ptr, teacher_ptr,
                whole_tiles + places, whole_tiles // LANES, n_cols, z_scale, t_scale,
                SOFT, LABEL, KL, TEMPERED, SMOOTHED, False,
            )  # fmt: skip
        # the lanes together
        z_total, cross = 0.0, 0.0
        if SOFT:
            z_max, t_max = maxima_of_two(z_maxima, t_maxima)
            shift, t_shift = z_maxima - z_max, t_maxima - t_max
            factor = power(t_shift, t_scale)
            parts = t_sums * factor
            moved = t_shift - shift * quotient(z_scale, t_scale) if KL else -shift
            crosses = tl.where(parts == 0, 0.0, crosses * factor + parts * moved)
            z_sum, t_sum, cross = sums_of_three(z_sums * power(shift, z_scale), parts, crosses)
        else:
            z_max = tl.max(z_maxima, axis=0)
            shift = z_maxima - z_max
            z_sum = tl.sum(z_sums * power(shift, z_scale), axis=0)
            t_max, t_sum = z_max, z_sum
        z_plain_sum = z_sum
        if LABEL and TEMPERED:
            z_plain_sum = tl.sum(z_plain_sums * power(shift, 1.0), axis=0)
        if SMOOTHED:
            seen = whole_tiles // LANES + add_up((whole_tiles + places < n_cols).to(tl.int32))
            z_total = tl.sum(tl.where(seen == 0, 0.0, z_totals + shift * seen), axis=0)
        if SUMS == KEPT:
            tl.store(sums_ptr, z_max)
            tl.store(sums_ptr + 1, z_sum)
            tl.store(sums_ptr + 2, z_plain_sum)
            tl.store(sums_ptr + 3, t_max)
            tl.store(sums_ptr + 4, t_sum)

    is_empty = (z_sum == 0) | (t_sum == 0)  # a row of nothing but -inf becomes NaN
    factor = tl.where(is_empty, float("nan"), 1.0)
    if HAS_VALUES:
        factor *= tl.load(values_ptr + row * values_row)
    if LOSS:
        loss = 0.0
        if SOFT:
            divergence = divide(cross, t_sum) * (t_scale if KL else z_scale)
            divergence += log_sum(quotient(z_sum, t_sum) if KL else z_sum)
            loss += teacher_weight * divergence
        if LABEL:
            log_q = (1.0 - smoothing) * (of_label - z_max) - log_sum(z_plain_sum)
            if SMOOTHED:
                log_q += smoothing / n_cols * z_total
            loss -= label_weight * log_q
        tl.store(loss_ptr + row, loss * factor)
    if GRADIENT:
        if HAS_UPSTREAM:
            factor *= tl.load(upstream_ptr + row * upstream_row)
        of_teacher = quotient(z_sum, t_sum)
        a = factor * teacher_weight * z_scale * inverse(z_sum)
        b = factor * label_weight * inverse(z_plain_sum)
        share = factor * label_weight * smoothing / n_cols
        if whole_tiles < n_cols:
            write_gradient(
                student_ptr, teacher_ptr, gradient_ptr, whole_tiles + places, n_cols, z_max, t_max, of_teacher,
                a, b, share, z_scale, t_scale, SOFT, LABEL, TEMPERED, False,
            )  # fmt: skip
        for start in tl.range(0, whole_tiles, TILE, num_stages=1):
            # backwards: what was read last may still be in the cache
            write_gradient(
                student_ptr, teacher_ptr, gradient_ptr, whole_tiles - TILE - start + places, n_cols, z_max, t_max,
                of_teacher, a, b, share, z_scale, t_scale, SOFT, LABEL, TEMPERED, True,
            )  # fmt: skip
        if LABEL:
            tl.debug_barrier()  # the gradient overwrites what another thread has written there
            share += factor * label_weight * (1.0 - smoothing)
            write_gradient(
                student_ptr, teacher_ptr, gradient_ptr, label + tl.where(label < 0, n_cols, 0), n_cols, z_max, t_max,
                of_teacher, a, b, share, z_scale, t_scale, SOFT, LABEL, TEMPERED, False,
            )  # fmt: skip
