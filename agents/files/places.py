"""Where an agent's file is, as users of Stable-Baselines3 write it: a path with or without ``.zip``, or an open file.

``save("student")`` writes ``student.zip`` and ``load("student")`` reads it; ``~`` is the home folder; a ``BytesIO`` or
a file opened in binary mode is read from its beginning, wherever it stands.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeGuard, cast

from polydistill.disk import atomic_write, disk_errors
from polydistill.errors import UserError
from polydistill_agents.files.archive import MAX_FILE_BYTES, check_file

Place = str | os.PathLike[str] | IO[bytes]
UNZIPPED = ("data", "policy.pth")  # members that tell an agent's zip, or a folder that was one


def is_stream(source: Any) -> TypeGuard[IO[bytes]]:
    """Whether it is an open file, not the name of one."""
    return not isinstance(source, (str, os.PathLike)) and (hasattr(source, "read") or hasattr(source, "write"))


def name_of(source: Place) -> str:
    """Its name in messages: its path, or the name of an open file if it has one.

    Example:
        >>> name_of("a.zip"), name_of(io.BytesIO())
        ('a.zip', 'the open file')
    """
    if is_stream(source):
        name = getattr(source, "name", None)
        return str(name) if isinstance(name, str) else "the open file"
    return str(source)


def find_file(path: str | os.PathLike[str]) -> Path:
    """The file that is meant: ``path``, or else ``path.zip``; of an agent's zip that was unpacked its ``policy.pth``.

    Raises:
        UserError: it is another folder; the line says which file in it to name.
    """
    path = _at_home(path)
    zipped = path.with_name(f"{path.name}.zip") if path.name else path
    if not path.is_file() and zipped.is_file():
        return zipped
    if path.is_dir():
        weights = path / "policy.pth"
        if not is_unzipped(weights):
            raise UserError(_refuse_folder(path))
        return weights
    return path


def is_unzipped(path: Path) -> bool:
    """Whether it is the ``policy.pth`` of an agent's zip that someone unpacked: its ``data`` lies beside it."""
    return path.name == "policy.pth" and all(path.with_name(name).is_file() for name in UNZIPPED)


def target_of(path: str | os.PathLike[str]) -> Path:
    """The file that is written for ``path``: with ``.zip`` where it has no ending.

    Raises:
        UserError: it is no name of a file.
    """
    target = _at_home(path)
    if not target.name:
        raise UserError(f"{str(path)!r} is no name of a file to write")
    return target if target.suffix else target.with_name(f"{target.name}.zip")


def settle(source: Place) -> Path | IO[bytes]:
    """What :func:`find_file` finds, or the open file, which from then on can go back to its beginning.

    Raises:
        UserError: a folder; a file opened as text, or for writing only.
    """
    if isinstance(source, (str, os.PathLike)):
        return find_file(source)
    if isinstance(cast(Any, source), io.TextIOBase) or not source.readable():
        raise UserError(f"{name_of(source)} is not opened for reading bytes: open it with 'rb'")
    return source if source.seekable() else io.BytesIO(source.read(MAX_FILE_BYTES + 1))


@contextlib.contextmanager
def opened(place: Path | IO[bytes], limit: int = MAX_FILE_BYTES) -> Iterator[BinaryIO]:
    """Open what :func:`settle` gave, at its beginning; an open file stays open.

    Raises:
        UserError: it is no regular file, or too large.
        OSError: it is not there.
    """
    if isinstance(place, Path):
        check_file(place, limit)
        with place.open("rb") as stream:
            yield stream
        return
    n_bytes = place.seek(0, io.SEEK_END)
    if n_bytes > limit:
        raise UserError(f"{name_of(place)} has more than {limit:,} bytes")
    place.seek(0)
    yield cast(BinaryIO, place)


def write_place(target: Place, content: bytes) -> None:
    """Write the file whole or not at all (:func:`target_of` names it), or into an open one.

    Raises:
        UserError: the disk refused, or the open file takes no bytes.
    """
    if isinstance(target, (str, os.PathLike)):
        atomic_write(target_of(target), content)
        return
    if isinstance(cast(Any, target), io.TextIOBase) or not target.writable():
        raise UserError(f"{name_of(target)} is not opened for writing bytes: open it with 'wb'")
    with disk_errors(Path(name_of(target))):
        target.write(content)


def _at_home(path: str | os.PathLike[str]) -> Path:
    """The path with ``~`` replaced; of a user who is not known it stays as it is."""
    with contextlib.suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


def _refuse_folder(folder: Path) -> str:
    """What to name instead: an agent in the folder, such as a run's of rl-zoo."""
    zips = sorted(folder.glob("*.zip"), key=lambda file: (file.name != "best_model.zip", file.name))
    if zips:
        others = f" (it holds {len(zips)} zips)" if len(zips) > 1 else ""
        return f"{folder} is a folder, an agent's file is needed: did you mean {zips[0]}?{others}"
    return f"{folder} is a folder, an agent's file is needed"
