"""Silence for tools whose lines say nothing to a user: what goes wrong is told by the error that they raise."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While the context lasts, warnings, log lines and what is printed are dropped."""
    root, silent, before = logging.getLogger(), logging.NullHandler(), logging.root.manager.disable
    root.addHandler(silent)  # with no handler at all, the first line would set up logging for the whole process
    logging.disable(logging.ERROR)
    try:
        dropped = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(dropped),
            contextlib.redirect_stderr(dropped),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        root.removeHandler(silent)
