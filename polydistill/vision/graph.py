"""A training step replayed as a CUDA graph: one launch instead of hundreds, for networks whose kernels are short.

Contract: the step reads and writes tensors at fixed places only, never waits for the device, and draws no random
numbers; what changes from step to step goes in through tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

WARM_UP_STEPS = 3


class GraphedStep:
    """Calls ``step(variant, *inputs)`` once per variant and shapes to record it, and replays the record afterwards.

    Args:
        step: to be recorded; its result is ignored.
        state: every tensor that the step changes. Recording warms the step up a few times, and puts these back.
    """

    def __init__(self, step: Callable[..., Any], state: Callable[[], Sequence[Tensor]]) -> None:
        self.step, self.state = step, state
        self._records: dict[tuple[object, ...], tuple[torch.cuda.CUDAGraph, list[Tensor]]] = {}
        self._pool: Any = None

    def __call__(self, variant: bool, *inputs: Tensor) -> None:
        key = (variant, *(given.shape for given in inputs))
        if key not in self._records:
            self._records[key] = self._record(variant, inputs)
        graph, places = self._records[key]
        for place, given in zip(places, inputs, strict=True):
            place.copy_(given)
        graph.replay()

    def _record(self, variant: bool, inputs: Sequence[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
        places = [given.clone() for given in inputs]
        before = [tensor.clone() for tensor in self.state()]
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_STEPS):
                self.step(variant, *places)
        current.wait_stream(side)
        for tensor, old in zip(self.state(), before, strict=True):
            tensor.copy_(old)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self.step(variant, *places)
        self._pool = graph.pool()
        return graph, places
