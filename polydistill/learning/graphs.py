"""A training step replayed as a CUDA graph: one launch instead of hundreds, for networks whose kernels are short.

Contract: the step reads and writes tensors at fixed places only, never waits for the device, and draws no random
numbers; what changes from step to step goes in through tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

WARM_UP_STEPS = 3


class StepGraphs:
    """The recorded steps of one trainer, one for each variant and shapes of the inputs.

    It keeps no reference to the step, so that the graphs and their memory go as soon as the trainer does.
    """

    def __init__(self) -> None:
        self._records: dict[tuple[object, ...], tuple[torch.cuda.CUDAGraph, list[Tensor]]] = {}
        self._pool: Any = None

    def run(
        self, step: Callable[..., Any], state: Callable[[], Sequence[Tensor]], variant: bool, *inputs: Tensor
    ) -> None:
        """Do what ``step(variant, *inputs)`` does, by its record; the first time it is recorded.

        Args:
            step: always the same function; its result is ignored.
            state: gives every tensor that the step changes. Recording warms the step up, and puts these back after
                each time, so that no step sees more than one step done in its place.
            variant: first argument of the step.
            inputs: the others, on the device.
        """
        key = (variant, *(given.shape for given in inputs))
        if key not in self._records:
            self._records[key] = self._record(step, state, variant, inputs)
        graph, places = self._records[key]
        for place, given in zip(places, inputs, strict=True):
            place.copy_(given)
        graph.replay()

    def _record(
        self,
        step: Callable[..., Any],
        state: Callable[[], Sequence[Tensor]],
        variant: bool,
        inputs: Sequence[Tensor],
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
        places = [given.clone() for given in inputs]
        before = [tensor.clone() for tensor in state()]
        current, side = torch.cuda.current_stream(), _side_stream(inputs[0].device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_STEPS):
                step(variant, *places)
                for tensor, old in zip(state(), before, strict=True):
                    tensor.copy_(old)
        current.wait_stream(side)
        del before  # the record's own memory may need the room
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads of this process, as NCCL's watchdog, may ask the device something meanwhile
        with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
            step(variant, *places)
        self._pool = graph.pool()
        return graph, places


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The one on which everything is recorded: a stream that has multiplied matrices keeps a workspace for good."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
