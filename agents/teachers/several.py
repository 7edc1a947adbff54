r"""Several teachers as one: the mean of their policies.

.. math:: s_a = \ln \frac{1}{K} \sum_k \mathrm{softmax}(z_k / T_k)_a

with scores z of each of K teachers and its own temperature T, so that softmax(s) is the mean: logits, at temperature 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polydistill.errors import UserError
from polydistill.learning.lesson import policy_temperature
from polydistill_agents.networks.fitting import space_fits, tell_space
from polydistill_agents.networks.observations import Tensors
from polydistill_agents.teachers.teacher import Rows, Teacher


class MeanTeacher(Teacher):
    """The mean of the policies of several teachers.

    Args:
        members: one or more, of the same observations and actions.
        temperatures: one of each; 1 for logits. None: all give logits, at temperature 1.

    Raises:
        UserError: members that do not fit one another, or Q-values without a temperature.

    Attributes:
        members: as given.
        temperatures: one of each.
    """

    def __init__(self, members: Sequence[Teacher], temperatures: Sequence[float] | None = None) -> None:
        self.members = tuple(members)
        self.temperatures = _check_temperatures(self.members, temperatures)
        networks = [member.network for member in members if member.network is not None]
        whole = nn.ModuleList(networks) if len(networks) == len(self.members) else None
        super().__init__(self._mean, kind="logits", network=whole)
        self.masks = any(member.masks for member in members)
        self.has_memory = any(member.has_memory for member in members)
        self.observation_space = _check_members(self.members)
        self.input_statistics = next((m.input_statistics for m in members if m.input_statistics is not None), None)

    def _mean(self, observations: Tensors) -> Tensor:
        return self._combine([member(observations) for member in self.members])

    def _combine(self, scores: list[Tensor]) -> Tensor:
        shapes = [tuple(each.shape) for each in scores]
        if len(set(shapes)) > 1:
            raise UserError(f"the teachers' scores are of several shapes: {', '.join(map(str, shapes))}")
        logs = [(z / t).log_softmax(dim=1) for z, t in zip(scores, self.temperatures, strict=True)]
        return torch.stack(logs).logsumexp(dim=0) - math.log(len(logs))

    def begin(self, n_games: int) -> None:
        """Each of them forgets."""
        for member in self.members:
            member.begin(n_games)

    def label(self, observations: Tensors, starts: Any, rows: Rows = None) -> Tensor:
        """The mean of the policies of the next step of these games."""
        return self._combine([member.label(observations, starts, rows) for member in self.members])

    def memory(self) -> Any:
        """A list of their memories; None where none of them has one."""
        return [member.memory() for member in self.members] if self.has_memory else None

    def remember(self, state: Any) -> None:
        """Go on with what :meth:`memory` gave."""
        for member, own in zip(self.members, state or [None] * len(self.members), strict=True):
            member.remember(own)

    def to(self, device: torch.device | str) -> Teacher:
        """Move all of them to ``device``."""
        for member in self.members:
            member.to(device)
        return super().to(device)


def mean_policy(agents: Sequence[Teacher], temperature: float) -> MeanTeacher:
    """The mean of the policies of several agents: of logits at temperature 1, of Q-values at ``temperature``."""
    return MeanTeacher(agents, [policy_temperature(agent.kind, temperature) for agent in agents])


def _check_temperatures(members: Sequence[Teacher], temperatures: Sequence[float] | None) -> tuple[float, ...]:
    if not members:
        raise UserError("no teacher: the list of them is empty")
    if temperatures is None:
        for number, member in enumerate(members, 1):
            if member.kind != "logits":
                raise UserError(
                    f"teacher {number} gives Q-values: choose the temperature of each, as temperatures=[...], or one "
                    "temperature of a student"
                )
        return (1.0,) * len(members)
    found = tuple(float(each) for each in temperatures)
    if len(found) != len(members) or not all(0 < each < math.inf for each in found):
        raise UserError(f"{len(members)} teachers need as many temperatures above 0, got {list(found)}")
    return found


def _check_members(members: Sequence[Teacher]) -> Any:
    """Their common space, where one of them knows it."""
    known = [
        (number, member, member.observation_space)
        for number, member in enumerate(members, 1)
        if member.observation_space is not None
    ]
    if not known:
        return None
    first, member, space = known[0]
    n_actions = member.probe(space).shape[1]
    for number, member, other in known[1:]:
        if not space_fits(space, other):
            raise UserError(f"teacher {first} sees {tell_space(space)}, teacher {number} sees {tell_space(other)}")
        found = member.probe(other).shape[1]
        if found != n_actions:
            raise UserError(f"teacher {first} scores {n_actions} actions, teacher {number} scores {found}")
    return space
