"""Small environments of every kind, registered when this module is imported, as a user's package would be."""

from __future__ import annotations

import time

import gymnasium as gym
import numpy as np
from gymnasium import spaces

LENGTH = 7  # steps of a game


class Toy(gym.Env):
    """Shows samples of its space, drawn from its own generator; action 1 is worth one point."""

    observation_space: spaces.Space = spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space: spaces.Space = spaces.Discrete(3)
    length = LENGTH

    def show(self):
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.clock = 0
        return self.show(), {}

    def step(self, action):
        self.clock += 1
        return self.show(), float(action == 1), self.clock >= self.length, False, {}


def seen(**options):
    """A toy that shows another space, or has other actions."""
    return type("Seen", (Toy,), options)


Table = seen(
    observation_space=spaces.Dict(
        {
            "where": spaces.Discrete(5),
            "speed": spaces.Box(-1.0, 1.0, (2,), np.float32),
            "eye": spaces.Box(0, 255, (40, 40, 3), np.uint8),
            "bits": spaces.MultiBinary(4),
        }
    )
)
Eyes = seen(
    observation_space=spaces.Dict(
        {"first": spaces.Box(0, 255, (3, 40, 40), np.uint8), "last": spaces.Box(0, 255, (40, 40, 3), np.uint8)}
    )
)
Count = seen(observation_space=spaces.Discrete(6))
Large = seen(observation_space=spaces.Box(0, 255, (40, 40, 3), np.uint8))
First = seen(observation_space=spaces.Box(0, 255, (3, 40, 40), np.uint8))
Small = seen(observation_space=spaces.Box(0, 255, (10, 10, 1), np.uint8))
Nested = seen(observation_space=spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(2)})}))
Words = seen(observation_space=spaces.Dict({"a": spaces.Discrete(2), "mission": spaces.Text(5)}))
Two = seen(observation_space=spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3))))
Continuous = seen(action_space=spaces.Box(-1.0, 1.0, (2,), np.float32))
Many = seen(action_space=spaces.MultiDiscrete([2, 3]))
Switches = seen(action_space=spaces.MultiBinary(3))
Shifted = seen(action_space=spaces.Discrete(3, start=1))
Nothing = seen(observation_space=spaces.Box(0, 1, (3, 0), np.float32))
Scalar = seen(observation_space=spaces.Box(0, 1, (), np.float32))
Endless = seen(length=10**9)


class Raises(Toy):
    """Fails in the second step of its second game."""

    games = 0

    def reset(self, *, seed=None, options=None):
        self.games += 1
        return super().reset(seed=seed)

    def step(self, action):
        if self.games == 2 and self.clock == 1:
            raise KeyError("no such part")
        return super().step(action)


class RaisesInReset(Toy):
    """Fails where its second game begins."""

    games = 0

    def reset(self, *, seed=None, options=None):
        self.games += 1
        if self.games == 2:
            raise OSError("the simulator\nis gone")
        return super().reset(seed=seed)


class NotFinite(Toy):
    """Shows a NaN, or gives an infinite reward, in its third step."""

    def __init__(self, what="observation"):
        self.what = what

    def step(self, action):
        shown, reward, *rest = super().step(action)
        if self.clock == 3 and self.what == "observation":
            shown[1] = np.nan
        return shown, float("inf") if self.clock == 3 and self.what == "reward" else reward, *rest


class Misshapen(Toy):
    """Shows something else than its space says, in its second step."""

    def __init__(self, what):
        self.what = what

    def step(self, action):
        _, *rest = super().step(action)
        wrong = {"shape": np.zeros(4, np.float32), "none": None, "words": "words"}[self.what]
        return wrong if self.clock == 2 else self.show(), *rest


class Beyond(Count):
    """Its space ends at 5, and it shows a 6 in its second step."""

    def step(self, action):
        shown, *rest = super().step(action)
        return 6 if self.clock == 2 else shown, *rest


class Restless(Toy):
    """Does not repeat itself: from its second step on it shows the time."""

    def show(self):
        return np.full(3, time.perf_counter() % 1 if self.clock > 1 else 0, np.float32)


class Masked(Toy):
    """Takes two of three actions: not the one that the step's number names."""

    def action_masks(self):
        return np.arange(3) != self.clock % 3


def cut_short(env):
    """A wrapper that ends a game after its third step, though it would go on."""

    class Cut(gym.Wrapper):
        def reset(self, **options):
            self.left = 3
            return self.env.reset(**options)

        def step(self, action):
            self.left -= 1
            shown, reward, terminated, _, info = self.env.step(action)
            return shown, reward, terminated, self.left == 0, info

    return Cut(env)


def one_life(env):
    """A wrapper that says that a game ends after its second step, and plays it on when it is reset."""

    class Lives(gym.Wrapper):
        over = True

        def reset(self, **options):
            if self.over or options.get("seed") is not None:
                self.lived = 0
                return self.env.reset(**options)
            return self.env.step(0)[0], {}

        def step(self, action):
            shown, reward, self.over, truncated, info = self.env.step(action)
            self.lived += 1
            return shown, reward, self.over or self.lived == 2, truncated, info

    return Lives(env)


def last_life(env):
    """A wrapper that says that a game ends before its last step, and makes that step in its reset."""

    class Last(gym.Wrapper):
        def reset(self, **options):
            if getattr(self.unwrapped, "clock", 0) == LENGTH - 1:
                self.env.step(1)
            return self.env.reset(**options)

        def step(self, action):
            shown, reward, terminated, truncated, info = self.env.step(action)
            return shown, reward, terminated or self.unwrapped.clock == LENGTH - 1, truncated, info

    return Last(env)


def broken(env):
    raise RuntimeError("no wrapper today")


def nothing(env):
    return None


TOYS = {name: value for name, value in list(globals().items()) if isinstance(value, type) and issubclass(value, Toy)}
for name, kind in TOYS.items():
    gym.register(f"{name}-v3", entry_point=kind)
gym.register("Toy-v1", entry_point=Toy)
gym.register("Limited-v0", entry_point=Endless, max_episode_steps=5)
gym.register("NeedsBox-v0", entry_point="tests.agents.environments.no_such_module:Toy")
