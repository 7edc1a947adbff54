"""Which pickles of a zip are as Stable-Baselines3 writes them, and what is unusual about the others.

Usual is a short list of classes and constructors, each by its whole name: ``stable_baselines3`` itself holds functions
that unpickle. Until version 2.7 Stable-Baselines3 wrote schedules as functions of cloudpickle, with their code; such
code is usual as long as it names nothing (``float`` excepted), since then it can reach nothing, and is not called while
it is loaded. Nothing is unpickled here.
"""

from __future__ import annotations

import re

from polydistill_agents.files.archive import shown
from polydistill_agents.files.pickle_globals import MAX_OPCODES, Globals, find_globals
from polydistill_agents.files.pickle_values import Built, read_calls
from polydistill_agents.files.tensor_pickle import Name

USUAL = re.compile(
    "|".join(
        (
            r"(stable_baselines3|sb3_contrib)(\.[a-z0-9_]+)*\.policies\.[A-Z]\w*",
            r"stable_baselines3\.common\.(torch_layers|buffers|noise|type_aliases)\.[A-Z]\w*",
            r"sb3_contrib\.common(\.[a-z_]+)*\.(torch_layers|buffers|type_aliases)\.[A-Z]\w*",
            r"stable_baselines3\.common\.utils\.(Constant|Float|Linear)Schedule",
            r"stable_baselines3\.common\.sb2_compat\.rmsprop_tf_like\.RMSpropTFLike",
            r"stable_baselines3\.her\.[a-z_]+\.[A-Z]\w*",
            r"(gym|gymnasium)\.spaces(\.[a-z_]+)?\.[A-Z]\w*",
            r"numpy\.(dtype|ndarray|bool_?|(u?int|float)\d+|dtypes\.[A-Z]\w*)",
            r"numpy\._?core\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)",
            r"numpy\.random\.(_pickle\.__\w+_ctor|_[a-z0-9]+\.[A-Z]\w*|mtrand\.RandomState)",
            r"numpy\.random\.bit_generator\.(__pyx_unpickle_)?(SeedSequence|SeedlessSequence)",
            r"torch\.(nn\.modules\.activation|optim\.[a-z_]+)\.[A-Z]\w*",
            r"torch\.device",
            r"collections\.(deque|OrderedDict|defaultdict)",
            r"(builtins|__builtin__)\.(dict|list|set|frozenset|tuple|object|float|int|str|bool|bytes|bytearray|complex)",
            r"copy_?reg\._reconstructor",
            r"_codecs\.encode",
        )
    ),
    re.ASCII,
)
CLOUDPICKLE = re.compile(
    r"cloudpickle\.cloudpickle(_fast)?\."
    r"(_builtin_type|_make_cell|_make_empty_cell|_make_function|_function_setstate|_fill_function|_make_skel_func)"
)
TYPES_OF_FUNCTIONS = [("CodeType",), ("LambdaType",), ("FunctionType",)]
HARMLESS_NAMES = {"float"}


def examine_pickle(content: bytes, limit: int = MAX_OPCODES) -> tuple[Globals, list[str]]:
    """The globals of a pickle, as :func:`~polydistill_agents.files.pickle_globals.find_globals`, and what is unusual.

    Returns:
        The globals, and for each unusual thing a word: a global's name, "code that uses NAME", and others.
    """
    found = find_globals(content, limit)
    odd = [name for name in found.names if not USUAL.fullmatch(name)]
    helpers = [name for name in odd if CLOUDPICKLE.fullmatch(name)]
    if helpers:
        odd = [name for name in odd if name not in helpers] + _unusual_code(content, helpers)
    return found, odd if found.complete else [*odd, "what is damaged, or longer than what is looked at"]


def _unusual_code(content: bytes, helpers: list[str]) -> list[str]:
    """What the functions that cloudpickle has written by value could reach; the helpers, where that cannot be told."""
    try:
        calls = read_calls(content)
    except Exception:  # opcodes that no ordinary pickle holds
        return helpers
    odd: list[str] = []
    for call in calls:
        made_by = call.function
        if isinstance(made_by, Name):
            if made_by.name == "_builtin_type" and call.arguments not in TYPES_OF_FUNCTIONS:
                return helpers
        elif not isinstance(made_by, Built) or getattr(made_by.function, "name", None) != "_builtin_type":
            odd.append("a call of what it has built")
        elif made_by.arguments == ("CodeType",):
            names = _names_in(call.arguments)
            odd += ["code"] if names is None else [f"code that uses {shown(n)[1:-1]}" for n in names]
    return list(dict.fromkeys(odd))


def _names_in(code: object) -> list[str] | None:
    """Globals and attributes that a code object names; they stand second behind its byte code."""
    parts = code if type(code) is tuple else ()
    at = [type(part) is bytes for part in parts]
    names = parts[at.index(True) + 2] if True in at and len(parts) > at.index(True) + 2 else None
    if type(names) is not tuple or not all(type(name) is str for name in names):
        return None
    return [name for name in names if name not in HARMLESS_NAMES]
