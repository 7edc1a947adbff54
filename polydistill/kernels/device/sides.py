r"""Reading the scores of a side: of the student, of a teacher, or of an ensemble of teachers.

Symbols: t_k scores of member k, T its temperature, K how many there are, p_k = softmax(t_k / T).

A side is a tuple: ``(ptr, row stride, column stride)``, or ``(ptr, row stride, column stride, member stride, 1 / T,
maxima, log sums, ln K)`` for an ensemble, whose scores are

    ln p = ln (1 / K) sum_k p_k,    ln p_k = (t_k - max t_k) / T - ln sum exp((t_k - max t_k) / T)

``maxima`` and ``log sums`` are ``(ROWS, PLACES)``, a place for each member: with them, a tile of ln p is computed
from the members' tiles wherever one is needed, and ln p as a whole is never stored. It is tempered already.
"""

import triton
import triton.language as tl

from polydistill.kernels.device.rows import LOWEST, at_least, at_most, find_bare, find_kept, log_sum
from polydistill.kernels.device.streaming import add_tile


@triton.jit
def load_scores(side, rows, cols, keep, MEMBERS: tl.constexpr):
    """A tile of scores; -inf where a place does not count, so that its exponential is 0 by itself."""
    return load_at(side, rows[:, None], cols[None, :], keep, MEMBERS)


@triton.jit
def load_at(
    side,
    rows,  # (ROWS, 1)
    cols,  # (ROWS or 1, any number)
    keep,  # (ROWS, any number)
    MEMBERS: tl.constexpr,
):
    """The scores in these places; -inf where one does not count, or where all members exclude the class."""
    places = side[0] + rows * side[1] + cols * side[2]
    if MEMBERS > 1:
        total = tl.full(keep.shape, LOWEST, tl.float32)
        member_places = tl.arange(0, triton.next_power_of_2(MEMBERS))[None, :]
        for member in tl.range(MEMBERS):
            maximum = tl.sum(tl.where(member_places == member, side[5], 0.0), axis=1)
            log_total = tl.sum(tl.where(member_places == member, side[6], 0.0), axis=1)
            scores = tl.load(places, mask=keep, other=float("-inf")).to(tl.float32)
            log_p = (scores - maximum[:, None]) * side[4] - log_total[:, None]
            log_p = tl.where(scores == float("-inf"), LOWEST, at_least(log_p, LOWEST))
            high, low = at_least(total, log_p), at_most(total, log_p)
            total = high + tl.log(1.0 + tl.exp(at_least(low - high, -100.0)))
            places += side[3]  # step by step: a product with the member's number could leave 32 bits
        # a class that all exclude has gained at most ln K, which is rounded away beside LOWEST
        return tl.where(total <= LOWEST, float("-inf"), total - side[7][:, None])
    else:
        return tl.load(places, mask=keep, other=float("-inf")).to(tl.float32)


@triton.jit
def load_of_label(side, rows, label, n_rows, n_cols, MEMBERS: tl.constexpr):
    """The score of each row's label; NaN for a label that is none, which makes the loss NaN."""
    known = (rows < n_rows) & (label >= 0) & (label < n_cols)
    if MEMBERS > 1:
        scores = tl.sum(load_at(side, rows[:, None], label[:, None], known[:, None], MEMBERS), axis=1)
        return tl.where(known, scores, float("nan"))
    else:
        return tl.load(side[0] + rows * side[1] + label * side[2], mask=known, other=float("nan")).to(tl.float32)


@triton.jit
def measure_softmax(
    side,
    mask,
    rows,
    n_rows,
    n_cols,
    scale,
    HAS_MASK: tl.constexpr,
    MEMBERS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Maximum and sum of ``exp((score - maximum) * scale)`` of each row; scores of -inf do not count."""
    maximum = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for start in tl.range(0, n_cols, COLS, num_stages=2):
        cols = start + tl.arange(0, COLS)
        keep = find_kept(mask, rows, cols, n_rows, n_cols, HAS_MASK)
        scores = load_scores(side, rows, cols, keep, MEMBERS)
        maximum, total = add_tile(maximum, total, scores, scores != float("-inf"), scale)
    return maximum, total


@triton.jit
def find_best(
    side,
    mask,
    rows,
    n_rows,
    n_cols,
    HAS_MASK: tl.constexpr,
    MEMBERS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """The class of the greatest kept score of each row, the first of equal ones, and whether there is a finite one.

    There is none where a score is NaN, infinite, or where none is above -inf. The class is the best of those that are
    not NaN even then; 0 where none is kept.
    """
    best = tl.zeros((ROWS,), tl.int32)
    n_unknown = tl.zeros((ROWS,), tl.int32)
    greatest = tl.full((ROWS,), float("-inf"), tl.float32)
    for start in tl.range(0, n_cols, COLS, num_stages=2):
        cols = start + tl.arange(0, COLS)
        keep = find_kept(mask, rows, cols, n_rows, n_cols, HAS_MASK)
        scores = load_scores(side, rows, cols, keep, MEMBERS)
        n_unknown += tl.sum((scores != scores).to(tl.int32), axis=1)
        scores = tl.where(scores == scores, scores, float("-inf"))  # the order of a NaN is not defined
        found, place = tl.max(scores, axis=1, return_indices=True)
        best = tl.where(found > greatest, start + place, best)
        greatest = tl.maximum(found, greatest)
    return best, (tl.abs(greatest) < float("inf")) & (n_unknown == 0)


@triton.jit
def open_teacher(
    teacher,  # (ptr, row stride, column stride, member stride)
    mask,
    rows,
    n_rows,
    n_cols,
    scale,  # 1 / T
    HAS_MASK: tl.constexpr,
    MEMBERS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """The teacher as a side, and 1 / T of its scores; for an ensemble a sweep over each member's rows.

    A member whose scores of a row are all -inf makes the row NaN, except where the mask leaves no class.
    """
    if MEMBERS > 1:
        PLACES: tl.constexpr = triton.next_power_of_2(MEMBERS)
        member_places = tl.arange(0, PLACES)[None, :]
        maxima = tl.zeros((ROWS, PLACES), tl.float32)
        log_sums = tl.zeros((ROWS, PLACES), tl.float32)
        log_members = tl.log(tl.full((ROWS,), MEMBERS, tl.float32))
        is_bare = find_bare(mask, rows, n_rows, n_cols, HAS_MASK, ROWS, COLS)
        ptr = teacher[0]
        for member in tl.range(MEMBERS):
            one = (ptr, teacher[1], teacher[2])
            maximum, total = measure_softmax(one, mask, rows, n_rows, n_cols, scale, HAS_MASK, 1, ROWS, COLS)
            log_members = tl.where((total == 0) & ~is_bare, float("nan"), log_members)
            maxima = tl.where(member_places == member, maximum[:, None], maxima)
            log_sums = tl.where(member_places == member, log_sum(total)[:, None], log_sums)
            ptr += teacher[3]
        side = (teacher[0], teacher[1], teacher[2], teacher[3], scale, maxima, log_sums, log_members)
        return side, 1.0
    else:
        return (teacher[0], teacher[1], teacher[2]), scale
