"""Segments: parts of a growing record as files that are written once, named by what they hold, and never changed.

A checkpoint names the segments that belong to it, each with its SHA-256, so that a part that was damaged, cut short or
exchanged is refused. Only what has been added since the last checkpoint is written: a run of any length pays for each
byte once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from polydistill.disk import atomic_write, disk_errors, sync_folder

SUFFIX = ".segment"


class DamagedSegment(Exception):
    """A segment that is missing or does not hold what was written; the text names the file."""


class Segment(NamedTuple):
    """A file of ``n_rows`` rows; ``seen`` is a digest that the writer wants to meet again, see ``recording.py``."""

    file: str
    sha256: str
    n_rows: int
    seen: str


def write_segment(folder: Path, content: bytes, n_rows: int, seen: str) -> Segment:
    """Write ``content`` under a name made of its hash: no file is ever written twice with different bytes.

    Raises:
        UserError: the disk refused.
    """
    sha256 = hashlib.sha256(content).hexdigest()
    with disk_errors(folder):
        if not folder.is_dir():
            folder.mkdir(parents=True)
            for parent in list(folder.parents)[:2]:  # a segment survives a loss of power only in a folder that does
                sync_folder(parent)
    segment = Segment(f"{sha256[:24]}{SUFFIX}", sha256, n_rows, seen)
    atomic_write(folder / segment.file, content)
    return segment


def read_segment(folder: Path, segment: Segment) -> bytes:
    """What was written.

    Raises:
        DamagedSegment: the file is missing, or its bytes are others.
        UserError: the disk refused.
    """
    path = folder / segment.file
    with disk_errors(path, "read"):
        if not path.is_file():
            raise DamagedSegment(f"{path} is missing")
        content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != segment.sha256:
        raise DamagedSegment(f"{path} is damaged")
    return content


def remove_segments(folder: Path, keep: Collection[str] = ()) -> None:
    """Remove the segments of ``folder`` but those named in ``keep``, and what a crash left of one being written."""
    with disk_errors(folder, "clear"):
        for pattern in (f"*{SUFFIX}", f".*{SUFFIX}.*.tmp"):
            for path in folder.glob(pattern):
                if path.name not in keep:
                    path.unlink()
