"""Atari games as a Stable-Baselines3 ``VecEnv``, emulated by ale-py's ``AtariVectorEnv``.

The emulator runs many games on C++ threads and returns preprocessed frames: grey, the maximum of two
successive frames, resized to 84 x 84, four of them stacked with the newest last (Mnih et al. 2015).
This module gives them the semantics that Stable-Baselines3 users expect: an automatic reset in the same
step, ``terminal_observation``, ``TimeLimit.truncated``, clipped float rewards for learning and the
unclipped score of whole games in ``info["episode"]``.

Units: one agent step is ``FRAME_SKIP`` = 4 frames of 1/60 s.
"""

from __future__ import annotations

import os
import time
from collections.abc import Hashable, Iterable, Mapping
from importlib.metadata import version
from typing import Any

import gymnasium as gym
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor

from polydistill_agents.environments.games import check_game
from polydistill_agents.environments.seeded import SeededVecEnv

PACKAGES = ("stable_baselines3", "sb3_contrib", "gymnasium", "ale_py")  # that results of agents depend on
FRAME_SKIP = 4
SHAPE = (4, 84, 84)  # of what an agent sees: frames, rows, columns
FIRE = "FIRE"
MAX_FRAMES = 108_000  # 30 minutes of play, the cap of every DeepMind paper
SPARE_EMULATORS = 4  # kept for later environments, at most

_spares: dict[Hashable, AtariVectorEnv] = {}  # by what they were made with, the one that was left last at the end


def _recipe_key(game: str, n_envs: int, options: Mapping[str, Any]) -> Hashable:
    """Of this process: a forked one has the emulators of its parent without their threads."""
    return (os.getpid(), game, n_envs, *options.items())


class AtariVecEnv(SeededVecEnv):
    """``n_envs`` copies of one Atari game as a Stable-Baselines3 vector environment.

    Observations are ``(n_envs, 4, 84, 84)`` uint8 (channels first, so that no transposing wrapper is added).
    Rewards are float32. ``dones`` marks the end of a game or, with ``terminal_on_life_loss``, of a life; the
    game then goes on (ale-py's own ``episodic_life`` would start a new game, so that later lives are never seen).

    Each ``info`` may hold:

    - ``terminal_observation``: ``(4, 84, 84)`` uint8, at every done; after it, the returned observation is the
      first of the next game (or, at a lost life, the same observation, since the game goes on). Where a game ends
      within a step the emulator does not look at the last screen: the newest frame repeats older ones;
    - ``TimeLimit.truncated``: True where the done comes from ``max_frames`` alone;
    - ``episode``: ``{"r", "l", "t"}`` at the end of a *game* only: unclipped score, length in agent steps,
      seconds since the environment was made.

    Args:
        game: ROM id of ale-py, like ``"pong"``, or another name that
            :func:`~polydistill_agents.environments.games.check_game` knows.
        n_envs: number of games played at once, >= 1.
        seed: root of the random streams (no-ops, sticky actions); each environment and each reset gets its
            own seed from ``numpy.random.SeedSequence``. None: from the operating system. A seed given here stays when a
            ``PolicyDistillation`` with ``seed=`` plays; Stable-Baselines3's algorithms call :meth:`seed` with theirs.
        noop_max: a game starts with 0 to ``noop_max`` no-ops, uniformly, one frame each.
        fire_on_reset: where the game has FIRE, press it in the first frame of the start, in the place of a no-op (and
            even if no no-op was drawn).
        fire_on_life_loss: replace the first action after a lost life by FIRE, where the game has it.
            Stable-Baselines3's wrappers press it too; without it an agent trained there may wait forever. For
            evaluation: what is learned from must hold the action that was really taken.
        terminal_on_life_loss: end an episode of learning at each lost life.
        clip_rewards: rewards for learning are sign(reward); ``info["episode"]`` is never clipped.
        repeat_action_probability: sticky actions (Machado et al. 2018: 0.25).
        full_action_space: all 18 actions instead of those that the game uses.
        max_frames: a game is truncated after so many frames, those of the start not counted.
        n_threads: emulator threads; 0: as many as there are cores. The stream of observations does not depend on it.

    Raises:
        UserError: unknown game.
        ValueError: an argument out of range; in ``step``, an action out of range (the emulator would hang).
    """

    def __init__(
        self,
        game: str,
        n_envs: int = 8,
        *,
        seed: int | None = None,
        noop_max: int = 30,
        fire_on_reset: bool = True,
        fire_on_life_loss: bool = False,
        terminal_on_life_loss: bool = False,
        clip_rewards: bool = True,
        repeat_action_probability: float = 0.0,
        full_action_space: bool = False,
        max_frames: int = MAX_FRAMES,
        n_threads: int = 0,
    ) -> None:
        if n_envs < 1 or noop_max < 0 or max_frames < FRAME_SKIP or n_threads < 0:
            raise ValueError(f"out of range: {n_envs=}, {noop_max=}, {max_frames=}, {n_threads=}")
        if not 0.0 <= repeat_action_probability <= 1.0:
            raise ValueError(f"repeat_action_probability is a probability, got {repeat_action_probability}")
        self.game = check_game(game)
        self.clip_rewards = clip_rewards
        self.emulator_options: dict[str, Any] = {
            "num_threads": n_threads,
            "max_num_frames_per_episode": max_frames,
            "repeat_action_probability": repeat_action_probability,
            "full_action_space": full_action_space,
            "autoreset_mode": AutoresetMode.SAME_STEP,
            "frameskip": FRAME_SKIP,
            "noop_max": noop_max + 1,  # the emulator draws from 0 .. noop_max - 1
            "life_loss_info": terminal_on_life_loss,
            "reward_clipping": False,  # clipped here: the score would be lost
            "use_fire_reset": fire_on_reset,
        }
        # a game takes a tenth of a second to load; a reset with seeds leaves nothing of those that were played before
        spare = _spares.pop(_recipe_key(self.game, n_envs, self.emulator_options), None)
        emulator = AtariVectorEnv(self.game, n_envs, **self.emulator_options) if spare is None else spare
        self._open_emulator: AtariVectorEnv | None = emulator
        self._waiting = False  # for the answer to actions that were sent
        self.action_meanings = [action.name for action in emulator.ale.get_action_set()]
        super().__init__(n_envs, spaces.Box(0, 255, SHAPE, np.uint8), spaces.Discrete(len(self.action_meanings)))
        self._fire = self.action_meanings.index(FIRE) if fire_on_life_loss and FIRE in self.action_meanings else None
        self.start_seeds(seed)
        self._start_time = time.time()
        self.sent_actions = np.zeros(n_envs, dtype=np.int64)
        self._scores = np.zeros(n_envs, dtype=np.float64)
        self._lengths = np.zeros(n_envs, dtype=np.int64)
        self._lives = np.zeros(n_envs, dtype=np.int32)
        self._game_starts = np.zeros(n_envs, dtype=np.int32)
        self._lost_life = np.zeros(n_envs, dtype=bool)

    @property
    def _emulator(self) -> AtariVectorEnv:
        if self._open_emulator is None:
            raise ValueError("this environment is closed: make a new AtariVecEnv")
        return self._open_emulator

    def settings(self) -> dict[str, Any]:
        """See :meth:`SeededVecEnv.settings`; the number of threads is not part of it."""
        options = {key: value for key, value in self.emulator_options.items() if key != "num_threads"}
        options["autoreset_mode"] = options["autoreset_mode"].value
        return {"game": self.game, "n_envs": self.num_envs, "fire": self._fire, **options}

    def versions(self) -> dict[str, str]:
        """That of the emulator."""
        return {"ale_py": version("ale-py")}

    def reset(self) -> NDArray[np.uint8]:
        """Start new games in all environments, every one with a fresh seed; ``(n_envs, 4, 84, 84)``."""
        observations, counters = self._emulator.reset(seed=self.draw_seeds())
        self._scores[:] = 0.0
        self._lengths[:] = 0
        self._lost_life[:] = False
        self._lives = counters["lives"].copy()
        self._game_starts = counters["frame_number"] - counters["episode_frame_number"]
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return observations  # type: ignore[no-any-return]

    def step_async(self, actions: NDArray[np.integer[Any]]) -> None:
        """Send one action per environment; ``(n_envs,)`` integers in ``[0, n_actions)``."""
        actions = np.asarray(actions)
        n_actions = len(self.action_meanings)
        if actions.shape != (self.num_envs,) or not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(f"actions must be {self.num_envs} integers, got {actions.dtype} of shape {actions.shape}")
        if actions.min() < 0 or actions.max() >= n_actions:
            raise ValueError(f"{self.game} has actions 0 to {n_actions - 1}, got {actions.min()} to {actions.max()}")
        self.sent_actions = actions.astype(np.int64)
        if self._fire is not None:
            self.sent_actions[self._lost_life] = self._fire
        self._emulator.send(self.sent_actions)
        self._waiting = True

    def step_wait(self) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Observations, rewards, dones and infos of the actions that were sent."""
        observations, raw_rewards, terminated, truncated, counters = self._emulator.recv()
        self._waiting = False
        self._scores += raw_rewards
        self._lengths += 1
        # At the end of a game the observation, the lives and the counters are already the next game's.
        # Only the frame at which the game started tells such an end from a lost life.
        game_starts = counters["frame_number"] - counters["episode_frame_number"]
        game_over = game_starts != self._game_starts
        self._game_starts = game_starts
        # some games show no life left for a few frames before they end
        self._lost_life = ~game_over & (counters["lives"] > 0) & (counters["lives"] < self._lives)
        self._lives = counters["lives"].copy()
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(dones):
            ended = bool(game_over[i])
            # final_obs is uninitialised memory but where a game has just ended
            infos[i]["terminal_observation"] = (counters["final_obs"] if ended else observations)[i].copy()
            infos[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
            if ended:
                infos[i]["episode"] = {
                    "r": float(self._scores[i]),
                    "l": int(self._lengths[i]),
                    "t": round(time.time() - self._start_time, 6),
                }
                self._scores[i] = 0.0
                self._lengths[i] = 0
        rewards = np.sign(raw_rewards) if self.clip_rewards else raw_rewards
        return observations, rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Leave the emulator to the next environment of the same game, number of games and options."""
        emulator, self._open_emulator = self._open_emulator, None
        if emulator is not None and not self._waiting:
            _spares[_recipe_key(self.game, self.num_envs, self.emulator_options)] = emulator
            while len(_spares) > SPARE_EMULATORS:
                del _spares[next(iter(_spares))]

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """The attribute once per asked environment: all share this object's."""
        value = None if attr_name == "render_mode" else getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Refused: the games live in the emulator, where single ones cannot be changed."""
        raise AttributeError(f"the games of an AtariVecEnv cannot be changed one by one (asked to set {attr_name})")

    def env_method(
        self, method_name: str, *args: Any, indices: int | Iterable[int] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Refused: there is no Python object per game."""
        raise AttributeError(f"the games of an AtariVecEnv have no methods of their own (asked for {method_name})")

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: int | Iterable[int] | None = None
    ) -> list[bool]:
        """True for ``Monitor``, whose ``info["episode"]`` this environment writes: ``evaluate_policy`` asks for it."""
        return [issubclass(Monitor, wrapper_class) for _ in self._get_indices(indices)]
