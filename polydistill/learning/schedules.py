"""How a generation is trained: optimiser, schedule, batches. The defaults are Wide-ResNet's recipe,
which the born-again paper uses too.

SGD with Nesterov momentum 0.9, weight decay 5e-4 on every weight, learning rate 0.1, times 0.2 at 60, 120 and 160 of
200 epochs, batches of 128 (the last one of an epoch is smaller). Teachers and students have the same schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from polydistill.config.fields import check_fields

MILESTONES, DECAY = (0.3, 0.6, 0.8), 0.2
MOST_STEPS_PER_LOG = 1_000_000  # their losses are kept in memory
WARM_UP = 0.3  # one-cycle: share of the steps in which the rate rises
FIRST_SHARE = 1 / 25  # and what it starts with, as a share of the highest


@dataclass(frozen=True)
class TrainingConfig:
    """How every generation is trained.

    Args:
        epochs: passes over the training samples.
        batch_size: samples per update, of all processes together.
        learning_rate: of SGD; the highest one of the schedule.
        momentum: Nesterov momentum, in [0, 1).
        weight_decay: of all weights.
        schedule: steps (times decay at each milestone), cosine (to zero), or one_cycle (up for 30 %, then to zero).
        milestones: of schedule steps; shares of the epochs: 0.3 is epoch 60 of 200.
        decay: of schedule steps.
        augment: of images: flip, and crop after padding by 4 pixels of reflection; flip: flip alone.
        channels_last: memory format of images and weights; faster nearly everywhere.
        compile: use torch.compile; takes a minute to start, and on a CPU a C++ compiler.
        capture: replay each step as a CUDA graph; auto: on a GPU, with one process.
        sync_batchnorm: with several GPUs, normalise over the batches of all of them.
        log_every_steps: steps between two points of the training curves, and two checks that the loss is finite.
    """

    epochs: int = 200
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["steps", "cosine", "one_cycle"] = "steps"
    milestones: tuple[float, ...] = MILESTONES
    decay: float = DECAY
    augment: bool | Literal["flip"] = True
    channels_last: bool = True
    compile: bool = False
    capture: Literal["auto", "on", "off"] = "auto"
    sync_batchnorm: bool = False
    log_every_steps: int = 50

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("epochs", "batch_size", "log_every_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.log_every_steps > MOST_STEPS_PER_LOG:
            raise ValueError(f"log_every_steps must be at most {MOST_STEPS_PER_LOG:,}, got {self.log_every_steps:,}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be greater than 0, got {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must lie in (0, 1], got {self.decay}")
        self._check_milestones()

    def _check_milestones(self) -> None:
        """Refuse milestones that are no shares, do not rise, or have no effect, and a decay that has none."""
        milestones = list(self.milestones)
        if any(not 0 < milestone < 1 for milestone in milestones):
            raise ValueError(f"milestones are shares of the epochs, between 0 and 1, got {milestones}")
        if milestones != sorted(set(milestones)):
            raise ValueError(f"milestones must rise, got {milestones}")
        if self.schedule == "steps":
            if not milestones and self.decay != DECAY:
                raise ValueError(f"decay is {self.decay}, but there are no milestones at which it would act")
            return
        of_another = f"of schedule steps, and schedule is {self.schedule}"
        if milestones != list(MILESTONES):
            raise ValueError(f"milestones are {of_another}: leave them out")
        if self.decay != DECAY:
            raise ValueError(f"decay is {of_another}: leave it out")


def schedule_rate(config: TrainingConfig, progress: float) -> float:
    """The learning rate of a step.

    Args:
        config: which schedule.
        progress: steps done before this one / all steps, in [0, 1).

    Example:
        >>> [round(schedule_rate(TrainingConfig(), epoch / 200), 6) for epoch in (0, 59, 60, 120, 160)]
        [0.1, 0.1, 0.02, 0.004, 0.0008]
    """
    if config.schedule == "steps":
        passed = sum(progress >= milestone for milestone in config.milestones)
        return float(config.learning_rate * config.decay**passed)
    if config.schedule == "cosine":
        return config.learning_rate * (1 + math.cos(math.pi * progress)) / 2
    if progress < WARM_UP:
        rise = (1 - math.cos(math.pi * progress / WARM_UP)) / 2
        return config.learning_rate * (FIRST_SHARE + (1 - FIRST_SHARE) * rise)
    return config.learning_rate * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))) / 2
