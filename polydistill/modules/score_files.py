"""Files that hold a teacher's scores of samples, each sample found by the hash of its inputs.

A file is a ``.safetensors``: ``samples`` ``(n, 32)`` uint8, the hashes; ``positions`` ``(n,)`` int64, how many rows
each sample has; and tensors with these rows, one sample after another. It is written whole or not at all, and never
again. Several processes may write into one folder at once: under a lock, each leaves out what another has written. (A
line says where the file system has none.)
Contract: a file is read through a memory map, and never runs code; one that is damaged, cut, or of something else is
refused in one line.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from polydistill.disk import atomic_write, disk_errors, is_temporary
from polydistill.errors import UserError
from polydistill.provenance import weights_sha256
from polydistill.runs.lock import FolderLock

KIND = "polydistill teacher scores, 1"
OLD_SECONDS = 3600.0
Rows = Mapping[str, Tensor]


class Place(NamedTuple):
    """Where the rows of a sample are: ``start`` to ``end`` of a file's."""

    file: int
    start: int
    end: int


class ScoreFiles:
    """The files of one teacher, in a folder of their own.

    Args:
        folder: is made when something is written.
        key: of everything on which the scores depend beside the inputs.

    Raises:
        UserError: a file is damaged, or of another key; the folder cannot be read.

    Example:
        >>> import tempfile
        >>> files = ScoreFiles(Path(tempfile.mkdtemp()) / "a", key="of a teacher")
        >>> files.write([b"x" * 32, b"y" * 32], [1, 2], {"scores": torch.tensor([[1.0], [2.0], [3.0]])})
        >>> again = ScoreFiles(files.folder, key="of a teacher")
        >>> again.read([b"y" * 32, b"x" * 32])["scores"].flatten().tolist(), b"z" * 32 in again
        ([2.0, 3.0, 1.0], False)
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self._rows: list[Rows] = []
        self._places: dict[bytes, Place] = {}
        self._opened: set[str] = set()
        self.refresh()

    def __contains__(self, sample: bytes) -> bool:
        return sample in self._places

    def __len__(self) -> int:
        return len(self._places)

    def refresh(self) -> None:
        """Open the files that others have written since.

        Raises:
            UserError: see the class.
        """
        if not self.folder.exists():
            return
        with disk_errors(self.folder, "read"):
            paths = sorted(path for path in self.folder.glob("*.safetensors") if path.name not in self._opened)
        for path in paths:
            self._open(path)

    def read(self, samples: Sequence[bytes]) -> dict[str, Tensor]:
        """The rows of ``samples``, which are all here, in their order.

        Raises:
            KeyError: one is not.
        """
        places = [self._places[sample] for sample in samples]
        return {
            name: torch.cat([self._rows[place.file][name][place.start : place.end] for place in places])
            for name in self._rows[places[0].file]
        }

    def write(self, samples: Sequence[bytes], positions: Sequence[int], rows: Rows) -> None:
        """Add a file with those samples that are not there yet, also from another process.

        Args:
            samples: hashes of 32 bytes.
            positions: how many rows each has.
            rows: of one sample after another.

        Raises:
            UserError: the disk refused; the files before are as they were.
        """
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with FolderLock(self.folder, waits=True):
            self._remove_what_a_kill_left()
            self.refresh()
            is_new = torch.tensor([sample not in self for sample in samples])
            if not is_new.any():
                return
            counts = torch.tensor(positions)
            rows = {name: tensor[is_new.repeat_interleave(counts)] for name, tensor in rows.items()}
            self._add([sample for sample in samples if sample not in self], counts[is_new], rows)

    def _add(self, samples: Sequence[bytes], positions: Tensor, rows: Rows) -> None:
        from safetensors.torch import save

        named = torch.frombuffer(bytearray(b"".join(samples)), dtype=torch.uint8).view(-1, 32)
        tensors = {"samples": named, "positions": positions, **rows}
        metadata = {"kind": KIND, "key": self.key, "sha256": weights_sha256(tensors)}
        path = self.folder / f"{hashlib.sha256(b''.join(samples)).hexdigest()[:16]}.safetensors"
        atomic_write(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))
        self._open(path)

    def _remove_what_a_kill_left(self) -> None:
        """Old temporary files; where nothing is locked, another run may be writing a new one, or remove an old one."""
        with disk_errors(self.folder, "remove temporary files of"):
            for path in filter(lambda path: is_temporary(path.name), self.folder.iterdir()):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > OLD_SECONDS:
                        path.unlink()

    def _open(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with disk_errors(path, "read"), safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError:
            raise UserError(f"{path} is damaged or cut: remove it, and its scores are computed again") from None
        if (metadata.get("kind"), metadata.get("key")) != (KIND, self.key):
            raise UserError(f"{path} holds something else than this teacher's scores: remove it, or move it away")
        if metadata.get("sha256") != weights_sha256(tensors):
            raise UserError(f"{path} is damaged: remove it, and its scores are computed again")
        ends = tensors["positions"].cumsum(0).tolist()
        names = tensors["samples"].numpy().tobytes()
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            self._places.setdefault(names[32 * number : 32 * number + 32], Place(len(self._rows), start, end))
        self._rows.append({name: tensor for name, tensor in tensors.items() if name not in ("samples", "positions")})
        self._opened.add(path.name)
