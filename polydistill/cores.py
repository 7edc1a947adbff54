"""How many cores this process may use, and how many threads are worth having for some work; nothing heavy is imported.

Contract: the answer depends on what the process is allowed and on the work, never on the load of the moment: the same
command on the same machine has the same number of threads, and so the same weights to the last bit.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

GRAIN = 3e8  # multiply-adds per step and thread; with fewer, threads wait for each other longer than they compute
WORTHWHILE = 1e12  # multiply-adds per run and thread after the first: under a minute of one core
AUTO = {"device": "auto", "threads": 0, "precision": "auto"}  # values that each machine resolves
SPINS = "10000"  # rounds that an idle OpenMP thread spins before it sleeps, well under a millisecond in all


def usable_cores() -> int:
    """The number of cores that this process and those that it starts may use together, at least 1.

    It is bounded by its affinity (from Python 3.13 on by ``PYTHON_CPU_COUNT`` too) and the quotas of its cgroups.
    """
    count = getattr(os, "process_cpu_count", None)  # from Python 3.13 on
    if count is not None:
        cores = count() or 1
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cores, cgroup_quota())))


def available_cores() -> int:
    """The number of cores for the threads of this process, at least 1.

    They are :func:`usable_cores`, bounded by ``OMP_NUM_THREADS``, and divided among the processes that torchrun has
    started on this machine.
    """
    cores = usable_cores()
    processes = _positive("LOCAL_WORLD_SIZE") or 1
    wanted = _positive("OMP_NUM_THREADS")
    if processes > 1 and wanted == 1:  # torchrun sets it where the user has set nothing
        wanted = None
    return max(1, min(cores // processes, wanted or cores))


def worthwhile_threads(step: float = math.inf, run: float = math.inf) -> int:
    """How many threads some work is worth, up to :func:`available_cores`.

    Args:
        step: multiply-adds between two points where threads wait for each other: of an update, or of a batch.
        run: multiply-adds of everything. A run of seconds is left to one core: others have use for the rest.

    Example:
        >>> worthwhile_threads(step=1e6), worthwhile_threads(run=1e9)
        (1, 1)
    """
    bounds = [available_cores(), step / GRAIN, 1 + run / WORTHWHILE]
    return max(1, int(min(bounds)))


def cgroup_quota(process: Path = Path("/proc/self")) -> float:
    """The limit that control groups set on a process, in cores: the lowest of its own group and of those around it.

    It is infinite where none sets a limit, or there are no control groups.

    Args:
        process: a folder with ``cgroup`` and ``mountinfo`` as Linux has them under /proc (versions 1 and 2).
    """
    try:
        return min((quota for folder in cgroups(process) for quota in _quotas(folder)), default=math.inf)
    except (OSError, ValueError, ZeroDivisionError):  # another system, or one that hides them
        return math.inf


def cgroups(process: Path) -> Iterator[Path]:
    """The folders of the control groups of a process, from the innermost to the outermost of each hierarchy.

    They are those of version 2, and of version 1 those that limit the processor.

    Args:
        process: a folder with ``cgroup`` and ``mountinfo`` as Linux has them under /proc.

    Raises:
        OSError, ValueError: another system, or one that hides them.
    """
    paths = {}  # "" is version 2, where one hierarchy holds everything
    for line in (process / "cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    for line in (process / "mountinfo").read_text(encoding="utf-8").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        controller = {"cgroup2": "", "cgroup": "cpu"}.get(kind, "no group")
        if controller not in paths or (controller and controller not in options.split(",")):
            continue
        root, mount = (re.sub(r"\\(\d{3})", _octal, text) for text in before.split(" ")[3:5])
        inside = os.path.relpath(paths[controller], root)
        folder = Path(mount) if inside.startswith("..") else Path(mount, inside)  # of a container: its own root
        yield folder
        yield from (parent for parent in folder.parents if parent.is_relative_to(mount))


def _octal(escaped: re.Match[str]) -> str:
    """A space, tab, line break or backslash as mountinfo writes it, like ``\\040``."""
    return chr(int(escaped.group(1), 8))


def _quotas(folder: Path) -> Iterator[float]:
    """Quota by period of one group, if it has a limit."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        if all((folder / name).is_file() for name in names):
            quota, period = " ".join((folder / name).read_text(encoding="utf-8") for name in names).split()
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)


def _positive(name: str) -> int | None:
    """The positive integer in an environment variable, or None; of a list (OpenMP: one per nesting level) the first."""
    text = os.environ.get(name, "").split(",")[0].strip()
    return int(text) if text.isdecimal() and int(text) else None


def as_before(machine: Mapping[str, Any], stored: Mapping[str, Any] | None) -> dict[str, Any]:
    """Device, threads and precision of ``machine``, with auto and 0 replaced by what a run's config has stored.

    Example:
        >>> as_before({"device": "auto", "threads": 3, "precision": "auto"}, {"device": "cpu", "threads": 2})
        {'device': 'cpu', 'threads': 3, 'precision': 'auto'}
    """
    kept = {} if stored is None else stored
    return {
        name: kept[name] if machine[name] == auto and type(kept.get(name)) is type(auto) else machine[name]
        for name, auto in AUTO.items()
    }


def limit_spinning() -> None:
    """Let idle threads of OpenMP sleep soon, unless the environment says how they wait. Before torch is imported.

    By default they spin for milliseconds. Beside other work that takes time from the very threads that they wait for:
    three runs at once took ten times as long as one after the other.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = SPINS


def say_if_loaded() -> None:
    """Warn in one line on standard error if the load of this machine exceeds its cores. Changes nothing."""
    cores, load = os.cpu_count() or 1, os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > cores:
        text = f"other work is running on this machine (load {load:.1f} on {cores} core{'s' * (cores > 1)})"
        print(f"{text}: this run will be slower; its results stay the same", file=sys.stderr)
