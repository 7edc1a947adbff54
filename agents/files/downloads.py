"""Teachers from elsewhere: ``hf://org/name[/file]`` from the Hugging Face Hub, ``https://...#sha256=...`` from the web.

Contract: what comes back is the path of a local file, which is then read as any other, without trust. A download by
https must match the checksum in its address, one from the Hub the Hub's checksum. Nothing larger than a teacher's bound
is taken.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from polydistill.disk import atomic_write, disk_errors
from polydistill.errors import UserError
from polydistill.hub.client import failing
from polydistill.hub.download import SCHEME, fetch_from_hub
from polydistill_agents.files.archive import MAX_FILE_BYTES
from polydistill_agents.files.normalization import is_statistics
from polydistill_agents.files.places import find_file

TIMEOUT_SECONDS = 30
FILES = (".zip", ".safetensors", ".pth", ".pt")
STUDENT = "student"  # how a run names its last one
NO_AGENTS = ("train_eval_metrics.zip",)  # what the zoo puts beside an agent


def fetch(where: str) -> Path:
    """The local file of ``where``; it is downloaded unless it is a path, or there already.

    Raises:
        UserError: it cannot be downloaded, does not match its checksum, or is a folder.
    """
    if where.startswith(SCHEME):
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
    return fetch_from_hub(where, lambda names: _choose_file(where, names), _statistics, lambda _: MAX_FILE_BYTES)


def _statistics(file: str, names: Sequence[str]) -> list[str]:
    """Those of a VecNormalize that lie beside an agent's file."""
    return [name for name in names if is_statistics(Path(name).name) and Path(name).parent == Path(file).parent]


def _choose_file(where: str, names: Sequence[str]) -> str:
    """The one teacher's file of a repository; of a run's files its last student."""
    for ending in FILES:
        found = [name for name in names if name.endswith(ending) and Path(name).name not in NO_AGENTS]
        if STUDENT + ending in found:
            return STUDENT + ending
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
    with failing(address):
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
