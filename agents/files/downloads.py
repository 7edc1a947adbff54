"""Teachers from elsewhere: ``hf://org/name[/file]`` from the Hugging Face Hub, ``https://...#sha256=...`` from the web.

Contract: what comes back is the path of a local file, which is then read as any other, without trust. A download by
https must match the checksum in its address, one from the Hub the Hub's checksum. Nothing larger than a teacher's bound
is taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from polydistill.disk import atomic_write, disk_errors
from polydistill.errors import UserError, printable
from polydistill_agents.files.archive import MAX_FILE_BYTES
from polydistill_agents.files.normalization import is_statistics
from polydistill_agents.files.places import find_file

TIMEOUT_SECONDS = 30
FILES = (".zip", ".safetensors", ".pth", ".pt")
NO_AGENTS = ("train_eval_metrics.zip",)  # what the zoo puts beside an agent


def fetch(where: str) -> Path:
    """The local file of ``where``; it is downloaded unless it is a path, or there already.

    Raises:
        UserError: it cannot be downloaded, does not match its checksum, or is a folder.
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
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:/([\w./+-]+))?", where)
    if match is None or ".." in where:
        raise UserError(f"{where} is not of the form hf://org/name or hf://org/name/file")
    repository, file = match.groups()
    try:
        import huggingface_hub as hub
    except ImportError:
        raise UserError(f"{where} needs the extra hub: pip install 'polydistill[hub]'") from None
    with _failing(where), _quiet():
        names = hub.list_repo_files(repository)
        file = file or _choose_file(where, names)
        beside = [name for name in names if is_statistics(Path(name).name) and Path(name).parent == Path(file).parent]
        told = hub.get_hf_file_metadata(hub.hf_hub_url(repository, file))
        paths = [_from_repository(hub, repository, name, told.commit_hash) for name in (file, *beside)]
        return paths[0]


def _from_repository(hub: Any, repository: str, file: str, commit: str | None) -> Path:
    """One file of a repository as it is at that commit; all of them lie in one folder."""
    where = f"hf://{repository}"
    told = hub.get_hf_file_metadata(hub.hf_hub_url(repository, file, revision=commit))
    if told.size is None or told.size > MAX_FILE_BYTES:
        raise UserError(f"{where}: {file} has {told.size} bytes, more than {MAX_FILE_BYTES:,}")
    path = Path(hub.hf_hub_download(repository, file, revision=commit))
    if not _is_what_was_told(path, told.etag):
        raise UserError(f"{where}: {file} is not what its checksum says; remove {path} and try again")
    return path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the logs to errors: of each of its attempts the Hub's client would print two lines."""
    before = logging.root.manager.disable  # not a level of the client's log, which it sets itself when it is imported
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _failing(where: str) -> Iterator[None]:
    """Turn whatever a client raises into one line: its classes are httpx's, requests', urllib's, ssl's and its own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = printable(" ".join(str(error).split()))[:160] or type(error).__name__
        raise UserError(f"cannot get {where}: {reason}") from error


def _is_what_was_told(path: Path, etag: str | None) -> bool:
    """Whether the file has the checksum that the Hub tells: git's of a small file, sha256 of a large one."""
    content = path.read_bytes()
    as_git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return etag in (_sha256(content), as_git)


def _choose_file(where: str, names: Iterable[str]) -> str:
    """The one teacher's file of a repository."""
    for ending in FILES:
        found = [name for name in names if name.endswith(ending) and Path(name).name not in NO_AGENTS]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{where} holds {len(found)} files {ending}; choose one: {where}/{found[0]}")
    raise UserError(f"{where} holds no file that ends in {', '.join(FILES)}")


def _from_web(where: str) -> Path:
    address, _, fragment = where.partition("#")
    match = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment.lower())
    if match is None:
        raise UserError(f"{where} needs its checksum: {address}#sha256=<64 hex digits>")
    expected = match.group(1)
    with _failing(address):
        path = cache_folder() / expected[:16] / (Path(urlsplit(address).path).name or "teacher.zip")
        if path.is_file() and _sha256(path.read_bytes()) == expected:
            return path
        with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as answer:
            if not answer.geturl().startswith("https://"):
                raise UserError(f"{address} leads to {answer.geturl()[:100]}, which is not https")
            content = answer.read(MAX_FILE_BYTES + 1)
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
