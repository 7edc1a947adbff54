"""Whether a runtime computes what torch computes: on states of play, in a process without torch."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polydistill.errors import UserError
from polydistill_agents.environments.evaluation import Compared
from polydistill_agents.export import without_torch
from polydistill_agents.export.graph import feed_of
from polydistill_agents.networks.observations import Arrays, each, take

SECONDS = 600  # that the other process may take


class States:
    """A uniform sample of the states of play, with torch's scores: ``evaluate(..., on_compared=States(...))``.

    Args:
        size: states that are kept at most, >= 1.
        generator: decides which (reservoir sampling, algorithm R of Vitter 1985).
    """

    def __init__(self, size: int, generator: np.random.Generator) -> None:
        self.size, self._generator, self._seen = size, generator, 0
        self._kept: list[tuple[Arrays, NDArray[np.float32]]] = []

    def __call__(self, met: Compared) -> None:
        """Look at the states of one step."""
        scores = met.scores.cpu().numpy()
        for row in range(len(scores)):
            self._seen += 1
            place = len(self._kept) if len(self._kept) < self.size else int(self._generator.integers(self._seen))
            if place < self.size:
                state = each(np.copy, take(met.observations, row)), scores[row].copy()
                self._kept[place : place + 1] = [state]

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def observations(self) -> Arrays:
        """One array of all that are kept, or a table of such arrays."""
        states: list[Any] = [state for state, _ in self._kept]
        if isinstance(states[0], dict):
            return {name: np.stack([state[name] for state in states]) for name in states[0]}
        return np.stack(states)

    @property
    def scores(self) -> NDArray[np.float32]:
        """``(states, actions)`` of torch."""
        return np.stack([scores for _, scores in self._kept])


class Comparison(NamedTuple):
    """The scores of a runtime beside torch's.

    Attributes:
        states: how many were compared.
        largest_difference: of a score, in its unit.
        largest_score: of torch's, without sign.
        agreement: fraction of the states with the same greedy action.
    """

    states: int
    largest_difference: float
    largest_score: float
    agreement: float

    @property
    def share(self) -> float:
        """The largest difference over the largest score; 0 where both are."""
        if self.largest_difference == 0:
            return 0.0
        return self.largest_difference / self.largest_score if self.largest_score else float("inf")


def compare(scores: NDArray[np.floating[Any]], torchs: NDArray[np.floating[Any]]) -> Comparison:
    """Two sets of scores ``(states, actions)``, the runtime's first; what is not finite differs without bounds.

    Raises:
        UserError: they have other shapes.
    """
    if scores.shape != torchs.shape:
        raise UserError(f"the runtime computes something else: scores {scores.shape}, torch {torchs.shape}")
    differences = np.abs(scores.astype(np.float64) - torchs)
    largest = float(differences.max()) if np.isfinite(scores).all() else float("inf")
    same = float((scores.argmax(axis=1) == torchs.argmax(axis=1)).mean())
    return Comparison(len(scores), largest, float(np.abs(torchs).max()), same)


def score_without_torch(content: bytes, observations: Arrays) -> NDArray[np.float32]:
    """Scores of an exported file in a process of its own, where torch cannot be imported.

    Args:
        content: of the file.
        observations: ``(states, ...)``, or a table of such arrays.

    Raises:
        UserError: that process fails; its last line says why.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(content)
        np.savez(folder / "states.npz", **feed_of(observations))
        command = [sys.executable, "-I", without_torch.__file__, str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"the exported file gave no scores within {SECONDS} seconds, without torch") from error
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise UserError(f"the exported file does not run without torch: {last}")
        scores: NDArray[np.float32] = np.load(folder / "scores.npy", allow_pickle=False)
        return scores
