"""One batch through everything, before the first step: what would fail after hours fails now, in one line.

Contract: weights, statistics and modes of the modules stay as they are; the caller sees to the random numbers. Waits
for the device.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from polydistill.device import autocast
from polydistill.learning.lesson import Lesson
from polydistill.learning.measures import evaluation_mode
from polydistill.learning.sharded import is_sharded
from polydistill.losses.checks import describe
from polydistill.losses.examination.kinds import examine_kind
from polydistill.losses.ignored import find_counted
from polydistill.modules.batches import Batch, device_of, float_types, read_batch
from polydistill.modules.outputs import Reading

_OPTIONAL = inspect.Parameter("closure", inspect.Parameter.KEYWORD_ONLY, default=None)
_NOTHING = object()
Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def check_batches(batches: Any, name: str) -> None:
    """Refuse what cannot be iterated once per epoch, as far as that shows without iterating.

    Raises:
        TypeError: it is not iterable.
        ValueError: it is empty, or an iterator, which is used up after the first epoch.
    """
    if isinstance(batches, str | bytes) or (not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__")):
        raise TypeError(f"`{name}` must be iterable, like a list of batches or a DataLoader, got {describe(batches)}")
    if hasattr(batches, "__next__"):
        raise ValueError(
            f"`{name}` must be iterable once per epoch, like a list or a DataLoader; an iterator or generator is empty "
            "after the first"
        )
    try:
        empty = len(batches) == 0
    except TypeError:  # an iterable data set has no length
        return
    if empty:
        raise ValueError(f"`{name}` holds no batches")


def take_first(batches: Any, name: str, ignore_index: int | None) -> Any:
    """The first batch that has a label which counts.

    Raises:
        TypeError: see :mod:`polydistill.modules.batches`.
        ValueError: there is none, or none a second time.
    """
    first = iter(batches)
    found = next(first, _NOTHING)
    if found is _NOTHING:
        raise ValueError(f"`{name}` holds no batches")
    while _counts_for_nothing(found, name, ignore_index):
        found = next(first, _NOTHING)
        if found is _NOTHING:
            raise ValueError(f"every label in `{name}` is {ignore_index}, which is ignored, or zeros")
    if not isinstance(batches, DataLoader | Sequence):
        again = iter(batches)
        if again is first or next(again, _NOTHING) is _NOTHING:
            raise ValueError(f"`{name}` is used up the second time: it must be iterable once per epoch, like a list")
    return found


def _counts_for_nothing(batch: Any, name: str, ignore_index: int | None) -> bool:
    try:
        labels = read_batch(batch).labels
    except (TypeError, ValueError) as error:
        raise type(error)(f"`{name}`: {error}") from error
    counted = find_counted(labels, ignore_index)
    return counted is not None and not counted.any()


def try_network(module: nn.Module, batch: Any, whose: str, name: str, reading: Reading) -> tuple[Tensor, Batch]:
    """The scores of a batch in evaluation mode, and the batch, after a look at both.

    Args:
        module: any.
        batch: as it comes from ``name``.
        whose: the module's, in errors.
        name: where the batch comes from, in errors.
        reading: of the module's scores.

    Raises:
        TypeError: see :mod:`polydistill.modules.batches`.
        ValueError: shapes do not fit, or there is one class.
    """
    read = read_batch(batch).to(device_of(module))
    with evaluation_mode(module):
        try:
            scores = reading.score(module, read).float()
        except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            kind = TypeError if isinstance(error, TypeError) else ValueError
            text = f"KeyError: {error}" if isinstance(error, KeyError) else str(error)  # alone it is a key
            told = text.strip().partition("\n")[0] + _compare_types(module, batch)
            raise kind(f"{whose}, the first batch of `{name}`: {told}") from error
    if scores.shape[1] < 2:
        raise ValueError(f"{whose} gives one score per sample: a classifier gives one for each class, two at least")
    for finding in examine_kind(whose.removeprefix("the "), scores):
        if finding.level == "wrong":
            raise ValueError(finding.text)
    return scores, read


def _compare_types(module: nn.Module, batch: Any) -> str:
    """What to do where a module's floats and those of its inputs differ, which may be why it fails; else nothing."""
    inputs, own = (float_types(part) for part in (batch, list(module.parameters())))
    if not inputs or not own or inputs & own:
        return ""
    ours, theirs = (", ".join(sorted(map(str, types))) for types in (inputs, own))
    return f" (the inputs are {ours}, the module is {theirs}: cast one of them, as by .float())"


def try_gradient(module: nn.Module, batch: Batch, whose: str, reading: Reading) -> None:
    """Refuse a network whose scores do not depend on what learns: of a batch, in evaluation mode.

    Raises:
        ValueError: they do not, or no gradient can be computed here.
    """
    if not torch.is_grad_enabled():
        raise ValueError("gradients are off, and nothing can learn: leave out torch.no_grad() around the lineage")
    with evaluation_mode(module), torch.enable_grad():
        depends = reading.score(module, batch).requires_grad
    if not depends and not is_sharded(module):  # some compute without gradients while they are evaluated
        depends = reading.score(copy.deepcopy(module).train(), batch).requires_grad
    if not depends:
        raise ValueError(
            f"the scores of {whose} do not depend on its parameters: are they the right part of its output (`output`)?"
        )


def try_precision(module: nn.Module, batch: Batch, whose: str, reading: Reading) -> None:
    """Refuse a network that cannot learn in float16: scores and gradient of a batch, in evaluation mode.

    Raises:
        ValueError: torch cannot compute one of its operations so on its device, or its weights are float16 already.
    """
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if any(parameter.dtype is torch.float16 for parameter in learning):
        raise ValueError(f"precision float16 is for weights of float32, and those of {whose} are float16: cast them up")
    kind = learning[0].device.type
    try:
        with evaluation_mode(module), torch.enable_grad(), autocast(kind, "float16"):
            scores = reading.score(module, batch)
        torch.autograd.grad(scores.float().sum(), learning, allow_unused=True)
    except (NotImplementedError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        told = str(error).strip().partition("\n")[0]
        raise ValueError(f"torch cannot compute {whose} in float16 on {kind} ({told}): choose bfloat16") from error


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step evaluates the loss itself, as LBFGS does."""
    parameter = inspect.signature(optimizer.step).parameters.get("closure", _OPTIONAL)
    return parameter.default is inspect.Parameter.empty


def try_optimizer(module: nn.Module, optimizer: Optimizer, whose: str, parts: int, precision: str) -> None:
    """Refuse an optimiser that would move nothing of the module, or cannot take a batch in ``parts`` or float16.

    Raises:
        TypeError: it is none.
        ValueError: no parameter of the module learns, or the optimiser has none of them.
    """
    own = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    if not own:
        raise ValueError(f"{whose} has no parameter that learns (requires_grad)")
    made = optimizer(module.parameters())
    groups = getattr(made, "param_groups", None)
    if not isinstance(groups, list) or not hasattr(made, "step"):
        raise TypeError(f"`optimizer` must make a torch optimiser from parameters, it made {describe(made)}")
    if parts > 1 and needs_closure(made):
        raise ValueError(
            f"`optimizer` makes a {type(made).__name__}, which evaluates the loss of a whole batch: leave `parts` out"
        )
    if precision == "float16" and needs_closure(made):
        raise ValueError(
            f"`optimizer` makes a {type(made).__name__}, which evaluates the loss itself: float16 scales the loss for "
            "one evaluation; choose bfloat16 or float32"
        )
    if is_sharded(module) and needs_closure(made):
        raise ValueError(
            f"`optimizer` makes a {type(made).__name__}, which takes all weights at once: leave `shard` out"
        )
    if not any(id(parameter) in own for group in groups for parameter in group["params"]):
        raise ValueError(f"`optimizer` must use the parameters that it is given; it has none of those of {whose}")


def try_lesson(lesson: Lesson, student: Tensor, teacher: Tensor, labels: Tensor) -> None:
    """Refuse a loss that gives no number for each sample, or none that the student could learn from.

    Args:
        lesson: of the first student.
        student: ``(positions, classes)`` scores.
        teacher: the same.
        labels: ``(positions,)`` int64 or ``(positions, classes)`` probabilities, at least one that counts.

    Raises:
        TypeError: it gives something else than floats, or fails for the way in which it is called.
        ValueError: of another shape, or without a gradient.
        FloatingPointError: it is not finite for finite scores.
    """
    name, leaf = lesson.objective, student.detach().requires_grad_()
    permutation = lesson.draw_permutation(torch.arange(len(labels), device=labels.device), 0)
    try:
        with torch.enable_grad():
            loss = lesson(leaf, teacher.detach(), labels, permutation)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or str(error).startswith(f"objective {name} "):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"objective {name} cannot be computed of the first batch: {error}") from error
    if not loss.requires_grad:
        raise ValueError(f"objective {name} has no gradient: it must be computed from the student's scores by torch")
    (gradient,) = torch.autograd.grad(loss.sum(), leaf, allow_unused=True)
    if gradient is None:
        raise ValueError(f"objective {name} has no gradient with respect to the student's scores")
    finite = loss.isfinite().all() and gradient.isfinite().all()
    if student.isfinite().all() and teacher.isfinite().all() and not finite:
        raise FloatingPointError(f"objective {name} or its gradient is not finite on the first batch")
