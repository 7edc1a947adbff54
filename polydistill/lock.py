"""A lock on a folder: at most one process writes a run.

The kernel holds the lock (``flock``; on Windows ``msvcrt.locking``) for as long as the process lives, so a crash, a
SIGKILL or a loss of power leaves none behind; only the empty-handed file ``.lock`` stays, which blocks nobody and is
never removed: removing it would let two processes lock two files of one name. A forked child does not keep its parent's
lock, and a program that is started does not inherit it.

On a file system that cannot lock (some network and FUSE mounts), one line on standard error says that nothing keeps a
second process out, and the run goes on. On NFS, Linux turns ``flock`` into a lock that other machines see too; on
Lustre that needs the mount option ``flock``.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import socket
import sys
import weakref
from pathlib import Path
from typing import Any

from polydistill.disk import disk_errors
from polydistill.errors import UserError

fcntl: Any
try:
    fcntl = importlib.import_module("fcntl")
except ImportError:
    fcntl = None  # Windows

LOCK = ".lock"
LOCKED_BYTE = 1 << 30  # where msvcrt locks: far behind the text, which others may then read
CANNOT_LOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}

_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


class FolderLock:
    """Taken when made; given back by :meth:`release`, at the end of a ``with`` block, when collected, or when the
    process ends in any way.

    Args:
        folder: exists.

    Raises:
        UserError: another process has it, or the disk refused.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK
        with disk_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # closed in programs that are started (PEP 446)
        self._release = weakref.finalize(self, os.close, descriptor)
        try:
            _lock(descriptor)
        except BlockingIOError:
            held = _held_by(descriptor, folder)
            self.release()
            raise held from None
        except OSError as error:
            if error.errno not in CANNOT_LOCK:
                self.release()
                raise UserError(f"cannot lock {path}: {error.strerror}") from error
            print(f"{folder} is on a file system without locks: start no second process on it", file=sys.stderr)
        with contextlib.suppress(OSError):  # a full disk: the name is only for the other's message
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, f"{os.getpid()} on {socket.gethostname()}".encode())
        _held.add(self)

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Give it back; a second time does nothing."""
        self._release()


def require_unlocked(folder: Path) -> None:
    """Look whether another process is working in ``folder``, and write nothing.

    Raises:
        UserError: one is.
    """
    if not (folder / LOCK).exists():
        return
    with disk_errors(folder / LOCK):
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    try:
        _lock(descriptor)
    except BlockingIOError:
        raise _held_by(descriptor, folder) from None
    except OSError:
        return  # there are no locks here, which a run says
    finally:
        os.close(descriptor)


def _held_by(descriptor: int, folder: Path) -> UserError:
    return UserError(f"another process{_read(descriptor)} is working in {folder}; wait for it, or stop it first")


def _lock(descriptor: int) -> None:
    """Lock the open file, or raise at once.

    Raises:
        BlockingIOError: another process has it.
        OSError: this system, or this file system, cannot lock.
    """
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    try:
        msvcrt: Any = importlib.import_module("msvcrt")
    except ImportError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EDEADLK}:
            raise BlockingIOError(error.errno, error.strerror) from error
        raise


def _read(descriptor: int) -> str:
    """Who holds it, as far as the file tells."""
    with contextlib.suppress(OSError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        text = os.read(descriptor, 200).decode(errors="replace")
        if text.isprintable() and text:
            return f" ({text})"
    return ""


def _forget_in_child() -> None:
    # closing, not unlocking: the lock belongs to the open file that parent and child share
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(after_in_child=_forget_in_child)
