"""Two networks side by side: one that only teaches, and whether they are apart."""

from __future__ import annotations

from torch import nn

from polydistill.losses.sharing import find_shared


def freeze(network: nn.Module) -> None:
    """Evaluation mode, and no gradients of the parameters."""
    network.eval()
    for parameter in network.parameters():  # `requires_grad_` of a module is not there for TorchScript's
        parameter.requires_grad_(False)


def share_weights(first: nn.Module, second: nn.Module) -> bool:
    """Whether two networks are one, or a parameter or batch statistic of one lies in the memory of the other.

    Slices of one buffer that do not overlap are not shared, and a parameter without elements is nobody's. Other buffers
    do not count: they may be constants.
    """
    return first is second or bool(find_shared(first, second).weights)
