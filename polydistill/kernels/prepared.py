"""Launches, prepared: what one needs besides its tensors and numbers is found once for all tensors of the same form.

For few scores the time of a loss on a GPU is that of its launches on the processor, and of a launch most goes into
looking at some forty arguments for what Triton has compiled for the like of them.

The contract: tensors of the same :func:`form` get the same compiled kernel. Triton is imported here, at the first
launch.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

MOST_PREPARED = 1024  # of more, all are forgotten


class Prepared:
    """A launch of one kernel on tensors of one form.

    Args:
        module: of :mod:`polydistill.kernels.device`.
        name: of the kernel.
        programs: how many are launched.
        integers: the kernel's arguments after its tensors.
        constants: what is compiled in, by name, in the kernel's order; its last arguments.
        warps: that work on a tile.
    """

    __slots__ = ("_constants", "_grid", "_integers", "_kernel", "_run", "_warps", "name")

    def __init__(
        self,
        module: str,
        name: str,
        programs: int,
        integers: tuple[int, ...],
        constants: Mapping[str, int],
        warps: int,
    ) -> None:
        self.name, self._kernel, self._grid = name, load_kernel(module, name), (programs, 1, 1)
        self._integers, self._constants, self._warps = integers, constants, warps
        self._run: Callable[..., None] | None = None  # what is compiled; stays None where kernels are interpreted

    def __call__(self, tensors: Sequence[Tensor], numbers: tuple[float, ...]) -> None:
        """Launch it.

        Args:
            tensors: its first arguments.
            numbers: those after the integers; never an int, of which Triton would compile a 1 in.
        """
        if self._run is not None:
            self._run(*tensors, *self._integers, *numbers, *self._constants.values())
            return
        compiled = self._kernel[self._grid](
            *tensors, *self._integers, *numbers, **self._constants, num_warps=self._warps
        )
        if compiled is not None:
            self._run = compiled[self._grid]


PREPARED: dict[tuple[object, ...], Prepared] = {}


def remember(key: tuple[object, ...], prepared: Prepared) -> None:
    """For the next launch with this key."""
    if len(PREPARED) >= MOST_PREPARED:
        PREPARED.clear()
    PREPARED[key] = prepared


def form(tensor: Tensor | None) -> object:
    """All of a tensor that a launch depends on: Triton compiles others for what does not begin at 16 bytes."""
    return None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype, tensor.data_ptr() % 16)


@functools.cache
def load_kernel(module: str, name: str) -> Any:
    """The kernel; importing it imports Triton."""
    return getattr(importlib.import_module(f"polydistill.kernels.device.{module}"), name)
