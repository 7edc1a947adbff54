"""A schedule of torch's for the optimiser of one's own, as one that can be put back to where it was."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau


@dataclass(frozen=True)
class Schedule:
    """When a scheduler makes its steps.

    Args:
        scheduler: of the optimiser.
        by: "epoch": a step at the end of each epoch; "step": after each update.
    """

    scheduler: LRScheduler
    by: Literal["epoch", "step"]

    def require_steps(self, batches: int | None, epochs: int) -> None:
        """Refuse a ``OneCycleLR`` of fewer steps than there will be, which fails at its end.

        Args:
            batches: in an epoch; None: that is not known.
            epochs: of a training.

        Raises:
            ValueError: it was.
        """
        steps = epochs if self.by == "epoch" else None if batches is None else batches * epochs
        if steps is None or not isinstance(self.scheduler, OneCycleLR) or self.scheduler.total_steps >= steps:
            return
        raise ValueError(
            f"`scheduler` makes a OneCycleLR of {self.scheduler.total_steps:,} steps, and there will be {steps:,}, one "
            f"after each {'epoch' if self.by == 'epoch' else 'batch'}"
        )

    def state(self) -> dict[str, Any]:
        """Where it is. A copy."""
        return copy.deepcopy(self.scheduler.state_dict())

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`, which may have been in a file since, where counters are mappings."""
        own = vars(self.scheduler)
        counters = {name: Counter(value) for name, value in state.items() if isinstance(own.get(name), Counter)}
        self.scheduler.load_state_dict({**copy.deepcopy(dict(state)), **counters})


def require_scheduler(made: object, optimizer: Optimizer) -> LRScheduler:
    """``made``, if it is a scheduler of ``optimizer`` that needs nothing but steps.

    Raises:
        TypeError: it is not.
        ValueError: it is another optimiser's, or goes by a metric.
    """
    if isinstance(made, ReduceLROnPlateau):
        raise ValueError("`scheduler` makes a ReduceLROnPlateau, which goes by a metric: choose one that needs none")
    if not isinstance(made, LRScheduler):
        raise TypeError(f"`scheduler` must make one of torch's from an optimiser, it made a {type(made).__name__}")
    if made.optimizer is not optimizer:
        raise ValueError("`scheduler` must use the optimiser that it is given")
    return made
