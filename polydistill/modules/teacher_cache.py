"""How a teacher's scores are kept on disk, and what a student learns from those of its most likely classes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polydistill.errors import require_choice
from polydistill.losses import OBJECTIVES, top_k_kd
from polydistill.losses.checks import check_integer, describe

DTYPES = ("float32", "float16", "bfloat16")
# objectives that have a form for the k most likely classes, as options of top_k_kd
ON_TOP_K: Mapping[str, Mapping[str, float]] = {
    "ban": {"temperature": 1.0, "label_weight": 0.0, "teacher_weight": 1.0},
    "ban_l": {"temperature": 1.0, "label_weight": 1.0, "teacher_weight": 1.0},
    "hinton_kd": {name: option.default for name, option in OBJECTIVES["hinton_kd"].options.items()},
}


@dataclass(frozen=True)
class TeacherCache:
    """Where a teacher's scores are kept, and in which form: each sample's are computed once, and read in every epoch.

    This is for inputs that repeat from epoch to epoch; others are refused before the first step, or in the first batch
    that has one. A folder serves any number of teachers and runs. Students learn from the scores as they are kept,
    so it makes no difference whether they were there before.

    Args:
        folder: is made when needed; each teacher has a folder of its own in it.
        top_k: keep the k most likely classes of each sample, and the rest as one, for the objectives ban, ban_l and
            hinton_kd, see :func:`polydistill.losses.top_k_kd`; None: all scores.
        dtype: of the numbers: float32, float16, bfloat16.

    Raises:
        ValueError: ``top_k`` or ``dtype`` is out of range.
        TypeError: an argument of another type.

    Example:
        >>> TeacherCache("scores", top_k=50, dtype="float16").dtype
        'float16'
    """

    folder: str | Path
    top_k: int | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not isinstance(self.folder, str | Path):
            raise TypeError(f"`teacher_cache` must be a folder or a TeacherCache, got {describe(self.folder)}")
        if self.top_k is not None:
            check_integer("top_k", self.top_k, 1)
        require_choice("dtype", self.dtype, DTYPES)

    def require_objective(self, name: str) -> None:
        """Refuse an objective that has no form for the ``top_k`` classes.

        Raises:
            ValueError: it has none.
        """
        if self.top_k is not None and name not in ON_TOP_K:
            raise ValueError(f"top_k is for the objectives {', '.join(ON_TOP_K)}, and not for {name}: leave it out")

    def describe(self) -> dict[str, Any]:
        """What of it decides what a student learns, as plain values."""
        return {"top_k": self.top_k, "dtype": self.dtype}

    def objective(self, name: str, options: Mapping[str, Any]) -> functools.partial[Any]:
        """The objective ``name`` with ``options``, on the ``top_k`` classes and the rest as one."""
        assert self.top_k is not None
        return functools.partial(top_k_kd, k=self.top_k, **{**ON_TOP_K[name], **options})

    def temperature(self, name: str, options: Mapping[str, Any]) -> float:
        """At which objective ``name`` with ``options`` takes the probabilities of the ``top_k`` classes; 1 for all."""
        return 1.0 if self.top_k is None else float({**ON_TOP_K[name], **options}["temperature"])
