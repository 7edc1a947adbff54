"""Prepared launches: everything besides tensors and numbers is found once for all tensors of the same form.

With few scores, a loss on a GPU takes as long as the processor needs to launch it. Most of that time Triton spends on
some forty arguments, to find the code that it has compiled for such arguments.

The contract: tensors of the same :func:`form` get the same compiled kernel. Triton is imported here, at the first
launch.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

MOST_PREPARED = 1024  # when full, all are dropped


class Prepared:
    """A launch of one kernel on tensors of one form.

    Args:
        module: of :mod:`polydistill.kernels.device`.
        name: of the kernel.
        programs: how many are launched.
        integers: the kernel's arguments after its tensors.
        constants: compile-time constants by name, in the kernel's order; its last arguments.
        warps: number of warps that work on a tile.
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
        self._run: Callable[..., None] | None = None  # the compiled kernel; stays None where kernels are interpreted

    def __call__(self, tensors: Sequence[Tensor], numbers: tuple[float, ...]) -> None:
        """Launch it.

        Args:
            tensors: its first arguments.
            numbers: the arguments after the integers; never an int: Triton would compile a 1 in as a constant.
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
    """Keep ``prepared`` for the next launch with this key."""
    if len(PREPARED) >= MOST_PREPARED:
        PREPARED.clear()
    PREPARED[key] = prepared


def form(tensor: Tensor | None) -> object:
    """What a launch depends on in a tensor: Triton compiles other code for data that is not 16-byte aligned."""
    return None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype, tensor.data_ptr() % 16)


@functools.cache
def load_kernel(module: str, name: str) -> Any:
    """The kernel; importing it imports Triton."""
    return getattr(importlib.import_module(f"polydistill.kernels.device.{module}"), name)
