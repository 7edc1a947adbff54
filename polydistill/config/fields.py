"""A config's fields hold what their annotations say: checked where a config is built, on the command line or in Python.

Contract: NaN and infinities do not count as numbers, true and false not as whole numbers; a message is one line that
names the field and what it holds.
"""

from __future__ import annotations

import math
import types
import typing
from typing import Any, Union

from polydistill.errors import suggest

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def check_fields(config: object) -> None:
    """Refuse values that do not have their field's type.

    Args:
        config: a dataclass; fields that are dataclasses have checked themselves.

    Raises:
        ValueError: naming the field and what it holds.

    Example:
        >>> from polydistill.runs.checkpoint import CheckpointConfig
        >>> check_fields(CheckpointConfig(every_seconds=float("inf")))
        Traceback (most recent call last):
        ValueError: every_seconds must be a finite number, got inf
    """
    for name, annotation in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _fits(value, annotation):
            wanted = describe(annotation)
            if any(isinstance(part, float) and not math.isfinite(part) for part in _parts(value)):
                wanted = wanted.replace("a number", "a finite number")
            raise ValueError(f"{name} must be {wanted}, got {value!r}{near_choice(annotation, value)}")


def _fits(value: Any, annotation: Any) -> bool:
    arguments = typing.get_args(annotation)
    match typing.get_origin(annotation):
        case typing.Literal:
            return any(value == choice and type(value) is type(choice) for choice in arguments)
        case origin if origin in {Union, types.UnionType}:
            return any(_fits(value, argument) for argument in arguments)
        case origin if origin in {tuple, list}:
            return isinstance(value, tuple | list) and all(_fits(item, arguments[0]) for item in value)
        case origin if origin is dict:
            return isinstance(value, dict)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, annotation)


def _parts(value: Any) -> list[Any]:
    return [part for item in value for part in _parts(item)] if isinstance(value, tuple | list) else [value]


def near_choice(annotation: Any, given: Any) -> str:
    """A suggestion, where ``given`` is nearly one of a Literal's words."""
    if typing.get_origin(annotation) is typing.Literal and isinstance(given, str):
        return suggest(given, map(str, typing.get_args(annotation)))
    return ""


def describe(annotation: Any) -> str:
    """A type in words.

    Example:
        >>> describe(tuple[float, ...] | None)
        'a list, each a number or null'
    """
    if annotation in WORDS:
        return WORDS[annotation]
    if typing.get_origin(annotation) is dict:
        return "a mapping"
    arguments = [arg for arg in typing.get_args(annotation) if arg is not ...]
    match typing.get_origin(annotation):
        case typing.Literal:
            return "one of " + ", ".join(map(str, arguments))
        case origin if origin in {tuple, list}:
            return "a list, each " + " and ".join(dict.fromkeys(map(describe, arguments)))
    return " or ".join(map(describe, arguments))
