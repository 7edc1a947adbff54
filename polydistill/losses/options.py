"""The options of the objectives that are numbers: which there are, and what each means.

Contract: the names and defaults are those of the losses' own signatures.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

# name -> (meaning, allowed values)
_EACH = {
    "temperature": ("T, by which scores are divided before the softmax", "from 1e-18 to 1e+18"),
    "label_weight": ("weight of the cross-entropy with the labels", "at least 0"),
    "teacher_weight": ("weight of the teacher's term", "at least 0"),
    "label_smoothing": ("share of the label that is spread over all classes", "from 0 to 1"),
    "alpha": ("weight of the target class's term", "at least 0"),
    "beta": ("weight of the other classes' term", "at least 0"),
    "q_weight": ("weight of the squared distance of the Q-values, in units of T", "greater than 0"),
    "delta": ("distance of the scores from which the loss is linear", "greater than 0"),
}
_OF_ONE = {("jsd", "beta"): ("the teacher's share of the mixture", "between 0 and 1")}


class Option(NamedTuple):
    """A number that an objective takes.

    Attributes:
        default: of the loss.
        meaning: a phrase.
        allowed: its range, in words; always finite.
    """

    default: float
    meaning: str
    allowed: str


def read_options(name: str, function: Callable[..., Tensor]) -> Mapping[str, Option]:
    """The numbers among the keywords of a loss, in the order of its signature.

    Args:
        name: of the objective.
        function: the loss.
    """
    found: dict[str, Option] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and type(parameter.default) is float:
            meaning, allowed = _OF_ONE.get((name, parameter.name)) or _EACH[parameter.name]
            found[parameter.name] = Option(parameter.default, meaning, allowed)
    return MappingProxyType(found)


def refuse_unknown(name: str, options: Mapping[str, Any], known: Mapping[str, object]) -> None:
    """Refuse an option that is not among those ``known`` of the objective ``name``.

    Raises:
        ValueError: naming the option, the nearest known one, and all of them.
    """
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"objective {name} has no option {option}; {has}{hint}")
