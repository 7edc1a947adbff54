"""Speeds that finished runs had on this machine, remembered for the plans of later ones.

Contract: a plan never waits for a measurement, and never follows the load of the moment. A speed that cannot be
read or written counts as unknown: no run fails for it, and nothing that is computed depends on it. Each kind of work
has a file of its own, so that runs that finish at the same time do not overwrite each other's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polydistill.disk import atomic_write
from polydistill.errors import UserError
from polydistill.provenance import hardware


def speeds_folder() -> Path:
    """Where speeds are stored: ``polydistill/speeds`` in the user's folder for caches (``XDG_CACHE_HOME``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polydistill" / "speeds"


def remember(what: Mapping[str, Any], per_second: float) -> None:
    """Store how fast ``what`` was on this machine, in place of an earlier speed of it.

    Args:
        what: plain values that the speed depends on: kind of work, network, batch size, device, threads, precision.
        per_second: units of work.
    """
    key = _key(what)
    with contextlib.suppress(OSError, UserError, RuntimeError):  # RuntimeError: nobody's home is known
        speeds_folder().mkdir(parents=True, exist_ok=True)
        noted = {"what": key, "per_second": per_second}
        atomic_write(_file(key), (json.dumps(noted, indent=2, sort_keys=True) + "\n").encode())


def recall(what: Mapping[str, Any]) -> float | None:
    """How fast ``what`` was the last time that a run of it finished on this machine, per second; None: never."""
    key = _key(what)
    try:
        noted = json.loads(_file(key).read_text(encoding="utf-8"))
        same, speed = noted["what"] == key, float(noted["per_second"])
    except (OSError, ValueError, TypeError, LookupError, RuntimeError):
        return None
    return speed if same and 0 < speed < float("inf") else None


def _key(what: Mapping[str, Any]) -> dict[str, Any]:
    here = hardware()
    return {**what, "machine": here["gpu"] if what.get("device") == "cuda" else here["cpu"]}


def _file(key: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return speeds_folder() / f"{digest[:16]}.json"


def format_duration(seconds: float) -> str:
    """In the unit that suits it.

    Example:
        >>> format_duration(45), format_duration(600), format_duration(36_000)
        ('45 s', '10 min', '10.0 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
