r"""Sums of a row that is read one tile after another.

Symbols: x and y scores of two sides, a = softmax(s x), b = softmax(s' y), * the class of the greatest x so far.

    sum a ln(a / b) = sum a d + ln a_* - ln b_*,    d_i = ln(a_i / a_*) - ln(b_i / b_*)

``d`` needs no sum over the row, so that one sweep is enough for a divergence. It is 0 in the class ``*``: where ``a``
is all in one class, nothing large is subtracted from something large, neither in the loss nor in its gradient.
"""

import triton
import triton.language as tl

from polydistill.kernels.device.rows import (
    LOWEST,
    at_least,
    at_most,
    divide,
    exponentiate,
    log_sum,
    quotient,
    rescale,
)


@triton.jit
def add_tile(maximum, total, scores, keep, scale):
    """Maximum and sum of ``exp((score - maximum) * scale)`` of a row, with one more tile; a -inf adds nothing."""
    greatest = tl.max(tl.where(keep, scores, float("-inf")), axis=1)
    merged = tl.where(total == 0, greatest, at_least(maximum, greatest))
    merged = tl.where(greatest == float("-inf"), maximum, merged)
    return merged, rescale(total, maximum, merged, scale) + tl.sum(exponentiate(scores, merged, scale, keep), axis=1)


@triton.jit
def log_ratio(y, of_best, scale):
    """``ln(b / b_*)``, finite: the logarithm of what is excluded (-inf) counts as LOWEST."""
    excluded, best_excluded = y == float("-inf"), of_best == float("-inf")
    ratio = at_least((at_least(y, LOWEST) - at_least(of_best, LOWEST)) * scale, LOWEST)
    only_one = tl.where(excluded, LOWEST, -LOWEST)
    return tl.where(excluded == best_excluded, at_most(ratio, -LOWEST), only_one)


@triton.jit
def compare_to_best(x, x_max, x_scale, y, y_best, y_scale):
    """``d`` of each place of a tile."""
    return (x - x_max[:, None]) * x_scale - log_ratio(y, y_best[:, None], y_scale)


@triton.jit
def add_to_divergence(
    x_max,  # (ROWS,), and so are the next three: the greatest x
    x_sum,  # sum of exp((x - x_max) * x_scale)
    y_best,  # the y of the class of the greatest x
    mean,  # sum a d
    x,  # (ROWS, COLS)
    x_keep,  # (ROWS, COLS)
    x_scale,
    y,  # (ROWS, COLS)
    y_scale,
):
    """The first four arguments, with one more tile; an x of -inf adds nothing."""
    known = x_keep & (x == x)  # the order of a NaN is not defined; it stays in the sums
    greatest, place = tl.max(tl.where(known, x, float("-inf")), axis=1, return_indices=True)
    better = (greatest != float("-inf")) & ((x_sum == 0) | (greatest > x_max))
    is_best = tl.arange(0, x.shape[1])[None, :] == place[:, None]
    new_max = tl.where(better, greatest, x_max)
    new_best = tl.where(better, tl.sum(tl.where(is_best, y, 0.0), axis=1), y_best)
    e = exponentiate(x, new_max, x_scale, x_keep)
    before = rescale(x_sum, x_max, new_max, x_scale)
    total = before + tl.sum(e, axis=1)
    one = divide(tl.full(total.shape, 1.0, tl.float32), total)
    # means rather than sums, which could overflow where b is 0
    mean = (mean + (x_max - new_max) * x_scale - log_ratio(y_best, new_best, y_scale)) * (before * one)
    mean = tl.where(before == 0, 0.0, mean)
    share = e * one[:, None]
    d = compare_to_best(x, new_max, x_scale, y, new_best, y_scale)
    return new_max, total, new_best, mean + tl.sum(share * tl.where(share == 0, 0.0, d), axis=1)


@triton.jit
def conclude_divergence(x_sum, y_best, mean, y_max, y_sum, y_scale):
    """``sum a ln(a / b)`` of each row; 0 where no x counts."""
    log_b_best = at_least((y_best - y_max) * y_scale, LOWEST)  # without ln of the sum
    return tl.where(x_sum == 0, 0.0, mean - log_b_best + log_sum(quotient(y_sum, x_sum)))
