"""Environments of gymnasium, played: scored as Stable-Baselines3 scores, measured at random, recorded, played again."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy

from polydistill.errors import UserError
from polydistill_agents.environments.evaluation import evaluate
from polydistill_agents.environments.gym_task import open_environment
from polydistill_agents.environments.random_play import measure_random, no_better_than_random
from polydistill_agents.environments.recording import Recording, first_difference, recorded_bytes
from polydistill_agents.environments.steps import Step
from polydistill_agents.environments.task import open_task
from polydistill_agents.networks.observations import count_rows, leaves
from polydistill_agents.teachers import Teacher
from tests.agents.environments import toys

TOYS = toys.__name__


def toy(name, **options):
    return open_environment(f"{name}-v3", package=TOYS, **options)


def always(action, n_actions=3):
    def agent(observations):
        scores = torch.zeros(count_rows(observations), n_actions)
        scores[:, action] = 1.0
        return scores

    return agent


# ------------------------------------------------------------------ scores


def test_scores_are_those_of_stable_baselines_on_the_same_seeds():
    task, seed = open_environment("CartPole-v1"), 3

    def agent(observations):  # it pushes to where the pole falls
        return torch.stack([-observations[:, 2], observations[:, 2]], dim=1)

    class Model:
        def predict(self, observations, state, episode_start, deterministic):
            return agent(torch.from_numpy(observations)).argmax(dim=1).numpy(), None

    ours = evaluate(agent, task, episodes=12, n_envs=4, seed=seed)
    env = task.make_env(4, seed=int(np.random.SeedSequence(seed).generate_state(2)[0]))
    returns, lengths = evaluate_policy(Model(), env, n_eval_episodes=12, return_episode_rewards=True, warn=True)
    assert sorted(ours.scores) == sorted(returns)
    assert sorted(ours.lengths) == sorted(lengths)
    assert len(set(ours.scores)) > 3, "games of different seeds differ"


def test_a_greedy_agent_needs_no_epsilon_where_games_differ_by_their_seeds():
    result = evaluate(always(1, 2), "CartPole-v1", episodes=5)
    assert 8 <= result.lengths.min() <= result.lengths.max() <= 11, "one who always pushes right falls soon"
    assert (result.truncated, result.n_actions, result.game_actions, result.invalid_share) == (0, 2, 2, None)


def test_agents_are_given_tables_as_tensors():
    shapes = {}

    def agent(observations):
        shapes.update({name: (tuple(values.shape[1:]), values.dtype) for name, values in observations.items()})
        return always(1)(observations)

    assert evaluate(agent, toy("Table"), episodes=2).scores.tolist() == [7.0, 7.0]
    assert shapes == {
        "where": ((), torch.int64), "speed": ((2,), torch.float32), "eye": ((3, 40, 40), torch.uint8),
        "bits": ((4,), torch.int8),
    }  # fmt: skip


def test_games_that_were_cut_are_counted_and_another_protocol_is_refused():
    assert evaluate(always(0), toy("Toy", max_steps=3), episodes=4).truncated == 4
    with pytest.raises(UserError, match="under the protocol 'own' alone"):
        evaluate(always(0), toy("Toy"), protocol="zoo")


@pytest.mark.parametrize(
    ("name", "near"), [("CartPol-v1", "CartPole-v1"), ("pongg", "pong"), ("PonggNoFrameskip-v4", "pong")]
)
def test_an_unknown_name_has_the_nearest_game_or_environment(name, near):
    with pytest.raises(UserError, match=f"did you mean {near}\\?"):
        evaluate(always(1), name)


def test_an_agent_of_other_actions_is_refused():
    with pytest.raises(UserError, match="scores 4 actions, Toy-v3 has 3: was it trained elsewhere"):
        evaluate(always(1, 4), toy("Toy"), episodes=1)


class Counter:
    """An agent that remembers how many steps of each game it has seen, and acts 1 in every second of them."""

    has_memory = True

    def __init__(self):
        self.steps = torch.tensor([7.0])
        self.told = []

    def begin(self, n_games):
        self.steps = torch.zeros(n_games)

    def memory(self):
        return self.steps.clone()

    def remember(self, state):
        self.steps = state.clone()

    def label(self, observations, starts, rows=None):
        self.told.append((starts.tolist(), rows.tolist()))
        self.steps[rows] = torch.where(torch.from_numpy(starts), 0.0, self.steps[rows] + 1)
        return torch.stack([torch.zeros(len(rows)), self.steps[rows] % 2 - 0.5, -torch.ones(len(rows))], dim=1)

    def __call__(self, observations):
        return always(0)(observations)


def test_an_agent_with_a_memory_is_told_where_games_begin_and_which_play():
    counter = Counter()
    result = evaluate(counter, toy("Toy"), episodes=3, n_envs=2)
    assert result.scores.tolist() == [3.0, 3.0, 3.0], "in its steps 1, 3 and 5 of 7"
    assert counter.told[0] == ([True, True], [0, 1])
    assert counter.told[1] == ([False, False], [0, 1])
    assert counter.told[7] == ([True], [0]), "the second environment has played its game"
    assert len(counter.told) == 14


def test_an_agent_with_a_memory_has_it_back_after_it_was_asked():
    counter = Counter()
    assert evaluate(always(1), toy("Toy"), episodes=2, reference=counter).agreement == pytest.approx(3 / 7)
    assert counter.steps.tolist() == [7.0]


def test_an_agent_with_a_memory_that_is_its_own_reference_remembers_each_step_once():
    counter = Counter()
    result = evaluate(counter, toy("Toy"), episodes=2, reference=counter)
    assert (result.scores.tolist(), result.agreement) == ([3.0, 3.0], 1.0)
    assert counter.steps.tolist() == [7.0]


# ------------------------------------------------------------------ masks


def test_invalid_actions_are_counted_or_left_out():
    task = toy("Masked")
    # in the 7 steps of a game action 1 is invalid in the steps 1 and 4
    stock = evaluate(always(1), task, episodes=4, n_envs=2)
    assert (stock.invalid_share, stock.scores.tolist()) == (2 / 7, [7.0] * 4)
    masked = evaluate(always(1), task, episodes=4, n_envs=2, masked=True)
    assert (masked.invalid_share, masked.scores.tolist()) == (0.0, [5.0] * 4)


def test_a_reference_that_learned_with_masks_means_its_best_valid_action():
    def prefers_1_then_2(observations):
        return torch.tensor([[0.0, 2.0, 1.0]]).repeat(count_rows(observations), 1)

    # in the steps 1 and 4 of 7 action 1 is invalid, and its next best is 2
    for masks, agreement in ((False, 1.0), (True, 5 / 7)):
        reference = Teacher(prefers_1_then_2, masks=masks)
        assert evaluate(always(1), toy("Masked"), episodes=2, reference=reference).agreement == agreement


def test_masked_play_without_masks_is_one_line():
    with pytest.raises(UserError, match="Toy-v3 has no action masks"):
        evaluate(always(1), toy("Toy"), episodes=1, masked=True)
    with pytest.raises(UserError, match="pong has no action masks"):
        evaluate(always(1, 6), "pong", episodes=1, masked=True)


@pytest.mark.parametrize(
    ("told", "words"), [(lambda self: 1 / 0, "fails: ZeroDivisionError"), (np.ones(4), r"must have the shape \(3,\)")]
)
def test_masks_that_cannot_be_used_are_one_line(told, words, monkeypatch):
    monkeypatch.setattr(toys.Masked, "action_masks", told)
    with pytest.raises(UserError, match=f"action_masks of the environment {words}"):
        evaluate(always(1), toy("Masked"), episodes=1)


def test_masks_that_allow_nothing_end_masked_play_in_one_line(monkeypatch):
    monkeypatch.setattr(toys.Masked, "action_masks", lambda self: np.full(3, self.clock != 2))
    assert evaluate(always(1), toy("Masked"), episodes=1).invalid_share == 1 / 7
    with pytest.raises(UserError, match="allows no action at all in row 0 of its masks"):
        evaluate(always(1), toy("Masked"), episodes=1, masked=True)
    with pytest.raises(UserError, match="allows no action at all"):
        evaluate(always(1), toy("Masked"), episodes=1, reference=Teacher(always(1), masks=True))


def test_a_game_that_only_idles_takes_valid_actions_too(monkeypatch):
    step = toys.Masked.step

    def refuse(self, action):
        assert self.action_masks()[action], f"action {action} in step {self.clock}"
        return step(self, action)

    monkeypatch.setattr(toys.Masked, "step", refuse)
    # the second of two environments has played its game after 7 steps, the first plays two
    assert evaluate(always(1), toy("Masked"), episodes=3, n_envs=2, masked=True).invalid_share == 0.0


def test_an_environment_that_cannot_be_reset_is_closed(monkeypatch):
    closed = []
    monkeypatch.setattr(toys.Masked, "reset", lambda self, **options: 1 / 0)
    monkeypatch.setattr(toys.Masked, "close", lambda self: closed.append(True))
    with pytest.raises(UserError, match="fails in reset"):
        evaluate(always(1), toy("Masked"), episodes=1)
    assert closed


def test_masks_may_be_an_attribute(monkeypatch):
    monkeypatch.setattr(toys.Masked, "action_masks", np.array([True, False, True]))
    assert evaluate(always(1), toy("Masked"), episodes=1).invalid_share == 1.0


# ------------------------------------------------------------------ random play


def test_random_play_is_uniform_and_repeats_itself():
    scores = measure_random(toy("Toy"), 200, seed=1)
    assert scores.shape == (200,)
    assert scores.mean() == pytest.approx(7 / 3, abs=0.3)
    np.testing.assert_array_equal(scores, measure_random(toy("Toy"), 200, seed=1))
    # action 1 is valid in 5 of 7 steps, one of two actions then
    assert measure_random(toy("Masked"), 200, masked=True).mean() == pytest.approx(2.5, abs=0.3)


def test_random_play_of_cartpole_is_as_known():
    assert measure_random(open_environment("CartPole-v1"), 100).mean() == pytest.approx(22, abs=4)


def test_scores_are_normalised_by_a_measured_score_of_random_play():
    task = open_environment("CartPole-v1")
    assert task.teacher_normalized(261.0, 500.0, 22.0) == pytest.approx(0.5)
    assert task.teacher_normalized(261.0, 500.0) is None
    assert task.teacher_normalized(261.0, 22.0, 22.0) is None
    assert open_task("pong").teacher_normalized(0.0, 10.0, -10.0) == 0.5, "a score that is given comes first"


@pytest.mark.parametrize(
    ("teacher", "random", "same"),
    [
        ([500.0] * 10, [20.0, 30.0, 25.0] * 5, False),
        ([-200.0] * 10, [-200.0] * 10, True),
        ([10.0, 30.0] * 5, [9.0, 28.0] * 5, True),
        ([5.0] * 10, [20.0] * 10, True),
        ([30.0], [20.0], False),
        ([20.0], [20.0], True),
    ],
)
def test_a_teacher_that_is_not_clearly_better_than_random_play_is_said_in_words(teacher, random, same):
    line = no_better_than_random(teacher, random)
    assert (line is not None) == same
    if line is not None:
        assert f"the teacher's score {np.mean(teacher):g}" in line
        assert f"random play's {np.mean(random):g}" in line


# ------------------------------------------------------------------ recording


def play(env, recording, n_steps, n_actions):
    """Random play, recorded; scores are random numbers, too. The observations before every step and after the last."""
    generator, observations, starts, shown = np.random.default_rng(0), env.reset(), np.ones(env.num_envs, bool), []
    for _ in range(n_steps):
        actions = generator.integers(n_actions, size=env.num_envs)
        scores = torch.from_numpy(generator.random((env.num_envs, n_actions)).astype(np.float32))
        step = Step(observations, starts, scores, actions, *env.step(actions))
        recording.add(step)
        shown.append(step)
        observations, starts = step.new_obs, step.dones
    return shown


@pytest.mark.parametrize("name", ["Toy", "Table", "Count", "Large"])
def test_games_of_any_observation_are_played_again(name, tmp_path):
    task = toy(name)
    recording = Recording(tmp_path, task.make_env(2, seed=4), 3)
    played = play(recording.env, recording, 9, 3)
    state = recording.state()
    again = Recording(tmp_path, task.make_env(2, seed=4), 3)
    _, steps = again.play_again(state)
    steps = list(steps)
    assert len(steps) == len(again) == 9
    for mine, theirs in zip(steps, played, strict=True):
        np.testing.assert_array_equal(mine.actions, theirs.actions)
        assert torch.equal(mine.scores, theirs.scores)
        for values, expected in zip(leaves(mine.new_obs), leaves(theirs.new_obs), strict=True):
            np.testing.assert_array_equal(values, expected)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size == recorded_bytes(9, 3) * 2 == 9 * 2 * 13


def test_more_than_256_actions_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(toys.Toy, "action_space", spaces.Discrete(70_000))
    task = toy("Toy")
    recording = Recording(tmp_path, task.make_env(1, seed=4), 70_000)
    played = play(recording.env, recording, 2, 70_000)
    _, steps = Recording(tmp_path, task.make_env(1, seed=4), 70_000).play_again(recording.state())
    assert [step.actions.tolist() for step in steps] == [step.actions.tolist() for step in played]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == recorded_bytes(2, 70_000)


def test_an_environment_that_does_not_repeat_itself_is_named_when_it_is_played_again(tmp_path):
    task = toy("Restless")
    recording = Recording(tmp_path, task.make_env(1, seed=4), 3)
    play(recording.env, recording, 6, 3)
    _, steps = Recording(tmp_path, task.make_env(1, seed=4), 3).play_again(recording.state())
    with pytest.raises(UserError, match="Restless-v3 does not show again what it showed"):
        list(steps)


def test_a_part_of_a_table_that_differs_is_noticed(tmp_path):
    task = toy("Table")
    env = task.make_env(1, seed=4)
    recording = Recording(tmp_path, env, 3)
    (step, *_) = play(env, recording, 1, 3)
    table = {**step.new_obs, "bits": 1 - step.new_obs["bits"]}
    other = Recording(tmp_path, env, 3)
    other.add(step._replace(new_obs=table))
    assert recording.state()["segments"][0]["seen"] != other.state()["segments"][0]["seen"]


def test_an_environment_with_another_version_or_wrapper_is_refused(tmp_path):
    task = toy("Toy")
    recording = Recording(tmp_path, task.make_env(1, seed=4), 3)
    play(recording.env, recording, 1, 3)
    other = toy("Toy", wrappers=["TimeAwareObservation"]).make_env(1, seed=4)
    with pytest.raises(UserError, match=r"played with wrappers \[\], here it is \['TimeAwareObservation'\]"):
        Recording(tmp_path, other, 3).play_again(recording.state())


# ------------------------------------------------------------------ repetition


@pytest.mark.parametrize("name", ["Toy", "Table"])
def test_an_environment_that_repeats_itself_shows_no_difference(name):
    assert first_difference(toy(name), seed=0, steps=30) is None


def test_cartpole_and_pong_repeat_themselves():
    assert first_difference(open_environment("CartPole-v1"), seed=0) is None
    assert first_difference(open_task("pong"), seed=0, steps=5) is None


def test_the_step_in_which_an_environment_first_differs_is_found(monkeypatch):
    assert first_difference(toy("Restless"), seed=0, steps=30) == 2
    monkeypatch.setattr(toys.Toy, "show", lambda self: np.full(3, time.perf_counter() % 1, np.float32))
    assert first_difference(toy("Toy"), seed=0, steps=3) == 0
