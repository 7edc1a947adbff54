"""Scores of whole games under named protocols, many games at once.

Scores are raw (never clipped) and of full games (never of a life); two compare only under the same protocol.
How many games each environment plays is fixed beforehand: taking the first N games to finish would favour
short ones. How many games run at once follows from the number of games alone, never from the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polydistill.device import few_rows
from polydistill.errors import UserError
from polydistill.learning.rewind import NonFiniteError
from polydistill.statistics import Interval, bootstrap_interval, iqm
from polydistill_agents.environments.protocols import Protocol, sampling_temperature
from polydistill_agents.environments.task import Task, open_task
from polydistill_agents.networks.kinds import ScoreFunction

GAMES_AT_ONCE = 32  # at most


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
    """

    scores: NDArray[np.float64]
    lengths: NDArray[np.int64]
    agreement: float | None
    seconds: float
    truncated: int = 0
    n_actions: int = 0
    game_actions: int = 0

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
    protocol: str | Protocol = "rusu",
    episodes: int = 30,
    seed: int = 0,
    n_envs: int | None = None,
    n_threads: int = 0,
    device: torch.device | str = "cpu",
    reference: ScoreFunction | None = None,
    on_step: Callable[[int], None] | None = None,
    play: str = "protocol",
    temperature: float = 0.01,
) -> Evaluation:
    """Play ``episodes`` full games with ``agent`` and return their scores.

    Args:
        agent: from ``(games, 4, 84, 84)`` uint8 on ``device`` to ``(games, actions)`` scores. It may know the game's
            own actions or all 18 of the joystick.
        game: the task, or a name that :func:`~polydistill_agents.environments.task.open_task` knows.
        protocol: a name of one of the task's, or a protocol.
        episodes: games to play, >= 1.
        seed: >= 0; of the games, of the epsilon-greedy coin and of sampled actions.
        n_envs: games at once, >= 1; by default ``min(episodes, 32)``. Game k is the (k // n_envs)-th of environment
            k % n_envs, whoever ends first.
        n_threads: emulator threads.
        device: where the agent computes.
        reference: another agent that is asked in every played state, for the agreement.
        on_step: called after each step of all games with the number of games that have ended.
        play: how the agent's scores become actions, see
            :func:`~polydistill_agents.environments.protocols.sampling_temperature`. A bare function is one of Q-values.
        temperature: T of Q-values, where they are sampled.

    Raises:
        UserError: unknown game or protocol, or an agent whose actions are not the game's.
        NonFiniteError: the best score of a state is not finite, so that the greedy action would mean nothing. (-inf
            excludes an action, but not all of them.) Its batch has the ``observations``, ``(games, stack, height,
            width)`` uint8, their ``scores``, and whether these are the reference's, ``of_reference``.
        ValueError: an argument out of range, or no source of randomness at all (every game would be the same).
    """
    task = open_task(game) if isinstance(game, str) else game
    rules = task.protocol(protocol) if isinstance(protocol, str) else protocol
    _check_numbers(episodes, seed, n_envs, n_threads, temperature)
    sampling = sampling_temperature(play, rules, getattr(agent, "kind", "q_values"), temperature)
    epsilon = rules.epsilon if sampling is None else 0.0
    if sampling is None and not (epsilon or rules.noop_max or rules.repeat_action_probability):
        raise ValueError("a greedy agent without no-ops or sticky actions plays one game over and over")
    started = time.perf_counter()
    n_envs = min(episodes, GAMES_AT_ONCE if n_envs is None else n_envs)
    quota = np.full(n_envs, episodes // n_envs) + (np.arange(n_envs) < episodes % n_envs)
    env_seed, coin_seed = (int(word) for word in np.random.SeedSequence(seed).generate_state(2))
    agents = [agent] if reference is None else [agent, reference]
    n_actions = _count_actions(agents, task, device)
    env = task.make_env(n_envs, seed=env_seed, n_threads=n_threads, n_actions=n_actions, protocol=rules)
    coin = np.random.default_rng(coin_seed)
    scores = np.full((quota.max(), n_envs), np.nan)
    lengths = np.zeros((quota.max(), n_envs), dtype=np.int64)
    played = np.zeros(n_envs, dtype=np.int64)
    agreed, compared, truncated = torch.zeros((), dtype=torch.int64, device=device), 0, 0
    observations = env.reset()
    while (playing := played < quota).any():
        values, *others = _ask(agents, observations[playing], device)
        for other in others:
            agreed += (values.argmax(dim=1) == other.argmax(dim=1)).sum()
            compared += len(values)
        actions = np.zeros(n_envs, dtype=np.int64)  # environments that have played their games idle
        actions[playing] = choose_actions(values, epsilon, coin, sampling)
        observations, _, dones, infos = env.step(actions)
        for i in np.flatnonzero(dones & playing):
            record = infos[i].get("episode")
            if record is not None:
                scores[played[i], i], lengths[played[i], i] = record["r"], record["l"]
                played[i] += 1
                truncated += bool(infos[i].get("TimeLimit.truncated"))
        if on_step is not None:
            on_step(int(played.sum()))
    env.close()
    finished = np.arange(quota.max())[:, None] < quota
    agreement = int(agreed) / compared if reference is not None else None
    seconds, game_actions = time.perf_counter() - started, task.action_counts[0]
    return Evaluation(scores[finished], lengths[finished], agreement, seconds, truncated, n_actions, game_actions)


def _check_numbers(episodes: int, seed: int, n_envs: int | None, n_threads: int, temperature: float) -> None:
    if episodes < 1:
        raise ValueError(f"at least one game must be played, got {episodes=}")
    if n_envs is not None and n_envs < 1:
        raise ValueError(f"at least one game must be played at once, got {n_envs=}")
    if seed < 0 or n_threads < 0:
        raise ValueError(f"out of range: {seed=}, {n_threads=}")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


@torch.no_grad()
def _ask(agents: Sequence[ScoreFunction], observations: NDArray[np.uint8], device: torch.device | str) -> list[Tensor]:
    frames = torch.from_numpy(observations).to(device)
    with few_rows(len(frames)):
        asked = [agent(frames) for agent in agents]
    for index, scores in enumerate(asked):
        if not bool(scores.amax(dim=1).isfinite().all()):
            whose = "the teacher that is asked" if index else "the agent that plays"
            batch = {"observations": frames, "scores": scores, "of_reference": index > 0}
            raise NonFiniteError(f"the scores of {whose} are not finite", batch)
    return asked


def _count_actions(agents: Sequence[ScoreFunction], task: Task, device: torch.device | str) -> int:
    """Those of the agents, which are asked once. With others than the task has they would press wrong buttons."""
    frame = np.zeros((1, *task.observation_space.shape), dtype=np.uint8)
    scored = sorted({scores.shape[-1] for scores in _ask(agents, frame, device)})
    own, *more = task.action_counts
    if len(scored) > 1 or scored[0] not in task.action_counts:
        there_are = f"{own}{''.join(f' (or all {count})' for count in more)}"
        raise UserError(
            f"the agent scores {' and '.join(map(str, scored))} actions, {task.name} has {there_are}: "
            "was it trained elsewhere?"
        )
    return scored[0]
