"""Errors that a user can fix: one line, exit code 2; and the checks of ranges that every config makes.

Contract: nothing of this project is imported here, and nothing heavy, so that any module may.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# how torch reports that memory ran out, on a CPU and on a GPU; the type is RuntimeError, or derived from it
NO_MEMORY = ("DefaultCPUAllocator: ", "CUDA out of memory", "CUDA error: out of memory")


class UserError(Exception):
    """An error that the user can fix; its text is the one line that they read."""


class Interrupted(Exception):
    """A signal asked the script to stop, and it has: everything is saved.

    Args:
        signal: its number.
        how_to_go_on: the one line that the user reads; empty: none.
    """

    def __init__(self, signal: int, how_to_go_on: str) -> None:
        super().__init__(how_to_go_on)
        self.signal = signal


def printable(text: str) -> str:
    """A stranger's text in one line that cannot speak to the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def list_first(names: Iterable[object], n: int = 3) -> str:
    """The first names, and how many more there are.

    Example:
        >>> list_first("abcde"), list_first("abc")
        ('a, b, c and 2 more', 'a, b, c')
    """
    every = list(map(str, names))
    return ", ".join(every[:n]) + (f" and {len(every) - n:,} more" if len(every) > n else "")


def suggest(name: str, choices: Iterable[str]) -> str:
    """``"; did you mean adam?"`` for the nearest choice, ``""`` where none is close.

    Example:
        >>> suggest("adm", ["adam", "sgd"])
        '; did you mean adam?'
    """
    near = difflib.get_close_matches(name, list(choices), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def exit_with_error(error: Exception) -> NoReturn:
    """Print the error as one line on standard error and exit with code 2."""
    print("error: " + " ".join(line.strip() for line in str(error).splitlines()), file=sys.stderr)
    raise SystemExit(2) from None


def run_script(main: Callable[P, R]) -> Callable[P, R]:
    """Decorate a script's ``main``: a user's error becomes one line and code 2, a signal 128 + its number.

    A loss that is not finite (``FloatingPointError``) is a user's error too: the learning rate or the teacher causes
    it. So is running out of memory.
    """

    @functools.wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _warnings_of_one_line():
                return main(*args, **kwargs)
        except (UserError, FloatingPointError) as error:
            exit_with_error(error)
        except (MemoryError, RuntimeError) as error:
            text = str(error)
            if not isinstance(error, MemoryError) and not any(words in text for words in NO_MEMORY):
                raise
            if "CUDA" in text:  # how much was asked for, and how much is free; the rest is about torch's allocator
                text = ". ".join(text.partition("\n")[0].split(". ")[:3]).rstrip(".")
            exit_with_error(UserError(f"out of memory: {text or 'Python could get no more'}; what was saved is kept"))
        except Interrupted as end:
            if str(end):
                print(end, file=sys.stderr)
            raise SystemExit(128 + end.signal) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None

    return guarded


@contextlib.contextmanager
def _warnings_of_one_line() -> Iterator[None]:
    """While the context lasts a warning is printed without the place in the code, which says nothing to a user."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *place: f"warning: {' '.join(str(message).split())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def require_choice(name: str, choice: str, choices: Iterable[str]) -> None:
    """Refuse a word that is none of the choices.

    Raises:
        ValueError: with the nearest one.
    """
    known = list(choices)
    if choice not in known:
        raise ValueError(f"unknown {name} {choice!r}{suggest(choice, known)} (there are {', '.join(known)})")


def require_at_least(bound: int, config: object, *names: str) -> None:
    """Refuse numbers below ``bound`` in the fields ``names`` of ``config``.

    Raises:
        ValueError: naming the field and what it holds.
    """
    for name in names:
        if not getattr(config, name) >= bound:
            expected = f"be at least {bound}" if bound else "not be negative"
            raise ValueError(f"{name} must {expected}, got {getattr(config, name)}")


def require_at_most(bound: int, config: object, *names: str) -> None:
    """Refuse numbers above ``bound`` in the fields ``names`` of ``config``.

    Raises:
        ValueError: naming the field and what it holds.
    """
    for name in names:
        if not getattr(config, name) <= bound:
            raise ValueError(f"{name} must be at most {bound:,}, got {getattr(config, name):,}")
