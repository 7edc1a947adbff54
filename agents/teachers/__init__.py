"""Anything as a teacher: a file of any known kind, a model of Stable-Baselines3, or a callable.

:func:`as_teacher` turns each of them into a :class:`Teacher`: frozen, in eval mode, outside the graph, in
float32, with the kind of its scores known (Q-values are sharpened with a low temperature, logits are taken
at temperature 1). A file is data, never code: see :mod:`polydistill_agents.files.sources`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.dqn.policies import QNetwork
from torch import nn

from polydistill.errors import UserError
from polydistill_agents.environments.masks import mask_scores
from polydistill_agents.files.normalization import normalization_of
from polydistill_agents.files.places import Place, is_stream
from polydistill_agents.files.sources import read_scorer
from polydistill_agents.networks.kinds import ScoreFunction
from polydistill_agents.networks.nature import compute_scores
from polydistill_agents.networks.normalized import Normalized
from polydistill_agents.networks.scoring import scoring_of
from polydistill_agents.teachers.memory import RememberingTeacher, remembers
from polydistill_agents.teachers.models import copy_network, learned_with_masks, score_network
from polydistill_agents.teachers.several import MeanTeacher, mean_policy
from polydistill_agents.teachers.teacher import Teacher, sees_pixels

Source = Place | BaseAlgorithm | Teacher | nn.Module | ScoreFunction


def as_teacher(source: Source | Sequence[Source], **options: Any) -> Teacher:
    """Turn ``source`` into a :class:`Teacher`.

    Networks are copied: training the original does not change the teacher, and freezing the teacher does not freeze it.

    Args:
        source: a file as :func:`~polydistill_agents.files.sources.read_network` takes it, by name or open; a model of
            Stable-Baselines3 or sb3-contrib (DQN, QR-DQN, PPO, A2C, TRPO, MaskablePPO, RecurrentPPO); a Q-network or
            another module; a bare function from observations as they are stored to scores; or a list of these, whose
            mean policy teaches.
        options: ``kind`` for a function or a module ("q_values" by default); a file and a model know their own.
            ``temperatures`` for a list, one of each: they may be left out where all give logits.

    Raises:
        UserError: the file does not open, or holds no network that is known; a model without discrete actions.
        TypeError: an option that ``source`` does not take.
    """
    if isinstance(source, list | tuple):
        return MeanTeacher([as_teacher(each) for each in source], **options)
    if isinstance(source, nn.Module) or (callable(source) and not isinstance(source, (Teacher, BaseAlgorithm))):
        return _from_callable(source, **options)
    if options:
        raise TypeError(f"a {type(source).__name__} knows its own {', '.join(options)}")
    if isinstance(source, Teacher):
        return source
    if isinstance(source, (str, os.PathLike)) or is_stream(source):
        return _of_network(*read_scorer(source))
    if isinstance(source, BaseAlgorithm):
        return _from_model(source)
    raise UserError(
        f"no teacher: expected a path, a Stable-Baselines3 model or a callable, got {type(source).__name__}"
    )


def as_one_teacher(source: Source | Sequence[Source], temperature: float | None) -> Teacher:
    """:func:`as_teacher` of whatever it takes; the Q-values in a list are taken at ``temperature``.

    Args:
        source: as there.
        temperature: in the unit of the Q-values; None: a list must hold logits alone.

    Raises:
        UserError: as there.
    """
    if isinstance(source, list | tuple) and temperature is not None:
        return mean_policy([as_teacher(each) for each in source], temperature)
    return as_teacher(source)


def _from_callable(source: ScoreFunction, kind: str = "q_values") -> Teacher:
    if not isinstance(source, nn.Module):
        return Teacher(source, kind=kind)
    return _of_network(copy_network(source), kind)


def _from_model(model: BaseAlgorithm) -> Teacher:
    network, kind = score_network(model)
    normalization = normalization_of(model)
    if normalization is not None:
        statistics, space = normalization
        for each in reversed(statistics):  # the innermost sees what comes
            network = Normalized(network, each, space)
    return _of_network(network, kind, learned_with_masks(model))


def _of_network(network: nn.Module, kind: str, masks: bool = False) -> Teacher:
    """The teacher of a network that nobody else holds."""
    if remembers(network):
        return RememberingTeacher(network, kind=kind)
    function: Any = network
    if isinstance(network, QNetwork):
        scoring = compute_scores if sees_pixels(network) else scoring_of(network)
        function = functools.partial(scoring, network)
    return Teacher(function, kind=kind, network=network, masks=masks)


__all__ = ["ScoreFunction", "Teacher", "as_one_teacher", "as_teacher", "mask_scores"]
