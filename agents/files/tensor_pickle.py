"""The pickle in a ``.pth`` file, read as a description of tensors: nothing is imported, called or built.

``torch.save`` writes a state dict as a small pickle (names, shapes, and the keys of the storages) beside the raw
bytes of the storages. :func:`read_forms` walks through the opcodes with a machine of its own that knows tables,
lists, numbers, text and the few globals below; anything else is refused by name. So shapes, strides and overlaps
are known, and checked, before torch takes memory for them.
"""

from __future__ import annotations

import math
import pickletools
from typing import Any, NamedTuple

from polydistill_agents.files.archive import shown

MAX_PICKLE_BYTES = 2**20  # some hundred bytes per tensor
MAX_AXES = 8
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
}
ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
IGNORED = {"PROTO", "FRAME"}


class NotTensors(Exception):
    """The pickle holds something else than a table of tensors; the text says what."""


class Name(NamedTuple):
    """A global that the pickle refers to. It is never imported."""

    module: str
    name: str


class Storage(NamedTuple):
    """Raw numbers: their type, the member ``data/<key>`` that holds them, and how many there are."""

    dtype: str
    key: str
    length: int


class Form(NamedTuple):
    """A tensor, as the pickle describes it: a dense block of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


ORDERED_DICT = Name("collections", "OrderedDict")
REBUILD_TENSOR = Name("torch._utils", "_rebuild_tensor_v2")
REBUILD_PARAMETER = Name("torch._utils", "_rebuild_parameter")


def read_forms(content: bytes) -> dict[str, Form]:
    """Names and forms of the tensors in a pickled state dict.

    Args:
        content: the pickle, at most ``MAX_PICKLE_BYTES``.

    Returns:
        One :class:`Form` per name; all dense, inside their storages, and of one storage either equal or apart.

    Raises:
        NotTensors: it would import, call or hold anything else.
        Exception: nearly any, for a damaged pickle.
    """
    if len(content) > MAX_PICKLE_BYTES:
        raise NotTensors(f"a pickle of {len(content):,} bytes, more than {MAX_PICKLE_BYTES:,}")
    table = Machine().run(content)
    if not isinstance(table, dict):
        raise NotTensors(f"a {type(table).__name__}, not a table of tensors")
    for name, form in table.items():
        if not isinstance(name, str) or not isinstance(form, Form):
            raise NotTensors(f"{shown(name)} is no floating-point tensor")
    _check_overlaps(table)
    return table


class Machine:
    """A stack, a memo, and the opcodes that tables of tensors need. Text is the only key of a table.

    What globals, calls and states become is decided by a derived machine, which executes nothing either.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "STOP":
                break
            self.step(opcode.name, argument)
        if len(self.stack) != 1 or self.marks:
            raise NotTensors("more or less than one value")
        return self.stack[0]

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in LITERALS:
            self.stack.append(argument)
        elif opcode in CONSTANTS:
            self.stack.append(CONSTANTS[opcode])
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif opcode == "MARK":
            self.marks.append(len(self.stack))
        elif opcode in ("EMPTY_DICT", "EMPTY_LIST"):
            self.stack.append({} if opcode == "EMPTY_DICT" else [])
        elif opcode in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            self.stack.append(tuple(self.pop_many() if opcode == "TUPLE" else self.pop(int(opcode[-1]))))
        elif opcode in ("SETITEM", "SETITEMS"):
            self.fill_table(self.pop(2) if opcode == "SETITEM" else self.pop_many())
        elif opcode in ("APPEND", "APPENDS"):
            values = self.pop(1) if opcode == "APPEND" else self.pop_many()
            self.top(list).extend(values)
        elif opcode == "GLOBAL":
            self.stack.append(self.name(*argument.split(" ", 1)))
        elif opcode == "STACK_GLOBAL":
            self.stack.append(self.name(*self.pop(2)))
        elif opcode == "BINPERSID":
            self.stack.append(_storage(*self.pop(1)))
        elif opcode == "REDUCE":
            self.stack.append(self.call(*self.pop(2)))
        elif opcode == "BUILD":
            self.build(*self.pop(1))
        elif opcode not in IGNORED:
            raise NotTensors(f"the opcode {opcode}")

    def name(self, module: Any, name: Any) -> Any:
        """What stands for a global."""
        return _known(module, name)

    def call(self, function: Any, arguments: Any) -> Any:
        """What stands for the result of a call."""
        return _call(function, arguments)

    def build(self, state: Any) -> None:
        """Take the state of what is on top: a state dict's ``_metadata``, version numbers of its modules."""
        self.top(dict)

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) - (self.marks[-1] if self.marks else 0) < count:
            raise NotTensors("a value that is not there")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def pop_many(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise NotTensors(f"a {type(self.stack[-1]).__name__} where a {kind.__name__} is needed")
        return self.stack[-1]

    def fill_table(self, items: list[Any]) -> None:
        table = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:  # the hash of a nested tuple may take forever
                raise NotTensors(f"a table with a key {shown(key)}")
            table[key] = value


def _known(module: Any, name: Any) -> Name:
    given = Name(module, name)
    if type(module) is not str or type(name) is not str:
        raise NotTensors("a global without a name")
    if given not in (ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER) and (module != "torch" or name not in STORAGES):
        raise NotTensors(f"it would import {shown(f'{module}.{name}')}")
    return given


def _storage(given: Any) -> Storage:
    match given:
        case ("storage", Name(module="torch", name=kind), str() as key, str(), int() as length):
            if not key.isascii() or not key.isdigit() or not 0 <= length < 2**40:
                raise NotTensors(f"a storage {shown(key)} of {length} numbers")
            return Storage(STORAGES[kind], key, length)
    raise NotTensors("a reference that is no storage of floating-point numbers")


def _call(function: Any, arguments: Any) -> Any:
    """What three known functions would return. The type of every argument is looked at."""
    if function == ORDERED_DICT and arguments == ():
        return {}
    if function == REBUILD_PARAMETER and type(arguments) is tuple and arguments and isinstance(arguments[0], Form):
        return arguments[0]
    if function == REBUILD_TENSOR and type(arguments) is tuple and len(arguments) == 6:
        storage, offset, shape, stride, _, hooks = arguments
        numbers = [offset, *shape, *stride] if type(shape) is type(stride) is tuple else [None]
        if isinstance(storage, Storage) and all(type(n) is int for n in numbers) and hooks == {}:
            return _checked(Form(storage, offset, shape, stride))
    raise NotTensors("a call that builds no tensor")


def _checked(form: Form) -> Form:
    """Refuse a form that is not a dense block inside its storage."""
    if len(form.shape) != len(form.stride) or len(form.shape) > MAX_AXES:
        raise NotTensors(f"a tensor of {len(form.shape)} axes and {len(form.stride)} strides")
    if any(not 0 <= n < 2**40 for n in (form.offset, *form.shape, *form.stride)):
        raise NotTensors("a tensor of negative or absurd size")
    expected = 1
    for stride, length in sorted(zip(form.stride, form.shape, strict=True)):
        if length != 1 and stride != expected:
            raise NotTensors(f"a tensor of shape {form.shape} that does not lie dense in its storage")
        expected *= length
    if form.offset + form.elements > form.storage.length:
        raise NotTensors(f"a tensor of shape {form.shape}, larger than its storage of {form.storage.length} numbers")
    return form


def _check_overlaps(forms: dict[str, Form]) -> None:
    """Tensors of one storage are the same block (a target network may alias the online one) or do not touch."""
    storages: dict[str, Storage] = {}
    blocks: dict[tuple[str, int], tuple[Form, str]] = {}
    for name, form in forms.items():
        if storages.setdefault(form.storage.key, form.storage) != form.storage:
            raise NotTensors(f"the storage {shown(form.storage.key)}, described in two ways")
        known, first = blocks.setdefault((form.storage.key, form.offset), (form, name))
        if known != form:
            raise NotTensors(f"{shown(first)} and {shown(name)}, which overlap in part")
    ends: dict[str, tuple[int, str]] = {}
    for (key, offset), (form, name) in sorted(blocks.items(), key=lambda item: item[0]):
        end, before = ends.get(key, (0, ""))
        if offset < end:
            raise NotTensors(f"{shown(before)} and {shown(name)}, which overlap in part")
        ends[key] = (offset + form.elements, name)
