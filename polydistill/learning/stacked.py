"""Networks of one structure as one: their weights are slices of common tensors, and one pass computes all of them.

A GPU that one small network leaves idle is filled by several. Their convolutions become grouped ones, see
``torch.func.vmap``; running statistics are stacked like weights, so each network keeps its own.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def structure_of(network: nn.Module) -> Hashable:
    """What networks that are stacked must have in common: parts, names, shapes and types, modes, and what is frozen."""
    tensors = [
        (name, tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad)
        for name, tensor in (*network.named_parameters(), *network.named_buffers())
    ]
    modes = [part.training for part in network.modules()]
    return type(network), repr(network), tuple(tensors), tuple(modes)


class _Place(NamedTuple):
    """Where a network holds one of its tensors."""

    part: nn.Module
    name: str
    layout: Tensor  # that it had before, on the device meta


class StackedNetworks:
    """Networks of one structure, to be called as one.

    Args:
        networks: with equal :func:`structure_of`, two at least; no two share weights.
        learning: the networks' own weights and statistics become slices of the common tensors, so that a change of
            either is one of both, until :meth:`release`. False: the common tensors are copies.

    Raises:
        ValueError: their structures differ.
    """

    def __init__(self, networks: Sequence[nn.Module], *, learning: bool = True) -> None:
        if len({structure_of(network) for network in networks}) != 1:
            raise ValueError("only networks of one structure can be stacked: the same parts, shapes, types and modes")
        self.networks = list(networks)
        self._template = copy.deepcopy(networks[0]).to("meta")
        self._parameters = {
            name: torch.stack([dict(network.named_parameters())[name].detach() for network in networks])
            for name, _ in networks[0].named_parameters()
        }
        self._buffers = {
            name: torch.stack([dict(network.named_buffers())[name] for network in networks])
            for name, _ in networks[0].named_buffers()
        }
        self._places: list[list[_Place]] = []  # of each network, in the order of the common tensors
        if learning:
            for name, parameter in networks[0].named_parameters():
                self._parameters[name].requires_grad_(parameter.requires_grad)
            for number, network in enumerate(networks):
                self._places.append(list(self._settle(network, number)))

    def __call__(self, inputs: Tensor) -> Tensor:
        """Scores of each network for inputs of its own.

        Args:
            inputs: ``(networks, batch, ...)``.

        Returns:
            ``(networks, batch, classes)``.
        """
        one = functools.partial(_compute, self._template)
        scores: Tensor = torch.func.vmap(one, randomness="different")(self._parameters, self._buffers, inputs)
        return scores

    def forget_gradients(self) -> None:
        """Before a backward pass: there is none yet."""
        for common in self._parameters.values():
            common.grad = None

    def hand_out_gradients(self) -> None:
        """After a backward pass: give the parameters of each network their slice of the gradient."""
        for name, common in self._parameters.items():
            for number, network in enumerate(self.networks):
                network.get_parameter(name).grad = None if common.grad is None else common.grad[number]

    def release(self) -> None:
        """The networks have tensors of their own again, in the layout that they had before; this is of no more use."""
        for places in self._places:
            for part, name, layout in places:
                held = getattr(part, name)
                freed = torch.empty_like(layout, device=held.device)
                freed.copy_(held.detach())
                if isinstance(held, nn.Parameter):
                    held.data, held.grad = freed, None
                else:
                    setattr(part, name, freed)
        self._places, self._parameters, self._buffers = [], {}, {}

    def _settle(self, network: nn.Module, number: int) -> Iterator[_Place]:
        """Make the tensors of a network slices of the common ones."""
        for name, common in self._parameters.items():
            parameter = network.get_parameter(name)
            part, _, last = name.rpartition(".")
            yield _Place(network.get_submodule(part), last, torch.empty_like(parameter.data, device="meta"))
            parameter.data = common.detach()[number]
        for name, common in self._buffers.items():
            part, _, last = name.rpartition(".")
            holder = network.get_submodule(part)
            yield _Place(holder, last, torch.empty_like(common[number], device="meta"))
            setattr(holder, last, common[number])


def _compute(template: nn.Module, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """What one network gives."""
    with _precision_of_autocast(inputs.device.type):
        scores: Tensor = functional_call(template, (parameters, buffers), (inputs,))
    return scores


def _precision_of_autocast(device_type: str) -> AbstractContextManager[Any]:
    if torch.is_autocast_enabled(device_type):
        return _AsAutocast(torch.get_autocast_dtype(device_type))
    return contextlib.nullcontext()


class _AsAutocast(TorchFunctionMode):
    """Autocast's precision for convolutions and what follows them: within vmap it reaches matrix products alone.

    Args:
        dtype: of convolutions, and of what batch norms are given and give; these compute in float32, as they do under
            autocast.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        given: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called instead of each function of torch within the block."""
        named = named or {}
        if function is F.conv2d:
            given = [self._shorten(value) for value in given]
        if function is F.batch_norm and given[0].dtype is self.dtype:
            return function(given[0].float(), *given[1:], **named).to(self.dtype)
        return function(*given, **named)

    def _shorten(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) and value.dtype is torch.float32 else value
