"""A finished run on the Hugging Face Hub: what is looked at before, what is sent, and how.

Contract: one commit holds everything, or nothing is there. A run folder is read, and only its card is written. A card
on the Hub that a person has written stays, unless its owner says otherwise. No failure costs a result: it is one line,
which says how to push later.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from polydistill.disk import disk_errors
from polydistill.errors import UserError
from polydistill.hub.client import REASONS, failing, open_client, progress_on_a_terminal, quiet, status_of
from polydistill.hub.download import SCHEME, download
from polydistill.hub.markup import one_line
from polydistill.hub.places import public
from polydistill.hub.readme import LARGEST, README, is_ours, read_readme
from polydistill.hub.worlds import card_text
from polydistill.runs import format_table

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
LONGEST_NAME = 96  # the Hub's bound
NEW = "new"
TOKENS = "https://huggingface.co/settings/tokens"


class Repository(NamedTuple):
    """A repository as it is now.

    Attributes:
        name: ``org/name``.
        head: its last commit; None: it is not there yet.
        private: whether only its owner sees it; where it is not there yet, whether it shall be so.
        readme: its card; None: it has none.
        unseen: why nobody has looked; empty: somebody has.
    """

    name: str
    head: str | None
    private: bool
    readme: str | None = None
    unseen: str = ""

    @property
    def where(self) -> str:
        """Its address, as every ``--teacher.path`` takes it."""
        return f"{SCHEME}{self.name}"

    def describe(self) -> str:
        """The address, who can see it, and whether it is there."""
        known = f", not looked at: {self.unseen}" if self.unseen else "" if self.head else f", {NEW}"
        return f"{self.where} ({'private' if self.private else 'public'}{known})"


class Item(NamedTuple):
    """A file to send: its name there, its bytes or its path here, and its size."""

    name: str
    content: bytes | Path
    size: int


def check_name(name: str) -> str:
    """``org/name``, of that or of ``hf://org/name``.

    Raises:
        UserError: it is of another form.
    """
    bare = name.removeprefix(SCHEME)
    wrong = bare.endswith((".git", "-", ".")) or "--" in bare or ".." in bare or len(bare) > LONGEST_NAME
    if wrong or not NAME.fullmatch(bare):
        raise UserError(f"{one_line(name)!r} is no name of a repository: it must be of the form org/name")
    return bare


def open_repository(name: str, private: bool = False) -> Repository:
    """Look whether a run could be sent to a repository: nothing is written, and nothing is made.

    Args:
        name: ``org/name``.
        private: a new one is to be seen by its owner alone.

    Raises:
        UserError: the extra or the token is missing; the name is wrong; the Hub cannot be reached; the token may not
            write there; the repository is public and ``private`` was asked for.
    """
    name = check_name(name)
    where = f"{SCHEME}{name}"
    hub = open_client(f"pushing to {where}")
    absent = importlib.import_module("huggingface_hub.utils").RepositoryNotFoundError
    if not hub.get_token():
        raise UserError(f"pushing to {where} needs a token that may write: `hf auth login`, or HF_TOKEN ({TOKENS})")
    with failing(where, "push to", REASONS), quiet():
        api = hub.HfApi()
        _check_may_write(api.whoami(), name)
        try:
            info = api.model_info(name)
        except absent:
            return Repository(name, None, private)
        if private and not info.private:
            raise UserError(f"{where} is there and public: make it private on the Hub, or leave private out")
        _ask_to_write(api, name)
        readme = None
        if README in [file.rfilename for file in info.siblings or ()]:
            path = download(hub, name, README, info.sha, LARGEST)
            readme = path.read_bytes().decode("utf-8", errors="replace")
    return Repository(name, info.sha, bool(info.private), readme)


def foresee_repository(name: str, private: bool = False) -> Repository:
    """As :func:`open_repository`, for a plan: without the extra or a token nobody is asked, and nothing is refused."""
    name = check_name(name)
    try:
        token = open_client(f"pushing to {SCHEME}{name}").get_token()
    except UserError:
        return Repository(name, None, private, unseen="the extra hub is missing")
    return open_repository(name, private) if token else Repository(name, None, private, unseen="there is no token")


def _ask_to_write(api: Any, name: str) -> None:
    """Ask whether the token may write to a repository that is there; older clients and servers do not know that."""
    if "write" not in inspect.signature(api.auth_check).parameters:
        return
    try:
        api.auth_check(name, write=True)
    except Exception as error:
        if status_of(error) != 404:
            raise


def _check_may_write(me: Mapping[str, Any], name: str) -> None:
    """Refuse what the Hub's word on a token rules out; a fine-grained one may still be refused when it writes.

    Raises:
        UserError: it may only read, or its owner is no member of the organisation.
    """
    token = me.get("auth", {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise UserError(f"cannot push to {SCHEME}{name}: the token may only read; make one that may write at {TOKENS}")
    owner, roles = name.partition("/")[0].lower(), {me["name"].lower(): "owner"}
    roles |= {org["name"].lower(): org.get("roleInOrg") or "" for org in me.get("orgs") or ()}
    if owner not in roles:
        members = ", ".join(one_line(each) for each in roles)
        raise UserError(f"cannot push to {SCHEME}{name}: {one_line(me['name'])} may write in {members} alone")
    if roles[owner] == "read":
        raise UserError(f"cannot push to {SCHEME}{name}: {one_line(me['name'])} may only read in {owner}")


def parcel(summary: Mapping[str, Any], out: Path, repository: Repository, replace_readme: bool) -> list[Item]:
    """What is sent: the card, the files that it names, and the summary without the folders of this machine.

    Args:
        summary: what summary.json holds.
        out: the run folder.
        repository: where it goes; a card there that a person has written is left out here.
        replace_readme: it is not left out.

    Raises:
        UserError: the run leaves no network, or a file cannot be read.
    """
    text, card = card_text(summary, out, repository.where)
    readme = (read_readme(out) or "") if text is None else text
    there = repository.readme
    kept = there is not None and not is_ours(there) and there != readme and not replace_readme
    items = [] if kept else [_of_bytes(README, readme.encode())]
    for product in card.products:
        with disk_errors(product.path, "read"):
            items.append(Item(product.path.name, product.path, product.path.stat().st_size))
    told = json.dumps(public(summary), indent=2, allow_nan=False) + "\n"
    return [*items, _of_bytes("summary.json", told.encode())]


def _of_bytes(name: str, content: bytes) -> Item:
    return Item(name, content, len(content))


def describe_parcel(items: Sequence[Item], repository: Repository) -> str:
    """What would be sent, where, how large, and who will see it."""
    rows = [[item.name, f"{item.size:,}"] for item in [*items, Item("together", b"", sum(i.size for i in items))]]
    lines = [f"to {repository.describe()}:", format_table(["file", "bytes"], rows)]
    if README not in [item.name for item in items]:
        lines.append(f"{README} there was written by hand, and stays: --replace_readme would replace it")
    return "\n".join(lines)


def send(items: Sequence[Item], repository: Repository, message: str) -> str | None:
    """Send it in one commit; the repository is made if it is not there.

    Args:
        items: see :func:`parcel`.
        repository: as it was looked at: if it has changed since then, nothing is sent.
        message: of the commit.

    Returns:
        the commit's address; None: everything was there already.

    Raises:
        UserError: the Hub cannot be reached, or refuses.
    """
    hub = open_client(f"pushing to {repository.where}")
    with failing(repository.where, "push to", REASONS), quiet(), progress_on_a_terminal():
        api = hub.HfApi()
        if repository.head is None:
            api.create_repo(repository.name, private=repository.private)
        operations = [
            hub.CommitOperationAdd(
                path_in_repo=item.name,
                path_or_fileobj=item.content if isinstance(item.content, bytes) else str(item.content),
            )
            for item in items
        ]
        commit = api.create_commit(repository.name, operations, commit_message=message, parent_commit=repository.head)
        return None if commit.oid == repository.head else str(commit.commit_url)
