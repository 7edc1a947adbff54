"""The vector environment: Stable-Baselines3's semantics, and each measured trap of the emulator."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from ale_py.vector_env import AtariVectorEnv
from numpy.typing import NDArray
from stable_baselines3 import DQN
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecFrameStack

from polydistill.errors import UserError
from polydistill_agents.environments.atari import AtariVecEnv


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
    seeds = []
    for env in (first, second, first):  # the second reset of an environment takes new ones
        assert env.reset().shape == (3, 4, 84, 84)
        seeds += env.reset_seeds.tolist()
    assert len(set(seeds)) == 9
    assert min(seeds) >= 0


def test_seeding_again_restarts_the_stream_at_the_next_reset():
    env = AtariVecEnv("pong", 2, seed=0, n_threads=1)
    env.reset()
    first = env.reset_seeds.tolist()
    env.seed(0)
    env.reset()
    assert env.reset_seeds.tolist() == first


def draw_starts(n_games: int, n_envs: int = 8, **options) -> NDArray[np.integer]:
    """Frames that have passed at the start of so many games of Pong; resets without a seed are cheap, emulators not."""
    env = AtariVecEnv("pong", n_envs, seed=3, n_threads=1, **options)
    env.reset()
    return np.concatenate(
        [env._emulator.reset(seed=None)[1]["episode_frame_number"] for _ in range(n_games // env.num_envs)]
    )


def test_noop_starts_reach_from_0_to_30_evenly():
    counts = np.bincount(draw_starts(31 * 16, noop_max=30, fire_on_reset=False))
    assert len(counts) == 31
    assert counts.min() > 0
    assert counts.max() < 16 + 5 * 4


def test_fire_takes_the_place_of_the_first_noop():
    counts = np.bincount(draw_starts(31 * 16, noop_max=30, fire_on_reset=True))
    assert len(counts) == 31
    assert counts[0] == 0
    assert counts[1] == pytest.approx(2 * 16, abs=4 * 6), "no no-op, and one"
    assert counts[2:].min() > 0


def test_without_noops_games_start_at_once():
    assert set(draw_starts(8, 1, noop_max=0, fire_on_reset=False)) == {0}
    assert set(draw_starts(8, 1, noop_max=0, fire_on_reset=True)) == {1}


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
    ends = [
        (bool(done), "episode" in info)
        for *_, dones, infos in play(env, 500)
        for done, info in zip(dones, infos, strict=True)
    ]
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
    assert [info["TimeLimit.truncated"] for info in ends] == [True] * 4
    assert [info["episode"]["l"] for info in ends] == [100] * 4, "400 frames after the no-ops"


def test_a_life_lost_in_the_frame_of_the_cap_ends_the_game_and_is_not_truncated():
    env = AtariVecEnv("breakout", 4, seed=0, terminal_on_life_loss=True, clip_rewards=False, max_frames=402)
    points, lost_at_the_cap = np.zeros(4), 0
    for _, _, after, rewards, dones, infos in play(env, 450):
        points += rewards
        for i in np.flatnonzero(dones):
            if "episode" not in infos[i]:
                continue
            assert infos[i]["episode"]["r"] == points[i]
            if not infos[i]["TimeLimit.truncated"]:
                assert infos[i]["episode"]["l"] == 101, "402 frames: the last step has two"
                assert (infos[i]["terminal_observation"] != after[i]).any()
                lost_at_the_cap += 1
            assert env._lives[i] == 5, "the next game has begun"
            points[i] = 0.0
    assert lost_at_the_cap >= 1


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
        AtariVecEnv("ms_pcaman", 1)
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
    assert env.sent_actions.tolist() == [env.action_meanings.index("FIRE")]
    env.step(noop)
    assert env.sent_actions.tolist() == [0]


def test_fire_is_pressed_after_a_lost_life_only_while_lives_are_left(monkeypatch):
    """Some games show no life left for some frames before they end; Stable-Baselines3 presses nothing there either."""
    env = AtariVecEnv("breakout", 1, seed=0, fire_on_life_loss=True, n_threads=1)
    env.reset()
    pressed = []
    for lives in (5, 4, 4, 0, 0, 1):
        frames = {"frame_number": np.array([100]), "episode_frame_number": np.array([100])}
        monkeypatch.setattr(env, "_game_starts", np.array([0]))
        nothing, no_end = np.zeros(1, dtype=np.int32), np.zeros(1, dtype=bool)
        shown = (
            np.zeros((1, 4, 84, 84), dtype=np.uint8),
            nothing,
            no_end,
            no_end,
            frames | {"lives": np.array([lives])},
        )
        monkeypatch.setattr(
            env, "_open_emulator", SimpleNamespace(send=lambda actions: None, recv=lambda shown=shown: shown)
        )
        env.step(np.array([2]))
        pressed.append(env.action_meanings[env.sent_actions[0]])
    assert pressed == ["RIGHT", "RIGHT", "FIRE", "RIGHT", "RIGHT", "RIGHT"]


@pytest.mark.parametrize("terminal_on_life_loss", [False, True])
def test_evaluate_policy_of_stable_baselines_gives_scores_of_whole_games(terminal_on_life_loss):
    env = AtariVecEnv("breakout", 3, seed=0, terminal_on_life_loss=terminal_on_life_loss, n_threads=1)
    ends, lives = [], 0

    class Random:
        coin = np.random.default_rng(0)

        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            return self.coin.integers(4, size=len(observation)), state

    def note(variables, _):
        nonlocal lives
        lives += bool(variables["done"])
        if "episode" in variables["info"]:
            ends.append(variables["info"]["episode"]["r"])

    scores, lengths = evaluate_policy(Random(), env, 6, return_episode_rewards=True, callback=note)
    assert len(scores) == len(lengths) == 6
    assert scores == ends[:6]
    assert min(lengths) > 100, "a life of Breakout lasts some 25 steps, a game five lives"
    assert lives >= (5 * 6 if terminal_on_life_loss else 6)


def test_a_stable_baselines_algorithm_learns_from_lives_and_reports_whole_unclipped_games():
    env = AtariVecEnv("ms_pacman", 2, seed=0, terminal_on_life_loss=True, n_threads=1)
    model = DQN("CnnPolicy", env, buffer_size=1600, learning_starts=10_000, device="cpu", seed=0)
    assert model.get_env() is env, "no wrapper is added"
    model.learn(1600, log_interval=None)
    assert model.ep_info_buffer
    assert min(game["r"] for game in model.ep_info_buffer) >= 60
    assert set(np.unique(model.replay_buffer.rewards)) == {0.0, 1.0}
    assert model.replay_buffer.dones.sum() == pytest.approx(3 * len(model.ep_info_buffer), abs=4)


def test_what_a_step_returned_stays_as_it_was():
    env = AtariVecEnv("breakout", 2, seed=0, terminal_on_life_loss=True, n_threads=1)
    kept = []
    for _, _, after, _, _, infos in play(env, 120):
        arrays = [after, *(info["terminal_observation"] for info in infos if "terminal_observation" in info)]
        kept += [(array, array.copy()) for array in arrays]
    assert len(kept) > 120
    for array, copy in kept:
        np.testing.assert_array_equal(array, copy)


def test_without_sticky_actions_the_actions_alone_decide():
    """The default is not sticky: environments of other seeds, given the same actions, show the same."""
    env = AtariVecEnv("pong", 2, seed=0, noop_max=0, n_threads=1)
    actions = np.random.default_rng(0).integers(6, size=150)
    env.reset()
    for action in actions:
        observations, *_ = env.step(np.array([action, action]))
        np.testing.assert_array_equal(observations[0], observations[1])
    sticky = AtariVecEnv("pong", 2, seed=0, noop_max=0, repeat_action_probability=0.25, n_threads=1)
    sticky.reset()
    shown = [sticky.step(np.array([action, action]))[0] for action in actions]
    assert any((observations[0] != observations[1]).any() for observations in shown)


def test_sticky_actions_change_the_stream():
    plain, sticky = (
        np.stack([a.copy() for _, _, a, *_ in play(AtariVecEnv("pong", 1, seed=0, repeat_action_probability=p), 60)])
        for p in (0.0, 0.5)
    )
    assert (plain != sticky).any()


def test_an_environment_with_the_emulator_of_a_closed_one_plays_as_a_new_one(monkeypatch):
    made = []

    def make(*args, **kwargs):
        made.append(args)
        return AtariVectorEnv(*args, **kwargs)

    monkeypatch.setattr("polydistill_agents.environments.atari.AtariVectorEnv", make)
    monkeypatch.setattr("polydistill_agents.environments.atari._spares", {})
    options = {"seed": 5, "n_threads": 1, "repeat_action_probability": 0.25, "max_frames": 400}
    new = [step[2:5] for step in play(AtariVecEnv("breakout", 2, **options), 120)]
    used = AtariVecEnv("breakout", 2, **options | {"seed": 8})
    for _ in play(used, 77, seed=3):
        pass
    used.close()
    again = [step[2:5] for step in play(AtariVecEnv("breakout", 2, **options), 120)]
    assert len(made) == 2
    for one, other in zip(new, again, strict=True):
        for theirs, ours in zip(one, other, strict=True):
            np.testing.assert_array_equal(theirs, ours)


def test_a_closed_environment_is_not_played_and_may_be_closed_again():
    env = AtariVecEnv("pong", 1, n_threads=1)
    env.close()
    env.close()
    with pytest.raises(ValueError, match="closed"):
        env.reset()


def test_an_emulator_that_still_owes_an_answer_is_not_used_again(monkeypatch):
    spares: dict[object, object] = {}
    monkeypatch.setattr("polydistill_agents.environments.atari._spares", spares)
    env = AtariVecEnv("pong", 1, n_threads=1)
    env.reset()
    env.step_async(np.zeros(1, dtype=np.int64))
    env.close()
    assert not spares


def test_few_emulators_are_kept_the_oldest_is_given_up(monkeypatch):
    spares: dict[object, object] = {}
    monkeypatch.setattr("polydistill_agents.environments.atari._spares", spares)
    for caps in range(400, 406):
        AtariVecEnv("pong", 1, n_threads=1, max_frames=caps).close()
    assert [dict(key[3:])["max_num_frames_per_episode"] for key in spares] == [402, 403, 404, 405]
