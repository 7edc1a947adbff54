"""Who labels what a learning teacher has seen: the teacher at its best, or as it is.

Rusu et al. (2016, section 4.5) save the learning network whenever it sets a new best score, and distil from what was
saved until that is beaten. Best is here the mean return of its last games of training, or, where its games are scored
apart from training, that score.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from polydistill_agents.distillation.state import copied
from polydistill_agents.networks.nature import compute_scores
from polydistill_agents.teachers import Teacher, as_teacher
from polydistill_agents.teachers.teacher import sees_pixels

EXPLORES = 0.1  # share of random actions, above which a DQN whose share still falls plays otherwise than it has learned


def freeze(model: BaseAlgorithm, precision: str) -> Teacher:
    """The model as it is now.

    Args:
        model: that learns.
        precision: in which a Nature-CNN labels, "float32" or "bfloat16".
    """
    teacher = as_teacher(model)
    network: Any = teacher.network
    if precision == "float32" or network is None or not sees_pixels(network):
        return teacher
    network.to(memory_format=torch.channels_last)
    return Teacher(partial(compute_scores, network, precision=precision), kind=teacher.kind, network=network)


def _explores(model: BaseAlgorithm) -> bool:
    """Whether chance acts so often that the return of a game is not the network's: early in a DQN's learning."""
    rate, end = getattr(model, "exploration_rate", 0.0), getattr(model, "exploration_final_eps", 0.0)
    return bool(rate > max(end, EXPLORES))


class Labels:
    """Keeps the teacher that labels.

    Args:
        which: "best"; "best_score", of which it is told by :meth:`offer`; or "current".
        games: of training, over whose last ones the mean return is taken.
        precision: see :func:`freeze`.

    Attributes:
        teacher: who labels; None: nobody yet.
        best: the score that the teacher had when it was taken.
        at_step: when it was taken, on the clock of the callback.
    """

    def __init__(self, which: str, games: int, precision: str) -> None:
        self.which, self.precision = which, precision
        self.teacher: Teacher | None = None
        self.best, self.at_step = float("-inf"), -1
        self._returns: deque[float] = deque(maxlen=games)
        self._new_games = False

    def watch(self, model: BaseAlgorithm, infos: Iterable[Mapping[str, Any]]) -> None:
        """Note the returns of games that have just ended, as far as the model played them, and not chance."""
        if self.which != "best" or not model._n_updates or _explores(model):
            return
        for info in infos:
            if "episode" in info:
                self._returns.append(float(info["episode"]["r"]))
                self._new_games = True

    def offer(self, model: BaseAlgorithm, score: float, step: int) -> None:
        """Take the model as teacher, if ``score`` is better than all before."""
        if self.which == "best_score":
            self._take_better(model, score, step)

    def choose(self, model: BaseAlgorithm, step: int) -> Teacher | None:
        """Who labels now."""
        if self.which == "current":
            self._take(model, self.best, step)
        elif self._new_games and len(self._returns) == self._returns.maxlen:
            self._take_better(model, sum(self._returns) / len(self._returns), step)
        self._new_games = False
        return self.teacher

    def explain_none(self) -> str:
        """Why there is no best teacher yet, and what to change."""
        if self.which == "best_score":
            return "no score was better than -inf; lower score_every"
        have, needed = len(self._returns), self._returns.maxlen
        return (
            f"only {have} of best_games={needed} games have ended after the teacher's exploration; play more steps, "
            "lower best_games, or give another labels="
        )

    def _take_better(self, model: BaseAlgorithm, score: float, step: int) -> None:
        if score > self.best:
            self._take(model, score, step)

    def _take(self, model: BaseAlgorithm, score: float, step: int) -> None:
        self.teacher, self.best, self.at_step = freeze(model, self.precision), score, step

    def state(self) -> dict[str, Any]:
        """What :meth:`load_state` needs, in plain values and tensors on the CPU."""
        network = None if self.teacher is None or self.which == "current" else self.teacher.network
        return {
            "returns": list(self._returns),
            "new_games": self._new_games,
            "best": self.best,
            "at_step": self.at_step,
            "weights": None if network is None else copied(network.state_dict(), "cpu"),
        }

    def load_state(self, state: Mapping[str, Any], model: BaseAlgorithm) -> None:
        """Go on from :meth:`state`, beside the ``model`` that then was beside it."""
        self._returns.clear()
        self._returns.extend(state["returns"])
        self.teacher = None
        self._new_games, self.best, self.at_step = state["new_games"], state["best"], state["at_step"]
        if state["weights"] is not None:
            self.teacher = freeze(model, self.precision)
            assert self.teacher.network is not None
            self.teacher.network.load_state_dict(state["weights"])
