"""Learning again, after whatever: what is counted, what is owed, and what Stable-Baselines3's DQN would count."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecCheckNan

from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill_agents.environments.atari import AtariVecEnv
from tests.agents.distillation.squares import SMALL, Squares, look, make

RATE = LinearSchedule(1e-3, 1e-4, 1.0)


class StopAfter(BaseCallback):
    def __init__(self, n_calls: int) -> None:
        super().__init__()
        self.left = n_calls

    def _on_step(self) -> bool:
        self.left -= 1
        return self.left > 0


def student(env: Squares, **options: Any) -> PolicyDistillation:
    """One update of four samples for each step of all games."""
    each = {"learning_starts": 0, "train_freq": 1, "batch_size": 4, "samples_per_step": 4 / env.num_envs}
    return make(env=env, size=((2, 2, 2), 4), learning_rate=RATE, **(each | options))


def stock(env: Squares) -> DQN:
    small = {"features_extractor_kwargs": {"features_dim": 4}}
    return DQN(
        "CnnPolicy", env, RATE, 200, learning_starts=0, batch_size=4, train_freq=1, policy_kwargs=small, device="cpu"
    )  # fmt: skip


def reload_student(path: Path, env: Squares) -> PolicyDistillation:
    options = {"learning_starts": 0, "train_freq": 1, "batch_size": 4, "samples_per_step": 4 / env.num_envs}
    return PolicyDistillation.load(path, env, device="cpu", teacher=look, seed=0, learning_rate=RATE, **options)


def reload_stock(path: Path, env: Squares) -> DQN:
    return DQN.load(path, env, device="cpu", buffer_size=200)


def walk(model: Any, reload: Callable[[Path, Squares], Any], acts: str, path: Path) -> list[dict[str, Any]]:
    """What is counted after each act: learn, learn more, stop early (for a new count, or more), reload, set another
    environment."""
    found = []
    for act in acts.split():
        match act:
            case "learn" | "more":
                model.learn(7, reset_num_timesteps=act == "learn")
            case "stop" | "stop-more":
                model.learn(7, StopAfter(3), reset_num_timesteps=act == "stop")
            case "reload":
                model.save(path)
                model = reload(path, Squares(model.n_envs))
            case "env":
                model.set_env(Squares(model.n_envs))
        names = ("num_timesteps", "_n_updates", "_episode_num", "_num_timesteps_at_start", "_total_timesteps")
        counts = {name: getattr(model, name) for name in names}
        if act not in ("reload", "env"):
            counts["rate"] = round(model.policy.optimizer.param_groups[0]["lr"], 12)
        if act == "reload":  # these two say something of a call only
            counts = {name: counts[name] for name in names[:3]}
        found.append(counts)
    return found


def made_up_for(acts: str) -> Iterator[int]:
    """Updates that DQN leaves out for good, where a callback stops it after a step; here ``more`` makes them."""
    pending = made = 0
    for act in acts.split():
        if act in ("learn", "stop", "reload"):
            pending = 0
        if act in ("learn", "more", "stop", "stop-more"):
            made, pending = made + pending, 0
        pending += act in ("stop", "stop-more")
        yield made


def random_acts(seed: int) -> str:
    return " ".join(random.Random(seed).choices(["learn", "more", "stop", "stop-more", "reload", "env"], k=6))


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize(
    "acts",
    [
        *("learn learn learn", "learn more more", "stop learn", "stop more", "stop stop-more more learn"),
        *("learn reload more", "learn reload learn", "stop reload more more", "reload reload more"),
        *("learn env more", "learn env learn", "env stop env more", *map(random_acts, range(3))),
    ],
)
def test_steps_updates_games_and_rates_are_counted_as_stable_baselines_counts_them(
    acts: str, n_envs: int, tmp_path: Path
) -> None:
    ours = walk(student(Squares(n_envs)), reload_student, acts, tmp_path / "ours.zip")
    theirs = walk(stock(Squares(n_envs)), reload_stock, acts, tmp_path / "theirs.zip")
    for counts, more in zip(theirs, made_up_for(acts), strict=True):
        counts["_n_updates"] += more
    assert ours == theirs


def test_the_second_call_of_learn_makes_its_updates_without_a_second_warm_up() -> None:
    model = make(learning_starts=320).learn(640)
    assert model._n_updates == 80
    assert model.learn(64)._n_updates == 88
    assert model.learn(64, reset_num_timesteps=False)._n_updates == 96


def test_a_call_that_a_callback_stopped_leaves_the_next_one_its_updates() -> None:
    model = make(learning_starts=0)
    with pytest.warns(UserWarning, match="made no update: a callback stopped it within the first round"):
        model.learn(640, StopAfter(3))
    assert model.learn(64)._n_updates == 8, "only its own"
    with pytest.warns(UserWarning, match="made no update"):
        model.learn(640, StopAfter(3))
    assert model.learn(64, reset_num_timesteps=False)._n_updates == 8 + 9, "(12 + 64) * 4 / 32"


@pytest.mark.parametrize(("n_envs", "played"), [(4, 60), (1, 50), (16, 80)])
def test_short_calls_play_no_more_than_whole_steps_of_all_games(n_envs: int, played: int) -> None:
    model = make(env=Squares(n_envs), learning_starts=0)
    for k in range(5):
        model.learn(10, reset_num_timesteps=k == 0)
    assert model.num_timesteps == played
    assert model._n_updates == played * 4 // 32


def test_a_public_agent_owes_updates_for_the_steps_played_here_only() -> None:
    """10,000,000 steps of its own would be 937,500 updates with the default settings."""
    path = Path(__file__).parents[3] / "agents" / "teachers" / "zoo" / "dqn-pong.zip"
    options = {"learning_starts": 16, "batch_size": 8, "samples_per_step": 1.0, "train_freq": 4}

    def score(frames: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(look(frames), (0, 3), value=-1.0)

    model = PolicyDistillation.load(
        path, Squares(shape=(4, 84, 84), n_actions=6), "cpu", teacher=score, seed=0, **options
    )
    before, updates = model.num_timesteps, model._n_updates
    assert before > 100_000
    model.learn(40, reset_num_timesteps=False)
    assert (model.num_timesteps, model._n_updates) == (before + 40, updates + 5)
    model.learn(16)
    assert (model.num_timesteps, model._n_updates) == (16, updates + 7)


def test_a_call_without_an_update_says_what_to_change_in_one_warning() -> None:
    model = make(learning_starts=100)
    with pytest.warns(UserWarning, match="made no update") as said:
        model.learn(64)
    assert [str(warning.message) for warning in said] == [
        "learn made no update: the replay holds 64 samples of learning_starts=100; play more steps, or lower "
        "learning_starts"
    ]
    assert said[0].filename == __file__
    slow = make(learning_starts=0, samples_per_step=0.1)
    with pytest.warns(
        UserWarning, match=r"made no update: 64 steps owe 0\.20 of an update; play more steps, raise samp"
    ):
        slow.learn(64)
    assert slow.learn(256, reset_num_timesteps=False)._n_updates == 1
    assert slow.learn(0)._n_updates == 1, "nothing was played: nothing is to be said"


def test_a_warm_up_that_the_rounded_replay_never_reaches_ends_once_it_is_full() -> None:
    model = make(env=Squares(8), buffer_size=100, learning_starts=100, samples_per_step=8.0)
    assert model.learn(96 + 64)._n_updates == 40


@pytest.mark.parametrize("total", [8, 16, 150])
def test_a_call_however_short_does_not_learn_at_the_end_of_its_schedule_only(total: int) -> None:
    """In rounds of 16 steps of all games, a call of 16 would ask it once, for the end: a line to zero gives zero."""
    asked: list[float] = []
    few = {"batch_size": 4, "samples_per_step": 4.0}  # an update for each step
    model = make(env=Squares(1), learning_starts=0, train_freq=16, **few)
    model.learn(total)
    model.lr_schedule = lambda left: asked.append(left) or 1e-4  # type: ignore[func-returns-value]
    for _ in range(2):
        asked.clear()
        before = model.num_timesteps
        model.learn(total, reset_num_timesteps=False)
        rounds = sorted({round((1 - left) * (before + total)) for left in asked})
        assert len(rounds) >= 8, "the steps at which it was asked"
        assert np.diff([before, *rounds]).max() <= 16
        assert rounds[-1] == before + total


def test_a_schedule_is_never_asked_for_less_than_the_end() -> None:
    """A line to zero would go below it where the last step of all games leads beyond the total."""
    model = make(env=Squares(16), learning_starts=0, learning_rate=lambda left: 1e-3 * left).learn(20)
    assert model._n_updates == 4
    assert model.policy.optimizer.param_groups[0]["lr"] == 0.0


def test_another_number_of_games_begins_an_empty_replay_and_learning_goes_on() -> None:
    model = make(learning_starts=32).learn(64)
    model.set_env(Squares(8))
    assert model.learn(64, reset_num_timesteps=False)._n_updates == 16
    assert model.replay is not None
    assert (model.n_envs, len(model.replay)) == (8, 64)
    loaded = make(env=Squares(2), learning_starts=0).learn(32)
    loaded.set_env(Squares(1))
    assert loaded.learn(32)._n_updates == 8


def test_the_replay_stays_where_the_number_of_games_does() -> None:
    model = make().learn(64)
    model.set_env(Squares(seed=5))
    with pytest.warns(UserWarning, match="4 steps owe 0.50"):
        model.learn(4)
    assert model.replay is not None
    assert len(model.replay) == 68


def test_an_environment_of_another_game_is_refused_in_one_line_that_names_both(tmp_path: Path) -> None:
    model = make().learn(64)
    model.save(tmp_path / "student")
    for env, theirs in (
        (Squares(n_actions=6), r"\(4, 36, 36\) and 6 actions"),
        (Squares(shape=(1, 84, 84)), r"\(1, 84, 84\) and 3 actions"),
    ):
        ours = r"observations \(4, 36, 36\) and 3 actions, the environment has observations "
        with pytest.raises(ValueError, match=f"another game: the student is for {ours}{theirs}$"):
            model.set_env(env)
        with pytest.raises(ValueError, match=f"another game: .*student.zip is for {ours}{theirs}$"):
            PolicyDistillation.load(tmp_path / "student", env, device="cpu")


NO_ENVIRONMENTS = {
    "None": None,
    "pong": "pong",
    "5": 5,
    "a class": Squares,
    "a list": [Squares()],
    "a function": Squares.step,
}


@pytest.mark.parametrize("env", NO_ENVIRONMENTS.values(), ids=NO_ENVIRONMENTS)
def test_what_is_no_environment_is_refused_in_one_line_that_says_what_is_one(env: Any) -> None:
    with pytest.raises(ValueError, match=r"^env must be a gymnasium.Env or a VecEnv, like .*, got [^\n]{1,80}$"):
        make().set_env(env)
    if not (env is None or isinstance(env, str)):  # the constructor takes the name of a game, and misses None itself
        with pytest.raises(ValueError, match=r"^env must be a gymnasium.Env or a VecEnv"):
            PolicyDistillation("CnnPolicy", env, look)


def test_a_student_without_an_environment_gets_one_before_it_learns(tmp_path: Path) -> None:
    make().save(tmp_path / "student.zip")
    options = {"learning_starts": 0, "batch_size": 8, "train_freq": 8}
    model = PolicyDistillation.load(tmp_path / "student.zip", device="cpu", teacher=look, **options)
    with pytest.raises(ValueError, match="there is no environment: pass one to load"):
        model.learn(32)
    model.set_env(Squares())
    assert model.learn(32)._n_updates == 48
    with pytest.raises(ValueError, match="env is missing"):
        PolicyDistillation("CnnPolicy", teacher=look)


def test_the_play_that_a_student_forgot_is_not_owed_but_what_it_waited_for_is() -> None:
    model = make(learning_starts=96)
    with pytest.warns(UserWarning, match="made no update"):
        model.learn(64)
    assert model.learn(64, reset_num_timesteps=False)._n_updates == 16, "128 steps, at a stretch"
    again = make(learning_starts=96)
    with pytest.warns(UserWarning, match="made no update"):
        again.learn(64)
    assert again.learn(64)._n_updates == 8, "the count starts at 0 again"


def test_updates_never_go_back(tmp_path: Path) -> None:
    model = make()
    counts = [model.learn(64, reset_num_timesteps=bool(k % 2))._n_updates for k in range(6)]
    assert all(after - before == 8 for before, after in pairwise(counts))
    assert np.isfinite(counts).all()


class Counting(gym.Env[np.ndarray, int]):
    """One game of frames that come from the generator that an environment's seed starts, as gymnasium's do."""

    observation_space = spaces.Box(0, 255, SMALL, np.uint8)
    action_space = spaces.Discrete(3)

    def _look(self) -> np.ndarray:
        return self.np_random.integers(0, 256, SMALL, dtype=np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._look(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self._look(), 0.0, False, False, {}


def first_frames(model: Any) -> np.ndarray:
    return model.get_env().reset()  # type: ignore[no-any-return]


def test_a_seed_starts_the_environments_stream_as_in_stable_baselines_and_no_global_one() -> None:
    dqn = DQN("CnnPolicy", Counting(), buffer_size=10, seed=3, device="cpu")
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    ours = first_frames(make(env=Counting(), seed=3))
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected
    np.testing.assert_array_equal(ours, first_frames(dqn))
    for others in ({"seed": 4}, {"seed": None}, {"seed": 3, "generation": 2}):
        assert not np.array_equal(ours, first_frames(make(env=Counting(), **others)))


def test_equal_seeds_give_equal_students_on_an_environment_without_a_seed_of_its_own() -> None:
    options = {"learning_starts": 0, "batch_size": 8, "size": ((2, 2, 2), 4)}
    first, again, other = (make(env=Counting(), seed=s, **options).learn(24).student.state_dict() for s in (0, 0, 1))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


def test_a_seed_set_later_starts_the_same_streams() -> None:
    model = make(env=Counting(), seed=None)
    model.set_random_seed(3)
    np.testing.assert_array_equal(first_frames(model), first_frames(make(env=Counting(), seed=3)))
    frames = Squares(256).reset()
    model.exploration_rate = 1.0
    np.testing.assert_array_equal(
        model.predict(frames)[0], make(env=Counting(), seed=3, exploration_rate=1.0).predict(frames)[0]
    )


@pytest.mark.parametrize("wrap", [lambda env: env, VecCheckNan])
def test_atari_games_keep_the_seed_that_they_were_made_with_and_take_the_students_where_they_have_none(
    wrap: Callable[[Any], Any],
) -> None:
    def start(own: int | None, seed: int | None) -> list[int]:
        env = AtariVecEnv("pong", 2, seed=own, n_threads=1)
        if seed is not None:
            make(env=wrap(env), teacher=None, seed=seed)
        env.reset()
        return env.reset_seeds.tolist()  # type: ignore[no-any-return]

    assert start(5, 0) == start(5, 1) == start(5, None)
    assert start(None, 0) == start(None, 0) == start(0, None)
    assert start(None, 1) != start(None, 0)


SEEDED = """
import numpy as np, torch
import gymnasium as gym
from gymnasium import spaces
from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill.provenance import weights_sha256

class Noise(gym.Env):
    observation_space, action_space = spaces.Box(0, 255, (2, 36, 36), np.uint8), spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.look(), {}

    def step(self, action):
        return self.look(), 0.0, self.np_random.random() < 0.1, False, {}

    def look(self):
        return self.np_random.integers(0, 256, (2, 36, 36), dtype=np.uint8)

for seed in (0, 1):
    teacher = lambda frames: frames[:, :1, 0, :3].float().mean(1) / 100
    options = {"size": ((2, 2, 2), 4), "learning_starts": 8, "batch_size": 8, "device": "cpu", "seed": seed}
    model = PolicyDistillation("CnnPolicy", Noise(), teacher, **options).learn(32)
    print(model._n_updates, weights_sha256(model.student.state_dict()))
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("one_thread")
def test_two_processes_of_one_seed_teach_one_student_in_a_game_without_a_seed(run_python, capsys) -> None:
    """This one, and another."""
    exec(SEEDED, {})
    here = capsys.readouterr().out
    zero, one = here.splitlines()
    there = run_python("-W", "ignore", "-c", SEEDED)
    assert there.returncode == 0, there.stderr
    assert there.stdout == here
    assert zero.split()[0] == one.split()[0] == "48"
    assert zero != one
