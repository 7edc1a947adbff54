"""What auto and 0 in a config mean on this machine, and the settings of torch that follow, made before any weight.

Precision, threads and memory format decide the last bits of every number, so they are resolved once and stored.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import nn

from polydistill.cores import as_before, available_cores, worthwhile_threads
from polydistill.errors import UserError

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]
WithFloat16 = Literal["auto", "float32", "bfloat16", "float16"]  # where losses are scaled
MOST_THREADS = 1024  # more than any machine has of use: a slip of the finger, found before they are started
FEW_ROWS = 2  # a batch of so few rows gains little from threads, and waits long for them beside other work
COMPILERS = ("g++", "clang++", "c++", "cl")


def resolve_device(device: Device) -> Literal["cpu", "cuda"]:
    """The device to use: auto is cuda where torch finds a GPU, else cpu.

    Raises:
        UserError: ``cuda``, and torch finds no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but torch sees no GPU here; use --device cpu")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def resolve_threads(threads: int, *, step: float = math.inf, run: float = math.inf) -> int:
    """The number of threads; for 0 the number that pays for this work, see
    :func:`polydistill.cores.worthwhile_threads`."""
    return threads or worthwhile_threads(step, run)


def resolve_precision(precision: WithFloat16, device: str) -> Literal["float32", "bfloat16", "float16"]:
    """The precision to use: auto is bfloat16 where the device has instructions for it (elsewhere it is slower), else
    float32. (torch lists a processor's instructions from 2.11 on; before that, auto on a CPU is float32.)"""
    if precision != "auto":
        return precision
    return "bfloat16" if _computes_bfloat16(device) else "float32"


def _computes_bfloat16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def resolve_machine(
    device: Device,
    threads: int,
    precision: WithFloat16,
    *,
    stored: Mapping[str, Any] | None = None,
    step: float = math.inf,
    run: float = math.inf,
) -> dict[str, Any]:
    """Device, threads and precision of a config, with auto and 0 resolved for this machine.

    Args:
        device: auto, cpu or cuda.
        threads: their number; 0: as many as pay for this work.
        precision: auto, float32, bfloat16 or float16.
        stored: the config of the run that is continued. Its values are used for auto and 0, whatever this machine
            is, since they decide the last bits. One line on standard error warns where they are slow here.
        step: multiply-adds of a step of the work.
        run: multiply-adds of all of it.

    Raises:
        UserError: torch does not find the device.
    """
    machine = as_before({"device": device, "threads": threads, "precision": precision}, stored)
    if device == "auto" and machine["device"] == "cuda" and not torch.cuda.is_available():
        raise UserError("this run was begun on a GPU, and torch sees none here: continue it on a machine with one")
    found = resolve_device(machine["device"])
    meant = resolve_precision(machine["precision"], found)
    if precision == "auto" and meant == "bfloat16" and not _computes_bfloat16(found):
        _say_once("the run was begun in bfloat16 and continues in it, which is slow on this processor")
    n_threads = resolve_threads(machine["threads"], step=step, run=run)
    if not threads and n_threads > available_cores():
        _say_once(
            f"the run was begun with {n_threads} threads and continues with them, slowly: "
            f"this process may use {available_cores()} core{'s' * (available_cores() > 1)}"
        )
    return {"device": found, "threads": n_threads, "precision": meant}


@contextlib.contextmanager
def few_rows(rows: int) -> Iterator[None]:
    """Let torch compute with one thread inside, where a batch has so few rows that threads would wait for each other.

    Costs under a microsecond. The setting is the whole process's: do not use this in two Python threads at once.

    Args:
        rows: of the batch; with more than :data:`FEW_ROWS` nothing changes.
    """
    threads = torch.get_num_threads()
    if rows > FEW_ROWS or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch computes on one thread within the block, and as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """A context in which no autocast around it is heard; where there is none it takes no time."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def autocast(device_type: str, precision: str) -> contextlib.AbstractContextManager[Any]:
    """A context in which networks compute in ``precision``: "float32", whatever is around it, or a shorter type by
    torch's autocast."""
    if precision == "float32":
        return without_autocast(device_type)
    # no cache: it would outlive the recording of a CUDA graph, and each weight is used only once
    return torch.autocast(device_type, getattr(torch, precision), cache_enabled=False)


def prepare(device: str, threads: int) -> torch.device:
    """Set the threads of this process and, on a GPU, let cuDNN choose its fastest convolutions; return the device."""
    torch.set_num_threads(threads)
    if device == "cuda":
        torch.backends.cudnn.benchmark = True
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(device)


def compile_network(network: nn.Module, device: torch.device) -> nn.Module:
    """``network`` compiled by torch.compile, with the same weights; on a CPU without a C++ compiler ``network`` itself,
    with one warning per process."""
    named = os.environ.get("CXX", "")
    if device.type == "cpu" and not any(shutil.which(name) for name in (named, *COMPILERS) if name):
        _say_once("torch.compile needs a C++ compiler on the CPU, and none was found: the network is not compiled")
        return network
    return torch.compile(network)  # type: ignore[return-value]


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)
