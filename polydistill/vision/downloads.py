"""Classifiers on the Hugging Face Hub: ``hf://org/name`` is the last generation of a run that was pushed there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from polydistill.errors import UserError
from polydistill.hub.download import SCHEME, fetch_from_hub

LARGEST_CARD = 1 << 20  # bytes
LARGEST_WEIGHTS = 1 << 32
ENDING = ".safetensors"
GENERATION = re.compile(rf"generation_(\d+){re.escape(ENDING)}")


def local_file(where: str | Path) -> Path:
    """The file that is meant: a path stays as it is; a file on the Hub is downloaded, with its card.

    Raises:
        UserError: it cannot be downloaded, is too large, or does not match its checksum; the extra hub is missing.
    """
    if not str(where).startswith(SCHEME):
        return Path(where)
    return fetch_from_hub(str(where), lambda names: _choose(str(where), names), _card, _largest)


def _choose(where: str, names: Sequence[str]) -> str:
    """The last generation, or the only file of weights."""
    generations = {int(match[1]): name for name in names if (match := GENERATION.fullmatch(name))}
    if generations:
        return generations[max(generations)]
    found = [name for name in names if name.endswith(ENDING)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{where} holds {len(found)} files {ENDING}; choose one: {where}/{found[0]}")
    raise UserError(f"{where} holds no file that ends in {ENDING}")


def _card(file: str, names: Sequence[str]) -> list[str]:
    card = str(PurePosixPath(file).with_suffix(".json"))
    return [card] if card in names and card != file else []


def _largest(name: str) -> int:
    return LARGEST_CARD if name.endswith(".json") else LARGEST_WEIGHTS
