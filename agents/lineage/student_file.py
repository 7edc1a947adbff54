"""A finished student read back from its zip as it was, for the next generation and after a continuation."""

from __future__ import annotations

from pathlib import Path

import torch

from polydistill.errors import UserError
from polydistill_agents.files.places import Place
from polydistill_agents.files.sb3_zip import read_agent, rebuild_network
from polydistill_agents.files.sources import find
from polydistill_agents.networks.corner import cut_corner
from polydistill_agents.networks.nature import Size
from polydistill_agents.teachers import Teacher, as_teacher


def is_student(source: Place) -> bool:
    """Whether a file is a zip of this project: a DQN to Stable-Baselines3, whatever the kind of its scores.

    Raises:
        UserError: it is missing or damaged.
    """
    found = find(source)
    return found.form == "zip" and "polydistill" in read_agent(found.place).data


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
    agent = read_agent(path)
    wide = rebuild_network(agent)
    try:
        network = cut_corner(wide, size)
    except RuntimeError:
        raise UserError(f"{path} holds no student of the widths {size.channels} and {size.hidden}") from None
    # as the student has learned, and faster on processors: another layout would round differently
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return as_teacher(network, kind=agent.score_kind)
