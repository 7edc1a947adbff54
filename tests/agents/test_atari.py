"""The vector environment: Stable-Baselines3's semantics, and each measured trap of the emulator."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecFrameStack

from agents.atari import AtariVecEnv
from polydistill.config import UserError


def play(env: AtariVecEnv, steps: int, seed: int = 0):
    """Random play; yields (observation before, action, observation, rewards, dones, infos)."""
    generator = np.random.default_rng(seed)
    before = env.reset()
    for _ in range(steps):
        actions = generator.integers(env.action_space.n, size=env.num_envs)
        after, rewards, dones, infos = env.step(actions)
        yield before, actions, after, rewards, dones, infos
        before = after


def record(n_threads: int, seed: int, steps: int = 60) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    env = AtariVecEnv("breakout", 3, seed=seed, n_threads=n_threads, repeat_action_probability=0.25)
    rows = [(after.copy(), rewards) for _, _, after, rewards, _, _ in play(env, steps)]
    return np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows])


def test_equal_seeds_give_equal_streams_at_any_thread_count_and_others_do_not():
    one, one_rewards = record(1, seed=5)
    two, two_rewards = record(2, seed=5)
    other, _ = record(1, seed=6)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one_rewards, two_rewards)
    assert (one != other).any()


def test_each_environment_has_its_own_seed_and_neighbouring_roots_share_no_game():
    first, second = (AtariVecEnv("ms_pacman", 3, seed=seed, n_threads=2) for seed in (0, 1))
    starts = [*first.reset(), *second.reset()]
    firsts = first._seed_sequence.spawn(1)[0].generate_state(3)
    seconds = second._seed_sequence.spawn(1)[0].generate_state(3)
    assert len(set(firsts.tolist()) | set(seconds.tolist())) == 6
    assert starts[0].shape == (4, 84, 84)


def test_noop_starts_reach_from_0_to_30():
    env = AtariVecEnv("pong", 96, seed=3, noop_max=30, fire_on_reset=False)
    _, counters = env._emulator.reset(seed=np.arange(96))
    noops = counters["episode_frame_number"]
    assert (noops.min(), noops.max()) == (0, 30)


def test_an_observation_shares_three_frames_with_the_one_before_unless_a_game_ended():
    env = AtariVecEnv("breakout", 4, seed=0, terminal_on_life_loss=True)
    compared = 0
    for before, _, after, _, _, infos in play(env, 300):
        for i, info in enumerate(infos):
            if "episode" not in info:
                np.testing.assert_array_equal(before[i, 1:], after[i, :3])
                compared += 1
    assert compared > 1000


def test_a_lost_life_ends_an_episode_but_not_the_game():
    env = AtariVecEnv("breakout", 4, seed=1, terminal_on_life_loss=True, clip_rewards=False)
    lives_lost = np.zeros(4, dtype=int)
    points = np.zeros(4)
    games = 0
    for _, _, after, rewards, dones, infos in play(env, 900):
        points += rewards
        for i in np.flatnonzero(dones):
            lives_lost[i] += 1
            if "episode" in infos[i]:
                assert lives_lost[i] == 5, "a game of Breakout has five lives"
                assert infos[i]["episode"]["r"] == points[i]
                assert (infos[i]["terminal_observation"] != after[i]).any()
                games, lives_lost[i], points[i] = games + 1, 0, 0.0
            else:
                np.testing.assert_array_equal(infos[i]["terminal_observation"], after[i])
            assert infos[i]["TimeLimit.truncated"] is False
    assert games >= 4


def test_without_life_loss_only_games_end():
    env = AtariVecEnv("breakout", 4, seed=1)
    ends = [(bool(done), "episode" in info) for *_, dones, infos in play(env, 500) for done, info in zip(dones, infos)]
    assert (True, True) in ends
    assert (True, False) not in ends
    assert (False, True) not in ends


def test_terminal_observation_is_the_last_of_the_game_and_observation_the_first_of_the_next():
    env = AtariVecEnv("pong", 2, seed=2, max_frames=400)
    seen = 0
    for before, _, after, _, dones, infos in play(env, 250):
        for i in np.flatnonzero(dones):
            np.testing.assert_array_equal(infos[i]["terminal_observation"][:3], before[i, 1:])
            assert (after[i, :3] != before[i, 1:]).any()
            seen += 1
    assert seen >= 4


def test_the_frame_cap_truncates_and_an_end_of_the_game_does_not():
    env = AtariVecEnv("pong", 2, seed=2, max_frames=400)
    ends = [info for *_, infos in play(env, 250) for info in infos if "episode" in info]
    assert ends
    assert all(info["TimeLimit.truncated"] for info in ends)
    assert all(90 <= info["episode"]["l"] <= 100 for info in ends), "400 frames are 100 steps less the no-ops"


def test_a_life_lost_before_the_cap_leaves_the_score_running():
    env = AtariVecEnv("breakout", 8, seed=4, terminal_on_life_loss=True, clip_rewards=False, max_frames=600)
    points = np.zeros(8)
    truncated = 0
    for *_, rewards, dones, infos in play(env, 400):
        points += rewards
        for i in np.flatnonzero(dones):
            if "episode" in infos[i]:
                assert infos[i]["episode"]["r"] == points[i]
                truncated += infos[i]["TimeLimit.truncated"]
                points[i] = 0.0
    assert truncated > 0


def test_rewards_for_learning_are_clipped_and_the_score_is_not():
    env = AtariVecEnv("ms_pacman", 2, seed=0)
    rewards_seen, scores = set(), []
    for *_, rewards, _, infos in play(env, 700):
        assert rewards.dtype == np.float32
        rewards_seen |= set(rewards.tolist())
        scores += [info["episode"]["r"] for info in infos if "episode" in info]
    assert rewards_seen == {0.0, 1.0}
    assert scores
    assert min(scores) >= 60, "a dot is worth ten points"


@pytest.mark.parametrize(
    "actions", [np.array([0, 6]), np.array([-1, 0]), np.array([0]), np.array([0.0, 1.0]), np.array([[0], [1]])]
)
def test_a_bad_action_is_refused_before_it_hangs_the_emulator(actions):
    env = AtariVecEnv("pong", 2, seed=0)
    env.reset()
    with pytest.raises(ValueError, match="action"):
        env.step(actions)


def test_an_unknown_game_is_one_line_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean ms_pacman") as error:
        AtariVecEnv("mspacman", 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options", [{"n_envs": 0}, {"noop_max": -1}, {"max_frames": 0}, {"repeat_action_probability": 1.5}]
)
def test_an_argument_out_of_range_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        AtariVecEnv("pong", **options)


def test_stable_baselines_takes_it_as_monitored_and_can_wrap_it():
    env = AtariVecEnv("pong", 2, seed=0)
    assert env.env_is_wrapped(Monitor) == [True, True]
    assert env.env_is_wrapped(VecFrameStack) == [False, False]  # type: ignore[arg-type]
    assert env.get_attr("game") == ["pong", "pong"]
    with pytest.raises(AttributeError):
        env.set_attr("game", "breakout")
    with pytest.raises(AttributeError):
        env.env_method("reset")


def test_fire_after_a_lost_life_replaces_the_next_action():
    env = AtariVecEnv("breakout", 1, seed=0, fire_on_life_loss=True)
    env.reset()
    noop = np.zeros(1, dtype=np.int64)
    for _ in range(400):
        env.step(noop)
        if env._lost_life[0]:
            break
    assert env._lost_life[0], "the ball served by FIRE falls beside a resting paddle"
    env.step(noop)
    assert env._actions.tolist() == [env.action_meanings.index("FIRE")]
    env.step(noop)
    assert env._actions.tolist() == [0]


def test_sticky_actions_change_the_stream():
    plain, sticky = (
        np.stack([a.copy() for _, _, a, *_ in play(AtariVecEnv("pong", 1, seed=0, repeat_action_probability=p), 60)])
        for p in (0.0, 0.5)
    )
    assert (plain != sticky).any()
