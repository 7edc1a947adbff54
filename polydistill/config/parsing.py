"""One form for every script: a YAML file and the command line give a frozen dataclass; every error is one line.

A config is a frozen dataclass, perhaps of further ones ("groups", one level of dots each), whose fields are plain:
str, int, float, bool, None, ``Literal``, tuples, lists and unions of these, and ``dict[str, Any]``, a mapping of plain
values whose keys are free. Nothing in a file or on the command
line can name code. Values come in this order, later over earlier: the dataclass's defaults, the file of ``--config``,
the command line. jsonargparse checks the types and prints the help; it is given one flat argument per field, since its
own nested arguments read ``--group X`` as "load the file X".

Contract: an error of the user's is a :class:`~polydistill.errors.UserError`, shown as ``error: ...`` on one line, with
exit code 2. jsonargparse is imported when something is parsed, not before.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import json
import math
import re
import sys
import types
import typing
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar, Union

from polydistill.config.fields import describe, near_choice
from polydistill.config.help_text import fold_description
from polydistill.config.plain_yaml import dump_yaml, load_yaml, parse_value, to_mapping
from polydistill.errors import UserError, exit_with_error, suggest

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

Config = TypeVar("Config")
FREE = dict[str, Any]  # the annotation of a field that is a mapping with keys of its own

VALUE_FLAGS = {"config": "YAML file to read", "out": "folder of the run (default: {})"}
SHARING = {
    "license": "of the weights, for their card: an identifier of the Hugging Face Hub like mit (default: not stated)",
    "push_to_hub": "org/name on the Hub, to which the finished run is sent; it is tried before the run begins",
}
SWITCHES = {
    "dry_run": "print what would run, with its time, memory and disk; check what the run would check; write nothing",
    "dry_run_measure": "like --dry_run, with the speed of this machine measured now instead of remembered",
    "wide": "show every column of the table at the end",
    "doctor": "check the set-up before each lesson: print what was found, and stop if something is wrong",
    "print_config": "print the resolved config as YAML, and run nothing",
    "help": "print this help",
}


class Parsed(NamedTuple, Generic[Config]):
    """What the command line asks for.

    Args:
        config: of the run, with auto and 0 not yet resolved.
        out: the run folder.
        dry_run: print the plan only.
        doctor: let the doctor check the set-up before each lesson.
        measure: measure the speed of this machine for the plan.
        wide: show every column of the table.
        file: of ``--config``; None: there was none.
        license_id: of what is trained; empty: not stated.
        push_to_hub: org/name to which the finished run is sent; empty: nowhere.
    """

    config: Config
    out: Path
    dry_run: bool
    doctor: bool = False
    measure: bool = False
    wide: bool = False
    file: Path | None = None
    license_id: str = ""
    push_to_hub: str = ""


class Field(NamedTuple):
    """One plain field of a config. ``default`` is ``dataclasses.MISSING`` where the user must give a value."""

    annotation: Any
    default: Any
    help: str


def parse(
    config_class: type[Config],
    argv: list[str] | None = None,
    *,
    program: str,
    description: str,
    default_name: str | None,
    default_config: Config | None = None,
    first_word: str | None = None,
    distils: bool = False,
) -> Parsed[Config]:
    """The config, the run folder and the switches that a command line asks for.

    Args:
        config_class: frozen dataclass; ranges are checked in its ``__post_init__``, which raises ValueError.
        argv: the words after the script's name; None: those of this process.
        program: how it is called, like ``python scripts/demo.py``, for ``--help``.
        description: what the script does, for ``--help``.
        default_name: name of the run folder under ``runs/`` where there is no ``--config``; None: the script writes
            no run folder, and has neither ``--out`` nor ``--dry_run``.
        default_config: what holds where there is no ``--config``; None: the defaults of ``config_class``.
        first_word: field that takes the first word if it has no flag, as in ``inspect.py FILE --wide``.
        distils: the script distils, and has ``--doctor``, ``--dry_run_measure``, ``--wide``, ``--license``
            and ``--push_to_hub``.

    Returns:
        what is asked for; ``out`` is ``runs/<stem of the YAML file>`` unless ``--out`` says otherwise.

    Raises:
        SystemExit: code 2 after one line ``error: ...``; code 0 after ``--help`` and ``--print_config``.
        TypeError: a field of ``config_class`` is not plain, or has the name of a flag. The programmer's error.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Demo:
        ...     steps: int = 10
        >>> parse(Demo, ["--steps", "1e5"], program="demo", description="A demo.", default_name="demo").config
        Demo(steps=100000)
    """
    fields = dict(_plain_fields(config_class))
    words = list(sys.argv[1:] if argv is None else argv)
    if first_word is not None and words and not words[0].startswith("-"):
        words[:1] = [f"--{first_word}", words[0]]
    own_flags, own_switches = dict(VALUE_FLAGS), dict(SWITCHES)
    if default_name is None:
        del own_flags["out"], own_switches["dry_run"]
    if distils:
        own_flags |= SHARING
    else:
        for name in ("doctor", "dry_run_measure", "wide"):
            del own_switches[name]
    if taken := fields.keys() & {*own_flags, *own_switches}:
        raise TypeError(f"{config_class.__name__}.{min(taken)} has the name of a flag")
    try:
        flags, switches = _split_words(words, fields, own_flags, own_switches)
        out = flags.pop("out", "") if "out" in own_flags else ""
        default_out = Path("runs", Path(flags["config"]).stem if "config" in flags else default_name or "")
        file = flags.pop("config", None)
        license_id, push_to_hub = (flags.pop(name, "") if distils else "" for name in SHARING)
        texts = {name: text.format(default_out) for name, text in own_flags.items()}
        parser = _make_parser(fields, program, description, texts, own_switches)
        if "help" in switches:  # before the file is read: help is wanted most where that fails
            parser.print_help()
            raise SystemExit(0)
        values = _values_of(default_config) if file is None else _read_values(file, fields, parser)
        inner = {key: flags.pop(key) for key in list(flags) if key not in fields}  # one key of a mapping each
        values |= {key: _checked(parser, key, fields[key].annotation, text, "--") for key, text in flags.items()}
        for key, text in inner.items():
            name = _mapping_of(key, fields)
            values[name] = _put(values.get(name, fields[name].default), key.removeprefix(f"{name}."), text)
        config = _build(config_class, fields, values)
    except UserError as error:
        exit_with_error(error)
    if "print_config" in switches:
        print(dump_yaml(to_mapping(config)), end="")
        raise SystemExit(0)
    measure = "dry_run_measure" in switches
    return Parsed(
        config=config,
        out=Path(out) if out else default_out,
        dry_run="dry_run" in switches or measure,
        doctor="doctor" in switches,
        measure=measure,
        wide="wide" in switches,
        file=None if file is None else Path(file),
        license_id=license_id,
        push_to_hub=push_to_hub,
    )


def read_config(
    config_class: type[Config], file: Path | None, settings: Mapping[str, Any], default: Config | None = None
) -> Config:
    """The config in a YAML file, with ``settings`` in the place of its own values.

    Args:
        config_class: as for :func:`parse`.
        file: as of ``--config``; None: ``default``.
        settings: dotted key -> plain value, each checked as one in a file is.
        default: what holds where there is no file; None: the defaults of ``config_class``.

    Raises:
        UserError: as :func:`parse` would print it; of a setting, without a file's name.
    """
    fields = dict(_plain_fields(config_class))
    parser = _make_parser(fields, "", "", {}, {})
    values = _values_of(default) if file is None else _read_values(str(file), fields, parser)
    for key, value in settings.items():
        if key not in fields:
            raise UserError(_unknown(key, fields))
        values[key] = _checked(parser, key, fields[key].annotation, value, "")
    return _build(config_class, fields, values)


# ---- fields, words, values -------------------------------------------------------------------------------------


def _plain_fields(config_class: type, prefix: str = "", instance: Any = None) -> Iterator[tuple[str, Field]]:
    """``(dotted name, field)`` of every plain field, groups opened."""
    hints = typing.get_type_hints(config_class)
    helps: dict[str, str] = {}
    for base in reversed(config_class.__mro__):  # a subclass tells what is new or other with it
        helps |= _argument_helps(base.__doc__ or "")
    for field in dataclasses.fields(config_class):
        annotation, name = hints[field.name], prefix + field.name
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if instance is not None:
            default = getattr(instance, field.name)
        if dataclasses.is_dataclass(annotation):
            group = None if default is dataclasses.MISSING else default
            yield from _plain_fields(typing.cast(type, annotation), f"{name}.", group)
        elif not _is_plain(annotation):
            raise TypeError(f"{config_class.__name__}.{field.name}: {annotation} cannot be a field of a config")
        else:
            yield name, Field(annotation, default, helps.get(field.name, ""))


def _values_of(config: Any) -> dict[str, Any]:
    """``dotted name: value`` of every plain field; of None, nothing."""
    if config is None:
        return {}
    return {name: field.default for name, field in _plain_fields(type(config), instance=config)}


def _is_plain(annotation: Any) -> bool:
    if annotation == FREE:
        return True
    if typing.get_origin(annotation) in {tuple, list, Union, types.UnionType}:
        return all(_is_plain(inner) for inner in typing.get_args(annotation) if inner is not ...)
    return annotation in {str, int, float, bool, type(None)} or typing.get_origin(annotation) is Literal


def _argument_helps(docstring: str) -> dict[str, str]:
    """The texts under ``Args:`` in a docstring, by name."""
    section = re.search(r"^ *Args:\n(.*?)(?=\n\s*\n|\Z)", docstring, re.DOTALL | re.MULTILINE)
    helps: dict[str, str] = {}
    indent = name = ""
    for line in section.group(1).splitlines() if section else ():
        entry = re.match(r"( *)(\w+): (.*)", line)
        if entry and (not indent or entry.group(1) == indent):
            indent, name = entry.group(1), entry.group(2)
            helps[name] = entry.group(3).strip()
        elif name:
            helps[name] += " " + line.strip()
    return {name: text.strip() for name, text in helps.items()}


def _split_words(
    words: list[str], fields: Mapping[str, Field], own_flags: Iterable[str], own_switches: Iterable[str]
) -> tuple[dict[str, str], set[str]]:
    """The value of every flag, and the switches. (argparse would accept abbreviations, and take -1e5 for a flag.)

    The flag of a yes or no that has no value means yes.
    """
    flags: dict[str, str] = {}
    switches: set[str] = set()
    rest = deque(words)
    while rest:
        word = rest.popleft()
        if word == "-h":
            word = "--help"
        if not word.startswith("--"):
            raise UserError(f"unexpected word {word!r}: values follow a flag, like --out FOLDER")
        name, equals, value = word[2:].partition("=")
        if name in own_switches and not equals:
            switches.add(name)
            continue
        if name not in fields and name not in own_flags and not _mapping_of(name, fields):
            raise UserError(_unknown(name, fields, "--", [*own_flags, *own_switches]))
        if not equals and rest and not rest[0].startswith("--"):
            value = rest.popleft()
        elif not equals and name in fields and fields[name].annotation is bool:
            value = "true"
        elif not equals:
            raise UserError(f"--{name} needs a value")
        flags[name] = value
    return flags, switches


def _mapping_of(key: str, fields: Mapping[str, Field]) -> str:
    """The field, a mapping with keys of its own, of which ``key`` names one; empty: there is none."""
    return next((name for name, field in fields.items() if field.annotation == FREE and key.startswith(f"{name}.")), "")


def _put(mapping: Mapping[str, Any], key: str, text: str) -> dict[str, Any]:
    """The mapping with the value of one key, whose dots may be those of a mapping in it or of its own.

    A name without a value is that of an empty mapping; the name ``null`` may be None, as YAML reads it.

    Example:
        >>> _put({"data": {"root": "a"}, "data.side": 1}, "data.root", "b")
        {'data': {'root': 'b'}, 'data.side': 1}
    """
    for name, inner in mapping.items():
        prefix = "null." if name is None else f"{name}."
        if (inner is None or isinstance(inner, Mapping)) and key.startswith(prefix) and key not in mapping:
            return {**mapping, name: _put(inner or {}, key.removeprefix(prefix), text)}
    try:
        value = parse_value(text)
    except ValueError:
        value = text
    return {**mapping, key: value}


def _unknown(name: str, fields: Mapping[str, Field], dashes: str = "", own: Iterable[str] = ()) -> str:
    """What is wrong with a key that is none of the fields."""
    members = [key for key in fields if key.startswith(f"{name}.")]
    if members:
        return f"{dashes}{name} is a group: set its fields, like {dashes}{members[0]}"
    if name in own:
        return f"{dashes}{name} takes no value"
    known = [*fields, *own]
    hint = suggest(name, known)
    if not hint:  # the field's own name, without its group or with another one
        own_names = {key.rpartition(".")[2]: key for key in known}
        near = difflib.get_close_matches(name.rpartition(".")[2], own_names, n=1)
        hint = f"; did you mean {own_names[near[0]]}?" if near else ""
    return f"unknown {'flag' if dashes else 'key'} {dashes}{name}{hint.replace('mean ', f'mean {dashes}')}"


def _read_values(file: str, fields: Mapping[str, Field], parser: ArgumentParser) -> dict[str, Any]:
    """``dotted name: value`` from a YAML file, each of its field's type."""
    values: dict[str, Any] = {}
    for key, value in _leaves(load_yaml(Path(file)), fields):
        if key not in fields:
            raise UserError(f"{file}: {_unknown(key, fields)}")
        if key in values:
            raise UserError(f"{file}: the key {key} is there twice")
        values[key] = _checked(parser, key, fields[key].annotation, value, f"{file}: ")
    return values


def _leaves(mapping: Mapping[Any, Any], fields: Mapping[str, Field], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Like :func:`flatten`, but opens groups only: under any other key a mapping is a wrong value."""
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and any(field.startswith(f"{name}.") for field in fields):
            yield from _leaves(value, fields, f"{name}.")
        else:
            yield name, value


def _make_parser(
    fields: Mapping[str, Field], program: str, description: str, flags: Mapping[str, str], switches: Mapping[str, str]
) -> ArgumentParser:
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
        """Keeps the commands of the description, and fits it to the terminal."""

        def _fill_text(self, text: str, width: int, indent: str) -> str:
            return fold_description(text, width)

    parser = ArgumentParser(
        prog=program,
        usage=f"{program} [--flag value ...]",
        description=description,
        formatter_class=Formatter,
        exit_on_error=False,
        print_config=None,
    )
    for name, text in flags.items():
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text)
    for name, text in switches.items():
        if name != "help":  # the parser has its own
            parser.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS, help=text)
    sections: dict[str, Any] = {}
    for name, field in fields.items():
        default = None if field.default is dataclasses.MISSING else field.default
        group = name.rpartition(".")[0]
        if group not in sections:
            sections[group] = parser.add_argument_group(group or "run")
        sections[group].add_argument(f"--{name}", type=field.annotation, default=default, help=field.help or None)
    return parser


def _checked(parser: ArgumentParser, name: str, annotation: Any, given: Any, where: str) -> Any:
    """The given value (text from the command line, anything from a file) as a value of the field's type."""
    from jsonargparse import ArgumentError

    hint = near_choice(annotation, given) or _quoted(annotation, given)
    wrong = UserError(f"{where}{name} must be {describe(annotation)}, got {given!r}{hint}")
    if annotation == FREE:
        with contextlib.suppress(ValueError):
            mapping = parse_value(given) if where == "--" else given
            if isinstance(mapping, dict):
                return mapping
        raise wrong
    try:
        if where == "--":
            value = parser.parse_args([f"--{name}={_whole_text(annotation, given)}"])[name]
        else:
            nested = _whole(annotation, given)
            for part in reversed(name.split(".")):
                nested = {part: nested}
            value = parser.parse_object(nested)[name]
    except (ArgumentError, RecursionError):
        raise wrong from None
    if value is None and not _allows_none(annotation):  # jsonargparse takes null for any type
        raise wrong
    numbers = value if isinstance(value, tuple | list) else [value]
    if any(isinstance(number, float) and math.isnan(number) for number in numbers):
        raise wrong  # it would pass every check of a range
    return value


def _quoted(annotation: Any, given: Any) -> str:
    """How a number is given where text is wanted; empty: that is not what is wrong."""
    if annotation is not str or isinstance(given, bool) or not isinstance(given, int | float):
        return ""
    return f'; quotes make it text: "{given}" in a file, \'"{given}"\' in a shell'


def _whole(annotation: Any, value: Any) -> Any:
    """The value with 1e5 turned into 100000 wherever the field wants an int and no float."""
    if isinstance(value, list):
        inner = [arg for arg in typing.get_args(annotation) if arg is not ...]
        if len(inner) == len(value) and len(inner) > 1:
            return [_whole(arg, item) for arg, item in zip(inner, value, strict=True)]
        return [_whole(inner[0], item) if inner else item for item in value]
    wanted = {annotation, *typing.get_args(annotation)}
    if isinstance(value, float) and value.is_integer() and int in wanted and float not in wanted:
        return int(value)
    return value


def _whole_text(annotation: Any, text: str) -> str:
    """:func:`_whole` for text from the command line; text that changes nothing is passed on as it is.

    A list of texts may be given as one: ``--wrappers FlattenObservation`` is ``--wrappers "[FlattenObservation]"``.
    """
    if annotation == tuple[str, ...] and not text.lstrip().startswith(("[", "(")):
        return json.dumps([text])
    if annotation is str or str in typing.get_args(annotation):
        return text
    with contextlib.suppress(ValueError):
        value = parse_value(text)
        whole = _whole(annotation, value)
        if repr(whole) != repr(value):
            return json.dumps(whole)
    return text


def _allows_none(annotation: Any) -> bool:
    if typing.get_origin(annotation) in {Union, types.UnionType}:
        return any(map(_allows_none, typing.get_args(annotation)))
    return annotation is type(None) or (
        typing.get_origin(annotation) is Literal and None in typing.get_args(annotation)
    )


def _build(
    config_class: type[Config], fields: Mapping[str, Field], values: Mapping[str, Any], prefix: str = ""
) -> Config:
    """The dataclass, groups first; a ValueError from ``__post_init__`` is the user's error."""
    hints = typing.get_type_hints(config_class)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        name, annotation = prefix + field.name, hints[field.name]
        if dataclasses.is_dataclass(annotation):
            arguments[field.name] = _build(typing.cast(type, annotation), fields, values, f"{name}.")
        elif name in values:
            arguments[field.name] = values[name]
        elif fields[name].default is dataclasses.MISSING:
            raise UserError(f"--{name} is needed: there is no default")
        else:
            arguments[field.name] = fields[name].default
    try:
        return config_class(**arguments)
    except ValueError as error:
        raise UserError(f"{prefix.removesuffix('.') + ': ' if prefix else ''}{error}") from error
