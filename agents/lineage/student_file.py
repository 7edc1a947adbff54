"""The files of a finished student, and the student read back from them as it was, for whatever comes after it.

A compact file (:mod:`polydistill_agents.files.compact`) is always there. A zip is there where stock Stable-Baselines3
has room for the student, and is then what is read back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from stable_baselines3.dqn.policies import QNetwork

from polydistill.disk import atomic_write, disk_errors
from polydistill.errors import UserError
from polydistill_agents.files.compact import ENDING
from polydistill_agents.files.places import Place
from polydistill_agents.files.sb3_zip import read_agent, rebuild_network
from polydistill_agents.files.sources import find, read_compact
from polydistill_agents.networks.corner import cut_corner
from polydistill_agents.networks.nature import Size, begins_as_nature, fits_stock, size_of
from polydistill_agents.teachers import Teacher, as_teacher


class Learned(Protocol):
    """A student that has learned; ``widths`` are those of a Nature-CNN, None of any other network."""

    @property
    def widths(self) -> Size | None: ...

    def save(self, path: Path) -> None: ...


def is_student(source: Place) -> bool:
    """Whether a file is a zip of this project: a DQN to Stable-Baselines3, whatever the kind of its scores.

    Raises:
        UserError: it is missing or damaged.
    """
    found = find(source)
    if found.form == "zip":
        return "polydistill" in read_agent(found.place).data
    return read_compact(found) is not None


def write_files(model: Learned, stem: Path) -> Path:
    """Write the files of a student, and return the one that is read back.

    Args:
        model: the student.
        stem: their path without an ending.
    """
    compact, zipped = stem.with_suffix(ENDING), stem.with_suffix(".zip")
    model.save(compact)
    if model.widths is not None and not fits_stock(model.widths):
        return compact
    model.save(zipped)
    return zipped


def find_student(stem: Path) -> Path:
    """The file that is read back, of those that :func:`write_files` wrote."""
    compact = stem.with_suffix(ENDING)
    zipped = stem.with_suffix(".zip")
    return compact if compact.is_file() and not zipped.is_file() else zipped


def copy_files(source: Path, stem: Path) -> None:
    """Give the files of a student another name.

    Args:
        source: one of them.
        stem: the new path, without an ending.
    """
    for ending in (ENDING, ".zip"):
        old = source.with_suffix(ending)
        if old.is_file() or old == source:  # an older version wrote the zip alone
            with disk_errors(old, "read"):
                atomic_write(stem.with_suffix(ending), old.read_bytes())


def read_student(path: Path, size: Size | None) -> Teacher:
    """The student that was written to ``path``, as a teacher on the CPU.

    Args:
        path: of its zip.
        size: its widths, of a Nature-CNN; None for any other network.

    Raises:
        UserError: the file is missing or damaged, or holds something else than a Nature-CNN of at least that size.
    """
    if size is None:
        return as_teacher(path)
    if path.suffix == ENDING:
        return _of_compact(path, size)
    agent = read_agent(path)
    wide = rebuild_network(agent)
    try:
        network = cut_corner(wide, size)
    except RuntimeError:
        raise UserError(_other_widths(path, size)) from None
    return _as_it_learned(network, agent.score_kind)


def _of_compact(path: Path, size: Size) -> Teacher:
    student = read_compact(find(path))
    if student is None or not begins_as_nature(student.network) or size_of(student.network) != size:
        raise UserError(_other_widths(path, size))
    return _as_it_learned(student.network, student.kind)


def _other_widths(path: Path, size: Size) -> str:
    return f"{path} holds no student of the widths {size.channels} and {size.hidden}"


def _as_it_learned(network: QNetwork, kind: str) -> Teacher:
    """In the layout in which it has learned, which is faster on processors: another one would round differently."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return as_teacher(network, kind=kind)
