"""A teacher's scores of the augmented images of an epoch, which every arm of a seed sees in the same batches.

The first run that comes to an epoch computes them and keeps them; the others read them. Contract: they are, bit for
bit, what the run would have computed, since the key has all that they depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polydistill.provenance import arithmetic, weights_sha256
from polydistill.runs.shared_store import SharedStore
from polydistill.vision.images.augmentation import Normalizer
from polydistill.vision.images.data import ImageSet


class EpochScores:
    """The scores of one epoch after another.

    Args:
        store: where they are kept.
        teacher: frozen, on the CPU.
        data: training images.
        normalizer: of the pixels.
        batch_size: images per step; the last bits of a score may depend on it.
        settings: what else decides how the teacher computes, as plain values.
    """

    def __init__(
        self,
        store: SharedStore,
        teacher: nn.Module,
        data: ImageSet,
        normalizer: Normalizer,
        batch_size: int,
        settings: dict[str, Any],
    ) -> None:
        self.store, self.batch_size = store, batch_size
        self._common = _describe(teacher, data, normalizer, {"batch_size": batch_size, **settings})
        self._key = ""
        self._known: Tensor | None = None  # of the whole epoch
        self._parts: dict[int, Tensor] = {}  # position of a step -> what it computed
        self._n_images = 0

    def begin(self, plan: Tensor) -> None:
        """Turn to another epoch.

        Args:
            plan: of all its images, see :func:`~polydistill.vision.images.augmentation.draw_plan`.
        """
        self._n_images = len(plan)
        self._key = hashlib.sha256(self._common + plan.numpy().tobytes()).hexdigest()
        content = self.store.read(self._key)
        self._known = None if content is None else _as_tensor(content, len(plan))
        self._parts = {}

    def __call__(self, position: int, compute: Callable[[], Tensor]) -> Tensor:
        """``(batch, classes)`` scores of the step at ``position`` of the epoch; computed where they are not known."""
        if self._known is not None:
            return self._known[position * self.batch_size : (position + 1) * self.batch_size]
        self._parts[position] = compute()
        if sum(map(len, self._parts.values())) == self._n_images:  # a run that began within the epoch lacks some
            self._keep(torch.cat([self._parts[index] for index in sorted(self._parts)]))
        return self._parts[position]

    def _keep(self, scores: Tensor) -> None:
        if bool(scores.isfinite().all()):
            self.store.write(self._key, np.ascontiguousarray(scores.cpu().numpy()).data.cast("B"))


def _as_tensor(content: memoryview, rows: int) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, dtype=np.float32).reshape(rows, -1).copy())


def _describe(teacher: nn.Module, data: ImageSet, normalizer: Normalizer, settings: dict[str, Any]) -> bytes:
    """A hash of everything but the plan on which scores depend, 32 bytes."""
    how = {"teacher": repr(teacher), **arithmetic()}
    layouts = [list(weight.stride()) for weight in teacher.parameters()]
    digest = hashlib.sha256(json.dumps([how, layouts, settings], sort_keys=True).encode())
    digest.update(weights_sha256(teacher.state_dict()).encode())
    for part in (data.images, *normalizer):
        digest.update(part.numpy().tobytes())
    return digest.digest()
