"""A student in a file of its own widths: its weights as safetensors, and what they are the weights of as JSON.

The zip that stock ``DQN.load`` opens holds a Nature-CNN of few channels in the corner of a wide one, and no
``NatureCNN`` of more channels than Stable-Baselines3's own. This file holds every student as it is, in 4 bytes for each
weight; :func:`polydistill_agents.as_teacher` and ``PolicyDistillation.load`` open it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor

from polydistill_agents.files.places import Place, write_place
from polydistill_agents.files.plain_spaces import space_from_plain, space_to_plain
from polydistill_agents.files.policies import policy_of
from polydistill_agents.files.rebuild import own_memory
from polydistill_agents.files.sb3_data import ACTIVATIONS
from polydistill_agents.files.sb3_zip import write_dqn_zip
from polydistill_agents.networks.building import build
from polydistill_agents.networks.kinds import SCORE_KINDS

CARD = "polydistill_student"  # in the file's ``__metadata__``
ENDING = ".safetensors"


class CompactStudent(NamedTuple):
    """What a file holds.

    Attributes:
        network: on the CPU, in eval mode.
        kind: of its scores.
        counters: Stable-Baselines3's, as ``num_timesteps``.
    """

    network: QNetwork
    kind: str
    counters: dict[str, Any]


def write_student(
    target: Place,
    network: QNetwork,
    *,
    score_kind: str = "q_values",
    steps: int = 0,
    counters: Mapping[str, int] | None = None,
) -> None:
    """Write a compact file where the name ends in ``.safetensors``, else an ordinary DQN zip; whole or not at all.

    Args:
        target: as :func:`~polydistill_agents.files.sb3_zip.write_dqn_zip` takes it, as are the others.
        network: of any widths, of Stable-Baselines3's own layers; for a zip as it says there.
        score_kind: "q_values" or "logits".
        steps: agent steps that the network has learned from.
        counters: further ones of Stable-Baselines3.

    Raises:
        ValueError: an unknown kind of scores, or a network that has no place in such a file.
        UserError: the disk refused.
    """
    if not isinstance(target, (str, os.PathLike)) or Path(target).suffix != ENDING:
        _require_room(network)
        write_dqn_zip(target, network, score_kind=score_kind, steps=steps, counters=counters)
        return
    if score_kind not in SCORE_KINDS:
        raise ValueError(f"score_kind must be one of {SCORE_KINDS}, got {score_kind!r}")
    card = {
        "scores": score_kind,
        "observations": space_to_plain(network.observation_space),
        "activation": next(name for name, kind in ACTIVATIONS.items() if kind is network.activation_fn),
        "normalize_images": network.normalize_images,
        "counters": {"num_timesteps": steps, **(counters or {})},
    }
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_place(target, save(weights, {CARD: json.dumps(card)}))


def _require_room(network: QNetwork) -> None:
    try:
        policy_of(network)
    except ValueError as error:
        raise ValueError(f"{error}: give it a name that ends in {ENDING}") from None


def rebuild_student(weights: Mapping[str, Tensor], card: str) -> CompactStudent:
    """The student of these weights, with memory of its own.

    Args:
        weights: checked.
        card: the text that stood beside them.

    Raises:
        Exception: nearly any, for a damaged file.
    """
    says = json.loads(card)
    if says["scores"] not in SCORE_KINDS or not isinstance(says["normalize_images"], bool):
        raise ValueError("its card does not say how its scores are meant")
    space, activation = space_from_plain(says["observations"]), ACTIVATIONS[says["activation"]]
    network = build(own_memory(weights), space, activation, says["normalize_images"])
    return CompactStudent(network, says["scores"], dict(says["counters"]))
