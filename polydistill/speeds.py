"""Speeds that finished runs had on this machine, remembered for the plans of later ones.

Contract: a plan never waits for a measurement, and never follows the load of the moment. What cannot be read or written
is as if nobody had remembered: no run fails for it, and nothing that is computed depends on it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polydistill.disk import atomic_write
from polydistill.errors import UserError
from polydistill.provenance import hardware


def speeds_file() -> Path:
    """Where they are: ``polydistill/speeds.json`` in the user's folder for caches (``XDG_CACHE_HOME``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polydistill" / "speeds.json"


def remember(what: Mapping[str, Any], per_second: float) -> None:
    """Note how fast ``what`` was here, in the place of what was noted of it before.

    Args:
        what: plain values that the speed depends on: kind of work, network, batch size, device, threads, precision.
        per_second: units of work.
    """
    speeds = _read() | {_key(what): per_second}
    with contextlib.suppress(OSError, UserError, RuntimeError):
        speeds_file().parent.mkdir(parents=True, exist_ok=True)
        atomic_write(speeds_file(), (json.dumps(speeds, indent=2, sort_keys=True) + "\n").encode())


def recall(what: Mapping[str, Any]) -> float | None:
    """How fast ``what`` was the last time that a run of it finished on this machine, per second; None: never."""
    return _read().get(_key(what))


def _key(what: Mapping[str, Any]) -> str:
    here = hardware()
    machine = here["gpu"] if what.get("device") == "cuda" else here["cpu"]
    return json.dumps({**what, "machine": machine}, sort_keys=True)


def _read() -> dict[str, float]:
    try:
        speeds = json.loads(speeds_file().read_text(encoding="utf-8"))
        return {key: float(speed) for key, speed in speeds.items() if float(speed) > 0}
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError):  # RuntimeError: nobody's home is known
        return {}
