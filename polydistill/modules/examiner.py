"""The metrics of each generation of one's own modules, and of ensembles of them.

Contract: each member predicts the test batches once; everything else is computed from its scores. Test batches that are
shuffled by a seeded generator come in one order for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polydistill.learning.measures import compare, ensemble_logits, evaluation_mode, measure, require_finite_metrics
from polydistill.modules.batches import device_of, no_autocast, read_batch
from polydistill.modules.feed import promised
from polydistill.modules.labels import check_labels, require_classes
from polydistill.modules.outputs import Reading
from polydistill.modules.seeding import seeded
from polydistill.provenance import weights_sha256
from polydistill.streams import derive_seed


class OtherLabelsError(ValueError):
    """The labels of the test positions are not those of the test before."""


class ModuleExaminer:
    """Measures the members of one lineage.

    Args:
        test: batches, see :class:`~polydistill.modules.domain.ModuleDomain`.
        seed: of the domain.
        ignore_index: label of positions that do not count; None: all do.
        reading: of the scores of each generation.

    Attributes:
        members: generation -> module, of all that there are.
        labels_sha256: of the labels that count, once they are known; others are refused.
    """

    def __init__(
        self, test: Iterable[Any], seed: int, ignore_index: int | None, reading: Callable[[int], Reading]
    ) -> None:
        self.test, self.seed, self.ignore_index, self.reading = test, seed, ignore_index, reading
        self.members: dict[int, nn.Module] = {}
        self._scores: dict[int, Tensor] = {}
        self._labels: Tensor | None = None
        self.labels_sha256: str | None = None

    def report(self, member: nn.Module, teacher: nn.Module | None, generation: int) -> dict[str, Any]:
        """The metrics of a generation, alone and beside its teacher.

        Raises:
            ValueError: the test batches are others than before, a label is no class, or none counts.
            FloatingPointError: scores or metrics are not finite.
        """
        self._scores.pop(generation, None)
        self.members[generation] = member
        if teacher is not None and self.members.get(generation - 1) is not teacher:
            self._scores.pop(generation - 1, None)
            self.members[generation - 1] = teacher
        return self._measure([generation], None if teacher is None else generation - 1)

    def correct(self, generation: int) -> NDArray[np.bool_]:
        """Which test positions that count a generation got right: ``(positions,)`` bool, in their order."""
        scores = self._scores_of(generation)
        assert self._labels is not None
        right: NDArray[np.bool_] = (scores.argmax(dim=1) == self._labels).cpu().numpy()
        return right

    def ensemble(self, members: Sequence[int]) -> dict[str, Any]:
        """The metrics of the mean probability, see :meth:`~polydistill.modules.domain.ModuleDomain.ensemble`.

        Raises:
            TypeError: they are no sequence.
            ValueError: fewer than two members, one twice, or one that there is not.
        """
        if not isinstance(members, Sequence):
            raise TypeError(f"`members` must be generations, as [1, 2], got {members!r}")
        there = sorted(self.members)
        if len(members) < 2 or len(set(members)) != len(members) or not set(members) <= set(there):
            raise ValueError(
                f"an ensemble has at least 2 members, each once, of the generations {there} evaluated so far; "
                f"got {list(members)}"
            )
        return self._measure(members, min(members) - 1 if min(members) else None)

    def _measure(self, members: Sequence[int], reference: int | None) -> dict[str, Any]:
        scores = [self._scores_of(member) for member in members]
        logits = scores[0] if len(scores) == 1 else ensemble_logits(scores)
        assert self._labels is not None
        metrics: dict[str, Any] = {f"test_{name}": value for name, value in measure(logits, self._labels).items()}
        metrics |= {"agreement": None, "kl": None}
        if reference is not None:
            metrics |= compare(logits, self._scores_of(reference).to(logits.dtype))
        require_finite_metrics(metrics, "generation " + " and ".join(map(str, members)))
        return metrics

    def _scores_of(self, generation: int) -> Tensor:
        """``(positions, classes)`` float32 scores of the test positions that count."""
        if generation in self._scores:
            return self._scores[generation]
        member, reading = self.members[generation], self.reading(generation)
        scores, labels = predict(member, self.test, "test", self.seed, self.ignore_index, reading)
        wrong = len(scores) - int(scores.isfinite().all(dim=1).sum())
        if wrong:
            raise FloatingPointError(
                f"the scores of generation {generation} on the test batches are not finite for {wrong:,} of "
                f"{len(scores):,}"
            )
        if self._labels is not None and not torch.equal(labels, self._labels):
            raise OtherLabelsError(
                "the labels of `test` differ from one generation to the next: it must not be shuffled"
            )
        if self._labels is None:
            found = weights_sha256({"labels": labels})
            if self.labels_sha256 not in (None, found):
                raise OtherLabelsError("the labels of `test` are others than those with which the run began")
            self.labels_sha256 = found
        self._scores[generation], self._labels = scores, labels
        return scores


def predict(
    member: nn.Module, batches: Iterable[Any], name: str, seed: int, ignore_index: int | None, reading: Reading
) -> tuple[Tensor, Tensor]:
    """``(positions, classes)`` float32 scores of the positions that count, and their labels, ``(positions,)``.

    Args:
        member: its mode, and all generators, are as before afterwards.
        batches: in the same order each time, if a generator that can be seeded shuffles them.
        name: of the batches, in errors.
        seed: of a domain.
        ignore_index: label of positions that do not count; None: all do.
        reading: of the member's scores.

    Raises:
        ValueError: a label is no class, or none counts; there are fewer batches than there must be.
    """
    parts: list[tuple[Tensor, Tensor]] = []
    with seeded(derive_seed(seed, name), batches) as feed, evaluation_mode(member), no_autocast(member):
        try:
            for given in feed:
                where = f"batch {len(parts) + 1} of `{name}`"
                batch = read_batch(given).to(device_of(member))
                require_classes(batch.labels, where)
                found = reading.score(member, batch).float()
                check_labels(batch.labels, found.shape[1], where, ignore_index)
                counted = slice(None) if ignore_index is None else batch.labels != ignore_index
                parts.append((found[counted], batch.labels[counted]))
        except Exception as error:  # of the user's code, perhaps, which knows no batches
            error.add_note(f"in batch {len(parts) + 1} of `{name}`")
            raise
    there = promised(batches, len(parts))
    if there is not None:
        raise ValueError(f"`{name}` ends after {len(parts)} batches, and says that it has {there}")
    if not sum(len(labels) for _, labels in parts):
        raise ValueError(f"`{name}` holds no batches, or no label that counts")
    scores, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return scores, labels
