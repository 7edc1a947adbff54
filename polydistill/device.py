"""What the words auto and 0 of a config mean on this machine, and the settings that follow, made before any weight is.

Precision, threads and memory format decide the last bits of every number, so they are resolved once and stored.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
from typing import Any, Literal

import torch
from torch import nn

from polydistill.errors import UserError

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]
COMPILERS = ("g++", "clang++", "c++", "cl")


def resolve_device(device: Device) -> Literal["cpu", "cuda"]:
    """The device that is meant, after a look at what there is.

    Raises:
        UserError: there is no GPU where one is asked for.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but torch sees no GPU here; use --device cpu")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def resolve_threads(threads: int) -> int:
    """The number of threads; 0 stands for as many as this process may use cores, divided among the processes that
    torchrun has started on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def resolve_precision(precision: Precision, device: str) -> Literal["float32", "bfloat16"]:
    """The precision that is meant: bfloat16 is faster where there are instructions for it, and slower elsewhere. (What
    a processor has, torch tells from 2.11 on; before, float32 is meant.)"""
    if precision != "auto":
        return precision
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    has: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bfloat16" if any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else "float32"


def resolve_machine(device: Device, threads: int, precision: Precision) -> dict[str, Any]:
    """These three of a config, as this machine understands auto and 0.

    Raises:
        UserError: the device is not there.
    """
    found = resolve_device(device)
    return {
        "device": found,
        "threads": resolve_threads(threads),
        "precision": resolve_precision(precision, found),
    }


def prepare(device: str, threads: int) -> torch.device:
    """Set the threads of this process and, on a GPU, let cuDNN choose its fastest convolutions; the device."""
    torch.set_num_threads(threads)
    if device == "cuda":
        torch.backends.cudnn.benchmark = True
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(device)


def compile_network(network: nn.Module, device: torch.device) -> nn.Module:
    """``network`` through torch.compile, sharing its weights; without a C++ compiler as it is, which the process says
    once."""
    named = os.environ.get("CXX", "")
    if device.type == "cpu" and not any(shutil.which(name) for name in (named, *COMPILERS) if name):
        _say_once("torch.compile needs a C++ compiler on the CPU, and there is none: going on without it")
        return network
    return torch.compile(network)  # type: ignore[return-value]


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)
