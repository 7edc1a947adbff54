"""Whether a disk has room for what a run will write, checked before the run begins."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from polydistill.errors import UserError
from polydistill.runs.folder import FAILURE

REPORT_BYTES = 1_000  # of metrics, timing and events, for each point of a curve
SMALL_FILES_BYTES = 200_000  # config.yaml, summary.json, cards, and what a network has beside its parameters


def lineage_bytes(parameters: Sequence[int], numbers: int, points: int) -> int:
    """Bytes that the run folder of a lineage takes at most: weights of each generation, checkpoints, curves.

    Args:
        parameters: of the network of each generation.
        numbers: that a checkpoint holds for each parameter: its weight, what the optimiser keeps, copies.
        points: of all curves.
    """
    checkpoints = 3 * numbers * 4 * max(parameters)  # two stay while the third is written
    return 4 * sum(parameters) + checkpoints + points * REPORT_BYTES + SMALL_FILES_BYTES


def require_room(folder: Path, n_bytes: int, *, quiet: bool = False) -> None:
    """Print in one line on standard error how much disk a run takes in ``folder``; refuse it where there is no room.

    Args:
        folder: it need not exist. Files in it are part of ``n_bytes``, except those that a failure left.
        n_bytes: of all files in it, at most.
        quiet: print nothing where there is room.

    Raises:
        UserError: there is too little room, or the folder cannot be written.
    """
    there = (path for path in folder.rglob("*") if path.is_file() and not path.match(FAILURE.format("*")))
    free = require_free(folder, n_bytes - sum(path.stat().st_size for path in there))
    if not quiet:
        print(f"{folder} takes up to {n_bytes / 1e6:,.0f} MB; {free / 1e6:,.0f} MB are free", file=sys.stderr)


def require_free(folder: Path, missing: int) -> int:
    """Refuse a disk without room for ``missing`` bytes more in ``folder``, which need not exist; the bytes that are
    free.

    Raises:
        UserError: there is too little room, or the folder cannot be written.
    """
    ground = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(ground, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {folder}: {os.strerror(errno.EACCES)}")
    free = shutil.disk_usage(ground).free
    if missing > free:
        raise UserError(
            f"the run needs about {missing / 1e6:,.0f} MB more in {folder}, where {free / 1e6:,.0f} MB are free; "
            "make room, and the same command goes on"
        )
    return free
