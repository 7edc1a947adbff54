"""The Hub's client, of the extra ``hub``: imported when it is needed, kept quiet, its errors turned into one line."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from polydistill.errors import UserError, printable

LONGEST_REASON = 160  # characters
REASONS = {  # of HTTP
    401: "the Hub does not know the token: log in again with `hf auth login`",
    403: "the token may not write there",
    409: "it was changed meanwhile: try again",
    412: "it was changed meanwhile: try again",
}


def open_client(where: str) -> Any:
    """The package ``huggingface_hub``.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise UserError(f"{where} needs the extra hub: pip install 'polydistill[hub]'") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the logs to errors: of each of its attempts the Hub's client would print two lines."""
    before = logging.root.manager.disable  # not a level of the client's log, which it sets itself when it is imported
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def failing(where: str, doing: str = "get", reasons: Mapping[int, str] | None = None) -> Iterator[None]:
    """Turn whatever a client raises into one line: its classes are httpx's, requests', urllib's, ssl's and its own.

    Args:
        where: the address.
        doing: what fails.
        reasons: words of our own for a status of HTTP.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot {doing} {where}: {_reason(error, reasons or {})}") from error


@contextlib.contextmanager
def progress_on_a_terminal() -> Iterator[None]:
    """Let the client draw its bars on a terminal alone: elsewhere they are hundreds of lines."""
    bars: Any = importlib.import_module("huggingface_hub.utils")
    if bars.are_progress_bars_disabled() or sys.stderr.isatty():
        yield
        return
    bars.disable_progress_bars()
    try:
        yield
    finally:
        bars.enable_progress_bars()


def status_of(error: BaseException) -> int:
    """The status of HTTP that led to an error; 0: none did."""
    return int(getattr(getattr(error, "response", None), "status_code", 0))


def _reason(error: BaseException, reasons: Mapping[int, str]) -> str:
    """Its words, and those of what led to it, the outermost first: alone these say `Error while uploading`."""
    words: list[str] = []
    found: BaseException | None = error
    while found is not None:
        if status_of(found) in reasons:
            return reasons[status_of(found)]
        text = printable(" ".join(str(found).split())).rstrip(".") or type(found).__name__
        if text not in " ".join(words):
            words.append(text)
        found = found.__cause__
    return ": ".join(words)[:LONGEST_REASON]
