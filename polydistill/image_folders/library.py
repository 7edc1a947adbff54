"""timm, which brings torchvision: imported here alone, when it is first needed; an import that fails is one line."""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

import torch

from polydistill._environment import require_extra
from polydistill.errors import UserError, printable

PREFIX = "timm:"  # of the names of its networks


@functools.cache
def load_timm() -> Any:
    """The module ``timm``, with ``timm.data``.

    Raises:
        MissingExtra: it is not installed.
        UserError: it is, and cannot be imported, as where torchvision is made for another torch.
    """
    require_extra("timm")
    try:
        timm = import_module("timm")
        import_module("timm.data.random_erasing")
    except Exception as error:  # whatever torchvision raises where its compiled part does not fit
        told = printable(str(error).strip().partition("\n")[0])
        raise UserError(
            f"timm cannot be imported ({told}): install the torchvision that belongs to torch {torch.__version__}, "
            "from where torch came from"
        ) from error
    return timm
