"""Checkpoints: the state of a run on the disk. The last two good ones are always kept.

A checkpoint is one file ``<number>.checkpoint``: a line of text with format, kind, step, length and SHA-256, then the
state as ``torch.save`` writes it. The sum is over everything else in the file, so that no bit can change unnoticed.
Contract: a file gets its name only when all of it is on the disk; an older one is removed only after that; reading runs
no code of the file's (``weights_only``), and a file that does not match its checksum is never used.
"""

from __future__ import annotations

import errno
import hashlib
import io
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polydistill.config.fields import check_fields
from polydistill.disk import atomic_write, disk_errors, remove_temporaries, sync_folder
from polydistill.errors import UserError, require_at_least

FORMAT = 1
HEADER = re.compile(rb"(polydistill checkpoint (\d+) (\w+) step (\d+) bytes (\d+) sha256) ([0-9a-f]{64})\n")
LONGEST_HEADER = 300
PLAIN = {type(None), bool, int, float, str, bytes}
LARGEST_SHARE = 0.02  # of the time that saving may take


@dataclass(frozen=True)
class CheckpointConfig:
    """How often a run saves what it needs to go on.

    Args:
        every_seconds: between two checkpoints; more where saving would take over 2 % of the time.
        every_steps: save after every so many steps too; 0: by the clock alone.
    """

    every_seconds: float = 60.0
    every_steps: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        require_at_least(0, self, "every_seconds", "every_steps")


class Pace:
    """When the next checkpoint is due. What a run computes never depends on it.

    Args:
        config: how often.
    """

    def __init__(self, config: CheckpointConfig) -> None:
        self.config = config
        self._wait = config.every_seconds
        self._saved_at = time.monotonic()
        self._saved_step: int | None = None

    def due(self, step: int) -> bool:
        """Whether to save after ``step`` steps; costs under a microsecond."""
        every = self.config.every_steps
        if every and step % every == 0 and step != self._saved_step:
            return True
        return time.monotonic() - self._saved_at >= self._wait

    def saved(self, step: int, seconds: float) -> None:
        """A checkpoint was made after ``step`` steps, which took ``seconds``."""
        self._wait = max(self.config.every_seconds, seconds / LARGEST_SHARE)
        self._saved_at, self._saved_step = time.monotonic(), step


class DamagedError(Exception):
    """The file is not what was written; the text says how it differs."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made when the first is saved. One process at a time, see :mod:`polydistill.runs.lock`.
        keep: how many of the newest good ones stay.
        kind: of run; another kind's are refused.

    Example:
        >>> import tempfile
        >>> checkpoints = Checkpoints(Path(tempfile.mkdtemp()))
        >>> _ = checkpoints.save({"weights": [0.5]}, step=8)
        >>> checkpoints.latest()
        {'weights': [0.5]}
    """

    def __init__(self, folder: Path, keep: int = 2, *, kind: str = "run") -> None:
        self.folder, self.keep, self.kind = folder, keep, kind
        self._damaged: set[Path] = set()

    def paths(self) -> list[Path]:
        """Those that are there, damaged or not, the oldest first."""
        numbered = [path for path in self.folder.glob("*.checkpoint") if path.stem.isdecimal()]
        return sorted(numbered, key=lambda path: int(path.stem))

    def save(self, state: Mapping[str, Any], step: int) -> Path:
        """Write a checkpoint, then remove what is older than the last ``keep`` good ones.

        Args:
            state: nested dicts and lists of plain values, tensors and numpy arrays and numbers. Not changed. It is
                held in memory twice for a moment.
            step: for messages.

        Returns:
            the file.

        Raises:
            UserError: the disk refused; the checkpoints before are as they were.
            TypeError: ``state`` holds something that a checkpoint cannot restore.
        """
        import torch

        before = self.paths()
        number = int(before[-1].stem) + 1 if before else 1
        buffer = io.BytesIO()
        torch.save(to_plain(state), buffer)
        body = buffer.getbuffer()
        described = f"polydistill checkpoint {FORMAT} {self.kind} step {step} bytes {len(body)} sha256".encode()
        digest = hashlib.sha256(described)
        digest.update(body)
        path = self.folder / f"{number:06d}.checkpoint"
        if not before:
            with disk_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                sync_folder(self.folder.parent)
        atomic_write(path, described, f" {digest.hexdigest()}\n".encode(), body)
        good = [*(old for old in before if old not in self._damaged), path]
        for old in {*before} - {*good[-self.keep :]}:
            with disk_errors(old, "remove"):
                old.unlink(missing_ok=True)
        self._damaged.clear()
        return path

    def latest(self, *, tidy: bool = True) -> dict[str, Any] | None:
        """The state of the newest good checkpoint, tensors on the CPU; None where there are no checkpoints.

        A damaged one is passed over, with one line on standard error. What a process left that was killed before it
        could clean up is removed: temporary files, and checkpoints older than the last ``keep``.

        Args:
            tidy: False: nothing is removed.

        Raises:
            UserError: there are checkpoints and none is good, or one is of another version or kind of run.
        """
        if not self.folder.is_dir():
            return None
        if tidy:
            remove_temporaries(self.folder)
        faults = []
        for path in reversed(self.paths()):
            try:
                state = self._open(path)
            except DamagedError as error:
                faults.append(f"{path.name} {error}")
                self._damaged.add(path)
            else:
                for fault in faults:
                    print(f"a checkpoint is damaged: {fault}; going on from {path.name}", file=sys.stderr)
                good = [one for one in self.paths() if one not in self._damaged]
                for old in good[: -self.keep]:
                    with disk_errors(old, "remove"):
                        old.unlink(missing_ok=True)
                return state
        if faults:
            raise UserError(
                f"no checkpoint in {self.folder} is good: {'; '.join(faults)}. Remove that folder, and the same "
                "command starts the run over"
            )
        return None

    def _open(self, path: Path) -> dict[str, Any]:
        """The state in a file."""
        import torch

        body = io.BytesIO(self._read(path))
        try:
            state: dict[str, Any] = torch.load(body, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # the file is whole, yet this torch cannot read it
            raise DamagedError(f"cannot be opened by torch {torch.__version__} ({type(error).__name__})") from error
        return state

    def _read(self, path: Path) -> memoryview:
        """The body of a whole file."""
        try:
            content = memoryview(path.read_bytes())
        except OSError as error:
            if error.errno == errno.EIO:
                raise DamagedError("lies on a damaged part of the disk") from error
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        found = HEADER.match(bytes(content[:LONGEST_HEADER]))
        if not found:
            raise DamagedError("does not begin like a checkpoint")
        described, version, kind, _, length, expected = found.groups()
        body = content[found.end() :]
        if len(body) != int(length):
            raise DamagedError(f"has {len(body):,} bytes instead of {int(length):,}")
        digest = hashlib.sha256(described)
        digest.update(body)
        if digest.hexdigest() != expected.decode():
            raise DamagedError("does not match its checksum")
        if int(version) != FORMAT:
            raise UserError(f"{path} has format {int(version)}, this version of polydistill reads {FORMAT}")
        if kind.decode() != self.kind:
            raise UserError(f"{path} is of a run of kind {kind.decode()}, this one is of kind {self.kind}")
        return body


def to_plain(value: Any, where: str = "state", *, device: str | None = None) -> Any:
    """A copy of nested values in types that ``torch.load(weights_only=True)`` restores; tensors on ``device`` if given.

    Numpy's numbers become Python's, its arrays become tensors; a tensor that is a part of another is copied, since
    ``torch.save`` would write all of the other. Tuples become lists.

    Raises:
        TypeError: naming what cannot be restored, and where it is.
    """
    import numpy as np
    import torch

    if type(value) in PLAIN:
        return value
    if isinstance(value, torch.Tensor):
        tensor = value.detach().to(device)
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        return tensor if whole else tensor.clone()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.array(value))
    if isinstance(value, np.bool_ | np.integer | np.floating):  # numpy's float64 is a float, too
        return value.item()
    if isinstance(value, Mapping) and all(isinstance(key, str | int) for key in value):
        return {key: to_plain(item, f"{where}.{key}", device=device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item, f"{where}[{index}]", device=device) for index, item in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}, which a checkpoint cannot restore")
