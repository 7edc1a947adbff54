"""Back to just before the first update that went wrong, with what it was given.

Looking at every loss would make a GPU wait at every update. Instead a stretch of updates is judged at its end; where it
is bad it is gone through again from its beginning, slowly, up to the first update whose loss is not finite, or that
leaves weights that are not: the loss of the update behind it would only show what this one did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol


class NonFiniteError(FloatingPointError):
    """A loss, the weights that it leads to, or scores are not finite.

    Attributes:
        batch: what they were computed from, by name: tensors and plain values.
        left: in words, what is left of what learns, and of the batch.
    """

    def __init__(self, message: str, batch: dict[str, Any], left: str = "the state before it and the batch") -> None:
        super().__init__(message)
        self.batch, self.left = batch, left


class Learning(Protocol):
    """Something that learns."""

    def state(self) -> Any:
        """All that updates read and write. A copy."""

    def load_state(self, state: Any, /) -> None:
        """Go on from :meth:`state`."""


def rewind(
    learning: Learning,
    good: Any,
    losses: Sequence[float],
    update: Callable[[int], object],
    is_finite: Callable[[], bool],
) -> int:
    """Put ``learning`` back to just before the first update that went wrong.

    Args:
        learning: after updates of which one at least went wrong.
        good: its state before them.
        losses: of these updates, in order.
        update: makes the update of that index again.
        is_finite: whether all weights are.

    Returns:
        The index of the first bad update; 0 where none is bad the second time, since a GPU may round differently: then
        all of them are to blame.
    """
    suspect = next((index for index, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    learning.load_state(good)
    for index in range(suspect):
        before = learning.state()
        update(index)
        if not is_finite():
            learning.load_state(before)
            return index
    if suspect == len(losses):
        learning.load_state(good)
        return 0
    return suspect
