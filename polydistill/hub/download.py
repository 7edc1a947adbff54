"""Files of a repository on the Hugging Face Hub, by ``hf://org/name[/file]``.

Contract: what comes back is the path of a local file, which is then read as any other, without trust. Each file must
match the Hub's checksum, and none is larger than its reader takes; all are of one commit, and lie in one folder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from polydistill.errors import UserError
from polydistill.hub.client import failing, open_client, quiet

SCHEME = "hf://"
ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:/([\w./+-]+))?")


def fetch_from_hub(
    where: str,
    choose: Callable[[Sequence[str]], str],
    beside: Callable[[str, Sequence[str]], Sequence[str]],
    largest: Callable[[str], int],
) -> Path:
    """The local copy of a file on the Hub.

    Args:
        where: its address.
        choose: from the names in a repository to the one that is meant where the address names none.
        beside: from that name and all names to those that must come with it.
        largest: from a name to the bytes that are taken at most.

    Raises:
        UserError: the extra is missing; it cannot be downloaded, is too large, or does not match its checksum.
    """
    match = ADDRESS.fullmatch(where)
    if match is None or ".." in where:
        raise UserError(f"{where} is not of the form hf://org/name or hf://org/name/file")
    repository, file = match.groups()
    hub = open_client(where)
    with failing(where), quiet():
        names = hub.list_repo_files(repository)
        file = file or choose(names)
        told = hub.get_hf_file_metadata(hub.hf_hub_url(repository, file))
        paths = [
            download(hub, repository, name, told.commit_hash, largest(name)) for name in (file, *beside(file, names))
        ]
        return paths[0]


def download(hub: Any, repository: str, file: str, commit: str | None, largest: int) -> Path:
    """One file of a repository as it is at that commit; all of them lie in one folder.

    Raises:
        UserError: it is too large, or not what its checksum says; beside what the client raises.
    """
    where = f"{SCHEME}{repository}"
    told = hub.get_hf_file_metadata(hub.hf_hub_url(repository, file, revision=commit))
    if told.size is None or told.size > largest:
        raise UserError(f"{where}: {file} has {told.size} bytes, more than {largest:,}")
    path = Path(hub.hf_hub_download(repository, file, revision=commit))
    if not _is_what_was_told(path, told.etag):
        raise UserError(f"{where}: {file} is not what its checksum says; remove {path} and try again")
    return path


def _is_what_was_told(path: Path, etag: str | None) -> bool:
    """Whether the file has the checksum that the Hub tells: git's of a small file, sha256 of a large one."""
    content = path.read_bytes()
    as_git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return etag in (hashlib.sha256(content).hexdigest(), as_git)
