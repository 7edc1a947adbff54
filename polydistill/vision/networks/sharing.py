"""Layers that a student has of its teacher: the first, the last, or both, copied and frozen.

So the residual students in table 5 of the born-again paper have them (Furlanello et al. 2018), and so its authors tried
it between DenseNets. Contract: a layer is found by its role (see :mod:`~polydistill.vision.networks.staged`), the copy
lies in the student's own memory, and nothing that training does changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from polydistill.learning.networks import freeze
from polydistill.vision.images.archives import SIDE
from polydistill.vision.networks import build_network

Role = Literal["first", "last"]
ROLES: tuple[Role, ...] = ("first", "last")


def share_layers(student: nn.Module, teacher: nn.Module, roles: Sequence[Role]) -> None:
    """Put the teacher's layers into the student, as frozen copies.

    Raises:
        ValueError: their shapes differ.
    """
    for role in roles:
        own, its = _find(student, role), _find(teacher, role)
        if _shape(own) != _shape(its):
            raise ValueError(
                f"the {role} layer has shape {_shape(own)} in the student and {_shape(its)} in its teacher"
            )
        own.load_state_dict(its.state_dict())
        freeze(own)


def check_sharing(student: str, teacher: str, roles: Sequence[Role], classes: int) -> None:
    """Refuse layers that a student cannot have of its teacher, at no cost in memory.

    Args:
        student: name of its network.
        teacher: name of its network.
        roles: of the layers.
        classes: of both.

    Raises:
        ValueError: a role that there is not, or twice, or layers of other shapes.
    """
    if len(set(roles)) != len(roles) or not set(roles) <= set(ROLES):
        raise ValueError(f"layers to share are {', '.join(ROLES)}, each once; got {list(roles)}")
    with torch.device("meta"):
        own, its = build_network(student, classes), build_network(teacher, classes)
    for role in roles:
        shapes = [_shape(_find(network, role)) for network in (own, its)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the {role} layer of {student} has shape {shapes[0]}, that of its teacher {teacher} {shapes[1]}: it "
                "cannot be shared"
            )


def check_same_states(student: str, teacher: str) -> None:
    """Refuse networks whose hidden states cannot be compared, at no cost in memory.

    Args:
        student: name of its network.
        teacher: name of its network.

    Raises:
        ValueError: they have other numbers of stages, or at the end of a stage their shapes differ.
    """
    states = hidden_shapes(student), hidden_shapes(teacher)
    if len(states[0]) != len(states[1]):
        raise ValueError(
            f"{student} has {len(states[0])} stages, its teacher {teacher} {len(states[1])}: their hidden states "
            "cannot be compared"
        )
    for number, (own, its) in enumerate(zip(*states, strict=True), start=1):
        if own != its:
            raise ValueError(
                f"the hidden state of {student} after stage {number} has shape {own}, that of its teacher {teacher} "
                f"{its}: they cannot be compared"
            )


def hidden_shapes(name: str) -> list[tuple[int, ...]]:
    """(channels, height, width) of the hidden state at the end of each stage of a network."""
    with torch.device("meta"), torch.no_grad():
        states = build_network(name, 10).see(torch.zeros(1, 3, SIDE, SIDE)).states
    return [tuple(state.shape[1:]) for state in states]


def _find(network: nn.Module, role: Role) -> nn.Module:
    """A layer of a :class:`~polydistill.vision.networks.staged.StagedNetwork`."""
    return network.get_submodule({"first": "stem", "last": "head"}[role])


def _shape(layer: nn.Module) -> tuple[int, ...]:
    """Of its weights."""
    return tuple(next(layer.parameters()).shape)
