"""Scores that a frozen teacher gave for inputs which other runs meet too, in a folder that these runs share.

A score is found by a key of everything that it depends on, so a run gets what it would have computed or nothing.
Contract: the store saves time and nothing else. What is missing, damaged or does not fit is computed again; what cannot
be written, since the disk is full, is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from polydistill.disk import atomic_write
from polydistill.errors import UserError

VARIABLE = "POLYDISTILL_TEACHER_SCORES"  # of the environment: the folder of the store
SPARED = 2**30  # bytes of the disk that are left to others
DIGEST_BYTES = hashlib.sha256().digest_size


class ScoreStore:
    """Files of scores in ``folder``, one per key. Several processes may use it at once.

    Args:
        folder: is made when something is written.

    Example:
        >>> import tempfile
        >>> store = ScoreStore(Path(tempfile.mkdtemp()))
        >>> store.write("a", torch.ones(2, 3))
        >>> store.read("a", rows=2).shape, store.read("b", rows=2)
        (torch.Size([2, 3]), None)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of_environment(cls) -> ScoreStore | None:
        """The store that :data:`VARIABLE` names; None: it names none."""
        folder = os.environ.get(VARIABLE)
        return cls(Path(folder)) if folder else None

    def read(self, key: str, rows: int) -> Tensor | None:
        """The ``(rows, classes)`` scores of ``key``, float32 on the CPU; None: they are not there, or damaged."""
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        digest, values = content[:DIGEST_BYTES], memoryview(content)[DIGEST_BYTES:]
        if hashlib.sha256(values).digest() != digest:
            return None
        return torch.from_numpy(np.frombuffer(values, dtype=np.float32).reshape(rows, -1).copy())

    def write(self, key: str, scores: Tensor) -> None:
        """Keep ``scores``, if the disk has room to spare.

        Args:
            key: of everything on which they depend; usable as a file name.
            scores: ``(rows, classes)`` float32.
        """
        values = np.ascontiguousarray(scores.cpu().numpy()).data.cast("B")
        with contextlib.suppress(UserError, OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.folder).free - len(values) >= SPARED:
                atomic_write(self._path(key), hashlib.sha256(values).digest(), values)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.scores"
