"""Random play, measured where no table has it, and whether a teacher is better at all."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from polydistill.statistics import bootstrap_interval
from polydistill_agents.environments.evaluation import evaluate
from polydistill_agents.environments.task import Task
from polydistill_agents.networks.observations import Tensors, count_rows, leaves


def measure_random(
    task: Task, episodes: int = 100, seed: int = 0, *, n_threads: int = 0, masked: bool = False
) -> NDArray[np.float64]:
    """Scores ``(episodes,)`` of uniformly random actions under the task's first protocol.

    Args:
        task: what is played.
        episodes: whole games, >= 1.
        seed: of the games and of the actions.
        n_threads: of the emulator.
        masked: draw from the valid actions alone, where the environment names them.
    """
    n_actions = task.action_counts[0]

    def indifferent(observations: Tensors) -> torch.Tensor:
        return torch.zeros(count_rows(observations), n_actions, device=leaves(observations)[0].device)

    options = {"episodes": episodes, "seed": seed, "n_threads": n_threads}
    return evaluate(indifferent, task, play="sample", temperature=1.0, masked=masked, **options).scores  # type: ignore[arg-type]


def no_better_than_random(teacher: ArrayLike, random: ArrayLike, *, seed: int = 0) -> str | None:
    """In words, why scores are not measured from random play to the teacher; None where they can be.

    The intervals over games of both must not overlap, the teacher's above. For fewer than three games there are none,
    and the means decide.

    Args:
        teacher: scores of its games.
        random: of random play, likewise.
        seed: of the resamples.
    """
    above, below = np.asarray(teacher, dtype=float), np.asarray(random, dtype=float)
    ends = [bootstrap_interval(scores, generator=np.random.default_rng(seed)) for scores in (above, below)]
    lowest = above.mean() if ends[0] is None else ends[0].low
    highest = below.mean() if ends[1] is None else ends[1].high
    if lowest > highest:
        return None
    words = [
        f"{scores.mean():.4g}{'' if interval is None else f' ({interval.low:.4g} to {interval.high:.4g})'}"
        for scores, interval in zip((above, below), ends, strict=True)
    ]
    return (
        f"the teacher's score {words[0]} is not clearly above random play's {words[1]}: "
        "no score is given between the two"
    )
