"""A job on the computer that it was sent to."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polydistill
from polydistill.errors import UserError
from polydistill.provenance import version_of_code
from polydistill.study.executors.process import start_process

SIGNAL_SECONDS = 0.2  # between two moments at which a signal is noticed
STOP_SECONDS = 2.0  # between two looks for the file that asks to stop: folders of many computers are slow


_running: list[subprocess.Popen[bytes]] = []  # one at most: a worker has one job at a time


def save() -> None:
    """Ask the command that runs to save and end, and wait until it has."""
    for process in _running:
        process.terminate()
        process.wait()


def carry_out(words: Mapping[str, Any]) -> dict[str, Any]:
    """Do what :func:`~polydistill.study.executors.errand.words_of` says; in the main thread.

    Returns:
        ``{"refused": why}`` where this computer cannot, ``{"code": ..., "seconds": ...}`` of a command, else ``{}``.

    Raises:
        BaseException: whatever a signal raises, by which Ray and submitit end a task; the command has saved.
    """
    why = _refusal(words)
    if why or words["command"] is None:
        return {"refused": why} if why else {}
    started = time.monotonic()
    try:
        process = start_process(
            (sys.executable, *words["command"]),
            Path(words["log"]),
            _path_of_package() | words["environment"],
            words["folder"],
        )
    except UserError as error:
        return {"refused": f"{platform.node()}: {error}"}
    _running[:] = [process]
    try:
        _wait_or_stop(process, Path(words["stop"]) if words["stop"] else None)
    except BaseException:
        save()
        raise
    finally:
        _running.clear()
    return {"code": process.wait(), "seconds": time.monotonic() - started}


def _wait_or_stop(process: subprocess.Popen[bytes], stop: Path | None) -> None:
    """Until the process has ended; it is asked to once the file ``stop`` is there."""
    ended = threading.Event()

    def await_end() -> None:
        process.wait()
        ended.set()

    threading.Thread(target=await_end, daemon=True).start()
    looks_at = time.monotonic()
    while not ended.wait(SIGNAL_SECONDS):
        if stop is not None and time.monotonic() >= looks_at:
            looks_at += STOP_SECONDS
            if stop.exists():
                process.terminate()
                stop = None


def _path_of_package() -> dict[str, str]:
    """The variable by which a command finds the package that was compared, where that is a clone's."""
    root = Path(polydistill.__file__).resolve().parents[1]
    if not (root / "pyproject.toml").is_file():
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH", ""))))}


def _refusal(words: Mapping[str, Any]) -> str:
    """Why this computer cannot take part in the study; empty: it can."""
    here = platform.node()
    ours = version_of_code()
    if words["version"] != ours:
        return f"{here} has polydistill {ours}, the study {words['version']}: install the same version on both"
    witness = Path(words["witness"])
    try:
        seen = hashlib.sha256(witness.read_bytes()).hexdigest()
    except OSError as error:
        return f"{here} does not share {witness.parent} ({error.strerror}): give --out a folder that all computers see"
    if seen != words["seen"]:
        return f"{here} has another {witness}: give --out a folder that all computers share"
    if not Path(words["folder"]).is_dir():
        return f"{here} has no folder {words['folder']}: start the study in a folder that all computers share"
    return ""
