"""Who acts in the games that a student watches. Who labels what is seen there is the lesson's teacher, whoever acts.

Contract: an actor is asked once for each step of all games, and draws from its own random stream alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from polydistill_agents.environments.evaluation import choose_actions
from polydistill_agents.networks.observations import Tensors

# from observations of ``n_envs`` games and the teacher's scores of them, ``(n_envs, n_actions)``, which are there
# anyway, to actions ``(n_envs,)``
Actor = Callable[[Tensors, Tensor], NDArray[np.int64]]


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
