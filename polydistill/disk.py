"""Files that are written whole or not at all, files that only grow, and one-line errors of the disk.

Contract: every error of the disk (full, read-only, a size limit, no permission) is a
:class:`~polydistill.errors.UserError` that names the path, and leaves what was good as it was.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from polydistill.errors import UserError


@contextlib.contextmanager
def disk_errors(path: Path, doing: str = "write") -> Iterator[None]:
    """Turn an OSError into one line that names the path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot {doing} {path}: {error.strerror or error}") from error


def atomic_write(path: Path, *content: bytes | memoryview) -> None:
    """Write the file so that a reader, or a crash, finds the old content or the new, never a part.

    Args:
        path: of the file.
        content: written one after another, so that a header and a large body need not be joined in memory.

    Raises:
        UserError: the disk refused; the old file is as it was, and the temporary one is gone.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        try:
            with open(temporary, "wb") as file:
                for part in content:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder: only then are new and removed names on the disk. (Not on Windows, which cannot open folders.)"""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove what a process that was killed inside :func:`atomic_write` left in ``folder``.

    Raises:
        UserError: the disk refused.
    """
    with disk_errors(folder, "remove temporary files of"):
        for path in folder.iterdir():
            if is_temporary(path.name):
                path.unlink()


def wait_for_files(
    paths: Iterable[Path], root: Path, seconds: float, leave: Callable[[], bool] = lambda: False
) -> None:
    """Wait until files are there that another computer has written into a shared folder, or ``seconds`` have passed.

    A network file system may say for up to a minute that a new file or folder is not there. To list the folder above
    makes it look again.

    Args:
        paths: of the files.
        root: the shared folder.
        seconds: at most.
        leave: whether to wait no longer.
    """
    end = time.monotonic() + seconds
    waiting = list(paths)
    while waiting := [path for path in waiting if not _is_seen(path, root)]:
        if time.monotonic() > end or leave():
            return
        time.sleep(0.2)


def _is_seen(path: Path, root: Path) -> bool:
    with contextlib.suppress(OSError):
        if path.exists():
            return True
        for folder in reversed(path.relative_to(root).parents):  # from the root downwards
            os.listdir(root / folder)
        return path.exists()
    return False


def is_temporary(name: str) -> bool:
    """Whether a file of that name is one that :func:`atomic_write` makes on the way.

    Example:
        >>> is_temporary(".config.yaml.4711.tmp"), is_temporary("notes.tmp")
        (True, False)
    """
    return re.fullmatch(r"\..+\.\d+\.tmp", name) is not None


class GrowingFile:
    """A file that is only written at its end; nothing is held back, so its size is what was written.

    Args:
        path: created, with its folder, if it does not exist.

    Raises:
        OSError: the disk refused.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115

    @property
    def size(self) -> int:
        """Bytes in the file, including those that were there before."""
        return os.fstat(self._file.fileno()).st_size

    def append(self, content: bytes) -> None:
        """Write all of it; where the disk refuses, a part may be there already."""
        rest = memoryview(content)
        while rest:
            rest = rest[self._file.write(rest) :]

    def sync(self) -> None:
        """Wait until what was written would survive a loss of power."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close it."""
        self._file.close()
