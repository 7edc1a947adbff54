"""The space of an agent's observations as a zip describes it; nothing is unpickled.

A space stands in ``data`` as a pickle, with a plain text of its attributes beside it, rounded and abbreviated. What the
pickle describes (:mod:`polydistill_agents.files.pickle_values`) is the truth, and the text is read where the pickle is
damaged. A ``Dict`` is told by its pickle alone. Spaces of gym are spaces of gymnasium of the same name.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from polydistill.errors import UserError
from polydistill_agents.files.archive import shown
from polydistill_agents.files.pickle_values import Built, array_of, dtype_of, number_of, read_values
from polydistill_agents.files.tensor_pickle import MAX_AXES, Name
from polydistill_agents.networks.building import MAX_SIDE, MAX_STACK

MAX_SPACE_CHARACTERS = 2**24  # of a pickled space
MAX_FEATURES = 2**20  # of a space
MAX_KEYS = 256  # of a table
MAX_ELEMENTS = 2**24  # of a table, in all
DTYPES = ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
KIND = re.compile(r"(?:gym|gymnasium)\.spaces(?:\.[a-z_]+)?\.(Box|Discrete|MultiDiscrete|MultiBinary|Dict)", re.ASCII)
READ = "read are Box, Discrete, MultiDiscrete, MultiBinary, and a Dict of these"


class Told(NamedTuple):
    """What a zip says about a space.

    Attributes:
        kind: whole name of its class.
        pickled: attributes as the pickle describes them; empty where there is none.
        text: attributes as the plain text beside it has them; empty inside of a Dict.
    """

    kind: str
    pickled: Mapping[Any, Any]
    text: Mapping[str, Any]

    def get(self, *names: str) -> Any:
        """The first attribute of these names that is there, of the pickle before the text."""
        for table in (self.pickled, self.text):
            for name in names:
                if table.get(name) is not None:
                    return table[name]
        return None


def describe_space(given: Any, where: str) -> tuple[spaces.Space[Any] | None, bool]:
    """The space of the observations, and whether its bounds are the true ones.

    Args:
        given: what ``data`` holds.
        where: the file's name, for the refusal.

    Returns:
        No space where ``data`` names none. A Box whose bounds are not told is unbounded.

    Raises:
        UserError: a space that no network of Stable-Baselines3 reads, or one that is not described.
    """
    if given is None:
        return None, False
    text = given if isinstance(given, dict) else {}
    kind = str(text.get(":type:", "unknown")).removeprefix("<class '").removesuffix("'>")
    told = Told(kind, _attributes(text), text)
    if _short(told) != "Dict":
        return _plain(told, where)
    parts = told.pickled.get("spaces")
    if not isinstance(parts, dict) or not 0 < len(parts) <= MAX_KEYS or not all(type(key) is str for key in parts):
        raise UserError(f"{where}: its table of observations (Dict) is not described: its pickle is damaged or missing")
    found, elements = {}, 0
    for key, part in parts.items():
        found[key] = _plain(_inside(part), f"{where}: {shown(key)}")
        elements += math.prod(found[key][0].shape or ())
        if elements > MAX_ELEMENTS:  # one array of bounds may stand in all of them
            raise UserError(f"{where}: its table of observations (Dict) is larger than what is read")
    # in its own order: the features stand side by side in it
    space = spaces.Dict([(key, inner) for key, (inner, _) in found.items()])
    return space, all(bounds for _, bounds in found.values())


def _plain(told: Told, where: str) -> tuple[spaces.Space[Any], bool]:
    """A space that is no table, and whether its bounds are the true ones."""
    match _short(told):
        case "Box":
            return _box(told, where)
        case "Discrete":
            _refuse_start(told, where)
            return spaces.Discrete(_limited(_whole(told.get("n")), where)), True
        case "MultiDiscrete":
            _refuse_start(told, where)
            counts = _counts(told)
            _limited(sum(counts), where)
            return spaces.MultiDiscrete(np.array(counts), dtype=_whole_type(told)), True
        case "MultiBinary":
            sizes = _sizes(told, where)
            return spaces.MultiBinary(sizes[0] if len(sizes) == 1 else sizes), True
    raise UserError(f"{where}: observations of kind {shown(told.kind)} are not read ({READ})")


def _short(told: Told) -> str:
    match = KIND.fullmatch(told.kind)
    return match[1] if match else ""


def _inside(part: Any) -> Told:
    """A part of a table."""
    known = isinstance(part, Built) and isinstance(part.function, Name)
    return Told(".".join(part.function) if known else "unknown", part.attributes() if known else {}, {})


def _attributes(space: Mapping[str, Any]) -> dict[Any, Any]:
    """The attributes in a pickled space, described and never loaded; none where it is damaged or too long."""
    text = space.get(":serialized:")
    if not isinstance(text, str) or len(text) > MAX_SPACE_CHARACTERS:
        return {}
    try:
        built = read_values(base64.b64decode(text, validate=True))
    except Exception:  # a stranger's bytes
        return {}
    return built.attributes() if isinstance(built, Built) else {}


# ---- counts


def _limited(count: int, where: str) -> int:
    if not 1 <= count <= MAX_FEATURES:
        raise UserError(f"{where}: observations of {shown(count)} values are not read (1 to {MAX_FEATURES:,})")
    return count


def _whole(value: Any) -> int:
    """A count, as a number, as text, or as a number of NumPy that a pickle describes; 0 for anything else."""
    number = number_of(value)
    if number is None and isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value, re.ASCII):
        return int(value)
    return int(number) if number is not None and math.isfinite(number) and number == int(number) else 0


def _counts(told: Told) -> list[int]:
    """The counts of a MultiDiscrete; [0] where they are not told, or stand in several rows."""
    values = array_of(told.pickled.get("nvec"))
    if values is None:
        text = told.text.get("nvec")
        words = re.fullmatch(r"\[([0-9 \n]{1,5000})\]", text) if isinstance(text, str) else None
        values = np.array([int(word) for word in words[1].split()] if words else [0], dtype=object)
    sound = values.ndim == 1 and values.size and values.dtype.kind in "iuO" and all(1 <= n <= 2**31 for n in values)
    return [int(n) for n in values] if sound else [0]


def _words(value: Any) -> str:
    """A plain value, or a row of them, as text: a pickle's row of rows may hold one of them more often than fits."""
    row = value if isinstance(value, list | tuple) else [value]
    plain = [each if isinstance(each, int | float | str) else type(each).__name__ for each in row]
    return str(plain[0]) if row is not value else str(tuple(plain) if isinstance(value, tuple) else plain)


def _refuse_start(told: Told, where: str) -> None:
    """Stable-Baselines3 counts from 0, wherever a space begins."""
    start = told.get("start")
    values, number = array_of(start), number_of(start)
    if values is None and number is not None:
        values = np.array(number)
    if values.any() if values is not None else start is not None and re.search(r"[^\[\]() ,.'0-]", _words(start)):
        raise UserError(f"{where}: observations that are counted from another number than 0 are not read")


def _whole_type(told: Told) -> np.dtype[Any]:
    """The type of a space of counts."""
    dtype, text = dtype_of(told.pickled.get("dtype")), told.text.get("dtype")
    if dtype is None and text in DTYPES:
        dtype = np.dtype(text)
    return dtype if dtype is not None and dtype.kind in "iu" else np.dtype(np.int64)


# ---- boxes


def _sizes(told: Told, where: str) -> tuple[int, ...]:
    """The shape.

    Raises:
        UserError: it is none, or too large.
    """
    shape = told.get("_shape", "shape")
    sizes = tuple(n if type(n) is int else _whole(n) for n in shape) if isinstance(shape, list | tuple) else ()
    if not sizes or min(sizes) < 1 or len(sizes) > MAX_AXES:
        raise UserError(f"{where}: observations of shape {shown(_words(shape))} are not read")
    frames = len(sizes) == 3 and max(sizes) <= MAX_SIDE and min(sizes) <= MAX_STACK
    if not frames and math.prod(sizes) > MAX_FEATURES:
        raise UserError(f"{where}: observations of shape {shown(_words(shape))} are larger than what is read")
    return sizes


def _box(told: Told, where: str) -> tuple[spaces.Box, bool]:
    """The Box, and whether its bounds are told."""
    sizes, pickled = _sizes(told, where), {name: array_of(told.pickled.get(name)) for name in ("low", "high")}
    low = pickled["low"]
    dtype = told.text.get("dtype") if low is None else str(low.dtype)
    if dtype not in DTYPES:
        raise UserError(
            f"{where}: observations of shape {shown(str(list(sizes)))} and type {shown(dtype)} are not read"
        )
    kind = np.dtype(dtype)
    low, high = (_bound(pickled[name], told.text.get(name), sizes, kind) for name in ("low", "high"))
    if low is not None and high is not None and bool((low <= high).all()):
        return spaces.Box(low, high, sizes, kind), True
    if kind == np.uint8 and len(sizes) == 3:  # whether they are divided by 255 hangs on the bounds
        texts = [str(told.text.get(name, "")).replace("...", "") for name in ("low", "high")]
        if [set(re.findall(r"[\d.]+", text)) for text in texts] != [{"0"}, {"255"}]:
            raise UserError(f"{where}: it is not told whether its frames are pixels of 0 to 255")
        return spaces.Box(0, 255, sizes, np.uint8), True
    limits: Any = (-np.inf, np.inf) if kind.kind == "f" else (np.iinfo(kind).min, np.iinfo(kind).max)
    return spaces.Box(limits[0], limits[1], sizes, kind), False


def _bound(values: Any, text: Any, sizes: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any] | None:
    """Low or high bounds as the pickle describes them, or the text, which is rounded and abbreviated; None if neither.

    The largest float stands for no bound: so environments wrote it before gymnasium 1.0, which writes infinity.
    """
    if values is None or (values.shape, values.dtype) != (sizes, kind):
        words = re.sub(r"[\[\]]", " ", text).split() if isinstance(text, str) else []
        if len(words) != math.prod(sizes):
            return None
        try:
            with np.errstate(over="ignore"):  # beyond the type: infinite
                values = np.array([float(word) if kind.kind == "f" else int(word) for word in words]).astype(kind)
        except (ValueError, OverflowError):  # "..." is no number
            return None
        if kind.kind != "f" and [int(value) for value in values] != [int(word) for word in words]:
            return None
        values = values.reshape(sizes)
    if kind.kind == "f":
        values = np.where(np.abs(values) >= np.finfo(kind).max, np.copysign(kind.type(np.inf), values), values)
    return None if np.isnan(values).any() else values
