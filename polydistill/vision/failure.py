"""What a lesson leaves behind when its loss or its scores are not finite: the state before, and the batch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

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
    kept = to_plain({"error": str(error), "state": state, "batch": error.batch})
    torch.save(_on_cpu(kept), buffer)
    atomic_write(path, buffer.getbuffer())
    return path


def _on_cpu(value: Any) -> Any:
    """The same nesting, with its tensors where every machine can load them."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value
