"""What a result was made from: the versions, the commit, the weights.

Contract: everything is read, nothing is written, and what cannot be known is left out or None, never guessed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polydistill

if TYPE_CHECKING:
    from torch import Tensor

PACKAGES = ("torch", "triton", "numpy", "tensorboard")  # what every result depends on
SOURCES = ("polydistill", "polydistill_agents")  # where there is one, the code that computes


def versions(*packages: str) -> dict[str, str]:
    """The versions of Python, of polydistill, and of those of ``PACKAGES`` and ``packages`` that are installed."""
    found = {"python": platform.python_version(), "polydistill": polydistill.__version__}
    for name in (*PACKAGES, *packages):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def version_of_code() -> str:
    """``0.1.0 (0123456789ab)``: the version, and the first hex digits of the sha256 of the packages' source files.

    Two that differ in their code may compute differently, and clones of one version do.
    """
    digest = hashlib.sha256()
    for package in SOURCES:
        spec = find_spec(package)
        for root in map(Path, () if spec is None else spec.submodule_search_locations or ()):
            for path in sorted(root.rglob("*.py")):
                digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{polydistill.__version__} ({digest.hexdigest()[:12]})"


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, and GPU with its memory and driver (None without one)."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {"cpu": platform.processor() or platform.machine(), "cores": cores, "gpu": None}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        found["cpu"] = names[0] if names else found["cpu"]
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "gpu_gib": round(properties.total_memory / 2**30, 1)}
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
            found["driver"] = done.stdout.splitlines()[0].strip()
    return found


def arithmetic() -> dict[str, Any]:
    """On what the last bits of a sum on the processor depend: its kind, the threads, the version of torch."""
    import torch

    machine = {"cpu": hardware()["cpu"], "features": torch.backends.cpu.get_cpu_capability()}
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), **machine}


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """``{"commit": 40 hex digits, "dirty": bool}`` of the clone whose root is ``folder``; None: it is no clone's root.

    Args:
        folder: root of the clone; None: that of the running polydistill. A folder below a root does not count:
            a virtual environment may lie in a stranger's clone.
    """
    folder = Path(polydistill.__file__).resolve().parent.parent if folder is None else folder.resolve()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # as in a hook

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder:
            return None
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):  # no git, no clone, no commit
        return None


def weights_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256 over the sorted (name, dtype, shape, bytes) of the weights; 64 hex digits.

    The same weights have the same sum, whatever file, device or order of names they come from.

    Args:
        state_dict: name -> tensor of any dtype and shape, on any device. Not changed. Of a sharded module the sum is
            that of the whole one, and all its processes call this.

    Example:
        >>> import torch
        >>> weights_sha256({"w": torch.zeros(2)}) == weights_sha256({"w": torch.zeros(2, 1)})
        False
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        dtype = str(tensor.dtype).removeprefix("torch.")
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        plain = whole.detach().cpu().contiguous().reshape(-1)
        data = plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""  # an empty one has no bytes to view
        digest.update(f"{name}\0{dtype}\0{tuple(tensor.shape)}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()
