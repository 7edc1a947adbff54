"""Two networks side by side: one that only teaches, one that learns, and whether they are apart."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor, nn

from polydistill.losses.sharing import find_shared


class Seen(NamedTuple):
    """What a network gives for a batch.

    Attributes:
        scores: ``(batch, classes)``.
        states: hidden states on the way to them, ``(batch, ...)`` each, in a fixed order.
    """

    scores: Tensor
    states: list[Tensor]


class Seeing(Protocol):
    """A network whose hidden states can be seen."""

    def see(self, inputs: Tensor, /) -> Seen:
        """Its scores, as a call gives them, and its hidden states."""


class Watched(nn.Module):
    """``network``, which gives its hidden states along with its scores; the same weights.

    Args:
        network: a :class:`Seeing`.

    Raises:
        TypeError: it is none.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not hasattr(network, "see"):
            raise TypeError(f"{type(network).__name__} does not show its hidden states: it has no method see()")
        self.network = network

    def forward(self, inputs: Tensor) -> Seen:
        """See :meth:`Seeing.see`."""
        seeing: Seeing = self.network  # type: ignore[assignment]
        return seeing.see(inputs)


def freeze(network: nn.Module) -> None:
    """Evaluation mode, and no gradients of the parameters."""
    network.eval()
    for parameter in network.parameters():  # `requires_grad_` of a module is not there for TorchScript's
        parameter.requires_grad_(False)


def start_learning(network: nn.Module) -> None:
    """Training mode, but of parts whose parameters are all frozen: their batch norms keep their statistics."""
    network.train()
    for part in network.modules():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            part.eval()


def share_weights(first: nn.Module, second: nn.Module) -> bool:
    """Whether two networks are one, or a parameter or batch statistic of one lies in the memory of the other.

    Slices of one buffer that do not overlap are not shared, and a parameter without elements is nobody's. Other buffers
    do not count: they may be constants.
    """
    return first is second or bool(find_shared(first, second).weights)
