"""Who acts in the games that a student watches. Who labels what is seen there is the lesson's teacher, whoever acts.

Symbols: beta, the probability that the teacher acts. With 1 it always does (Rusu et al. 2016); with less the student is
shown what to do in the states that it meets itself, and the replay keeps all (DAgger: Ross et al. 2011, algorithm 3.1,
which mixes the two policies in each step). Contract: an actor is asked once for each step of all games, and draws from
its own random stream alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import LinearSchedule
from torch import Tensor

from polydistill_agents.environments.evaluation import choose_actions
from polydistill_agents.networks.observations import Tensors

# from observations of ``n_envs`` games and the teacher's scores of them, ``(n_envs, n_actions)``, which are there
# anyway, to actions ``(n_envs,)``
Actor = Callable[[Tensors, Tensor], NDArray[np.int64]]
# a probability, those at the start and at the end of learning, or a function of the remaining progress, from 1 to 0
Beta = float | tuple[float, float] | Callable[[float], float]


@dataclass(frozen=True)
class TeacherActs:
    """The teacher acts, and explores.

    Attributes:
        exploration_rate: probability of an action drawn uniformly, for each game apart.
        temperature: None: its other actions are its best; else they are drawn from softmax(scores / temperature).
        generator: of all that is drawn.
    """

    exploration_rate: float
    temperature: float | None
    generator: np.random.Generator

    def __call__(self, observations: Tensors, scores: Tensor) -> NDArray[np.int64]:
        return choose_actions(scores, self.exploration_rate, self.generator, self.temperature)


@dataclass(frozen=True)
class StudentActs:
    """The student acts where its teacher does not, and explores as often.

    Attributes:
        student: from observations to its scores; asked with all rows, where there is a row that is not its teacher's.
        exploration_rate: as of :class:`TeacherActs`, and the next two.
        temperature: of the student's scores.
        generator: of the coins too.
    """

    student: Callable[[Tensors], Tensor]
    exploration_rate: float
    temperature: float | None
    generator: np.random.Generator

    def replace(
        self, taught: NDArray[np.int64], observations: Tensors, beta: float
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Leave each of the teacher's actions ``taught``, ``(n_envs,)``, with probability ``beta``.

        Returns:
            The actions that are taken, and where they are the teacher's, both ``(n_envs,)``.
        """
        by_teacher = self.generator.random(len(taught)) < beta
        if by_teacher.all():
            return taught, by_teacher
        own = choose_actions(self.student(observations), self.exploration_rate, self.generator, self.temperature)
        return np.where(by_teacher, taught, own), by_teacher


def beta_ends(beta: Any) -> list[float] | None:
    """``[start, end]`` of a constant or a pair; None of a function.

    Raises:
        ValueError: it is none of them, or no probability.
    """
    if callable(beta):
        for remaining, where in ((1.0, " at its start"), (0.0, " at its end")):
            _require_probability(beta(remaining), where)
        return None
    if isinstance(beta, tuple | list) and len(beta) == 2:
        start, end = beta
    elif isinstance(beta, int | float | np.integer | np.floating):
        start = end = beta
    else:
        raise ValueError(f"beta must be a number, a pair (start, end), or a function of the progress, got {beta!r:.80}")
    _require_probability(start, " at its start")
    _require_probability(end, " at its end")
    return [float(start), float(end)]


def beta_schedule(beta: Beta) -> Schedule:
    """The probability that the teacher acts, as a function of the remaining progress; errors of :func:`beta_ends`."""
    ends = beta_ends(beta)
    return cast(Schedule, beta) if ends is None else LinearSchedule(ends[0], ends[1], 1.0)


def _require_probability(value: Any, where: str) -> None:
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1:
        raise ValueError(f"beta must be a probability from 0 to 1, it is {value!r}{where}")
