"""Where an agent's greedy actions are not its teacher's, and what that costs by the teacher's scores.

The agent plays, its teacher is asked in each state that it meets. The regret of a state is that of the agent's greedy
action (:mod:`~polydistill_agents.networks.regret`); actions drawn at random by the protocol do not count.

Contract: one call per step of all games, no Python work per state; what is kept are 16 bytes per state, and the few
states of :class:`~polydistill_agents.environments.gallery.Gallery`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from polydistill.statistics import Interval, bootstrap_interval
from polydistill_agents.environments.evaluation import Compared
from polydistill_agents.environments.gallery import Gallery, action_names
from polydistill_agents.networks.regret import random_regrets, regrets, values_of

PARTS = 20  # of a game, in its course
WORST = 0.01  # share of the states


class Estimate(NamedTuple):
    """A mean, and its bootstrap interval over games; None for fewer than three."""

    mean: float
    interval: Interval | None


class Confusion(NamedTuple):
    """States in which the teacher means one action and the agent another (or the same).

    Attributes:
        teacher: action.
        agent: action.
        states: how many.
        regret: their sum.
    """

    teacher: int
    agent: int
    states: int
    regret: float


@dataclass(frozen=True)
class Disagreement:
    """What :class:`Comparing` found.

    Attributes:
        n_states: in which both were asked.
        n_games: that they are of.
        agreement: share of the states in which both mean the same action.
        regret: mean over the states; in brackets over games, which are resampled whole.
        of_random: ``regret`` over that of an action drawn uniformly in the same states: 0 as the teacher, 1 as random
            actions; None where the teacher does not care at all. It compares across games and kinds of scores.
        worst_share: share of all regret that the worst 1% of the states carry; None without any regret.
        agreement_course: for each twentieth of the game, the mean over games; None where no game has a state.
        regret_course: likewise.
        confusions: all pairs of actions that occur, the largest sum of regret first.
        action_names: of the environment.
        gallery: the states of the largest regret.
    """

    n_states: int
    n_games: int
    agreement: Estimate
    regret: Estimate
    of_random: float | None
    worst_share: float | None
    agreement_course: list[Estimate | None]
    regret_course: list[Estimate | None]
    confusions: list[Confusion]
    action_names: list[str]
    gallery: Gallery


@dataclass
class Comparing:
    """Collects the states of an evaluation: ``evaluate(..., reference=teacher, on_compared=Comparing(kind))``.

    Args:
        kind: of the teacher's scores, "q_values" or "logits".
        agent_kind: of the agent's, for the pictures.
        pictures: states that are kept at most.
    """

    kind: str
    agent_kind: str = "logits"
    pictures: int = 12
    gallery: Gallery = field(init=False)

    def __post_init__(self) -> None:
        self.gallery = Gallery(self.pictures)
        self._places: list[NDArray[np.int32]] = []  # (2, states) each: game and step
        self._regrets: list[NDArray[np.float32]] = []
        self._actions: list[NDArray[np.int16]] = []  # (2, states) each: the teacher's and the agent's
        self._of_random, self._names, self._n_actions = 0.0, [""], 0

    def __call__(self, met: Compared) -> None:
        """Add the states of one step."""
        values, chosen = values_of(met.reference, self.kind), met.scores.argmax(dim=1)
        lost = regrets(values, chosen).cpu().numpy()
        self._of_random += float(random_regrets(values).double().sum())
        self._n_actions = values.shape[1]
        if not self._regrets:
            self._names = action_names(met.env, self._n_actions)
        self._regrets.append(lost.astype(np.float32))
        self._places.append(np.stack([met.games, met.steps]).astype(np.int32))
        both = [met.reference.argmax(dim=1).cpu().numpy(), chosen.cpu().numpy()]
        self._actions.append(np.stack(both).astype(np.int16))
        own = values_of(met.scores, self.agent_kind)
        self.gallery.look(met, lost, values, own)

    def finish(self, seed: int = 0) -> Disagreement:
        """What was found; ``seed`` is that of the resampled games.

        Raises:
            ValueError: nothing was compared.
        """
        if not self._regrets:
            raise ValueError("no state was compared: evaluate needs a reference, and on_compared")
        lost = np.concatenate(self._regrets).astype(np.float64)
        games, steps = np.concatenate(self._places, axis=1).astype(np.int64)
        actions = np.concatenate(self._actions, axis=1).astype(np.int64)
        same = (actions[0] == actions[1]).astype(np.float64)
        games = np.unique(games, return_inverse=True)[1]
        worst = np.sort(lost)[-max(round(WORST * len(lost)), 1) :]
        return Disagreement(
            n_states=len(lost),
            n_games=int(games.max()) + 1,
            agreement=_pooled(same, games, seed),
            regret=_pooled(lost, games, seed),
            of_random=float(lost.sum()) / self._of_random if self._of_random > 0 else None,
            worst_share=float(worst.sum() / lost.sum()) if lost.sum() > 0 else None,
            agreement_course=_course(same, games, steps, seed),
            regret_course=_course(lost, games, steps, seed),
            confusions=_confusions(actions, lost, self._n_actions),
            action_names=self._names,
            gallery=self.gallery,
        )


def _pooled(values: NDArray[np.float64], games: NDArray[np.int64], seed: int) -> Estimate:
    """The mean over states; the interval resamples whole games, each with all its states."""
    sums, counts = np.bincount(games, values), np.bincount(games)
    interval = None
    if len(sums) >= 3:
        drawn = np.random.default_rng(seed).integers(len(sums), size=(2000, len(sums)))
        means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        interval = Interval(*(float(end) for end in np.quantile(means, [0.025, 0.975])))
    return Estimate(float(values.mean()), interval)


def _course(
    values: NDArray[np.float64], games: NDArray[np.int64], steps: NDArray[np.int64], seed: int
) -> list[Estimate | None]:
    """The mean in each part of the game: first over the states of a game, then over games, so that all count alike."""
    lengths = np.bincount(games)
    cells = games * PARTS + steps * PARTS // lengths[games]
    counts = np.bincount(cells, minlength=len(lengths) * PARTS).reshape(-1, PARTS)
    sums = np.bincount(cells, values, minlength=len(lengths) * PARTS).reshape(-1, PARTS)
    course: list[Estimate | None] = []
    for part in range(PARTS):
        there = counts[:, part] > 0
        means = sums[there, part] / counts[there, part]
        generator = np.random.default_rng([seed, part])
        interval = bootstrap_interval(means, generator=generator, n_resamples=2000) if there.any() else None
        course.append(Estimate(float(means.mean()), interval) if there.any() else None)
    return course


def _confusions(actions: NDArray[np.int64], lost: NDArray[np.float64], n_actions: int) -> list[Confusion]:
    pairs = actions[0] * n_actions + actions[1]
    counts, sums = np.bincount(pairs), np.bincount(pairs, lost)
    found = [Confusion(*divmod(int(k), n_actions), int(counts[k]), float(sums[k])) for k in np.flatnonzero(counts)]
    return sorted(found, key=lambda pair: (-pair.regret, -pair.states))
