"""One batch of inputs in the normalisations of other programs: a teacher from elsewhere may expect one of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# mean and standard deviation of the three colours, for pixels in [0, 1]
COLOURS = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR": ((0.491, 0.482, 0.447), (0.247, 0.244, 0.262)),
}


def renormalised(inputs: Any) -> Iterator[tuple[str, Tensor]]:
    """The inputs in each other usual normalisation: its name, and the result.

    Args:
        inputs: ``(batch, ...)`` floats; for anything else nothing is tried.
    """
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.dim() < 2:
        return
    spread = inputs.std()
    if bool(spread > 0.0) and bool(spread.isfinite()):
        yield "standardised", (inputs - inputs.mean()) / spread
    columns = tuple(dim for dim in range(inputs.dim()) if dim != 1)
    if len(inputs) > 1:
        by_column = inputs.std(dim=columns, keepdim=True).clamp_min(1e-6)
        yield "standardised per channel", (inputs - inputs.mean(dim=columns, keepdim=True)) / by_column
    yield "times 255", inputs * 255.0
    yield "divided by 255", inputs / 255.0
    yield "from [0, 1] to [-1, 1]", inputs * 2.0 - 1.0
    yield "from [-1, 1] to [0, 1]", (inputs + 1.0) / 2.0
    if inputs.dim() == 4 and inputs.shape[1] == 3:
        for name, numbers in COLOURS.items():
            mean, deviation = (torch.tensor(x).to(inputs).view(1, 3, 1, 1) for x in numbers)
            yield f"normalised by {name}'s mean and deviation", (inputs - mean) / deviation
            yield f"without {name}'s normalisation", inputs * deviation + mean
