"""How generations learn: optimiser, and the rate of every step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from polydistill.config.fields import check_fields
from polydistill.errors import require_at_least, require_at_most
from polydistill.learning.schedules import MOST_STEPS_PER_LOG


@dataclass(frozen=True)
class TrainingConfig:
    """How every generation is trained. The last, smaller batch of an epoch is left out.

    Args:
        epochs: passes over the training pictures.
        batch_size: pictures per update.
        optimizer: sgd (with Nesterov momentum) or adamw.
        learning_rate: the highest one.
        momentum: of sgd, in [0, 1).
        weight_decay: of all weights.
        schedule: cosine (to zero) or constant, after the warm-up.
        warmup_epochs: in which the rate rises from zero.
        clip_norm: largest norm of the gradient, to which a larger one is scaled; null: any.
        ema: decay, as 0.999, of an exponential mean of the weights, which is then validated, tested and saved, and
            teaches; null: the weights of the last step are.
        parts: in which each batch is computed, one after another, where the memory does not suffice for all of it.
        channels_last: memory format of pictures and weights.
        compile: use torch.compile; takes a minute to start, and on a CPU a C++ compiler.
        shard: under torchrun, keep weights, gradients and optimiser states in pieces, one in each process (torch's
            FSDP), for what does not fit on one GPU; null: each process has all of them.
        log_every_steps: steps between two points of the training curves, and two checks that the loss is finite.
    """

    epochs: int = 30
    batch_size: int = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: int = 1
    clip_norm: float | None = None
    ema: float | None = None
    parts: int = 1
    channels_last: bool = True
    compile: bool = False
    shard: bool | None = None
    log_every_steps: int = 50

    def __post_init__(self) -> None:
        check_fields(self)
        require_at_least(1, self, "epochs", "batch_size", "parts", "log_every_steps")
        require_at_least(0, self, "warmup_epochs", "weight_decay")
        require_at_most(MOST_STEPS_PER_LOG, self, "log_every_steps")
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be greater than 0, got {value}")
        if self.shard and self.compile:
            raise ValueError("shard and compile do not go together: leave one of them out")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must lie between 0 and 1, as 0.999, got {self.ema}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 1:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}, and there are {self.epochs} epochs")


def make_optimizer(training: TrainingConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The configured one."""
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    nesterov = training.momentum > 0
    return torch.optim.SGD(parameters, rate, training.momentum, weight_decay=decay, nesterov=nesterov)


def make_scheduler(
    training: TrainingConfig, optimizer: torch.optim.Optimizer, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The configured rate of every step, as a share of the highest.

    Args:
        training: which schedule.
        optimizer: whose rate it is.
        steps_per_epoch: batches of an epoch.
    """
    total = training.epochs * steps_per_epoch
    rising = min(training.warmup_epochs * steps_per_epoch, total - 1)

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        if training.schedule == "constant":
            return 1.0
        return (1 + math.cos(math.pi * min(1.0, (step - rising) / (total - rising)))) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)
