"""Zips from strangers: read within stated bounds of memory and time, or refused with one line.

Contract: nothing is written to disk, so that a member's name cannot lead out of a folder; and yet a zip with names,
links or sizes that only an attack needs is refused whole. Only stored and deflated members are read: other methods
may claim dictionaries of gigabytes.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from polydistill.errors import UserError, printable

MAX_FILE_BYTES = 512 * 2**20  # weights, and the optimiser's two numbers for each of them
MAX_UNPACKED_BYTES = 2 * MAX_FILE_BYTES
MAX_MEMBERS = 4096
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
DIRECTORY_ENTRY = b"PK\x01\x02"  # before each member's entry in the directory at a zip's end
LOCAL_HEADER_BYTES = 30


@contextlib.contextmanager
def refusing(path: str | Path, what: str) -> Iterator[None]:
    """Turn whatever a damaged file makes zipfile, json, numpy and torch raise into one line that names it.

    Args:
        path: the file, for the line.
        what: what it should have been, as in "Stable-Baselines3 zip".
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, a {what} is needed") from None
    except Exception as error:
        words = printable(" ".join(str(error).split())) or type(error).__name__
        raise UserError(f"{path} is damaged or no {what}: {words[:200]}") from None


def check_file(path: Path, limit: int = MAX_FILE_BYTES) -> None:
    """Refuse what is no regular file (a pipe would be waited for, without end) or too large.

    Raises:
        UserError: it is.
        OSError: it is not there.
    """
    state = path.stat()
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(path)
    if not stat.S_ISREG(state.st_mode):
        raise UserError(f"{path} is no regular file")
    if state.st_size > limit:
        raise UserError(f"{path} has {state.st_size:,} bytes, more than {limit:,}")


def open_zip(stream: BinaryIO, where: str) -> zipfile.ZipFile:
    """The zip in ``stream``, once the names and sizes in its directory are known to be harmless.

    Args:
        stream: opened for reading, seekable; at most ``MAX_FILE_BYTES``.
        where: the file's name, for the refusal.

    Raises:
        UserError: too many members or bytes; a name that is absolute, holds ``..`` or is there twice; a link; a
            member that is encrypted, or lies over another one.
        zipfile.BadZipFile: no zip.
    """
    if _count(stream, DIRECTORY_ENTRY) > MAX_MEMBERS:  # before zipfile builds an object for each
        raise UserError(f"{where} is a zip of more than {MAX_MEMBERS:,} members")
    archive = zipfile.ZipFile(stream)
    members = archive.infolist()
    for member in members:
        _check_member(member, where)
    for name, count in Counter(member.filename for member in members).items():
        if count > 1:
            raise UserError(f"{where}: it has {count} members named {shown(name)}")
    if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
        raise UserError(f"{where}: unpacked, its members would have more than {MAX_UNPACKED_BYTES:,} bytes")
    members.sort(key=lambda member: member.header_offset)
    for first, second in itertools.pairwise(members):
        if first.header_offset + LOCAL_HEADER_BYTES + first.compress_size > second.header_offset:
            raise UserError(f"{where}: its members {shown(first.filename)} and {shown(second.filename)} overlap")
    return archive


def read_member(archive: zipfile.ZipFile, name: str, limit: int, where: str) -> bytes:
    """The bytes of one member; never more than ``limit``, whatever the directory says.

    Raises:
        UserError: it is missing, too large, or packed by a method that is not read.
        zipfile.BadZipFile: it is damaged.
    """
    if name not in archive.namelist():
        raise UserError(f"{where}: it has no member named {shown(name)}")
    member = archive.getinfo(name)
    if member.file_size > limit:
        raise UserError(f"{where}: {shown(name)} has {member.file_size:,} bytes, more than {limit:,}")
    if member.compress_type not in METHODS:
        raise UserError(f"{where}: {shown(name)} is packed by method {member.compress_type}, which is not read")
    with archive.open(member) as stream:
        content = stream.read(limit + 1)
    if len(content) != member.file_size:
        raise zipfile.BadZipFile(f"{shown(name)} has {len(content):,} bytes instead of {member.file_size:,}")
    return content


def shown(name: object) -> str:
    """A stranger's name, quoted and cut: it may be long, and hold line ends or control characters."""
    text = repr(name) if isinstance(name, str | int) else type(name).__name__
    return text if len(text) <= 80 else text[:77] + "..."


def _check_member(member: zipfile.ZipInfo, where: str) -> None:
    name, kind = member.orig_filename, stat.S_IFMT(member.external_attr >> 16)
    if not name or name[0] in "/\\" or re.match("[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name) or "\0" in name:
        raise UserError(f"{where}: its member {shown(name)} points out of the zip")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UserError(f"{where}: its member {shown(name)} is a link or a device, not a file")
    if member.flag_bits & 0x1:
        raise UserError(f"{where}: its member {shown(name)} is encrypted")


def _count(stream: BinaryIO, word: bytes) -> int:
    """How often ``word`` stands in the stream, in bounded memory."""
    stream.seek(0)
    found, tail = 0, b""
    while block := stream.read(2**20):
        found += (tail + block).count(word)
        tail = block[-len(word) + 1 :]
    stream.seek(0)
    return found
