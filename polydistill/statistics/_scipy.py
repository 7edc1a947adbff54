"""The one place where scipy is imported: only comparisons of arms need it, and it comes with the extra ``study``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from polydistill._environment import require_extra


def scipy_module(name: str) -> Any:
    """``scipy.NAME``.

    Raises:
        MissingExtra: scipy is not installed; one line names the extra.
    """
    require_extra("study", "scipy")
    return import_module(f"scipy.{name}")
