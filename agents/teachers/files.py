"""One word for a teacher's file: ``[ARCHITECTURE:]WHERE``, read without executing anything.

WHERE is a path (``.zip`` may be left out), ``hf://org/name[/file]`` or ``https://host/file#sha256=...``; in Python an
open file too. A zip of Stable-Baselines3 says itself what it holds. A plain table of weights (``torch.save`` of a state
dict, ``.safetensors``) shows its shapes only, so its architecture is named: ``acktr:pong.pt``; a ``.safetensors`` may
carry the name in its ``__metadata__``. Which of the three it is, its first bytes tell, whatever it is called.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

from stable_baselines3.dqn.policies import QNetwork

from agents.archive import open_zip, refusing, shown
from agents.corner import cut_padding
from agents.places import Place, name_of, opened, settle
from agents.rebuild import QuantileNetwork
from agents.sb3_zip import SCORE_KINDS, read_agent, rebuild_scores
from agents.teachers.architectures import ARCHITECTURES, rebuild_named
from agents.teachers.remote import fetch
from agents.tensors import MAX_HEADER_BYTES, MAX_WEIGHT_BYTES, read_safetensors, read_torch
from polydistill.errors import UserError

WEIGHT_FILES = (".pth", ".pt", ".safetensors")


class Found(NamedTuple):
    """A file that is there, on this machine.

    Attributes:
        place: its path, or the open file.
        where: its name, for messages.
        architecture: the word before it, or empty.
        form: "zip" of Stable-Baselines3, or a table of weights: "torch" or "safetensors".
    """

    place: Path | IO[bytes]
    where: str
    architecture: str
    form: str


def split_source(source: str | os.PathLike[str]) -> tuple[str, str]:
    """``("acktr", "pong.pt")`` of ``acktr:pong.pt``; the name is empty where none of the known ones is there."""
    name, colon, where = str(source).partition(":")
    return (name, where) if colon and name in ARCHITECTURES else ("", str(source))


def find(source: Place) -> Found:
    """The file that is meant; it is downloaded where that is needed.

    Raises:
        UserError: it is missing, or cannot be had.
    """
    architecture, place = "", source
    if isinstance(source, (str, os.PathLike)):
        architecture, name = split_source(source)
        place = fetch(name)
    place = settle(place)
    where = name_of(place)
    with refusing(where, "agent's file"), opened(place) as stream:
        return Found(place, where, architecture, _form_of(stream, where))


def _form_of(stream: BinaryIO, where: str) -> str:
    """What the first bytes say; of a damaged file what its ending says."""
    head, ending = stream.read(9), Path(where).suffix.lower()
    if head.startswith(b"PK"):
        with contextlib.suppress(zipfile.BadZipFile), open_zip(stream, where) as archive:
            names = archive.namelist()
            return "torch" if any(name.split("/")[-1] == "data.pkl" for name in names) else "zip"
    if ending == ".safetensors" or (len(head) == 9 and head[8:] == b"{" and head[4:8] == bytes(4)):
        return "safetensors"
    return "torch" if ending in WEIGHT_FILES else "zip"


def read_network(source: Place) -> tuple[QNetwork | QuantileNetwork, str]:
    """The network in a file, in eval mode, and the kind of its scores.

    A narrow Nature-CNN that a zip holds in the corner of a wide one comes in its own widths (:mod:`agents.corner`).

    Args:
        source: ``[ARCHITECTURE:]WHERE``, or an open file, see above.

    Raises:
        UserError: the file is missing, damaged, too large, or does not hold a network that is known.
    """
    network, scores = read_stored_network(source)
    return cut_padding(network), scores


def read_stored_network(source: Place) -> tuple[QNetwork | QuantileNetwork, str]:
    """:func:`read_network`, in the widths that are stored."""
    found = find(source)
    if found.form == "zip":
        if found.architecture:
            raise UserError(f"{found.where}: only tables of weights need an architecture; a zip says its own")
        agent = read_agent(found.place)
        return rebuild_scores(agent), agent.scores
    with refusing(found.where, "file of weights"):
        with opened(found.place, MAX_WEIGHT_BYTES + MAX_HEADER_BYTES) as stream:
            content = stream.read()
        says: dict[str, str] = {}
        if found.form == "safetensors":
            weights, says = read_safetensors(content, found.where)
        else:
            weights = read_torch(content, found.where)
        name = found.architecture or says.get("architecture", "")
        if name not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            needed = f"needs the name of its architecture before it, as in nature:{found.where} (known: {known})"
            raise UserError(f"{found.where} {needed}")
        scores = says.get("scores", ARCHITECTURES[name].scores)
        if scores not in SCORE_KINDS:
            raise UserError(f"{found.where}: its scores are {shown(scores)}, neither {' nor '.join(SCORE_KINDS)}")
        return rebuild_named(name, weights, found.where), scores
