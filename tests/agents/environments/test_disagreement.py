"""polydistill_agents.environments.disagreement and gallery: what is found, worked out by hand."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from polydistill_agents.environments.disagreement import PARTS, Comparing, Disagreement
from polydistill_agents.environments.evaluation import Compared, evaluate
from polydistill_agents.environments.gallery import STRETCH
from polydistill_agents.environments.gym_task import open_environment
from tests.agents.environments import toys

AGENT = torch.tensor([0.0, 1.0])  # always means action 1


def met(step: int, gaps: list[float]) -> Compared:
    """A step of as many games at once: the teacher prefers action 0 by ``gaps``, the agent takes action 1."""
    rows = np.arange(len(gaps))
    teacher = torch.tensor([[gap, 0.0] for gap in gaps])
    seen = np.full((len(gaps), 2), step, dtype=np.float32)
    return Compared(None, rows, rows, np.full(len(gaps), step), seen, AGENT.expand(len(gaps), 2), teacher)


def found_in(steps: list[list[float]], pictures: int = 12) -> Disagreement:
    comparing = Comparing("q_values", pictures=pictures)
    for step, gaps in enumerate(steps):
        comparing(met(step, gaps))
    return comparing.finish()


def test_regret_agreement_and_confusions_by_hand() -> None:
    found = found_in([[1.0, -3.0], [0.5, -1.0]])  # game 1 agrees, since there the teacher prefers action 1 too
    assert (found.n_states, found.n_games) == (4, 2)
    assert found.agreement.mean == 0.5
    assert found.regret.mean == pytest.approx(1.5 / 4)
    assert found.of_random == pytest.approx(1.5 / (0.5 + 1.5 + 0.25 + 0.5)), "half of each gap"
    assert [(c.teacher, c.agent, c.states) for c in found.confusions] == [(0, 1, 2), (1, 1, 2)]
    assert found.confusions[0].regret == pytest.approx(1.5)
    assert found.regret.interval is None, "of two games there is none"


def test_the_interval_is_over_games_not_over_states() -> None:
    found = found_in([[1.0, 0.0, 0.0]] * 400)
    interval = found.regret.interval
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((0.0, 1.0), abs=0.34), "three games say little"


def test_the_worst_states_carry_their_share_of_the_regret() -> None:
    found = found_in([[1.0]] * 199 + [[801.0]])
    assert found.worst_share == pytest.approx(802 / 1000), "two of 200 states"


def test_each_game_counts_alike_in_the_course_however_long_it_is() -> None:
    comparing = Comparing("q_values", pictures=0)
    for step in range(4 * PARTS):
        both = step < PARTS  # game 1 ends after PARTS steps, in which its regret is 3
        comparing(met(step, [1.0, 3.0] if both else [1.0]))
    found = comparing.finish()
    assert [value.mean for value in found.regret_course if value] == [2.0] * PARTS
    assert found.regret.mean == pytest.approx((4 * PARTS + 3 * PARTS) / (5 * PARTS)), "over states the long one leads"


def test_parts_that_no_game_is_long_enough_for_are_left_out() -> None:
    found = found_in([[1.0]] * (PARTS // 2))
    assert [value is None for value in found.regret_course] == [False, True] * (PARTS // 2)


def test_consecutive_states_are_pictured_once_by_their_worst() -> None:
    rise = [[float(step % STRETCH)] for step in range(2 * STRETCH)]
    assert [(s.step, s.regret) for s in found_in(rise).gallery.states] == [
        (STRETCH - 1, STRETCH - 1),
        (2 * STRETCH - 1, STRETCH - 1),
    ]


def test_only_the_states_of_the_largest_regret_are_kept() -> None:
    generator = np.random.default_rng(0)
    gaps = generator.uniform(0.0, 1.0, (5, 40))
    steps = [gaps[step // STRETCH].tolist() if step % STRETCH == 0 else [0.0] * 40 for step in range(5 * STRETCH)]
    kept = found_in(steps, pictures=7).gallery.states
    assert [state.regret for state in kept] == pytest.approx(np.sort(gaps.ravel())[:-8:-1].tolist(), rel=1e-6)


def test_a_teacher_that_does_not_care_gives_no_shares_and_no_pictures() -> None:
    found = found_in([[0.0, 0.0, 0.0]] * 3)
    assert (found.regret.mean, found.of_random, found.worst_share) == (0.0, None, None)
    assert found.gallery.states == []


def test_without_a_comparison_there_is_nothing_to_tell() -> None:
    with pytest.raises(ValueError, match="no state was compared"):
        Comparing("q_values").finish()


def test_an_evaluation_tells_game_and_step_of_each_state_and_what_the_agent_sees() -> None:
    lengths, places = np.zeros(5, dtype=int), []

    def note(step: Compared) -> None:
        np.add.at(lengths, step.games, 1)
        places.extend(zip(step.games.tolist(), step.steps.tolist(), strict=True))
        assert step.observations.shape == (len(step.rows), 3)

    def second(observations: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0.0, 1.0, 0.0]).expand(len(observations), 3)

    task = open_environment(f"{toys.__name__}:Toy-v3")
    played = evaluate(second, task, episodes=5, n_envs=2, reference=second, on_compared=note)
    assert lengths.tolist() == played.lengths.tolist() == [toys.LENGTH] * 5
    assert sorted(places) == [(game, step) for game in range(5) for step in range(toys.LENGTH)]


class Drawn(toys.Toy):
    """Draws the number of its steps."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def render(self) -> np.ndarray:
        return np.full((4, 6, 3), self.clock, dtype=np.uint8)


def test_an_environment_draws_the_pictured_state_where_it_can() -> None:
    gym.register("DrawnForGallery-v0", entry_point=Drawn)
    task = open_environment("DrawnForGallery-v0")
    comparing = Comparing("q_values")

    def agent(observations: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0.0, 1.0, 0.0]).expand(len(observations), 3)

    def teacher(observations: torch.Tensor) -> torch.Tensor:
        return torch.stack([observations[:, 0].abs(), torch.zeros(len(observations)), -observations[:, 0].abs()], dim=1)

    evaluate(agent, task.drawn(), episodes=2, reference=teacher, on_compared=comparing)
    states = comparing.finish().gallery.states
    assert len(states) == 2
    for state in states:
        assert state.screen is not None
        assert (state.screen == state.step).all(), "the state itself, not the one after it"
    assert open_environment(f"{toys.__name__}:Toy-v3").drawn().env_kwargs == {}, "which cannot draw"
