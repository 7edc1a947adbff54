"""What the words auto and 0 of a config mean on this machine, and the settings that follow, made before any weight is.

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
FEW_ROWS = 2  # so few gain little from threads, and wait long for them beside other work
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


def resolve_threads(threads: int, *, step: float = math.inf, run: float = math.inf) -> int:
    """The number of threads; 0 stands for as many as this process may use and its work is worth, see
    :func:`polydistill.cores.worthwhile_threads`."""
    return threads or worthwhile_threads(step, run)


def resolve_precision(precision: Precision, device: str) -> Literal["float32", "bfloat16"]:
    """The precision that is meant: bfloat16 is faster where there are instructions for it, and slower elsewhere. (What
    a processor has, torch tells from 2.11 on; before, float32 is meant.)"""
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
    precision: Precision,
    *,
    stored: Mapping[str, Any] | None = None,
    step: float = math.inf,
    run: float = math.inf,
) -> dict[str, Any]:
    """These three of a config, as this machine understands auto and 0.

    Args:
        device: auto, cpu or cuda.
        threads: 0: as many as the work is worth.
        precision: auto, float32 or bfloat16.
        stored: the config of the run that is continued: what auto and 0 meant there is kept, whatever this machine
            is, since it decides the last bits. One line on standard error says what that costs here.
        step: multiply-adds of a step of the work.
        run: multiply-adds of all of it.

    Raises:
        UserError: the device is not there.
    """
    machine = as_before({"device": device, "threads": threads, "precision": precision}, stored)
    if device == "auto" and machine["device"] == "cuda" and not torch.cuda.is_available():
        raise UserError("this run was begun on a GPU, and torch sees none here: go on with it where there is one")
    found = resolve_device(machine["device"])
    meant = resolve_precision(machine["precision"], found)
    if precision == "auto" and meant == "bfloat16" and not _computes_bfloat16(found):
        _say_once("the run was begun in bfloat16, and goes on in it, though this processor is slow at that")
    n_threads = resolve_threads(machine["threads"], step=step, run=run)
    if not threads and n_threads > available_cores():
        _say_once(
            f"the run was begun with {n_threads} threads, and goes on with them on {available_cores()} here, slowly"
        )
    return {"device": found, "threads": n_threads, "precision": meant}


@contextlib.contextmanager
def few_rows(rows: int) -> Iterator[None]:
    """Let torch compute with one thread inside, where a batch has so few rows that threads would wait for each other.

    Costs under a microsecond. The number of threads belongs to the process: not for two Python threads at once.

    Args:
        rows: of the batch; from :data:`FEW_ROWS` + 1 on nothing changes.
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
