"""What a script does with a finished run beside its table: its card, and the Hub if the command line asks for it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polydistill.config.parsing import Parsed
from polydistill.errors import UserError
from polydistill.hub.card import check_license
from polydistill.hub.push import check_name, describe_parcel, foresee_repository, open_repository, parcel, send
from polydistill.hub.worlds import finish_card

SCRIPT = "python scripts/push_to_hub.py"


def check_sharing(parsed: Parsed[Any]) -> None:
    """Refuse, before hours are spent, what would be refused after them. A plan prints where the run would go.

    Raises:
        UserError: the licence is no identifier, or the run could not be pushed, see
            :func:`~polydistill.hub.push.open_repository`; of a plan :func:`~polydistill.hub.push.foresee_repository`.
    """
    check_license(parsed.license_id)
    if parsed.push_to_hub:
        repository = (foresee_repository if parsed.dry_run else open_repository)(parsed.push_to_hub)
        if parsed.dry_run:
            print(f"the finished run would be sent to {repository.describe()}")


def present(summary: Mapping[str, Any], parsed: Parsed[Any], table: str, *, shown_again: bool = False) -> None:
    """Print the table of a finished lineage of classifiers and where its files are, then :func:`share` it."""
    print(f"{table}\n\nsaved: {parsed.out}/generation_<k>.safetensors   curves: make tensorboard")
    share(summary, parsed, shown_again=shown_again)


def share(summary: Mapping[str, Any], parsed: Parsed[Any], *, shown_again: bool = False) -> None:
    """Write the card of a finished run, and push it if that is asked for.

    Args:
        summary: what summary.json holds.
        parsed: the command line.
        shown_again: see :func:`~polydistill.hub.worlds.finish_card`.

    Raises:
        UserError: the disk refused, or the run cannot be pushed; it is kept, and the line says how to push it later.
    """
    finish_card(summary, parsed.out, parsed.license_id, shown_again=shown_again)
    if parsed.push_to_hub:
        push_run(summary, parsed.out, parsed.push_to_hub)


def push_run(
    summary: Mapping[str, Any],
    out: Path,
    name: str,
    *,
    private: bool = False,
    replace_readme: bool = False,
    dry_run: bool = False,
) -> None:
    """Print what is sent where, and send it.

    Args:
        summary: what summary.json holds.
        out: the run folder.
        name: of the repository, ``org/name``.
        private: a new one is to be seen by its owner alone.
        replace_readme: a card there that a person has written is replaced.
        dry_run: print, and send nothing; no token is needed.

    Raises:
        UserError: it cannot be pushed; the line says that the run is kept, and how to push it later.
    """
    name = check_name(name)
    try:
        repository = (foresee_repository if dry_run else open_repository)(name, private)
        items = parcel(summary, out, repository, replace_readme)
        print(describe_parcel(items, repository), flush=True)
        if dry_run:
            print("nothing was sent")
            return
        commit = send(items, repository, f"polydistill: {summary['kind']} run, seed {summary['seed']}")
    except UserError as error:
        words = [*SCRIPT.split(), str(out), "--repo", name]
        raise UserError(
            f"{error}; the run in {out} is finished and kept, and is pushed by {shlex.join(words)}"
        ) from error
    print("nothing has changed there" if commit is None else f"sent: {commit}")
    print(f"opened as: {repository.where}")
