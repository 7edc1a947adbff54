"""A teacher's scores of one's own batches: computed once for each sample, then read from disk.

Contract: a student learns from what the files hold, in their type, whether it was just computed or there before. All
samples are scored before the first step, in an order of their own, so that neither the seed of a run nor where it was
stopped changes a bit. A sample that was not scored is refused, not computed: its inputs do not repeat.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polydistill.device import without_autocast
from polydistill.errors import UserError
from polydistill.losses import TopK, keep_top_k
from polydistill.modules.batches import Batch, device_of, read_batch
from polydistill.modules.sample_hashes import ADVICE, all_samples, count_samples, hash_samples
from polydistill.modules.score_files import KIND, ScoreFiles
from polydistill.modules.teacher_cache import TeacherCache
from polydistill.provenance import weights_sha256
from polydistill.runs.space import require_room

SEED = 0  # of what a loader draws while its samples are scored: the same in every run
FILE_BYTES, FILE_SECONDS = 2**26, 60.0  # after which what was computed is written
# by which probabilities may differ, in the mean over the first batch, from those that were kept of the same teacher
SAME, SAME_ROUNDED = 0.02, 0.1  # the latter where the teacher computes, or its scores are kept, in a shorter type
Rows = dict[str, Tensor]


class TeacherScores:
    """The scores that one teacher gives; takes its place while a student learns.

    Args:
        teacher: frozen, on its device.
        cache: where and how they are kept.
        score: ``(positions, classes)`` scores of a module for a batch.
        precision: "float32", or the type of autocast around the teacher.
        temperature: of the ``top_k`` classes' probabilities.

    Raises:
        UserError: a file of the cache is damaged, or something else.
    """

    def __init__(
        self,
        teacher: nn.Module,
        cache: TeacherCache,
        score: Callable[[nn.Module, Batch], Tensor],
        *,
        precision: str = "float32",
        temperature: float = 1.0,
    ) -> None:
        self.teacher, self.cache, self.temperature = teacher, cache, temperature
        self._score, self._precision = score, precision
        form = re.sub(r" at 0x[0-9a-f]+", "", repr(teacher))  # without what is another in each process
        how: list[Any] = [KIND, weights_sha256(teacher.state_dict()), form, precision, cache.dtype]
        if cache.top_k is not None:
            how += [cache.top_k, temperature]
        key = hashlib.sha256(json.dumps(how).encode()).hexdigest()
        self.files = ScoreFiles(Path(cache.folder) / key[:16], key)
        self._classes = 0  # known once the teacher was asked

    # ---- before the first step ---------------------------------------------------------------------------------------

    def fill(self, source: Iterable[Any], heed: Callable[[str], None]) -> None:
        """Compute what is not there yet of all samples of ``source``; say in a line how much disk it takes.

        Args:
            source: batches, as the student will see them.
            heed: called before each batch; may raise, and nothing that was computed is lost.

        Raises:
            UserError: the files are of a teacher that does something else, or the disk is full.
        """
        new, compared = _New(self.files), False
        try:
            with closing(all_samples(source, SEED)) as batches:
                for given in batches:
                    heed("the teacher's scores are computed")
                    batch = read_batch(given)
                    samples = hash_samples(batch)
                    known = [sample in self.files for sample in samples]
                    if compared and all(known):
                        continue
                    rows = self._ask(batch)
                    if not compared and any(known):
                        self._compare(rows, samples, known)
                        compared = True
                    if not all(known) and not new.announced:
                        new.announce(rows, batch, count_samples(source))
                    new.add(rows, samples, batch.shape[1:].numel())
        finally:
            new.write()

    def _ask(self, batch: Batch) -> Rows:
        """What is kept of the teacher's scores of a batch."""
        place = device_of(self.teacher)
        with torch.no_grad(), self._autocast("cpu" if place is None else place.type):
            scores = self._score(self.teacher, batch.to(place)).float()
        self._classes, dtype = scores.shape[1], getattr(torch, self.cache.dtype)
        if self.cache.top_k is None:
            return {"scores": scores.clamp_max(torch.finfo(dtype).max).to("cpu", dtype)}
        kept = keep_top_k(scores, min(self.cache.top_k, self._classes), temperature=self.temperature)
        indices = kept.indices.to("cpu", torch.int32)
        return {"values": kept.values.to("cpu", dtype), "indices": indices, "rest": kept.rest.to("cpu", dtype)}

    def _autocast(self, kind: str) -> AbstractContextManager[Any]:
        if self._precision == "float32":
            return without_autocast(kind)
        return torch.autocast(kind, getattr(torch, self._precision))

    def _compare(self, rows: Rows, samples: list[bytes], known: list[bool]) -> None:
        """Refuse files with scores that the teacher does not give: its weights are theirs, but not all that it does."""
        positions = len(next(iter(rows.values()))) // len(samples)
        there = torch.tensor(known).repeat_interleave(positions)
        ours = self._expand({name: tensor[there] for name, tensor in rows.items()})
        theirs = self._expand(
            self.files.read([sample for sample, is_known in zip(samples, known, strict=True) if is_known])
        )
        off = 1.0
        if ours.shape == theirs.shape:
            off = float((ours.softmax(1) - theirs.softmax(1)).abs().nan_to_num(0.0).amax(1).mean())
        if off > (SAME if {self._precision, self.cache.dtype} == {"float32"} else SAME_ROUNDED):
            raise UserError(
                f"{self.files.folder} holds scores that this teacher does not give, though its weights are the same: "
                "remove the folder, or give another one"
            )

    # ---- while a student learns --------------------------------------------------------------------------------------

    def score(self, network: Any, batch: Batch) -> Tensor:
        """``(positions, classes)`` float32 scores of the batch, where its labels are; the network is not asked.

        Of ``top_k`` classes the rest is spread evenly: the objective puts it together again.

        Raises:
            UserError: a sample was not scored.
        """
        samples = hash_samples(batch)
        missing = sum(sample not in self.files for sample in samples)
        if missing:
            raise UserError(
                f"{missing} of {len(samples)} samples have other inputs than those that the teacher scored, as random "
                f"augmentation, noise, mixup, or padding to the longest of a batch make them; {ADVICE}"
            )
        rows = self.files.read(samples)
        return self._expand({name: tensor.to(batch.labels.device) for name, tensor in rows.items()})

    def _expand(self, rows: Mapping[str, Tensor]) -> Tensor:
        if "scores" in rows:
            return rows["scores"].float()
        return self.temperature * TopK(rows["values"], rows["indices"], rows["rest"]).spread(self._classes)


class _New:
    """What was computed and is not written yet."""

    def __init__(self, files: ScoreFiles) -> None:
        self.files, self.announced = files, False
        self._clear()

    def _clear(self) -> None:
        self._samples: dict[bytes, int] = {}  # and how many rows each has
        self._rows: list[Rows] = []
        self._bytes, self._since = 0, time.monotonic()

    def announce(self, rows: Rows, batch: Batch, samples: int | None) -> None:
        """Say how much disk it will take, and refuse a disk that has no room."""
        self.announced = True
        each = _size(rows) / batch.shape[0] + 40
        if samples is None:
            print(f"{self.files.folder} takes {each:,.0f} bytes for each sample", file=sys.stderr)
        else:
            require_room(self.files.folder, int(each * samples))

    def add(self, rows: Rows, samples: list[bytes], positions: int) -> None:
        """Those of ``samples`` that are not there yet, of ``positions`` rows each."""
        for number, sample in enumerate(samples):
            if sample not in self.files and sample not in self._samples:
                part = slice(number * positions, (number + 1) * positions)
                self._samples[sample] = positions
                self._rows.append({name: tensor[part] for name, tensor in rows.items()})
                self._bytes += _size(self._rows[-1])
        if self._bytes > FILE_BYTES or time.monotonic() - self._since > FILE_SECONDS:
            self.write()

    def write(self) -> None:
        if self._rows:
            rows = {name: torch.cat([part[name] for part in self._rows]) for name in self._rows[0]}
            self.files.write(list(self._samples), list(self._samples.values()), rows)
        self._clear()


def _size(rows: Rows) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in rows.values())
