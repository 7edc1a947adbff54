"""Disks that have no room, turn read-only, or belong to somebody else."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from polydistill.disk import GrowingFile


@contextlib.contextmanager
def small_file_system(folder: Path, size: str) -> Iterator[Path]:
    """A file system of ``size`` (as mount takes it: 4m) in the new ``folder``; skips where the user may not mount."""
    folder.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    except OSError:
        done = None
    if done is None or done.returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, mode: str) -> None:
    """Make that file system read-only (``ro``) or writable again (``rw``)."""
    subprocess.run(["mount", "-o", f"remount,{mode}", str(folder)], check=True)


def fill(patch: pytest.MonkeyPatch, names: str, after: int, error: int = errno.ENOSPC) -> None:
    """From the ``after``-th time on, refuse what is written to files of such ``names``: of what is appended, half gets
    through; what is to be there whole or not at all is not."""
    append, replace, calls = GrowingFile.append, os.replace, 0

    def refused(path: Path) -> bool:
        nonlocal calls
        calls += fnmatch.fnmatch(path.name, names)
        return fnmatch.fnmatch(path.name, names) and calls > after

    def refuse_append(file: GrowingFile, content: bytes) -> None:
        if refused(file.path):
            append(file, content[: len(content) // 2])  # as much as there was room for
            raise OSError(error, os.strerror(error))
        append(file, content)

    def refuse_replace(source: Path, target: Path) -> None:
        if refused(Path(target)):
            raise OSError(error, os.strerror(error))
        replace(source, target)

    patch.setattr(GrowingFile, "append", refuse_append)
    patch.setattr(os, "replace", refuse_replace)


@contextlib.contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """As a user whom modes keep out, to whom ``folder`` belongs."""
    user = os.geteuid()
    if user == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 65534, -1)
        for parent in folder.parents:
            if parent.name.startswith(("pytest-", "popen-", "test_")):  # pytest's own, which keep others out
                parent.chmod(parent.stat().st_mode | 0o011)
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
