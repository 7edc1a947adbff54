"""The one place that chooses between the plain formulas and the fused kernels.

Contract: the choice is made from the scores' device and type alone. ``"auto"``, the default, takes the kernels for CUDA
scores where Triton is installed and finds a C compiler, with which it builds its launchers, and the plain formulas for
everything else; both give the same values within rounding (measured in ``tests/kernels``). Triton is imported at the
first launch of a kernel.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from types import TracebackType
from typing import Literal, get_args

import torch
from torch import Tensor

from polydistill.kernels import Rows, fused_diagnosis, fused_gradient, fused_loss, numbers
from polydistill.kernels import confidence as fused_confidence

__all__ = [
    "Rows",
    "can_launch",
    "current_backend",
    "fused_confidence",
    "fused_diagnosis",
    "fused_gradient",
    "fused_loss",
    "numbers",
    "use_backend",
    "uses_kernels",
]

Backend = Literal["auto", "torch", "triton"]

HAS_TRITON = find_spec("triton") is not None
TRUE = ("1", "true", "yes", "on", "y")  # how Triton reads its environment
_FUSED_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_chosen: Backend = "auto"
_interprets = False  # TRITON_INTERPRET was set when use_backend chose triton
_can_launch: bool | None = None  # None: not looked yet


class use_backend:
    """Choose how losses are computed, from now on or within a ``with`` block, in all threads of the process.

    Args:
        name: "auto"; "torch" for the plain formulas, which have second derivatives; or "triton" for the kernels
            wherever they can: CUDA scores, and with ``TRITON_INTERPRET=1`` in the environment CPU scores too, slowly.
            The losses of float64 scores are always computed by the plain formulas.

    Raises:
        ValueError: another name, or "triton" where no kernel can run: Triton is not installed, or there is no GPU and
            no interpreter, or no C compiler.

    Example:
        >>> with use_backend("torch"):
        ...     current_backend()
        'torch'
    """

    def __init__(self, name: Backend) -> None:
        global _chosen, _interprets
        if name not in get_args(Backend):
            raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {name!r}")
        if name == "triton":
            _interprets = os.environ.get("TRITON_INTERPRET", "").lower() in TRUE
            _require_triton()
        self._before = _chosen
        _chosen = name

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _chosen
        _chosen = self._before


def current_backend() -> Backend:
    """What :func:`use_backend` chose.

    Returns:
        "auto", "torch" or "triton".

    Example:
        >>> current_backend()
        'auto'
    """
    return _chosen


def _require_triton() -> None:
    """Refuse the backend triton where no kernel can run."""
    if not HAS_TRITON:
        raise ValueError("backend triton needs Triton, which is not installed: pip install triton")
    if _interprets:
        return
    if not torch.cuda.is_available():
        raise ValueError(
            "backend triton needs a GPU, and torch sees none: choose auto, or set TRITON_INTERPRET=1 in the environment"
        )
    if not can_launch():
        raise ValueError("backend triton needs a C compiler, and Triton finds none: set CC, or install gcc")


def uses_kernels(student: Tensor) -> bool:
    """Whether a loss of these scores is computed by the kernels."""
    if _chosen == "torch" or not HAS_TRITON or student.dtype not in _FUSED_TYPES:
        return False
    if _chosen == "triton":
        return student.is_cuda or _interprets
    return student.is_cuda and can_launch()


def can_launch() -> bool:
    """Whether Triton is installed and finds a C compiler, where it looks for one: ``CC``, and gcc or clang on PATH.

    Looked up once, with the first CUDA scores. ``torch.compile`` cannot trace the look-up, and its own GPU code needs
    the compiler too: while compiling, a compiler that was not looked up yet is taken to be there.
    """
    global _can_launch
    if _can_launch is None:
        if torch.compiler.is_compiling():
            return HAS_TRITON
        named = os.environ.get("CC")
        programs = ("gcc", "clang") if named is None else (named,)
        _can_launch = HAS_TRITON and any(shutil.which(program) for program in programs)
    return _can_launch
