"""One word for a teacher's file: ``[ARCHITECTURE:]WHERE``, read without executing anything.

WHERE is a path, ``hf://org/name[/file]`` or ``https://host/file#sha256=...``. A zip of Stable-Baselines3 says itself
what it holds. A plain table of weights (``.pth``, ``.pt``, ``.safetensors``) shows its shapes only, so its
architecture is named: ``acktr:pong.pt``; a ``.safetensors`` may carry the name in its ``__metadata__``.
"""

from __future__ import annotations

from pathlib import Path

from stable_baselines3.dqn.policies import QNetwork

from agents.archive import check_file, refusing, shown
from agents.corner import cut_padding
from agents.rebuild import QuantileNetwork
from agents.sb3_zip import SCORE_KINDS, read_agent, rebuild_scores
from agents.teachers.architectures import ARCHITECTURES, rebuild_named
from agents.teachers.remote import fetch
from agents.tensors import MAX_HEADER_BYTES, MAX_WEIGHT_BYTES, read_safetensors, read_torch
from polydistill.errors import UserError

WEIGHT_FILES = (".pth", ".pt", ".safetensors")


def split_source(source: str | Path) -> tuple[str, str]:
    """``("acktr", "pong.pt")`` of ``acktr:pong.pt``; the name is empty where none of the known ones is there."""
    name, colon, where = str(source).partition(":")
    return (name, where) if colon and name in ARCHITECTURES else ("", str(source))


def read_network(source: str | Path) -> tuple[QNetwork | QuantileNetwork, str]:
    """The network in a file, in eval mode, and the kind of its scores.

    A narrow Nature-CNN that a zip holds in the corner of a wide one comes in its own widths (:mod:`agents.corner`).

    Args:
        source: ``[ARCHITECTURE:]WHERE``, see above.

    Raises:
        UserError: the file is missing, damaged, too large, or does not hold a network that is known.
    """
    network, scores = read_stored_network(source)
    return cut_padding(network), scores


def read_stored_network(source: str | Path) -> tuple[QNetwork | QuantileNetwork, str]:
    """:func:`read_network`, in the widths that are stored."""
    architecture, where = split_source(source)
    path = fetch(where)
    if path.suffix.lower() not in WEIGHT_FILES:
        if architecture:
            raise UserError(f"{where}: only {', '.join(WEIGHT_FILES)} need an architecture; a zip says its own")
        agent = read_agent(path)
        return rebuild_scores(agent, path), agent.scores
    with refusing(path, "file of weights"):
        check_file(path, MAX_WEIGHT_BYTES + MAX_HEADER_BYTES)
        content = path.read_bytes()
        says: dict[str, str] = {}
        if path.suffix.lower() == ".safetensors":
            weights, says = read_safetensors(content, str(path))
        else:
            weights = read_torch(content, str(path))
        name = architecture or says.get("architecture", "")
        if name not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise UserError(
                f"{path} needs the name of its architecture before it, as in nature:{path} (known: {known})"
            )
        scores = says.get("scores", ARCHITECTURES[name].scores)
        if scores not in SCORE_KINDS:
            raise UserError(f"{path}: its scores are {shown(scores)}, neither {' nor '.join(SCORE_KINDS)}")
        return rebuild_named(name, weights, str(path)), scores
