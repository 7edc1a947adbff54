"""What several runs would each compute, in a folder that they share: the first computes it, the others read it.

Something is found by a key of everything that it depends on, so a run gets what it would have computed or nothing.
Contract: the store saves time and nothing else. What is missing or damaged is computed again; what cannot be written,
since the disk is full, is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

from polydistill.disk import atomic_write
from polydistill.errors import UserError

VARIABLE = "POLYDISTILL_SHARED"  # of the environment: the folder of the store
SPARED = 2**30  # bytes of the disk that are left to others
DIGEST_BYTES = hashlib.sha256().digest_size


class SharedStore:
    """Files in ``folder``, one per key. Several processes may use it at once.

    Args:
        folder: is made when something is written.

    Example:
        >>> import tempfile
        >>> store = SharedStore(Path(tempfile.mkdtemp()))
        >>> store.write("a", b"of a")
        >>> bytes(store.read("a")), store.read("b")
        (b'of a', None)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of_environment(cls) -> SharedStore | None:
        """The store that :data:`VARIABLE` names; None: it names none."""
        folder = os.environ.get(VARIABLE)
        return cls(Path(folder)) if folder else None

    def read(self, key: str) -> memoryview | None:
        """The bytes of ``key``; None: they are not there, or damaged."""
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        digest, values = content[:DIGEST_BYTES], memoryview(content)[DIGEST_BYTES:]
        return values if hashlib.sha256(values).digest() == digest else None

    def write(self, key: str, content: bytes | memoryview) -> None:
        """Keep ``content``, if the disk has room to spare.

        Args:
            key: of everything on which it depends; usable as a file name.
            content: bytes.
        """
        with contextlib.suppress(UserError, OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.folder).free - len(content) >= SPARED:
                atomic_write(self._path(key), hashlib.sha256(content).digest(), content)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.shared"
