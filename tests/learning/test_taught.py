"""What the students of classifiers are, and which options belong to which objective."""

from __future__ import annotations

import pytest

from polydistill.learning.taught import TaughtConfig, foreign_options
from polydistill.losses import OBJECTIVES

VALUES = {"permutation": "fresh", "beta": 0.5, "label_smoothing": 0.1}


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if not OBJECTIVES[name].needs_q_values])
def test_foreign_options_are_those_that_an_objective_refuses(objective: str) -> None:
    refused = []
    for name in foreign_options("cwtm"):  # which has no option of its own
        try:
            TaughtConfig(objective=objective, **{name: VALUES.get(name, 1.0)})
        except ValueError:
            refused.append(name)
    assert tuple(refused) == foreign_options(objective)
    assert len(foreign_options("cwtm")) == 8
