"""The control arm of a study of agents: what a student learns from rewards alone, and by which settings of DQN."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from polydistill.config.fields import check_fields
from polydistill.errors import require_at_least

TD = "td"  # the objective of Q-learning: the temporal difference


@dataclass(frozen=True)
class TDConfig:
    """Of the objective td alone: settings of Stable-Baselines3's DQN, by its names; null: the default that is named.

    Args:
        gamma: discount per step; null: 0.99.
        exploration_fraction: share of play.steps over which epsilon falls from 1; null: 0.16.
        exploration_final_eps: epsilon from there on; null: 0.05.
        target_update_interval: steps of play between two copies to the target network; null: 250, of Atari 1000.
    """

    left_out = True  # of a config whose objective is another, see ``to_mapping``

    gamma: float | None = None
    exploration_fraction: float | None = None
    exploration_final_eps: float | None = None
    target_update_interval: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("gamma", "exploration_fraction", "exploration_final_eps"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {value}")
        if self.exploration_fraction == 0:
            raise ValueError("exploration_fraction must be positive, got 0")
        if self.target_update_interval is not None:
            require_at_least(1, self, "target_update_interval")

    @property
    def given(self) -> dict[str, Any]:
        """What is not null."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def filled(self, *, target_update_interval: int) -> TDConfig:
        """With the defaults in the place of null."""
        defaults = {"gamma": 0.99, "exploration_fraction": 0.16, "exploration_final_eps": 0.05}
        return TDConfig(**{**defaults, "target_update_interval": target_update_interval, **self.given})
