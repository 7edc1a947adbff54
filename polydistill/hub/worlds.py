"""The card of a run of whatever world: each has a module that reads a summary, named in :data:`CARDS`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from polydistill._environment import CARDS, TRAININGS, MissingExtra
from polydistill.errors import UserError
from polydistill.hub.card import ModelCard, NothingTrainedError, check_license, format_card
from polydistill.hub.readme import README, is_ours, read_readme, sealed, stated_license, write_readme
from polydistill.runs import read_summary


def read_finished(out: Path) -> dict[str, Any]:
    """What a finished run says of itself: its summary.json, or a training's own file in the same form.

    Raises:
        UserError: there is none, or it is damaged.
    """
    for name, module in TRAININGS.items():
        if (out / name).is_file() and not (out / "summary.json").is_file():
            found: dict[str, Any] = import_module(module).read_training(out)
            return found
    if not (out / "summary.json").is_file():
        raise UserError(f"{out} has no summary.json: it is no finished run")
    return read_summary(out)


def card_of(summary: Mapping[str, Any], out: Path, where: str = "") -> ModelCard:
    """What there is to tell of a finished run.

    Args:
        summary: what summary.json holds.
        out: the run folder.
        where: it is to be found, as ``hf://org/name``; empty: in the folder itself.

    Raises:
        UserError: its world makes no cards, or a file is missing or damaged.
    """
    kind = summary.get("kind")
    if kind not in CARDS or "members" in summary:
        raise UserError(f"{out} is no run that leaves a network (its kind is {kind!r})")
    try:
        found: ModelCard = import_module(CARDS[kind]).make_card(summary, out, where)
        return found
    except MissingExtra as error:
        raise UserError(f"{out}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{out / 'summary.json'} is no summary of a run: {error!r}") from error


def finish_card(summary: Mapping[str, Any], out: Path, license_id: str = "", *, shown_again: bool = False) -> None:
    """Write the card of a run that has just finished, and say where it is; a run that trained nothing has none.

    Args:
        summary: what summary.json holds.
        out: the run folder.
        license_id: of the weights; empty: that of the card that is there, if it states one.
        shown_again: the run was finished before: the card is written if it is missing, or another licence is stated,
            and a folder that can only be read is no error.

    Raises:
        UserError: the disk refused, or it is no identifier of a licence.
    """
    check_license(license_id)
    there = read_readme(out)
    stated = license_id or stated_license(there)
    if not shown_again or there is None or stated != stated_license(there):
        with contextlib.suppress(UserError if shown_again and not license_id else NothingTrainedError):
            write_readme(out, format_card(card_of(summary, out), summary, stated))
    if (out / README).is_file():
        print(f"card: {out / README}")


def card_text(summary: Mapping[str, Any], out: Path, where: str) -> tuple[str | None, ModelCard]:
    """The card to send to ``where``; None: the README of the folder was written by hand, and is sent as it is."""
    there, card = read_readme(out), card_of(summary, out, where)
    if there is not None and not is_ours(there):
        return None, card
    return sealed(format_card(card, summary, stated_license(there))), card
