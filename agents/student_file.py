"""A finished student read back from its zip as it was, for the next generation and after a continuation.

The zip holds a narrow student in the corner of Stable-Baselines3's ``NatureCNN``, with zeros around it, so that stock
``DQN.load`` opens it. As a teacher it is needed in its own widths again: cheaper, of its own hash, and the model of a
student "as large as its teacher".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from stable_baselines3.dqn.policies import QNetwork

from agents.networks import Size, build_network
from agents.teachers import Teacher, as_teacher
from polydistill.errors import UserError


def read_student(path: Path, size: Size) -> Teacher:
    """The student of widths ``size`` that was written to ``path``, as a teacher on the CPU.

    Raises:
        UserError: the file is missing or damaged, or holds something else than a Nature-CNN of at least that size.
    """
    teacher = as_teacher(path)
    try:
        network = cut_corner(cast(QNetwork, teacher.network), size)
    except (KeyError, RuntimeError, AttributeError):
        raise UserError(f"{path} holds no student of the widths {size.channels} and {size.hidden}") from None
    # as the student has learned, and faster on processors: another layout would round differently
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return as_teacher(network, kind=teacher.kind)


@torch.no_grad()
def cut_corner(wide: QNetwork, size: Size) -> QNetwork:
    """The Nature-CNN of widths ``size`` in the first channels and units of ``wide``."""
    source = wide.state_dict()
    with torch.device("meta"):  # no memory is taken, and no random number drawn, for weights that nobody keeps
        network = build_network(cast(Any, wide.observation_space), int(cast(Any, wide.action_space).n), size)
    weights = {}
    for name, target in network.state_dict().items():
        value, shape = source[name], tuple(target.shape)
        if name == "features_extractor.linear.0.weight":  # its columns are (channel, 7, 7)
            value = value.reshape(value.shape[0], -1, shape[1] // size.channels[-1])
            shape = (shape[0], size.channels[-1], value.shape[2])
        weights[name] = value[tuple(slice(0, length) for length in shape)].reshape(target.shape).clone()
    network.load_state_dict(weights, assign=True)
    return network
