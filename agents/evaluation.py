"""Scores of whole games under named protocols, many games at once.

A protocol says where randomness comes from, which buttons are pressed for the agent, and when a game is cut:
two scores compare only under the same one. Scores are raw (never clipped) and of full games (never of a life).
How many games each environment plays is fixed beforehand: taking the first N games to finish would favour
short ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.atari import MAX_FRAMES, AtariVecEnv
from agents.teachers import ScoreFunction
from polydistill.errors import UserError, suggest
from polydistill.statistics import Interval, bootstrap_interval, iqm

N_ACTIONS = 18  # of the joystick; most games use fewer


@dataclass(frozen=True)
class Protocol:
    """How an agent is scored.

    Args:
        epsilon: probability of a random action, drawn for each game apart.
        noop_max: 0 to so many no-ops at the start.
        repeat_action_probability: sticky actions.
        fire_on_reset: FIRE is pressed at the start of a game that has it.
        fire_on_life_loss: FIRE is pressed after each lost life.
        max_frames: games are cut after so many frames.
        source: where the protocol comes from.
    """

    epsilon: float
    noop_max: int
    repeat_action_probability: float
    fire_on_reset: bool
    fire_on_life_loss: bool
    source: str
    max_frames: int = MAX_FRAMES

    def make_env(
        self, game: str, n_envs: int, *, seed: int, n_threads: int = 0, full_action_space: bool = False
    ) -> AtariVecEnv:
        """The game's environment under this protocol, with its own actions or (``full_action_space``) all 18."""
        return AtariVecEnv(
            game,
            n_envs,
            seed=seed,
            noop_max=self.noop_max,
            fire_on_reset=self.fire_on_reset,
            fire_on_life_loss=self.fire_on_life_loss,
            repeat_action_probability=self.repeat_action_probability,
            full_action_space=full_action_space,
            max_frames=self.max_frames,
            n_threads=n_threads,
        )


PROTOCOLS: dict[str, Protocol] = {
    "rusu": Protocol(0.05, 30, 0.0, True, False, "Rusu et al. 2016, section 4 (FIRE at the start: ours)"),
    "machado": Protocol(0.0, 0, 0.25, False, False, "Machado et al. 2018: sticky actions (the agent's own action set)"),
    "zoo": Protocol(0.01, 30, 0.0, True, True, "rl-baselines3-zoo: Stable-Baselines3's AtariWrapper, epsilon 0.01"),
}


def get_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}{suggest(name, PROTOCOLS)} (there are {', '.join(PROTOCOLS)})")
    return PROTOCOLS[name]


class Evaluation(NamedTuple):
    """Scores of ``episodes`` games.

    Attributes:
        scores: ``(episodes,)`` float64, unclipped, in points of the game.
        lengths: ``(episodes,)`` agent steps.
        agreement: fraction of the played states in which the reference's greedy action is the same; None without
            a reference.
        seconds: wall clock.
    """

    scores: NDArray[np.float64]
    lengths: NDArray[np.int64]
    agreement: float | None
    seconds: float

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


class NonFiniteScoresError(FloatingPointError):
    """An agent's best score in some state is not finite: its greedy action would mean nothing.

    Attributes:
        of_reference: whether it is the reference's.
        observations: of the states that were asked for, ``(games, stack, height, width)`` uint8.
        scores: ``(games, actions)``.
    """

    def __init__(self, of_reference: bool, observations: Tensor, scores: Tensor) -> None:
        whose = "the teacher that is asked" if of_reference else "the agent that plays"
        super().__init__(f"the scores of {whose} are not finite")
        self.of_reference, self.observations, self.scores = of_reference, observations, scores


def choose_actions(scores: Tensor, epsilon: float, generator: np.random.Generator) -> NDArray[np.int64]:
    """Epsilon-greedy actions, the coin tossed for each row apart; ``(rows,)`` from ``(rows, actions)`` scores."""
    rows, n_actions = scores.shape
    greedy = scores.argmax(dim=1).cpu().numpy()
    explore = generator.random(rows) < epsilon
    return np.where(explore, generator.integers(n_actions, size=rows), greedy)


def evaluate(
    agent: ScoreFunction,
    game: str,
    *,
    protocol: str | Protocol = "rusu",
    episodes: int = 30,
    seed: int = 0,
    n_envs: int | None = None,
    n_threads: int = 0,
    device: torch.device | str = "cpu",
    reference: ScoreFunction | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Evaluation:
    """Play ``episodes`` full games with ``agent`` and return their scores.

    Args:
        agent: from ``(games, 4, 84, 84)`` uint8 on ``device`` to ``(games, actions)`` scores; acts greedily but for
            the protocol's epsilon. It may know the game's own actions or all 18 of the joystick.
        game: ROM id of ale-py.
        protocol: a name of ``PROTOCOLS``, or a protocol.
        episodes: games to play, >= 1.
        seed: of the games and of the epsilon-greedy coin.
        n_envs: games at once; by default ``min(episodes, 32)``. Game k is the (k // n_envs)-th of environment
            k % n_envs, whoever ends first.
        n_threads: emulator threads.
        device: where the agent computes.
        reference: another agent that is asked in every played state, for the agreement.
        on_step: called after each step of all games with the number of games that have ended.

    Raises:
        UserError: unknown game or protocol, or an agent whose actions are not the game's.
        NonFiniteScoresError: the best score of a state is not finite. (-inf excludes an action, but not all of them.)
        ValueError: no episodes, or a protocol without any source of randomness (every game would be the same).
    """
    rules = get_protocol(protocol) if isinstance(protocol, str) else protocol
    if episodes < 1:
        raise ValueError(f"at least one game must be played, got {episodes=}")
    if rules.epsilon == 0.0 and rules.noop_max == 0 and rules.repeat_action_probability == 0.0:
        raise ValueError("a greedy agent without no-ops or sticky actions plays one game over and over")
    started = time.perf_counter()
    n_envs = min(episodes, 32) if n_envs is None else min(n_envs, episodes)
    quota = np.full(n_envs, episodes // n_envs) + (np.arange(n_envs) < episodes % n_envs)
    env_seed, coin_seed = (int(word) for word in np.random.SeedSequence(seed).generate_state(2))
    agents = [agent] if reference is None else [agent, reference]
    env = _make_fitting_env(rules, game, n_envs, env_seed, n_threads, agents, device)
    coin = np.random.default_rng(coin_seed)
    scores = np.full((quota.max(), n_envs), np.nan)
    lengths = np.zeros((quota.max(), n_envs), dtype=np.int64)
    played = np.zeros(n_envs, dtype=np.int64)
    agreed, compared = torch.zeros((), dtype=torch.int64, device=device), 0
    observations = env.reset()
    while (playing := played < quota).any():
        values, *others = _ask(agents, observations[playing], device)
        for other in others:
            agreed += (values.argmax(dim=1) == other.argmax(dim=1)).sum()
            compared += len(values)
        actions = np.zeros(n_envs, dtype=np.int64)  # environments that have played their games idle
        actions[playing] = choose_actions(values, rules.epsilon, coin)
        observations, _, dones, infos = env.step(actions)
        for i in np.flatnonzero(dones & playing):
            record = infos[i].get("episode")
            if record is not None:
                scores[played[i], i], lengths[played[i], i] = record["r"], record["l"]
                played[i] += 1
        if on_step is not None:
            on_step(int(played.sum()))
    env.close()
    finished = np.arange(quota.max())[:, None] < quota
    agreement = int(agreed) / compared if reference is not None else None
    return Evaluation(scores[finished], lengths[finished], agreement, time.perf_counter() - started)


@torch.no_grad()
def _ask(agents: Sequence[ScoreFunction], observations: NDArray[np.uint8], device: torch.device | str) -> list[Tensor]:
    frames = torch.from_numpy(observations).to(device)
    asked = [agent(frames) for agent in agents]
    for index, scores in enumerate(asked):
        if not bool(scores.amax(dim=1).isfinite().all()):
            raise NonFiniteScoresError(index > 0, frames, scores)
    return asked


def _make_fitting_env(
    rules: Protocol,
    game: str,
    n_envs: int,
    seed: int,
    n_threads: int,
    agents: Sequence[ScoreFunction],
    device: torch.device | str,
) -> AtariVecEnv:
    """The game with the agents' set of actions: its own, or all 18. With another one they would press wrong buttons."""
    env = rules.make_env(game, n_envs, seed=seed, n_threads=n_threads)
    own = len(env.action_meanings)
    frame = np.zeros((1, *env.observation_space.shape), dtype=np.uint8)  # type: ignore[misc]  # a Box has a shape
    n_actions = {scores.shape[-1] for scores in _ask(agents, frame, device)}
    if n_actions == {own}:
        return env
    if n_actions == {N_ACTIONS}:
        return rules.make_env(game, n_envs, seed=seed, n_threads=n_threads, full_action_space=True)
    scored = " and ".join(map(str, sorted(n_actions)))
    raise UserError(
        f"the agent scores {scored} actions, {game} has {own} (or all {N_ACTIONS}): was it trained elsewhere?"
    )
