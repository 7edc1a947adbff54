"""Shared by the kernels: tiles of rows, and sums of exponentials of a row that is read in one tile or in several.

A tile is ``(ROWS, COLS)``; a value per row is ``(ROWS,)``. The contract: computation is in float32. ``keep``
marks the places of a tile that count (a column that exists, of a class that stays); any other's exponential is 0. A
row of which nothing counts has maximum 0 (or -inf, for which :func:`origin` gives 0) and sum 0, which :func:`log_sum`,
:func:`divide` and :func:`inverse` turn into 0: no NaN. A NaN stays: NaN and inf among the scores make
loss and gradient of their row not finite, so that a ``GradScaler`` or a check of the loss sees it. Hence ``at_most``,
and comparisons with 0, not "not above 0". A row of which nothing counts although the mask leaves some class
(:func:`find_bare`) has none but scores of -inf there, and is made NaN too.
"""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.4028234663852886e38)  # of float32: the logarithm of a probability that is 0
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def at_most(x, bound):
    """The smaller of both, or NaN; ``tl.minimum`` alone gives the number."""
    return tl.minimum(x, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def at_least(x, bound):
    """The greater of both, or NaN."""
    return tl.maximum(x, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def load_rows(ptr, rows, n_rows, stride, GIVEN: tl.constexpr):
    """A number of each row as float32; 1 where none is given."""
    if GIVEN:
        return tl.load(ptr + rows * stride, mask=rows < n_rows, other=0.0).to(tl.float32)
    else:
        return tl.full(rows.shape, 1.0, tl.float32)


@triton.jit
def store_gradient(ptr, gradient, rows, cols, n_rows, n_cols):
    """A tile of the gradient, whose rows lie one after another."""
    exists = (rows < n_rows)[:, None] & (cols < n_cols)[None, :]
    tl.store(ptr + rows[:, None] * n_cols + cols[None, :], gradient, mask=exists)


@triton.jit
def find_kept(
    mask,  # (ptr, row stride, column stride) of (rows, cols) bool, True: the class leaves; not read unless HAS_MASK
    rows,
    cols,
    n_rows,
    n_cols,
    HAS_MASK: tl.constexpr,
):
    keep = (rows < n_rows)[:, None] & (cols < n_cols)[None, :]
    if HAS_MASK:
        leaves = tl.load(mask[0] + rows[:, None] * mask[1] + cols[None, :] * mask[2], mask=keep, other=1)
        keep = keep & (leaves == 0)
    return keep


@triton.jit
def find_bare(mask, rows, n_rows, n_cols, HAS_MASK: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The rows of which the mask leaves no class."""
    n_left = tl.full((ROWS,), 0 if HAS_MASK else 1, tl.int32)
    if HAS_MASK:
        for start in tl.range(0, n_cols, COLS):
            keep = find_kept(mask, rows, start + tl.arange(0, COLS), n_rows, n_cols, HAS_MASK)
            n_left += tl.sum(keep.to(tl.int32), axis=1)
    return n_left == 0


@triton.jit
def find_maximum(scores, keep):
    """The greatest score of each row; 0 where none counts."""
    greatest = tl.max(tl.where(keep, scores, float("-inf")), axis=1)
    return tl.where(greatest == float("-inf"), 0.0, greatest)


@triton.jit
def origin(maximum):
    """The number that is subtracted from the scores of a row: their maximum, or 0 where none counts."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


@triton.jit
def power(difference, scale):
    """``exp(difference * scale)`` of scores minus their maximum. (A power of 2 takes a third of the work of ``tl.exp``,
    which takes care of results below 1e-38; here they are 0.)"""
    return tl.exp2(difference * (scale * LOG2_E))


@triton.jit
def exponentiate(scores, maximum, scale, keep):
    """``exp((score - maximum) * scale)``; 0 for what does not count, which may be above the maximum."""
    return tl.where(keep, power(at_most(scores - maximum[:, None], 0.0), scale), 0.0)


@triton.jit
def merge_maxima(maximum, total, other_maximum, other_total):
    """The maximum of two parts of a row; a part whose sum is 0 is left out, since nothing in it counts."""
    merged = tl.where(other_total == 0, maximum, other_maximum)
    return tl.where((total == 0) | (other_total == 0), merged, at_least(maximum, other_maximum))


@triton.jit
def rescale(total, maximum, new_maximum, scale):
    """A sum of ``exp((score - maximum) * scale)`` as one of ``exp((score - new_maximum) * scale)``."""
    return tl.where(total == 0, 0.0, total * power(at_most(maximum - new_maximum, 0.0), scale))


@triton.jit
def log_sum(total):
    return tl.log(tl.where(total == 0, 1.0, total))


@triton.jit
def divide(part, total):
    """``part / total``, 0 where the total is."""
    return tl.where(total == 0, 0.0, part / tl.where(total == 0, 1.0, total))


@triton.jit
def quotient(a, b):
    """``a / b``, 0 where ``b`` is; exactly 1 where they are equal, which a GPU's fast division does not guarantee."""
    return tl.where(a == b, 1.0, divide(a, b))


@triton.jit
def inverse(total):
    """``1 / total`` of a sum of exponentials, 0 where it is 0: a product with it takes a tenth of a division."""
    return tl.where(total == 0, 0.0, 1.0 / tl.where(total == 0, 1.0, total))
