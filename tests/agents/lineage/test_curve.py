"""How soon a student plays almost as well as its teacher."""

from __future__ import annotations

import pytest

from polydistill_agents.lineage.curve import Point, steps_to_level


@pytest.mark.parametrize(
    ("scores", "steps", "reached"),
    [
        ([5.0, 90.0, 95.0, 20.0], 400, 1.0),  # the first that is there, whatever comes after it
        ([5.0, 90.0, 94.9, 95.1], 600, 1.0),  # the table's own evaluation is the last point
        ([5.0, 20.0, 30.0, 94.9], 600, 0.0),  # never: the whole play counts
        ([96.0, 5.0, 5.0, 5.0], 0, 1.0),
    ],
)
def test_the_first_point_at_0_95_counts_and_a_student_that_never_gets_there_with_all_its_play(
    scores: list[float], steps: int, reached: float
) -> None:
    points = [Point(200 * index, score) for index, score in enumerate(scores)]
    assert steps_to_level(points, teacher=100.0, random=0.0) == {"steps_to_95": steps, "reached_95": reached}
