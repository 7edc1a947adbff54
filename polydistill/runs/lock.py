"""A lock on a folder: at most one process writes a run.

The system holds the lock, which ``filelock`` takes, for as long as the process lives: a crash, a SIGKILL or a loss of
power leaves none behind. Only the file ``.lock`` stays, which blocks nobody and is never removed: removing it would let
two processes lock two files of one name. (filelock's ``FileLock`` makes a file that blocks after a crash where the
system cannot lock; so only its ``lock_descriptor`` is used.) A forked child does not keep its parent's lock, and a
program that is started does not inherit it.

On a file system that cannot lock (some network and FUSE mounts), one line on standard error says that nothing keeps a
second process out, and the run goes on. On NFS, Linux turns ``flock`` into a lock that other machines see too; on
Lustre that needs the mount option ``flock``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import time
import warnings
import weakref
from pathlib import Path

from polydistill.disk import disk_errors
from polydistill.errors import UserError

LOCK = ".lock"
TEXT = 1  # where the holder's name begins: Windows lets nobody else read the locked byte, the first
CANNOT_LOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}

_told: set[Path] = set()  # that they cannot be locked
_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


class FolderLock:
    """Taken when made; given back by :meth:`release`, at the end of a ``with`` block, when collected, or when the
    process ends in any way.

    Args:
        folder: exists.
        waits: until another process has given it back. Where a file system cannot lock, that is said the first time.

    Raises:
        UserError: another process has it, or the disk refused.
    """

    def __init__(self, folder: Path, *, waits: bool = False) -> None:
        path = folder / LOCK
        with disk_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # closed in programs that are started (PEP 446)
        self._release = weakref.finalize(self, os.close, descriptor)
        try:
            if not _lock(descriptor, waits=waits):
                raise _held_by(descriptor, folder)
        except UserError:
            self.release()
            raise
        except OSError as error:
            if error.errno not in CANNOT_LOCK:
                self.release()
                raise UserError(f"cannot lock {path}: {error.strerror}") from error
            if not waits or folder not in _told:
                print(f"{folder} is on a file system without locks: start no second process on it", file=sys.stderr)
            _told.add(folder)
        with contextlib.suppress(OSError):  # a full disk: the name is only for the other's message
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            os.write(descriptor, f"\n{os.getpid()} on {socket.gethostname()} since {since}".encode())
        _held.add(self)

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Give it back; a second time does nothing."""
        self._release()


def require_unlocked(folder: Path) -> None:
    """Check that no other process is working in ``folder``; write nothing.

    Raises:
        UserError: one is.
    """
    if not (folder / LOCK).exists():
        return
    with disk_errors(folder / LOCK):
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    try:
        free = _lock(descriptor)
        held = None if free else _held_by(descriptor, folder)
    except OSError:
        return  # there are no locks here; a run warns of that
    finally:
        os.close(descriptor)
    if held is not None:
        raise held


def _held_by(descriptor: int, folder: Path) -> UserError:
    return UserError(f"another process{_read(descriptor)} is working in {folder}; wait for it, or stop it first")


def _lock(descriptor: int, *, waits: bool = False) -> bool:
    """Lock the open file, at once or when it is free; False: another process has it.

    Raises:
        OSError: this system, or this file system, cannot lock.
    """
    with warnings.catch_warnings(action="ignore"):  # filelock's, of a system without locks: a run has its own
        from filelock import lock_descriptor
    return lock_descriptor(descriptor, blocking=waits)


def _read(descriptor: int) -> str:
    """The holder's name in parentheses, empty if the file has none."""
    with contextlib.suppress(OSError):
        os.lseek(descriptor, TEXT, os.SEEK_SET)
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
