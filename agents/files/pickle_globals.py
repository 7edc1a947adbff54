"""Which globals a pickle would import if it were loaded. It is not: its opcodes are listed, and nothing is executed.

An opcode names a global by itself (GLOBAL, INST), or takes module and name from the stack (STACK_GLOBAL), where
pickles put them as texts just before, new or out of the memo. What is put there by other means shows as ``?``.
"""

from __future__ import annotations

import pickletools
from typing import NamedTuple

MAX_OPCODES = 200_000


class Globals(NamedTuple):
    """What was found.

    Attributes:
        names: ``module.name``, sorted, each once.
        complete: False where the pickle is damaged, or longer than what is looked at.
        opcodes: how many were looked at.
    """

    names: tuple[str, ...]
    complete: bool
    opcodes: int


def find_globals(content: bytes, limit: int = MAX_OPCODES) -> Globals:
    """The globals that ``content`` refers to, from at most ``limit`` opcodes.

    Example:
        >>> import pickle
        >>> find_globals(pickle.dumps(print)).names
        ('builtins.print',)
    """
    names: set[str] = set()
    texts: list[str | None] = []  # what was pushed last, if it was a text
    memo: dict[int, str | None] = {}
    count = 0
    try:
        for opcode, argument, _ in pickletools.genops(content):
            count += 1
            if opcode.name == "STOP":
                return Globals(tuple(sorted(names)), True, count)
            if count >= limit:
                break
            if opcode.name in ("GLOBAL", "INST"):
                names.add(str(argument).replace(" ", ".", 1))
            elif opcode.name == "STACK_GLOBAL":
                names.add(".".join(text or "?" for text in [None, None, *texts][-2:]))
            elif opcode.name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
                memo[len(memo) if opcode.name == "MEMOIZE" else int(str(argument))] = texts[-1] if texts else None
                continue
            elif opcode.name in ("BINGET", "LONG_BINGET", "GET"):
                texts = [*texts[-1:], memo.get(int(str(argument)))]
                continue
            texts = [*texts[-1:], argument if isinstance(argument, str) else None]
    except Exception:  # damaged: what came before is told all the same
        pass
    return Globals(tuple(sorted(names)), False, count)
