"""What a lesson leaves behind when its loss or its scores are not finite: the state before, and the batch."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from polydistill.checkpoint import to_plain
from polydistill.disk import atomic_write
from polydistill.tracking import Run
from polydistill.vision.evaluation import NonFiniteScoresError
from polydistill.vision.training import NonFiniteLossError


def save_failure(
    run: Run | None, generation: int, error: NonFiniteLossError | NonFiniteScoresError, state: object
) -> Path | str:
    """Write ``generation_<k>_failure.pt`` into the run folder.

    ``torch.load(path, weights_only=True)`` gives ``error``, its text, ``batch``, what the error says of it, and
    ``state``.

    Args:
        run: or None.
        generation: k.
        error: with its batch.
        state: see :meth:`Trainer.state`, or the weights.

    Returns:
        the file; where there is no run, words for it.

    Raises:
        UserError: the disk refused.
    """
    if run is None:
        return "the run folder"
    path = run.out / f"generation_{generation}_failure.pt"
    buffer = io.BytesIO()
    torch.save(to_plain({"error": str(error), "state": state, "batch": error.batch}), buffer)
    atomic_write(path, buffer.getbuffer())
    return path
