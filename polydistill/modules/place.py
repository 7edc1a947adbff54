"""Where a training is in its batches: it looks one batch ahead, and finds its place again.

Contract: the batches of an epoch are drawn one by one, with the end known before the last is learned from; where an
epoch gives the same batches again, a place that loads the state of another goes on with the same ones.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from polydistill.errors import UserError
from polydistill.modules.batches import read_batch
from polydistill.modules.feed import END, Feed, doubt, promised

LOOKED_AT = 1024  # numbers of each tensor of a batch, by which it is known again


class Place:
    """The place in the batches of ``feed``.

    Args:
        feed: epoch by epoch.

    Attributes:
        epoch: epochs completed.
        within: batches learned from of the epoch in progress.
        samples: learned from in all epochs.
    """

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.epoch, self.within, self.samples = 0, 0, 0
        self._batches: Iterator[Any] | None = None  # of the epoch in progress, once it has begun
        self._coming: list[Any] = []  # drawn from it, for the next steps; perhaps the end
        self._drawn = 0  # batches of it so far
        self._latest: Any = None

    def peek(self) -> tuple[Any, Any]:
        """The next batch, and what follows it: another, or ``END``, the end of the epoch."""
        if self._batches is None:
            self._batches, self._coming, self._drawn = self.feed.epoch(self.epoch), [], 0
        while len(self._coming) < 2:
            self._coming.append(self._draw(self._batches))
        return self._coming[0], self._coming[1]

    def _draw(self, batches: Iterator[Any]) -> Any:
        self._drawn += 1
        try:
            return next(batches, END)
        except Exception as error:  # of the user's data
            error.add_note(f"while `batches` gave batch {self._drawn} of epoch {self.epoch + 1}")
            raise

    def take(self) -> tuple[Any, bool]:
        """The next batch, and whether the epoch ends with it.

        Raises:
            ValueError: the epoch has none.
        """
        given, behind = self.peek()
        if given is END:
            raise ValueError(
                f"no batches in epoch {self.epoch + 1}: `batches` must be iterable once per epoch, like a list"
            )
        self._latest = self._coming.pop(0)
        return given, behind is END

    def move_on(self, samples: int, ends: bool) -> None:
        """The batch that was taken, of so many ``samples``, is learned from; perhaps the epoch ends with it."""
        self.samples += samples
        self.within += 1
        if ends:
            self.epoch, self.within, self._batches = self.epoch + 1, 0, None

    def require_whole(self, generation: int) -> None:
        """Refuse the end of an epoch after fewer batches than its source says it has.

        Raises:
            ValueError: it is.
        """
        done = self.within + 1
        there = promised(self.feed.source, done)
        if there is not None:
            raise ValueError(
                f"epoch {self.epoch + 1} of generation {generation} ends after {done} batches, and `batches` says that "
                f"it has {there}"
            )

    def total_samples(self, epochs: int) -> int:
        """Of so many epochs; those so far where that is not known."""
        source = self.feed.source
        if isinstance(source, Sequence):
            return epochs * sum(read_batch(batch).shape[0] for batch in source)
        if isinstance(source, DataLoader) and source.batch_size is not None and doubt(source) is None:
            rest = len(source.sampler) % source.batch_size if source.drop_last else 0  # type: ignore[arg-type]
            return epochs * (len(source.sampler) - rest)  # type: ignore[arg-type]
        return self.samples

    def state(self) -> dict[str, Any]:
        """The place, and a hash of the batch before it."""
        seen = describe_batch(self._latest) if self.within else None
        return {"epoch": self.epoch, "within": self.within, "samples": self.samples, "seen": seen}

    def load_state(self, state: Mapping[str, Any], *, tells: bool = True) -> None:
        """Go on from :meth:`state`: the batches of the epoch up to there are gone through again; the last of them must
        be what it was, where the epoch repeats itself. Where it does not, it is told.

        Raises:
            UserError: it is another.
        """
        self.epoch, self.within, self.samples = state["epoch"], state["within"], state["samples"]
        self._batches = None
        for _ in range(self.within):
            if self.peek()[0] is END:
                raise UserError(f"epoch {self.epoch + 1} has fewer batches than when the run was saved")
            self.take()
        if not self.within or describe_batch(self._latest) == state["seen"]:
            return
        if doubt(self.feed.source) is None:
            raise UserError(
                f"batch {self.within} of epoch {self.epoch + 1} is not what it was when the run was saved: the data or "
                "their order are others, or something draws from a generator of its own"
            )
        if tells:
            print("the run goes on with other batches than it would have had", file=sys.stderr)


def describe_batch(given: Any) -> str:
    """A hash of the beginning of each tensor of a batch, by which it is known again."""
    batch = read_batch(given)
    digest = hashlib.sha256()
    for value in (*batch.inputs, *batch.keywords.values(), batch.labels):
        if isinstance(value, Tensor):
            few = value.detach().reshape(-1)[:LOOKED_AT].cpu().contiguous()
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(few.view(torch.uint8).numpy().tobytes() if few.numel() else b"")
    return digest.hexdigest()
