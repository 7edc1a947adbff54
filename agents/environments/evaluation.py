"""Scores of whole games under named protocols, many games at once.

Scores are raw (never clipped) and of full games (never of a life); two compare only under the same protocol.
How many games each environment plays is fixed beforehand: taking the first N games to finish would favour
short ones. How many games run at once follows from the number of games alone, never from the machine.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polydistill.errors import UserError
from polydistill.statistics import Interval, bootstrap_interval, iqm
from polydistill_agents.environments.asking import Asked, ask_once
from polydistill_agents.environments.gym_task import open_environment
from polydistill_agents.environments.masks import mask_scores, read_masks
from polydistill_agents.environments.protocols import AnyProtocol, sampling_temperature
from polydistill_agents.environments.task import Task, open_task
from polydistill_agents.networks.kinds import ScoreFunction
from polydistill_agents.networks.observations import Arrays, example, take

GAMES_AT_ONCE = 32  # at most
VERSION = re.compile(r"-v\d+$")  # of an id of gymnasium


class Compared(NamedTuple):
    """The states of one step, in which the agent and the reference were asked; the games have not moved on yet.

    Attributes:
        env: the games.
        rows: ``(states,)`` which of the games at once they are of.
        games: ``(states,)`` number of the game, from 0.
        steps: ``(states,)`` agent steps of the game before the state, from 0.
        observations: arrays of one row each, as the agent sees them.
        scores: ``(states, actions)`` of the agent.
        reference: ``(states, actions)`` of the reference; where it learned with masks, ``-inf`` where those forbid.
    """

    env: Any
    rows: NDArray[np.int64]
    games: NDArray[np.int64]
    steps: NDArray[np.int64]
    observations: Arrays
    scores: Tensor
    reference: Tensor


class Evaluation(NamedTuple):
    """Scores of ``episodes`` games.

    Attributes:
        scores: ``(episodes,)`` float64, unclipped, in points of the game.
        lengths: ``(episodes,)`` agent steps.
        agreement: fraction of the played states in which the reference's greedy action is the same; None without
            a reference.
        seconds: wall clock.
        truncated: how many of the games were cut by the protocol's ``max_frames``.
        n_actions: those of the agent: the game's own, or all 18 of the joystick.
        game_actions: those of the game.
        invalid_share: fraction of the actions taken that the environment calls invalid; None where it does not say.
    """

    scores: NDArray[np.float64]
    lengths: NDArray[np.int64]
    agreement: float | None
    seconds: float
    truncated: int = 0
    n_actions: int = 0
    game_actions: int = 0
    invalid_share: float | None = None

    @property
    def mean(self) -> float:
        """Mean score."""
        return float(self.scores.mean())

    @property
    def iqm(self) -> float:
        """Interquartile mean of the scores."""
        return iqm(self.scores)

    def interval(self, seed: int = 0) -> Interval | None:
        """Bootstrap 95% interval of the mean over these games; None for fewer than three."""
        return bootstrap_interval(self.scores, generator=np.random.default_rng(seed))


def choose_actions(
    scores: Tensor, epsilon: float, generator: np.random.Generator, temperature: float | None = None
) -> NDArray[np.int64]:
    """Epsilon-greedy actions, the coin tossed for each row apart.

    Args:
        scores: ``(rows, actions)``; the best of each row is finite.
        epsilon: probability of an action drawn uniformly.
        generator: of the coin, and of what is drawn.
        temperature: None: the other actions are the best; else they are drawn from softmax(scores / temperature).

    Returns:
        ``(rows,)``. Greedy actions draw the same numbers from ``generator`` as they always did.
    """
    rows, n_actions = scores.shape
    chosen = scores.argmax(dim=1).cpu().numpy()
    explore = generator.random(rows) < epsilon
    uniform = generator.integers(n_actions, size=rows)
    if temperature is not None:
        sums = (scores.double() / temperature).softmax(dim=1).cumsum(dim=1).cpu().numpy()
        drawn = generator.random((rows, 1)) * sums[:, -1:]
        chosen = (sums <= drawn).sum(axis=1)  # the first whose sum is above: never one of probability 0
    return np.where(explore, uniform, chosen)


def evaluate(
    agent: ScoreFunction,
    game: str | Task,
    *,
    protocol: str | AnyProtocol | None = None,
    episodes: int = 30,
    seed: int = 0,
    n_envs: int | None = None,
    n_threads: int = 0,
    device: torch.device | str = "cpu",
    reference: ScoreFunction | None = None,
    on_step: Callable[[int], None] | None = None,
    play: str = "protocol",
    temperature: float = 0.01,
    masked: bool = False,
    on_compared: Callable[[Compared], None] | None = None,
) -> Evaluation:
    """Play ``episodes`` full games with ``agent`` and return their scores.

    Args:
        agent: from observations of the task on ``device``, as ``(games, 4, 84, 84)`` uint8 or a dict of such arrays, to
            ``(games, actions)`` scores. In a game of Atari it may know the game's own actions or all 18 of the
            joystick. An agent with a memory is asked game by game, from an empty memory.
        game: the task, or the name of a game of Atari, or an id of gymnasium.
        protocol: a name of one of the task's, or a protocol; None: the task's first, "rusu" for Atari.
        episodes: games to play, >= 1.
        seed: >= 0; of the games, of the epsilon-greedy coin and of sampled actions.
        n_envs: games at once, >= 1; by default ``min(episodes, 32)``. Game k is the (k // n_envs)-th of environment
            k % n_envs, whoever ends first.
        n_threads: emulator threads.
        device: where the agent computes.
        reference: another agent that is asked in every played state, for the agreement; where the task has another view
            for teachers, it sees that. One that learned with masks means its best action among the valid ones.
        on_step: called after each step of all games with the number of games that have ended.
        play: how the agent's scores become actions, see
            :func:`~polydistill_agents.environments.protocols.sampling_temperature`. A bare function is one of Q-values.
        temperature: T of Q-values, where they are sampled.
        masked: leave out the actions that the environment calls invalid.
        on_compared: called with the states of each step in which the reference was asked, too.

    Raises:
        UserError: unknown game or protocol, an agent whose actions are not the game's, or ``masked`` in an environment
            without masks.
        NonFiniteError: the best score of a state is not finite, so that the greedy action would mean nothing. (-inf
            excludes an action, but not all of them.) Its batch has the ``observations``, ``(games, ...)``, their
            ``scores``, and whether these are the reference's, ``of_reference``.
        ValueError: an argument out of range, or no source of randomness at all (every game would be the same).
    """
    task = _open(game) if isinstance(game, str) else game
    protocol = task.default_protocol if protocol is None else protocol
    rules = task.protocol(protocol) if isinstance(protocol, str) else protocol
    _check_numbers(episodes, seed, n_envs, n_threads, temperature)
    sampling = sampling_temperature(play, rules, getattr(agent, "kind", "q_values"), temperature)
    epsilon = rules.epsilon if sampling is None else 0.0
    if sampling is None and not (epsilon or rules.games_differ):
        raise ValueError("a greedy agent without no-ops or sticky actions plays one game over and over")
    started = time.perf_counter()
    tally = _Tally(episodes, min(episodes, GAMES_AT_ONCE if n_envs is None else n_envs))
    env_seed, coin_seed = (int(word) for word in np.random.SeedSequence(seed).generate_state(2))
    agents = [agent] if reference is None else [agent, reference]
    n_actions = _count_actions(agents, task, device)
    env = task.make_env(tally.n_envs, seed=env_seed, n_threads=n_threads, n_actions=n_actions, protocol=rules)
    coin = np.random.default_rng(coin_seed)
    agreed, compared = torch.zeros((), dtype=torch.int64, device=device), 0
    with closing(env), Asked(agents, tally.n_envs, device) as ask:
        observations, starts = env.reset(), np.ones(tally.n_envs, dtype=bool)
        has_masks = read_masks(env) is not None
        if masked and not has_masks:
            raise UserError(f"{task.name} has no action masks: it cannot be played with invalid actions left out")
        while (playing := tally.playing).any():
            parts = [take(view, playing) for view in _views(env, observations)]
            views = [parts[min(index, len(parts) - 1)] for index in range(len(agents))]
            values, *others = ask(views, starts[playing], np.flatnonzero(playing))
            masks = read_masks(env) if has_masks else None
            valid = None if masks is None else masks[playing]
            for other in others:
                masks_count = valid is not None and getattr(reference, "masks", False)
                meant = mask_scores(other, valid) if masks_count else other  # type: ignore[arg-type]
                agreed += (values.argmax(dim=1) == meant.argmax(dim=1)).sum()
                if on_compared is not None:
                    rows = np.flatnonzero(playing)
                    on_compared(Compared(env, rows, *tally.places(rows), parts[0], values, meant))
            compared += len(values)
            if masked:
                values = mask_scores(values, valid)  # type: ignore[arg-type]
            # environments that have played their games idle, with an action that they take
            actions = np.zeros(tally.n_envs, dtype=np.int64) if masks is None else masks.argmax(axis=1)
            actions[playing] = choose_actions(values, epsilon, coin, sampling)
            if valid is not None:
                tally.invalid += int((~valid[np.arange(len(valid)), actions[playing]]).sum())
            observations, _, starts, infos = env.step(actions)
            tally.add(starts & playing, infos)
            if on_step is not None:
                on_step(int(tally.played.sum()))
    return Evaluation(
        scores=tally.scores[tally.finished],
        lengths=tally.lengths[tally.finished],
        agreement=int(agreed) / compared if reference is not None else None,
        seconds=time.perf_counter() - started,
        truncated=tally.truncated,
        n_actions=n_actions,
        game_actions=task.action_counts[0],
        invalid_share=tally.invalid / compared if has_masks else None,
    )


def _views(env: Any, observations: Arrays) -> list[Arrays]:
    """What the agent that plays sees, and what its teacher sees where that is something else."""
    teachers = getattr(env, "teacher_view", None)
    return [observations] if teachers is None else [observations, teachers]


def _open(name: str) -> Task:
    """The game of that name, or the environment of that id; whose error is told hangs on how the name ends."""
    try:
        return open_task(name)
    except UserError:
        if VERSION.search(name) is None:
            raise
    return open_environment(name)


class _Tally:
    """Scores and lengths of the games, each environment's own share of them, however short those of others are."""

    def __init__(self, episodes: int, n_envs: int) -> None:
        self.n_envs = n_envs
        self._quota = np.full(n_envs, episodes // n_envs) + (np.arange(n_envs) < episodes % n_envs)
        most = self._quota.max()
        self.scores, self.lengths = np.full((most, n_envs), np.nan), np.zeros((most, n_envs), dtype=np.int64)
        self.finished = np.arange(most)[:, None] < self._quota
        self.played, self._clock = np.zeros(n_envs, dtype=np.int64), np.zeros(n_envs, dtype=np.int64)
        self.truncated = self.invalid = 0

    @property
    def playing(self) -> NDArray[np.bool_]:
        """``(n_envs,)`` whose share is not played."""
        return self.played < self._quota

    def places(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Number of the game, and step in it, that the environments ``rows`` are at."""
        return self.played[rows] * self.n_envs + rows, self._clock[rows]

    def add(self, dones: NDArray[np.bool_], infos: list[dict[str, Any]]) -> None:
        """A step; of the environments with ``dones``, those whose game has ended, and not only a life."""
        self._clock += 1
        for i in np.flatnonzero(dones):
            record = infos[i].get("episode")
            if record is not None:
                self.scores[self.played[i], i], self.lengths[self.played[i], i] = record["r"], record["l"]
                self.played[i] += 1
                self._clock[i] = 0
                self.truncated += bool(infos[i].get("TimeLimit.truncated"))


def _check_numbers(episodes: int, seed: int, n_envs: int | None, n_threads: int, temperature: float) -> None:
    if episodes < 1:
        raise ValueError(f"at least one game must be played, got {episodes=}")
    if n_envs is not None and n_envs < 1:
        raise ValueError(f"at least one game must be played at once, got {n_envs=}")
    if seed < 0 or n_threads < 0:
        raise ValueError(f"out of range: {seed=}, {n_threads=}")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def _count_actions(agents: Sequence[ScoreFunction], task: Task, device: torch.device | str) -> int:
    """Those of the agents, which are asked once. With others than the task has they would press wrong buttons."""
    seen = [task.observation_space, task.for_teacher().observation_space][: len(agents)]
    scored = sorted({scores.shape[-1] for scores in ask_once(agents, [example(space, 1) for space in seen], device)})
    own, *more = task.action_counts
    if len(scored) > 1 or scored[0] not in task.action_counts:
        there_are = f"{own}{''.join(f' (or all {count})' for count in more)}"
        raise UserError(
            f"the agent scores {' and '.join(map(str, scored))} actions, {task.name} has {there_are}: "
            "was it trained elsewhere?"
        )
    return scored[0]
