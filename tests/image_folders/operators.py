"""timm beside a torchvision that was made for another torch."""

from __future__ import annotations

import contextlib

import torch

OPERATORS = ("nms", "qnms")
_library = torch.library.Library("torchvision", "FRAGMENT")


def define_operators() -> None:
    """Name the operators for which torchvision asks when it is imported; nothing here calls them.

    A torchvision of PyPI, which is made for CUDA, has none beside a torch for CPUs, and cannot be imported there.
    """
    for name in OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            with contextlib.suppress(RuntimeError):
                _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
