"""Which test samples a network got right, one bit each, beside the run's summary: what a study resamples samples from.

Contract: a file is written whole or not at all, equal answers give equal bytes, and reading runs no code of the file's;
a file that is not the one that was written is refused.
"""

from __future__ import annotations

import hashlib
import io
import stat
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polydistill.disk import atomic_write, disk_errors
from polydistill.errors import UserError

LARGEST = 1 << 26  # bytes of a file
OF_GENERATION = "generation_{}_correct.npz"


class KeptAnswers:
    """Those of the finished generations of a run, each in a file of its folder.

    Attributes:
        records: of the files, in the order of the generations, for summary.json and checkpoints.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def keep(self, out: Path, correct: NDArray[np.bool_]) -> None:
        """Write the answers of the next generation into the run folder ``out``, see :func:`write_correct`."""
        self.records.append(write_correct(out / OF_GENERATION.format(len(self.records)), correct))

    def go_on(self, out: Path, records: Sequence[Mapping[str, Any]]) -> None:
        """Take over the ``records`` of a checkpoint, once their files are found to be what they were.

        Raises:
            UserError: a file of the run folder ``out`` is not.
        """
        for record in records:
            read_correct(out, record)
        self.records = [dict(record) for record in records]


def write_correct(path: Path, correct: NDArray[np.bool_]) -> dict[str, Any]:
    """Write ``path``, a NumPy archive (.npz) of packed bits; the record by which :func:`read_correct` finds it.

    Args:
        path: a file that is there is replaced.
        correct: ``(samples,)`` bool, in the order of the samples.

    Returns:
        ``file`` (the name alone), ``samples``, and ``sha256`` of the file.

    Raises:
        UserError: the disk refused.
    """
    buffer = io.BytesIO()
    np.savez(buffer, bits=np.packbits(correct), samples=np.int64(len(correct)))
    atomic_write(path, buffer.getvalue())
    return {"file": path.name, "samples": len(correct), "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}


def read_correct(folder: Path, record: Mapping[str, Any]) -> NDArray[np.bool_]:
    """What :func:`write_correct` wrote: ``(samples,)`` bool, in the order of the samples.

    Args:
        folder: of the run.
        record: of the file, as summary.json holds it.

    Raises:
        UserError: the file is missing, or not the one of the record, or the record is none.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> record = write_correct(folder / "generation_0_correct.npz", np.array([True, False, True]))
        >>> read_correct(folder, record).tolist()
        [True, False, True]
    """
    name, samples = record.get("file"), record.get("samples")
    if not isinstance(name, str) or Path(name).name != name or not isinstance(samples, int):
        raise UserError(f"{folder}: no record of a file of right and wrong answers: {dict(record)}")
    path = folder / name
    content = _read(path)
    if hashlib.sha256(content).hexdigest() != record.get("sha256"):
        raise UserError(f"{path} is not the file that the run wrote (its sha256 differs)")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            bits, n = archive["bits"], int(archive["samples"])
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} holds no right and wrong answers: {error}") from error
    if n != samples or bits.dtype != np.uint8 or bits.shape != (-(-samples // 8),):
        raise UserError(f"{path} holds the answers to {n:,} samples, its record says {samples:,}")
    return np.unpackbits(bits, count=samples).astype(bool)


def _read(path: Path) -> bytes:
    """The bytes of a regular file that is not too large: reading a pipe could wait forever."""
    with disk_errors(path, "read"):
        state = path.stat()
        if not stat.S_ISREG(state.st_mode) or state.st_size > LARGEST:
            raise UserError(f"{path} is no file of at most {LARGEST:,} bytes")
        return path.read_bytes()
