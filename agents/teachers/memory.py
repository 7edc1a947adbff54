"""A teacher that remembers: each game's scores hang on the steps before, whoever acted in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from polydistill_agents.networks.normalized import Normalized
from polydistill_agents.networks.observations import Tensors
from polydistill_agents.networks.recurrent import Memory, Remembering
from polydistill_agents.teachers.teacher import Rows, Teacher


def remembers(network: nn.Module | None) -> bool:
    """Whether it has a memory, also behind statistics."""
    while isinstance(network, Normalized):
        network = network.network
    return isinstance(network, Remembering)


class RememberingTeacher(Teacher):
    """A teacher whose network remembers what it saw of each game.

    Args:
        network: a ``Remembering``, or one behind statistics.
        kind: "q_values" or "logits".
    """

    has_memory = True

    def __init__(self, network: nn.Module, *, kind: str = "logits") -> None:
        super().__init__(network, kind=kind, network=network)
        self._scales: list[Normalized] = []
        while isinstance(network, Normalized):  # the outermost sees what comes
            self._scales.append(network)
            network = network.network
        assert isinstance(network, Remembering)
        self._inner: Remembering = network
        self._memory: Memory | None = None

    def begin(self, n_games: int) -> None:
        """Forget: ``n_games`` games, none of which has begun."""
        self._memory = self._inner.begin(n_games)

    @torch.no_grad()
    def label(self, observations: Tensors, starts: Any, rows: Rows = None) -> Tensor:
        """Scores ``(rows, n_actions)`` of the next step of these games, whose memory moves on.

        Raises:
            ValueError: :meth:`begin` has not been called, or for other games.
        """
        if self._memory is None:
            raise ValueError("begin(n_games) comes before the first label")
        hidden, cell = self._memory
        at: Any = slice(None) if rows is None else torch.as_tensor(rows, device=hidden.device)
        begins = torch.as_tensor(starts, dtype=torch.bool, device=hidden.device)
        before = (hidden[:, at], cell[:, at])
        if before[0].shape[1] != len(begins):
            raise ValueError(f"{len(begins)} starts for {before[0].shape[1]} games")
        with self._asking(observations):
            seen: Any = observations
            for each in self._scales:
                seen = each.scale(seen)
            scores, (hidden[:, at], cell[:, at]) = self._inner.step(seen, before, begins)
        return scores.float()

    def memory(self) -> Any:
        """``{"hidden": ..., "cell": ...}``, each ``(layers, games, units)`` float32 on the CPU; None before begin."""
        if self._memory is None:
            return None
        return dict(zip(("hidden", "cell"), (value.cpu().clone() for value in self._memory), strict=True))

    def remember(self, state: Any) -> None:
        """Go on with what :meth:`memory` gave."""
        self._memory = None
        if state is not None:
            self._memory = (state["hidden"].to(self._device).clone(), state["cell"].to(self._device).clone())

    def to(self, device: torch.device | str) -> Teacher:
        """Move network and memory to ``device``."""
        super().to(device)
        self.remember(self.memory())
        return self
