"""YAML of plain values, by a safe loader: what ``--config`` reads and ``config.yaml`` holds.

Contract: text, numbers, truth values, null, lists and mappings; no tag can name code. What is written reads back
unchanged.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from polydistill._environment import require_extra
from polydistill.errors import UserError

try:
    import yaml
except ModuleNotFoundError:
    require_extra("runs")
    raise


class PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain values only; reads 1e5 as a number, which YAML 1.1 does not; refuses a key that is there twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes whatever text the loader above would read as a number."""


for _class in (PlainLoader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def parse_value(text: str) -> Any:
    """The plain value that ``text`` stands for.

    Raises:
        ValueError: it is not valid YAML.
    """
    try:
        return yaml.load(text, PlainLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{text!r} is not valid YAML: {error}") from error


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        UserError: the file is missing, unreadable, invalid, or holds something other than a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), PlainLoader)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a bad date, a byte outside UTF-8
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold `key: value` lines, not a {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def dump_yaml(mapping: Mapping[str, Any], width: int | None = None) -> str:
    """The mapping as YAML that :func:`load_yaml`, and so ``--config``, reads back unchanged.

    Args:
        mapping: of plain values.
        width: of a line, behind which a text goes on in the next; None: YAML's usual one.
    """
    return str(yaml.dump(dict(mapping), Dumper=_Dumper, sort_keys=False, width=width))


def to_mapping(config: object) -> dict[str, Any]:
    """The config as nested plain values, tuples as lists: what config.yaml and summary.json hold.

    A group whose class says ``left_out = True`` is not there as long as all of it is null, so that a config that does
    not use it is that of a version without it.
    """

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return to_mapping(value)
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    return {name: plain(value) for name, value in values.items() if not _is_left_out(value)}


def _is_left_out(value: Any) -> bool:
    """Whether ``value`` is a group that nobody uses."""
    return getattr(value, "left_out", False) is True and all(one is None for one in vars(value).values())


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``(dotted key, value)`` of every leaf; an empty mapping is a leaf.

    Example:
        >>> list(flatten({"teacher": {"path": "zoo"}, "steps": 1}))
        [('teacher.path', 'zoo'), ('steps', 1)]
    """
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
