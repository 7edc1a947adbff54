"""The name of a teacher's file, ``[ARCHITECTURE:]WHERE``, and the network in it, read without executing anything.

WHERE is a path (``.zip`` may be left out), ``hf://org/name[/file]`` or ``https://host/file#sha256=...``; in Python an
open file too. A zip of Stable-Baselines3 says itself what it holds. A plain table of weights (``torch.save`` of a state
dict, ``.safetensors``) is recognised by its shapes (:mod:`polydistill_agents.files.architectures`); the name of an
architecture adds what they leave open: ``acktr:pong.pt`` gives logits, ``nature:pong.pt`` Q-values. A ``.safetensors``
may carry ``architecture`` and ``scores`` in its ``__metadata__``; a student's has a card of its own there
(:mod:`polydistill_agents.files.compact`). The first bytes of a file, not its name, decide which
of the three it is.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

from torch import Tensor

from polydistill.errors import UserError
from polydistill_agents.files.architectures import KIND_OF, rebuild_table
from polydistill_agents.files.archive import open_zip, refusing, shown
from polydistill_agents.files.compact import CARD, CompactStudent, rebuild_student
from polydistill_agents.files.downloads import fetch
from polydistill_agents.files.places import Place, is_unzipped, name_of, opened, settle
from polydistill_agents.files.sb3_data import algorithm_of
from polydistill_agents.files.sb3_zip import read_agent, rebuild_scores
from polydistill_agents.files.tensors import MAX_HEADER_BYTES, MAX_WEIGHT_BYTES, read_safetensors, read_torch
from polydistill_agents.networks.corner import cut_padding
from polydistill_agents.networks.kinds import SCORE_KINDS, ScoreNetwork

WEIGHT_FILES = (".pth", ".pt", ".safetensors")


class Found(NamedTuple):
    """A file that is there, on this machine.

    Attributes:
        place: its path, or the open file.
        where: its name, for messages.
        architecture: the word before it, or empty.
        form: "zip" of Stable-Baselines3 (or the folder that was one), or a table of weights: "torch" or "safetensors".
    """

    place: Path | IO[bytes]
    where: str
    architecture: str
    form: str


def split_source(source: str | os.PathLike[str]) -> tuple[str, str]:
    """``("acktr", "pong.pt")`` of ``acktr:pong.pt``; the name is empty where none of the known ones is there."""
    name, colon, where = str(source).partition(":")
    return (name, where) if colon and name in KIND_OF else ("", str(source))


def find(source: Place) -> Found:
    """The file that is meant; it is downloaded where that is needed.

    Raises:
        UserError: it is missing, or cannot be downloaded.
    """
    architecture, place = "", source
    if isinstance(source, (str, os.PathLike)):
        architecture, name = split_source(source)
        place = fetch(name)
    place = settle(place)
    where = name_of(place)
    with refusing(where, "agent's file"), opened(place) as stream:
        unzipped = isinstance(place, Path) and is_unzipped(place)
        return Found(place, where, architecture, "zip" if unzipped else _form_of(stream, where))


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


class Scorer(NamedTuple):
    """What a file holds.

    Attributes:
        network: in eval mode.
        kind: of its scores.
        masks: whether it learned with the environment's masks of actions (MaskablePPO), which it does not apply itself.
    """

    network: ScoreNetwork
    kind: str
    masks: bool = False


def read_scorer(source: Place) -> Scorer:
    """:func:`read_network`, and whether it needs masks."""
    stored = read_stored_network(source)
    return stored._replace(network=cut_padding(stored.network))


def read_network(source: Place) -> tuple[ScoreNetwork, str]:
    """The network in a file, in eval mode, and the kind of its scores.

    A narrow Nature-CNN that a zip holds in the corner of a wide one comes in its own widths
    (:mod:`polydistill_agents.networks.corner`).

    Args:
        source: ``[ARCHITECTURE:]WHERE``, or an open file, see above.

    Raises:
        UserError: the file is missing, damaged, too large, or does not hold a network that is known.
    """
    network, score_kind, _ = read_scorer(source)
    return network, score_kind


def read_stored_network(source: Place) -> Scorer:
    """:func:`read_scorer`, in the widths that are stored."""
    found = find(source)
    if found.form == "zip":
        if found.architecture:
            raise UserError(f"{found.where}: only tables of weights need an architecture; a zip says its own")
        agent = read_agent(found.place)
        return Scorer(rebuild_scores(agent), agent.score_kind, algorithm_of(agent.data, agent.where) == "MaskablePPO")
    with refusing(found.where, "file of weights"):
        weights, says = _read_table(found)
        if CARD in says:
            if found.architecture:
                raise UserError(f"{found.where}: it is a student, which says its own architecture")
            student = rebuild_student(weights, says[CARD])
            return Scorer(student.network, student.kind)
        name, score_kind = found.architecture or says.get("architecture", ""), says.get("scores", "")
        if name and name not in KIND_OF:
            raise UserError(f"{found.where}: its architecture {shown(name)} is not known (known: {', '.join(KIND_OF)})")
        if score_kind and score_kind not in SCORE_KINDS:
            raise UserError(f"{found.where}: its scores are {shown(score_kind)}, neither {' nor '.join(SCORE_KINDS)}")
        return Scorer(*rebuild_table(weights, found.where, name, score_kind))


def read_compact(found: Found) -> CompactStudent | None:
    """The student in a file of its own widths; None where the file is something else.

    Raises:
        UserError: it is damaged.
    """
    if found.form != "safetensors":
        return None
    with refusing(found.where, "file of weights"):
        weights, says = _read_table(found)
        return rebuild_student(weights, says[CARD]) if CARD in says else None


def _read_table(found: Found) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a table of weights, and what stands beside them."""
    with opened(found.place, MAX_WEIGHT_BYTES + MAX_HEADER_BYTES) as stream:
        content = stream.read()
    if found.form == "safetensors":
        return read_safetensors(content, found.where)
    return read_torch(content, found.where), {}
