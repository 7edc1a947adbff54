"""Memory for one more process beside those that are running, as Linux tells it.

Contract: an estimate for not starting what would be killed. Where the system does not say, there is room.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterable
from pathlib import Path

from polydistill.cores import cgroups

LEAST = 2**30  # bytes that a run needs until one has shown what it needs: its libraries take most of that


def free_bytes(process: Path = Path("/proc/self"), meminfo: Path = Path("/proc/meminfo")) -> float:
    """Bytes that this process and its children may still take, the least of the machine's and its control groups'.

    It is infinite where the system does not say.

    Args:
        process: a folder with ``cgroup`` and ``mountinfo`` as Linux has them under /proc.
        meminfo: as Linux has it there.
    """
    try:
        fields = _fields(meminfo)
        limits = [fields["MemAvailable:"] * 1024.0] if "MemAvailable:" in fields else []
    except (OSError, ValueError):
        limits = []
    with contextlib.suppress(OSError, ValueError):  # another system, or one that hides them
        limits += [left for folder in cgroups(process) if (left := _left(folder)) is not None]
    return min(limits, default=math.inf)


def _left(group: Path) -> float | None:
    """Bytes below the limit of one control group (version 2), its page cache counted as free; None: no limit."""
    if not (group / "memory.max").is_file():
        return None
    limit = (group / "memory.max").read_text(encoding="utf-8").strip()
    if limit == "max":
        return None
    used = int((group / "memory.current").read_text(encoding="utf-8"))
    return float(int(limit) - used + _fields(group / "memory.stat").get("inactive_file", 0))


def _fields(path: Path) -> dict[str, int]:
    """``name number`` of each line of a file."""
    rows = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}


def resident_bytes(pid: int) -> int:
    """What a process holds in memory now; 0 where the system does not say, or it has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def largest_ended() -> int:
    """The most bytes that any ended child of this process has held at once; 0: none has ended, or nobody says."""
    if sys.platform != "linux":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def has_room(running: Iterable[int], free: float, needed: float) -> bool:
    """Whether one more process fits, once those that are running have grown to what one needs.

    Args:
        running: bytes that each of them holds now.
        free: bytes.
        needed: bytes of one.

    Example:
        >>> has_room([3, 1], free=7, needed=3), has_room([3, 1], free=4, needed=3)
        (True, False)
    """
    still_to_come = sum(max(0.0, needed - held) for held in running)
    return free - still_to_come >= needed
