"""A loss of power inside this process, at any chosen touch of the disk, with what a disk may do then.

Nothing reaches the disk after it, not even what ``except`` and ``finally`` would do. What had not been synced may be
lost: files that grow are cut somewhere between what was synced and what was written, or their rest is zeros; a file
that is being written is half there; a new name in a folder that was not synced may be the old one again.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

GROWING = ("*.jsonl", "tb/*/events.*")
UNLINK, TRUNCATE = os.unlink, os.truncate  # as they are before anything is put between


class PowerLossError(BaseException):
    """What ends the process."""


class Power:
    """Counts touches of the disk below ``out`` (sync, rename, cut, removal, growth), and fails at the chosen one.

    Args:
        out: the run folder.
        touches: until the failure.
        rng: draws what the disk does.
    """

    def __init__(self, out: Path, touches: int, rng: random.Random) -> None:
        self.out, self.left, self.rng = out, touches, rng
        self.gone = False
        grown = [path for pattern in GROWING for path in out.glob(pattern)]
        self._synced = {path.resolve(): path.stat().st_size for path in grown}  # what is there now has been read back
        self._unsynced_names: dict[Path, tuple[Path, bytes | None]] = {}

    def connect(self, patch: pytest.MonkeyPatch) -> None:
        """Put this between the process and the disk."""
        from polydistill.disk import GrowingFile

        fsync, replace, append = os.fsync, os.replace, GrowingFile.append

        def synced(descriptor: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            self.touch(half=path)
            fsync(descriptor)
            if path.is_dir():
                self._unsynced_names = {name: old for name, old in self._unsynced_names.items() if name.parent != path}
            else:
                self._synced[path] = path.stat().st_size

        def replaced(source: Path, target: Path) -> None:
            self.touch()
            old = Path(target).read_bytes() if Path(target).exists() else None
            replace(source, target)
            self._unsynced_names[Path(target)] = (Path(source), old)

        def appended(file: GrowingFile, content: bytes) -> None:
            if not self.gone and self.left == 0:
                append(file, content[: self.rng.randrange(len(content))])
            self.touch()
            append(file, content)

        patch.setattr(os, "fsync", synced)
        patch.setattr(os, "replace", replaced)
        patch.setattr(GrowingFile, "append", appended)
        for name in ("truncate", "unlink"):
            original = getattr(os, name)

            def touched(*arguments: Any, original: Any = original, **options: Any) -> Any:
                self.touch()
                return original(*arguments, **options)

            patch.setattr(os, name, touched)

    def touch(self, half: Path | None = None) -> None:
        """One more touch of the disk; ``half``: the file that is only half there if it is the last."""
        if self.gone:
            raise PowerLossError
        self.left -= 1
        if self.left < 0:
            self.gone = True
            self._lose(half)
            raise PowerLossError

    def _lose(self, half: Path | None) -> None:
        if half is not None and half.suffix == ".tmp":
            TRUNCATE(half, half.stat().st_size // 2)
        for name, (temporary, old) in self._unsynced_names.items():
            if self.rng.random() < 0.5:
                temporary.write_bytes(name.read_bytes())
                if old is None:
                    UNLINK(name)
                else:
                    name.write_bytes(old)
        for pattern in GROWING:
            for path in self.out.glob(pattern):
                written, synced = path.stat().st_size, self._synced.get(path.resolve(), 0)
                kept = self.rng.randint(min(synced, written), written)
                TRUNCATE(path, kept)
                if self.rng.random() < 0.5:
                    with open(path, "ab") as file:
                        file.write(bytes(written - kept))
