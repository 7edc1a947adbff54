"""The numbers in a pickle of Stable-Baselines3 or gymnasium, read as a description: nothing is imported or called.

A space of observations stands as a pickle in a zip, the statistics of a VecNormalize in a file beside it.
:func:`read_values` walks through the opcodes; an object becomes a :class:`Built`, which says what would have been
called, and which state it would have got. :func:`array_of` and :func:`number_of` read NumPy's arrays and numbers in it.
"""

from __future__ import annotations

import math
import pickletools
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polydistill_agents.files.tensor_pickle import ORDERED_DICT, Machine, Name, NotTensors

MAX_OPCODES = 20_000  # a space has a hundred
MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # NumPy 1 and 2
NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINUNICODE8", "LONG4"}
KEYS = (str, int, float, bytes, type(None))


class Built:
    """An object that a pickle describes.

    Attributes:
        function: what would be called, usually a :class:`~polydistill_agents.files.tensor_pickle.Name`.
        arguments: with these.
        state: what it would then be given, or None.
    """

    __slots__ = ("arguments", "function", "state")

    def __init__(self, function: Any, arguments: Any) -> None:
        self.function, self.arguments = function, arguments
        self.state: Any = None

    def attributes(self) -> dict[Any, Any]:
        """Its state, where that is a table."""
        return self.state if isinstance(self.state, dict) else {}


class _ValueMachine(Machine):
    """Also bytes, sets and objects of any class; a table keeps only the keys that are plain. Each call is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Built] = []

    def run(self, content: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if opcode.name == "STOP" and self.stack:
                return self.stack[-1]
            if count >= MAX_OPCODES:
                break
            self.step(opcode.name, argument)
        raise NotTensors("no end within what is looked at")

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in BYTES:
            self.stack.append(bytes(argument) if isinstance(argument, bytearray) else argument)
        elif opcode == "NEWOBJ":
            self.stack.append(self.call(*self.pop(2)))
        elif opcode == "NEWOBJ_EX":
            self.stack.append(self.call(*self.pop(3)[:2]))
        elif opcode == "POP":
            self.pop(1)
        elif opcode == "EMPTY_SET":
            self.stack.append([])
        elif opcode in ("FROZENSET", "ADDITEMS"):
            self.pop_many()
            if opcode == "FROZENSET":
                self.stack.append([])
        else:
            super().step(opcode, argument)

    def name(self, module: Any, name: Any) -> Any:
        return Name(str(module), str(name)) if isinstance(module, str) and isinstance(name, str) else Name("?", "?")

    def call(self, function: Any, arguments: Any) -> Any:
        self.calls.append(Built(function, arguments))
        return {} if (function, arguments) == (ORDERED_DICT, ()) else self.calls[-1]

    def build(self, state: Any) -> None:
        if isinstance(self.stack[-1], Built):
            self.stack[-1].state = state

    def top(self, kind: type) -> Any:
        if isinstance(self.stack[-1], Built):  # a deque, or a class of its own, that items are put into
            return kind()
        return super().top(kind)

    def fill_table(self, items: list[Any]) -> None:
        table = self.top(dict)
        table.update((key, value) for key, value in zip(items[::2], items[1::2], strict=True) if type(key) in KEYS)


def read_values(content: bytes) -> Any:
    """What a pickle describes: plain values, and a :class:`Built` for each object.

    Raises:
        Exception: nearly any, for a damaged pickle or one of other opcodes.
    """
    return _ValueMachine().run(content)


def read_calls(content: bytes) -> list[Built]:
    """Every call that loading a pickle would make, in order, also of what it then drops.

    Raises:
        Exception: nearly any, for a damaged pickle or one of other opcodes.
    """
    machine = _ValueMachine()
    machine.run(content)
    return machine.calls


def array_of(value: Any) -> NDArray[Any] | None:
    """The numbers of a NumPy array that is described so; None for anything else."""
    if not isinstance(value, Built) or not isinstance(value.function, Name):
        return None
    module, name = value.function
    if module in MULTIARRAY and name == "_reconstruct":
        parts = value.state[1:5] if isinstance(value.state, tuple) and len(value.state) == 5 else ()
    elif module in NUMERIC and name == "_frombuffer" and isinstance(value.arguments, tuple):
        parts = tuple(value.arguments[i] for i in (2, 1, 3, 0)) if len(value.arguments) == 4 else ()
    else:
        return None
    if not parts:
        return None
    shape, kind, order, raw = parts
    dtype = dtype_of(kind)
    if dtype is None or type(shape) is not tuple or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
        return None
    if not isinstance(raw, bytes) or math.prod(shape) * dtype.itemsize != len(raw):
        return None
    try:
        return np.frombuffer(raw, dtype).reshape(shape, order="F" if order in (True, "F") else "C").copy()
    except ValueError:  # more axes, or longer ones, than NumPy itself has
        return None


def number_of(value: Any) -> float | None:
    """A Python number, or one of NumPy that is described so; None for anything else."""
    if type(value) in (int, float):
        return float(value)
    if not isinstance(value, Built) or type(value.arguments) is not tuple or len(value.arguments) != 2:
        return None
    if value.function not in [Name(module, "scalar") for module in MULTIARRAY]:
        return None
    dtype, raw = dtype_of(value.arguments[0]), value.arguments[1]
    fits = dtype is not None and isinstance(raw, bytes) and len(raw) == dtype.itemsize
    return float(np.frombuffer(raw, dtype)[0]) if fits else None


def dtype_of(value: Any) -> np.dtype[Any] | None:
    """A type of plain numbers that is described so, little-endian or of one byte; None for anything else."""
    if not isinstance(value, Built) or value.function != Name("numpy", "dtype") or type(value.arguments) is not tuple:
        return None
    code, state = value.arguments[:1], value.state
    if not code or type(code[0]) is not str or not re.fullmatch("[iu][1248]|f[248]", code[0]):
        return None
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "|"
    return np.dtype("<" + code[0]) if order in ("<", "|") else None
