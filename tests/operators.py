"""timm beside a torchvision that was made for another torch."""

from __future__ import annotations

import contextlib
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

import torch

OPERATORS = ("nms", "qnms")
_library = torch.library.Library("torchvision", "FRAGMENT")  # lives as long as its operators


def define_operators() -> None:
    """Name the operators for which torchvision asks when it is imported, where it lacks them; nothing here calls them.

    A torchvision of PyPI, which is made for CUDA, has none beside a torch for CPUs, and cannot be imported there. Its
    own are loaded where that is possible: both at once would end the process.
    """
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for suffix in EXTENSION_SUFFIXES:
        with contextlib.suppress(OSError):
            torch.ops.load_library(Path(spec.origin).with_name(f"_C{suffix}"))
    for name in OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
