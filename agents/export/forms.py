"""An agent in its several forms, each scored, timed and compared; and whether int8 is worth it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polydistill.statistics import bootstrap_interval
from polydistill_agents.environments.evaluation import Evaluation
from polydistill_agents.export.checking import Comparison


@dataclass(frozen=True)
class Form:
    """An agent as torch computes it, or as a file.

    Attributes:
        name: "torch", "float32" or "int8".
        content: of the file; empty for torch.
        evaluation: its games. Their agreement is with torch, in the states that this form met.
        latency: milliseconds per decision on one thread, by the number of decisions made at once.
        comparison: its scores beside torch's, from a process without torch; None for torch.
    """

    name: str
    content: bytes
    evaluation: Evaluation
    latency: dict[int, float]
    comparison: Comparison | None = None

    @property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.content).hexdigest()


def judge(float32: Form, int8: Form, seed: int = 0) -> str:
    """In a sentence, whether int8 is worth it beside float32.

    It is not where it is no faster, or where the interval of its score less that of float32, game by game, is below 0.

    Args:
        float32: that it is compared with, in the same games.
        int8: that is judged.
        seed: of the resampled games.
    """
    lost = bootstrap_interval(int8.evaluation.scores - float32.evaluation.scores, generator=np.random.default_rng(seed))
    against = [
        f"with {batch} at once it takes {int8.latency[batch]:.2g} ms a decision, float32 {milliseconds:.2g} ms"
        for batch, milliseconds in float32.latency.items()
        if int8.latency[batch] >= milliseconds
    ]
    if lost is not None and lost.high < 0:
        against.append(f"its score is lower by {-lost.high:.3g} to {-lost.low:.3g} (95% over the same games)")
    if against:
        return f"int8 is not worth it here: {'; '.join(against)}"
    times = _list(
        [f"{ms / int8.latency[batch]:.2g} times as fast with {batch} at once" for batch, ms in float32.latency.items()]
    )
    told = "" if lost is None else f"; its score less that of float32: {lost.low:.3g} to {lost.high:.3g} (95%)"
    return f"int8 is {times}{told}"


def _list(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
