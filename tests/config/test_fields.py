"""polydistill.fields: what a config's field may hold, whoever builds the config."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from polydistill.config.fields import check_fields


@dataclass(frozen=True)
class Demo:
    rate: float = 0.1
    steps: int = 3
    weight: float | None = None
    shares: tuple[float, ...] = ()
    members: tuple[tuple[int, ...], ...] | None = None
    rule: Literal["last", "best"] = "last"
    name: str = ""
    augment: bool = True

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(
    "right",
    [
        {"rate": 3},
        {"steps": 10**30},
        {"weight": 0.0},
        {"shares": (0.5, 1)},
        {"shares": [0.5]},
        {"members": ((0, 1), (1, 2))},
        {"rule": "best"},
        {"augment": False},
    ],
)
def test_what_an_annotation_says_is_taken(right: dict[str, Any]) -> None:
    config = Demo(**right)
    assert {name: getattr(config, name) for name in right} == right


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rate": math.nan}, "rate must be a finite number, got nan"),
        ({"rate": -math.inf}, "rate must be a finite number, got -inf"),
        ({"rate": "0.1"}, "rate must be a number, got '0.1'"),
        ({"rate": None}, "rate must be a number, got None"),
        ({"rate": True}, "rate must be a number, got True"),
        ({"steps": math.nan}, "steps must be a whole number, got nan"),
        ({"steps": math.inf}, "steps must be a whole number, got inf"),
        ({"steps": 1.5}, "steps must be a whole number, got 1.5"),
        ({"steps": False}, "steps must be a whole number, got False"),
        ({"weight": math.inf}, "weight must be a finite number or null, got inf"),
        ({"shares": (0.5, math.nan)}, "shares must be a list, each a finite number, got (0.5, nan)"),
        ({"shares": 0.5}, "shares must be a list, each a number, got 0.5"),
        ({"members": (1, 2)}, "members must be a list, each a list, each a whole number or null, got (1, 2)"),
        ({"rule": "best_"}, "rule must be one of last, best, got 'best_'; did you mean best?"),
        ({"rule": 1}, "rule must be one of last, best, got 1"),
        ({"name": 7}, "name must be text, got 7"),
        ({"augment": 1}, "augment must be true or false, got 1"),
    ],
)
def test_anything_else_is_one_line_that_names_the_field(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Demo(**wrong)
