"""Teachers from elsewhere: ``hf://org/name[/file]`` from the Hugging Face Hub, ``https://...#sha256=...`` from the web.

Contract: what comes back is the path of a local file, which is then read as any other, without trust. A download by
https is only what its checksum says, one from the Hub what the Hub's says. Nothing larger than a teacher's bound is
taken.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from agents.archive import MAX_FILE_BYTES
from agents.places import find_file
from agents.sb3_zip import is_statistics
from polydistill.errors import UserError
from polydistill.tracking import atomic_write, disk_errors

TIMEOUT_SECONDS = 30
FILES = (".zip", ".safetensors", ".pth", ".pt")


def fetch(where: str) -> Path:
    """The local file of ``where``; it is downloaded unless it is a path, or there already.

    Raises:
        UserError: it cannot be had, is not what its checksum says, or is a folder.
    """
    if where.startswith("hf://"):
        return _from_hub(where)
    if where.startswith("https://"):
        return _from_web(where)
    if re.match(r"[a-z][a-z0-9+.-]*://", where, re.IGNORECASE):
        raise UserError(f"{where}: teachers are fetched by https:// or hf:// only")
    return find_file(where)


def cache_folder() -> Path:
    """Where downloads by https are kept: ``polydistill/teachers`` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "polydistill", "teachers")


def _from_hub(where: str) -> Path:
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, list_repo_files
    except ImportError:
        raise UserError(f"{where} needs the extra hub: pip install 'polydistill[hub]'") from None
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:/([\w./+-]+))?", where)
    if match is None or ".." in where:
        raise UserError(f"{where} is not of the form hf://org/name or hf://org/name/file")
    repository, file = match.groups()
    try:
        names = list_repo_files(repository)
        if any(is_statistics(Path(name).name) for name in names):
            raise UserError(f"{where}: it learned behind VecNormalize, whose statistics are not read")
        file = file or _choose_file(where, names)
        told = get_hf_file_metadata(hf_hub_url(repository, file))
        if told.size is None or told.size > MAX_FILE_BYTES:
            raise UserError(f"{where}: {file} has {told.size} bytes, more than {MAX_FILE_BYTES:,}")
        path = Path(hf_hub_download(repository, file, revision=told.commit_hash))
        if not _is_what_was_told(path, told.etag):
            raise UserError(f"{where}: {file} is not what its checksum says; remove {path} and try again")
        return path
    except (OSError, ValueError, RuntimeError) as error:  # the client's errors are of these
        raise UserError(f"cannot get {where}: {' '.join(str(error).split())[:160]}") from error


def _is_what_was_told(path: Path, etag: str | None) -> bool:
    """Whether the file has the checksum that the Hub tells: git's of a small file, sha256 of a large one."""
    content = path.read_bytes()
    as_git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return etag in (_sha256(content), as_git)


def _choose_file(where: str, names: Iterable[str]) -> str:
    """The one teacher's file of a repository."""
    for ending in FILES:
        found = [name for name in names if name.endswith(ending)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{where} holds {len(found)} files {ending}; choose one: {where}/{found[0]}")
    raise UserError(f"{where} holds no {', '.join(FILES)}")


def _from_web(where: str) -> Path:
    address, _, fragment = where.partition("#")
    match = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment.lower())
    if match is None:
        raise UserError(f"{where} needs its checksum: {address}#sha256=<64 hex digits>")
    expected = match.group(1)
    path = cache_folder() / expected[:16] / (Path(urlsplit(address).path).name or "teacher.zip")
    if path.is_file() and _sha256(path.read_bytes()) == expected:
        return path
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as answer:
            if not answer.geturl().startswith("https://"):
                raise UserError(f"{address} leads to {answer.geturl()[:100]}, which is not https")
            content = answer.read(MAX_FILE_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:  # urllib's and ssl's errors are OSErrors
        raise UserError(f"cannot get {address}: {' '.join(str(error).split())[:160]}") from error
    if len(content) > MAX_FILE_BYTES:
        raise UserError(f"{address} has more than {MAX_FILE_BYTES:,} bytes")
    if _sha256(content) != expected:
        raise UserError(f"{address} is not what its checksum says: its sha256 is {_sha256(content)}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content)
    return path


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
