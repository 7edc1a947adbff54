"""What a lesson leaves behind when its loss or its scores are not finite: the state before, and the batch."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from polydistill.checkpoint import to_plain
from polydistill.disk import atomic_write
from polydistill.tracking import Run
from polydistill.vision.training import NonFiniteLossError, Trainer


def save_failure(run: Run | None, trainer: Trainer, error: FloatingPointError) -> Path | str:
    """Write ``generation_<k>_failure.pt`` into the run folder.

    ``torch.load(path, weights_only=True)`` gives ``state``, see :meth:`Trainer.state`, and ``batch``, see
    :class:`NonFiniteLossError` (None where it was a validation that failed).

    Returns:
        the file; where there is no run, words for it.

    Raises:
        UserError: the disk refused.
    """
    if run is None:
        return "the run folder"
    path = run.out / f"generation_{trainer.generation}_failure.pt"
    batch = error.batch if isinstance(error, NonFiniteLossError) else None
    buffer = io.BytesIO()
    torch.save(to_plain({"error": str(error), "state": trainer.state(), "batch": batch}), buffer)
    atomic_write(path, buffer.getbuffer())
    return path
