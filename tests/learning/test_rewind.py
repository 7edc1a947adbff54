"""polydistill.learning.rewind: back to the first bad update, with a student of one weight."""

from __future__ import annotations

import math

import pytest

from polydistill.learning.rewind import rewind

NAN, INF = math.nan, math.inf


class Weight:
    """It is raised by one in each update; update ``breaks`` makes it infinite."""

    def __init__(self, breaks: int | None = None) -> None:
        self.value, self.breaks, self.made = 10.0, breaks, []

    def state(self) -> list[float]:
        return [self.value]

    def load_state(self, state: list[float]) -> None:
        (self.value,) = state

    def update(self, index: int) -> None:
        self.made.append(index)
        self.value = INF if index == self.breaks else self.value + 1.0

    def is_finite(self) -> bool:
        return math.isfinite(self.value)


@pytest.mark.parametrize(
    ("losses", "breaks", "expected", "made"),
    [
        ([0.5, NAN, 0.5], None, 1, [0]),
        ([0.5, 0.5, INF, NAN], None, 2, [0, 1]),
        ([0.5, 0.5, 0.5, NAN], 2, 2, [0, 1, 2]),  # the third only shows what the second has done
        ([0.5, 0.5], 1, 1, [0, 1]),
        ([NAN, NAN], None, 0, []),
    ],
)
def test_it_stands_before_the_first_update_whose_loss_or_weights_are_not_finite(
    losses: list[float], breaks: int | None, expected: int, made: list[int]
) -> None:
    weight = Weight(breaks)
    good = weight.state()
    weight.value = NAN
    assert rewind(weight, good, losses, weight.update, weight.is_finite) == expected
    assert weight.value == 10.0 + expected
    assert weight.made == made


def test_where_no_update_is_bad_the_second_time_all_are_to_blame() -> None:
    weight = Weight()
    assert rewind(weight, [10.0], [0.5, 0.5, 0.5], weight.update, weight.is_finite) == 0
    assert weight.value == 10.0
