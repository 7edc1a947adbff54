"""polydistill_agents.lineage.state_pictures: what is shown of a state of any kind."""

from __future__ import annotations

import numpy as np

from polydistill_agents.environments.gallery import Pictured
from polydistill_agents.lineage.state_pictures import MOST_ROWS, draw_state, images_of, numbers_of
from polydistill_agents.networks.observations import Arrays

FRAMES = np.zeros((4, 84, 84), np.uint8)


def pictured(observation: Arrays, screen: np.ndarray | None = None, n_actions: int = 2) -> Pictured:
    values = np.linspace(1.0, 0.0, n_actions, dtype=np.float32)
    return Pictured(0, 5, 1.0, values, values[::-1].copy(), observation, screen)


def test_what_the_environment_draws_comes_before_what_the_agent_sees() -> None:
    assert [image.width for image in images_of(pictured(FRAMES, np.zeros((40, 60, 3), np.uint8)))] == [260]
    assert [image.width for image in images_of(pictured(FRAMES))] == [260, 80, 80, 80]
    assert len(images_of(pictured(np.zeros((3, 40, 40), np.uint8)))) == 1, "a picture in colour, not three frames"
    assert len(images_of(pictured(np.zeros((1, 40, 40), np.uint8)))) == 1


def test_numbers_stand_in_words_below_and_long_vectors_are_cut() -> None:
    assert numbers_of(pictured(FRAMES)) == ""
    assert numbers_of(pictured(np.array([0.5, -2.0], np.float32))) == "0.5, -2"
    table = {"eye": np.zeros((3, 40, 40), np.uint8), "where": np.array(3), "far": np.zeros(20)}
    told = numbers_of(pictured(table))
    assert told.startswith("where 3; far 0, 0,")
    assert told.endswith("and 8 more")
    assert len(images_of(pictured(table))) == 1


def test_of_very_many_actions_the_best_and_the_agents_are_shown() -> None:
    svg = draw_state(pictured(FRAMES, n_actions=60), [f"a{k}" for k in range(60)], ("q_values", "logits"))
    assert svg.count("<rect") == 2 * MOST_ROWS
    assert ">a59<" in svg, "the agent's"
    assert ">a0<" in svg
