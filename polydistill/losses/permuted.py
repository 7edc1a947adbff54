r"""Dark knowledge with permuted predictions (Furlanello et al. 2018, section 3.2), and its permutations.

Symbols: z student scores, t teacher scores, q = softmax(z), p = softmax(t), n classes, phi a permutation of the n - 1
classes other than the teacher's maximum.

The contract: a permutation is ``(batch, classes - 1)`` int64, each row an order of 0 .. classes - 2. It numbers the
classes other than the teacher's maximum in their own order, so that it does not depend on where that maximum is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polydistill.losses.backend import Rows, numbers
from polydistill.losses.checks import accept_pair, check_integer, check_integers, describe, promote
from polydistill.losses.description import Description, computed
from polydistill.losses.probabilities import join_members, soft_cross_entropy, student_log_probabilities

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, the step of splitmix64, as int64


@computed
def dkpp(student: Tensor, teacher: Tensor, *, permutation: Tensor, check_values: bool = False) -> Description:
    r"""Cross-entropy with a teacher whose maximum stays and whose other probabilities are permuted.

    .. math:: -\sum_i p'_i \ln q_i, \quad p'_{i^*} = p_{i^*} = \max p, \quad p'_{i} = p_{\varphi(i)} \; (i \ne i^*)

    Furlanello et al. 2018, eq. 11; labels are not used. The paper leaves open whether phi is drawn anew in each step
    (:func:`draw_permutation`) or once per sample (:func:`fix_permutation`). Drawn anew, the expected target is max p
    on the maximum and (1 - max p) / (n - 1) elsewhere: label smoothing by the teacher's confidence. A class that both
    sides mask by a very low score gets another's probability too, and a huge loss: leave it out of the scores.

    Args:
        student: ``(batch, classes)`` scores, floating, finite. Gradient flows.
        teacher: ``(batch, classes)`` scores; ``-inf`` excludes a class. Or ``(members, batch, classes)``: an ensemble,
            whose softmaxes are averaged. Detached.
        permutation: ``(batch, classes - 1)`` int64: the i-th of the other classes gets the probability of the
            ``permutation[i]``-th.
        check_values: also check that scores are finite and that rows are permutations (waits for the device).

    Returns:
        ``(batch,)`` in nats, float32 (float64 for float64 input), >= 0.

    Raises:
        ValueError: a shape, device or value is out of range.
        TypeError: an argument of another type.

    Example:
        >>> teacher = torch.tensor([[0.1, 0.6, 0.3]]).log()
        >>> student = torch.tensor([[0.0, 0.0, -100.0]])  # its loss is about 100 times the probability at class 2
        >>> round(dkpp(student, teacher, permutation=torch.tensor([[1, 0]])).item(), 3)  # ln 2 + 0.1 * 100, not 0.3
        10.693
    """
    student, teacher = accept_pair(student, teacher, check_values=check_values)
    _check_permutation(student, permutation, check_values)
    rows = Rows(student, teacher, permutation=permutation)
    return Description("permuted", numbers.Target(teacher_weight=1.0), rows, _dkpp)


def _dkpp(student: Tensor, teacher: Tensor, permutation: Tensor) -> Tensor:
    teacher = join_members(student, teacher)
    target = _permute_others(promote(teacher).softmax(dim=-1), teacher.argmax(dim=-1), permutation)
    return soft_cross_entropy(target, student_log_probabilities(student))


def draw_permutation(n_samples: int, n_classes: int, *, generator: torch.Generator) -> Tensor:
    """A fresh permutation per sample, all equally likely.

    Args:
        n_samples: rows.
        n_classes: classes of the scores, >= 1.
        generator: the stream it is drawn from; its device is the result's.

    Returns:
        ``(n_samples, n_classes - 1)`` int64.

    Raises:
        TypeError: a number is no integer, or the generator none of torch's.
        ValueError: ``n_samples < 0`` or ``n_classes < 1``.

    Example:
        >>> draw_permutation(2, 5, generator=torch.Generator().manual_seed(0)).sort(dim=1).values.tolist()
        [[0, 1, 2, 3], [0, 1, 2, 3]]
    """
    check_integer("n_samples", n_samples, 0)
    check_integer("n_classes", n_classes, 1)
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {describe(generator)}")
    keys = torch.randint(1 << 62, (n_samples, n_classes - 1), generator=generator, device=generator.device)
    return keys.argsort(dim=1)  # 62 bits: two equal keys, which would favour one order, do not happen


def fix_permutation(sample_ids: Tensor, n_classes: int, *, seed: int) -> Tensor:
    """The permutation that always belongs to a sample: a function of (seed, id), whatever the batch or device.

    Args:
        sample_ids: ``(batch,)`` integers that name the samples, as their index in the training set.
        n_classes: classes of the scores, >= 1.
        seed: of the run, an integer of at most 64 bits.

    Returns:
        ``(batch, n_classes - 1)`` int64, on the device of ``sample_ids``.

    Raises:
        TypeError: the ids are no tensor of integers, or a number is no integer.
        ValueError: the ids are not of shape ``(batch,)``, ``n_classes < 1``, or the seed has more than 64 bits.

    Example:
        >>> one = fix_permutation(torch.tensor([7]), 5, seed=0)
        >>> torch.equal(fix_permutation(torch.tensor([3, 7]), 5, seed=0)[1:], one)
        True
    """
    check_integers("sample_ids", sample_ids)
    if sample_ids.dim() != 1:
        raise ValueError(f"sample_ids must be of shape (batch,), got {tuple(sample_ids.shape)}")
    check_integer("n_classes", n_classes, 1)
    check_integer("seed", seed, -(1 << 63), (1 << 64) - 1)
    start = _mix(torch.full((), _wrap(int(seed)), dtype=torch.int64, device=sample_ids.device))
    of_sample = _mix(start + _GOLDEN * (sample_ids.long() + 1))
    classes = torch.arange(1, n_classes, device=sample_ids.device)
    return _mix(of_sample.unsqueeze(1) + _GOLDEN * classes).argsort(dim=1)


def _permute_others(p: Tensor, best: Tensor, permutation: Tensor) -> Tensor:
    """``p`` with the entries other than ``best`` permuted in each row."""
    others = torch.arange(p.shape[-1] - 1, device=p.device)
    others = others + (others >= best.unsqueeze(-1))  # (..., batch, classes - 1): the classes other than the best
    return p.scatter(-1, others, p.gather(-1, others.gather(-1, permutation)))


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64, whose arithmetic wraps: each input bit moves about half of the output's."""
    x = (x ^ _shift(x, 30)) * _wrap(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _wrap(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; the shift of int64 keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _wrap(value: int) -> int:
    """The int64 with the same 64 bits."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _check_permutation(student: Tensor, permutation: Tensor, check_values: bool) -> None:
    *batch, n_classes = student.shape
    if not isinstance(permutation, Tensor) or permutation.dtype is not torch.int64:
        raise TypeError(f"permutation must be an int64 tensor, got {getattr(permutation, 'dtype', permutation)}")
    if permutation.shape != (*batch, n_classes - 1):
        raise ValueError(f"permutation must be of shape {(*batch, n_classes - 1)}, got {tuple(permutation.shape)}")
    if permutation.device != student.device:
        raise ValueError(f"permutation must be on the student's device {student.device}, got {permutation.device}")
    if check_values:
        faulty = (permutation.sort(dim=-1).values != torch.arange(n_classes - 1, device=student.device)).any(dim=-1)
        if faulty.any():
            row = tuple(faulty.nonzero()[0].tolist())
            raise ValueError(
                f"permutation must order 0 .. {n_classes - 2}, got {permutation[row].tolist()} in row {list(row)}"
            )
