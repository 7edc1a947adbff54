"""Scores under named protocols: whole games, a number of them fixed beforehand, randomness of our own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from polydistill.errors import UserError
from polydistill_agents.environments.atari import AtariVecEnv
from polydistill_agents.environments.evaluation import choose_actions, evaluate
from polydistill_agents.environments.protocols import Protocol
from polydistill_agents.environments.task import Task
from polydistill_agents.teachers import Teacher

SHORT = Protocol(0.05, 30, 0.0, True, False, "test", max_frames=400)
STILL = Protocol(0.0, 0, 0.0, True, False, "test")


class FakeGames:
    """Games that score what they last. Of each environment the lengths are known, and the actions are kept."""

    def __init__(self, lengths: list[list[int]], cap: int = 1000) -> None:
        self.lengths, self.cap = lengths, cap  # per environment, game by game; the length of a game that is cut
        self.num_envs = len(lengths)
        self.clock = np.zeros(self.num_envs, dtype=int)
        self.game = np.zeros(self.num_envs, dtype=int)
        self.actions: list[np.ndarray] = []
        self.closed = False

    def look(self) -> np.ndarray:
        frames = np.zeros((self.num_envs, 1, 2, 2), dtype=np.uint8)
        frames[:, 0, 0, 0] = np.arange(self.num_envs)
        frames[:, 0, 0, 1] = self.game
        return frames

    reset = look

    def step(self, actions):
        self.actions.append(np.array(actions))
        self.clock += 1
        dones, infos = np.zeros(self.num_envs, dtype=bool), []
        for i in range(self.num_envs):
            infos.append({})
            length = self.lengths[i][min(self.game[i], len(self.lengths[i]) - 1)]
            if self.clock[i] == length:
                infos[i]["episode"] = {"r": 1000.0 * i + length, "l": length, "t": 0.0}
                infos[i]["TimeLimit.truncated"] = length >= self.cap
                dones[i], self.clock[i] = True, 0
                self.game[i] += 1
            elif self.clock[i] == 1:
                dones[i] = True  # a lost life: no end of a game
        return self.look(), np.full(self.num_envs, 99.0), dones, infos

    def close(self) -> None:
        self.closed = True


class FakeTask(Task):
    """Games of our own instead of Atari's, with a protocol of our own."""

    name, reference, default_protocol = "any", None, "any"
    observation_space, action_counts = spaces.Box(0, 255, (1, 2, 2), np.uint8), (3,)

    def __init__(self, lengths: list[list[int]], rules: Protocol = SHORT, cap: int = 1000) -> None:
        self.games, self.rules = FakeGames(lengths, cap), rules

    def protocol(self, name):
        return self.rules

    def make_env(self, n_envs, *, seed, n_threads=0, n_actions=None, protocol=None):
        assert (n_envs, n_actions, protocol) == (self.games.num_envs, 3, self.rules)
        return self.games


def always_right(frames: torch.Tensor) -> torch.Tensor:
    return torch.tensor([0.0, 0.0, 1.0]).expand(len(frames), 3)


def six_noops(frames: torch.Tensor) -> torch.Tensor:
    return torch.tensor([1.0, 0, 0, 0, 0, 0]).expand(len(frames), 6)


def four_noops(frames: torch.Tensor) -> torch.Tensor:
    return six_noops(frames)[:, :4]


# ------------------------------------------------------------------ which games count


def test_each_environment_plays_its_own_share_however_short_the_games_of_others_are():
    result = evaluate(always_right, FakeTask([[50], [3, 4, 5], [2, 3, 4]]), episodes=4, n_envs=3)
    # the first four games to end are 2, 3, 3, 4 long: none of them would be the long one
    assert result.lengths.tolist() == [50, 3, 2, 50]
    assert result.scores.tolist() == [50.0, 1003.0, 2002.0, 50.0]


def test_the_mean_is_not_biased_towards_short_games():
    generator = np.random.default_rng(0)
    lengths = [generator.geometric(0.02, 50).tolist() for _ in range(8)]
    result = evaluate(always_right, FakeTask(lengths), episodes=160, n_envs=8)
    ends = sorted((sum(games[: k + 1]), games[k]) for games in lengths for k in range(len(games)))
    first_to_finish = np.mean([length for _, length in ends[:160]])
    shares = np.mean([length for games in lengths for length in games[:20]])
    assert result.lengths.mean() == shares
    assert first_to_finish < 0.95 * shares, "the trap is real in these games"


def test_a_lost_life_ends_no_game_and_the_score_is_that_of_the_game():
    result = evaluate(always_right, FakeTask([[7], [9]]), episodes=2)
    assert result.lengths.tolist() == [7, 9]
    assert result.scores.tolist() == [7.0, 1009.0], "not the rewards of learning, 99 each"


@pytest.mark.parametrize(("episodes", "n_envs", "expected"), [(1, None, 1), (33, None, 32), (3, 8, 3), (7, 2, 2)])
def test_so_many_games_are_played_as_were_asked(episodes, n_envs, expected):
    task = FakeTask([[4]] * expected)
    result = evaluate(always_right, task, episodes=episodes, n_envs=n_envs)
    assert len(result.scores) == len(result.lengths) == episodes
    assert task.games.closed


def test_an_environment_that_has_played_its_share_is_not_asked_about():
    batches = []

    def agent(frames):
        batches.append(len(frames))
        return always_right(frames)

    task = FakeTask([[5], [2]], replace(SHORT, epsilon=0.0))
    evaluate(agent, task, episodes=2)
    assert batches == [1, 2, 2, 1, 1, 1], "one question beforehand, for the number of actions"
    assert [row.tolist() for row in task.games.actions] == [[2, 2], [2, 2], [2, 0], [2, 0], [2, 0]]


def test_agreement_counts_the_states_that_were_played():
    def other(frames):  # of one mind with always_right in the games of environment 0 alone
        return torch.where(frames[:, 0, 0, :1] == 0, always_right(frames), -always_right(frames))

    result = evaluate(always_right, FakeTask([[30], [10]]), episodes=2, reference=other)
    assert result.agreement == 30 / 40
    itself = evaluate(always_right, FakeTask([[30], [10]]), episodes=2, reference=always_right)
    assert itself.agreement == 1.0
    assert evaluate(always_right, FakeTask([[3]]), episodes=1).agreement is None


@pytest.mark.parametrize("wrong", ["agent", "reference"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused_and_say_whose_they_are(wrong, value):
    def spoilt(frames):
        scores = always_right(frames).clone()
        scores[-1, 0] = value
        return scores

    agents = {"agent": always_right, "reference": always_right} | {wrong: spoilt}
    whose = "the agent that plays" if wrong == "agent" else "the teacher that is asked"
    with pytest.raises(FloatingPointError, match=f"the scores of {whose} are not finite") as refused:
        evaluate(agents["agent"], FakeTask([[3]]), episodes=1, reference=agents["reference"])
    batch = refused.value.batch
    assert batch["of_reference"] == (wrong == "reference")
    assert len(batch["scores"]) == len(batch["observations"]) > 0


def test_progress_is_told_after_each_step():
    told: list[int] = []
    evaluate(always_right, FakeTask([[3, 1], [2]]), episodes=3, n_envs=2, on_step=told.append)
    assert told == [0, 1, 2, 3]


# ------------------------------------------------------------------ randomness


def test_the_coin_is_tossed_for_each_row_apart():
    scores = torch.tensor([0.0, 0, 1, 0]).expand(20_000, 4)
    actions = choose_actions(scores, 0.4, np.random.default_rng(0))
    assert (actions == 2).mean() == pytest.approx(0.6 + 0.4 / 4, abs=0.015)
    for other in (0, 1, 3):
        assert (actions == other).mean() == pytest.approx(0.4 / 4, abs=0.01)


def test_without_epsilon_actions_are_greedy_and_with_one_uniform():
    scores = torch.randn(5000, 6, generator=torch.Generator().manual_seed(0))
    greedy = choose_actions(scores, 0.0, np.random.default_rng(0))
    np.testing.assert_array_equal(greedy, scores.argmax(dim=1).numpy())
    uniform = choose_actions(scores, 1.0, np.random.default_rng(0))
    assert np.bincount(uniform).min() > 700
    assert (uniform == greedy).mean() == pytest.approx(1 / 6, abs=0.02)


def test_equal_seeds_give_equal_games_and_others_do_not():
    random_play = Protocol(1.0, 30, 0.0, True, False, "test")
    first, second, other = (
        evaluate(four_noops, "breakout", protocol=random_play, episodes=3, seed=seed, n_threads=1) for seed in (5, 5, 6)
    )
    assert (first.scores.tolist(), first.lengths.tolist()) == (second.scores.tolist(), second.lengths.tolist())
    assert first.lengths.tolist() != other.lengths.tolist()


def test_no_global_generator_is_used_or_reseeded():
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    evaluate(six_noops, "pong", protocol=replace(SHORT, max_frames=40), episodes=1, n_threads=1)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_a_greedy_agent_without_any_randomness_is_refused():
    with pytest.raises(ValueError, match="one game over and over"):
        evaluate(always_right, FakeTask([[1]], STILL))


@pytest.mark.parametrize(
    "options",
    [{"episodes": 0}, {"episodes": -3}, {"n_envs": 0}, {"seed": -1}, {"n_threads": -1}, {"temperature": 0.0},
     {"temperature": float("nan")}, {"temperature": float("inf")}, {"play": "greedily"}],
)  # fmt: skip
def test_a_number_out_of_range_is_refused_by_name(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        evaluate(always_right, FakeTask([[1]]), **options)


# ------------------------------------------------------------------ sampling


def test_sampled_actions_have_the_softmax_of_the_scores():
    scores = torch.tensor([[0.0, -float("inf"), 0.02, 0.01]]).expand(30_000, 4)
    actions = choose_actions(scores, 0.0, np.random.default_rng(0), temperature=0.01)
    weights = np.array([1.0, 0.0, np.e**2, np.e])
    np.testing.assert_allclose(np.bincount(actions, minlength=4) / 30_000, weights / weights.sum(), atol=0.01)
    assert not (actions == 1).any(), "a masked action has probability 0"


def test_an_action_of_probability_one_is_drawn_wherever_it_stands():
    for best in range(4):
        scores = torch.full((500, 4), -float("inf"))
        scores[:, best] = -3.0
        assert (choose_actions(scores, 0.0, np.random.default_rng(1), temperature=1.0) == best).all()


def test_the_coin_still_explores_where_actions_are_sampled():
    scores = torch.tensor([100.0, 0, 0, 0]).expand(20_000, 4)
    actions = choose_actions(scores, 0.4, np.random.default_rng(0), temperature=1.0)
    assert (actions == 0).mean() == pytest.approx(0.7, abs=0.015)


def test_greedy_actions_are_those_that_they_always_were():
    scores = torch.randn(12, 6, generator=torch.Generator().manual_seed(3))
    coin = np.random.default_rng(11)
    explore, uniform = coin.random(12) < 0.5, coin.integers(6, size=12)
    after = coin.random()
    ours = np.random.default_rng(11)
    expected = np.where(explore, uniform, scores.argmax(dim=1).numpy())
    np.testing.assert_array_equal(choose_actions(scores, 0.5, ours), expected)
    assert ours.random() == after, "not one number more is drawn"


def torn(frames):  # NOOP or RIGHT, with equal probability
    return torch.tensor([0.0, -100.0, 0.0]).expand(len(frames), 3)


def test_under_the_zoo_an_actor_samples_without_epsilon_and_a_dqn_is_greedy():
    rules = Protocol(1.0, 30, 0.0, True, True, "test", samples_logits=True)
    zoo = FakeTask([[200]], rules)
    evaluate(Teacher(torn, kind="logits"), zoo, episodes=1)
    pressed = np.bincount(np.concatenate(zoo.games.actions), minlength=3)
    assert pressed[1] == 0, "no action comes from epsilon, which is 1 here"
    assert pressed[0] == pytest.approx(100, abs=30)
    greedy = FakeTask([[200]], replace(rules, epsilon=0.0))
    evaluate(Teacher(torn, kind="q_values"), greedy, episodes=1)
    assert set(np.concatenate(greedy.games.actions)) == {0}


def test_an_agent_that_samples_needs_no_other_randomness():
    still = FakeTask([[3]], STILL)
    assert evaluate(torn, still, episodes=1, play="sample", temperature=1.0).lengths.tolist() == [3]


# ------------------------------------------------------------------ what is counted beside the scores


def test_games_that_were_cut_are_counted():
    task = FakeTask([[5, 9], [9, 4]], cap=9)
    assert evaluate(always_right, task, episodes=4, n_envs=2).truncated == 2
    assert evaluate(six_noops, "pong", protocol=replace(SHORT, max_frames=40), episodes=2, n_threads=1).truncated == 2


def test_the_actions_of_agent_and_game_are_told():
    short = replace(SHORT, max_frames=40)
    result = evaluate(six_noops, "pong", protocol=short, episodes=1, n_threads=1)
    assert (result.n_actions, result.game_actions) == (6, 6)
    result = evaluate(lambda frames: torch.zeros(len(frames), 18), "pong", protocol=short, episodes=1, n_threads=1)
    assert (result.n_actions, result.game_actions) == (18, 6)


def test_scores_do_not_depend_on_the_number_of_threads():
    random_play = Protocol(1.0, 30, 0.0, True, False, "test", max_frames=800)
    one, three = (
        evaluate(four_noops, "breakout", protocol=random_play, episodes=4, seed=5, n_threads=n) for n in (1, 3)
    )
    assert one.scores.tolist() == three.scores.tolist()
    assert one.lengths.tolist() == three.lengths.tolist()


# ------------------------------------------------------------------ actions


def test_an_unknown_game_or_protocol_is_one_line_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean pong"):
        evaluate(six_noops, "pongg", episodes=1)
    with pytest.raises(UserError, match="did you mean machado"):
        evaluate(six_noops, "pong", protocol="machedo", episodes=1)


@pytest.mark.parametrize("n_actions", [6, 18])
def test_an_agent_plays_in_one_environment_with_its_own_actions(n_actions, monkeypatch):
    made = []

    class Recorder(AtariVecEnv):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(len(self.action_meanings))

    monkeypatch.setattr("polydistill_agents.environments.task.AtariVecEnv", Recorder)
    last = lambda frames: torch.arange(float(n_actions)).expand(len(frames), n_actions)  # noqa: E731
    protocol = replace(SHORT, max_frames=40)
    assert evaluate(last, "pong", protocol=protocol, episodes=1, n_threads=1).lengths.tolist() == [10]
    assert made == [n_actions]


@pytest.mark.parametrize("n_actions", [3, 7, 19])
def test_an_agent_of_other_actions_is_refused_before_it_presses_wrong_buttons(n_actions):
    with pytest.raises(UserError, match=rf"scores {n_actions} actions, pong has 6 \(or all 18\)"):
        evaluate(lambda frames: torch.zeros(len(frames), n_actions), "pong", episodes=1, n_threads=1)


def test_a_reference_of_other_actions_is_refused():
    with pytest.raises(UserError, match="scores 4 and 6 actions"):
        evaluate(six_noops, "pong", episodes=1, n_threads=1, reference=four_noops)


# ------------------------------------------------------------------ the result


def test_scores_of_a_real_game_are_unclipped():
    random_play = Protocol(1.0, 30, 0.0, True, False, "test")
    result = evaluate(lambda frames: torch.zeros(len(frames), 9), "ms_pacman", protocol=random_play, episodes=3)
    assert result.scores.min() >= 60, "a dot is worth ten points"
    assert result.lengths.min() > 200, "three lives"
    assert result.mean == result.scores.mean()
    interval = result.interval(0)
    assert interval == result.interval(0)
    assert result.scores.min() <= interval.low <= result.mean <= interval.high <= result.scores.max()
    assert result.seconds > 0


def test_the_interquartile_mean_leaves_the_best_and_the_worst_out():
    result = evaluate(always_right, FakeTask([[10, 20, 30, 400]]), episodes=4, n_envs=1)
    assert result.iqm == 25.0
    assert result.mean == 115.0


def test_an_agent_with_a_graph_is_asked_outside_of_it():
    weight = torch.ones(3, requires_grad=True)
    seen = []

    def agent(frames):
        scores = weight * always_right(frames)
        seen.append(scores.requires_grad)
        return scores

    evaluate(agent, FakeTask([[3]]), episodes=1)
    assert seen == [False] * 4
