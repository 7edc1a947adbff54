"""A teacher's scores of one's own batches: computed once for each sample, then read from disk.

Contract: a student learns from what the files hold, in their type, whether it was just computed or there before. All
samples are scored before the first step, in an order of their own, so that neither the seed of a run nor where it was
stopped changes a bit; nor how many processes share the work, each of which asks about whole batches. A sample that was
not scored is refused, not computed: its inputs do not repeat.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polydistill.device import autocast
from polydistill.errors import UserError
from polydistill.learning.processes import ALONE, Processes
from polydistill.losses import TopK, keep_top_k
from polydistill.losses.ignored import find_counted
from polydistill.modules.batches import Batch, device_of, read_batch
from polydistill.modules.feed import END
from polydistill.modules.place import describe_batch
from polydistill.modules.sample_hashes import ADVICE, all_samples, count_samples, hash_samples
from polydistill.modules.score_files import KIND, ScoreFiles
from polydistill.modules.shares import are_alike, check_alike, fail_together
from polydistill.modules.teacher_cache import TeacherCache
from polydistill.provenance import weights_sha256
from polydistill.runs.space import require_free

DOING = "the teacher's scores are computed"
SEED = 0  # of what a loader draws while its samples are scored: the same in every run
FILE_BYTES, FILE_SECONDS = 2**26, 60.0  # after which what was computed is written
# by which probabilities may differ, in the mean over the first batch, from those that were kept of the same teacher
SAME, SAME_ROUNDED = 0.02, 0.1  # the latter where the teacher computes, or its scores are kept, in a shorter type
Rows = dict[str, Tensor]


class TeacherScores:
    """The scores that one teacher gives, kept in a folder.

    Args:
        teacher: frozen, on its device.
        cache: where and how they are kept.
        score: ``(positions, classes)`` scores of a module for a batch.
        precision: "float32", or the type of autocast around the teacher.
        temperature: of the ``top_k`` classes' probabilities.
        processes: that fill the folder together; all make the same calls.
        ignore_index: label of positions whose scores may be anything; None: there is none.

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
        processes: Processes = ALONE,
        ignore_index: int | None = None,
    ) -> None:
        self.teacher, self.cache, self.temperature, self.processes = teacher, cache, temperature, processes
        self._score, self._precision, self._ignore_index = score, precision, ignore_index
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

        Of several processes each goes through all batches, and the teacher is asked about every second, or third, one.

        Args:
            source: batches, as the student will see them.
            heed: called before each batch; may raise, and nothing that was computed is lost.

        Raises:
            UserError: the files are of a teacher that does something else, or the disk is full.
            ValueError: the processes do not have the same batches.
            FloatingPointError: a score of the teacher is NaN or infinite; no such batch is kept. Where one of several
                processes raises an error, the others raise a UserError that names it.
        """
        if self.processes.size > 1 and not are_alike(self.files.key, self.processes, self._place()):
            raise ValueError(
                "the teacher is not the same in all processes: what it prints as, its weights, and the form of its "
                "scores must be"
            )
        new = _New(self.files, count_samples(source))
        try:
            with closing(all_samples(source, SEED)) as batches:
                more = True
                while more:
                    heed(DOING)
                    with fail_together(self.processes, self._place(), DOING):
                        more = self._take_next(batches, new)
            with fail_together(self.processes, self._place(), DOING):
                new.write()
        finally:
            new.write()  # what was computed before an error
        self.processes.wait()
        self.files.refresh()
        self._require_shared(new.of_others)

    def _take_next(self, batches: Iterator[Any], new: _New) -> bool:
        """Whether there was a batch."""
        try:
            given = next(batches, END)
            if given is not END:
                self._take(given, new)
        except Exception as error:  # of the user's code, perhaps, which knows no batches
            error.add_note(f"in batch {new.n_batches + 1} while {DOING}")
            raise
        return given is not END

    def _take(self, given: Any, new: _New) -> None:
        """The next batch: ``new`` gets those of its samples that are this process's."""
        if not new.n_batches and self.processes.size > 1:
            check_alike(describe_batch(given), self.processes, "the first batch", self._place())
        batch = read_batch(given)
        samples = hash_samples(batch)
        known = [sample in self.files for sample in samples]
        # the first of either kind is for all processes: what it shows they must all know
        compares, begins = any(known) and not new.compared, not all(known) and not new.announced
        mine = new.n_batches % self.processes.size == self.processes.rank
        adds = mine and any(new.lacks(sample) for sample in samples)
        if compares or begins or adds:
            rows = self._ask(batch)
        if compares:
            self._compare(rows, samples, known)
            new.compared = True
        if begins:
            new.announce(rows, batch, tells=not self.processes.rank)
        if adds:
            new.add(rows, samples, batch.shape[1:].numel())
        if not mine:
            new.leave(samples)
        new.n_seen += len(samples)
        new.n_batches += 1

    def _require_shared(self, samples: set[bytes]) -> None:
        """Refuse a folder that does not show what other processes have written, as on machines that share no disk."""
        missing = sum(sample not in self.files for sample in samples)
        if missing:
            raise UserError(
                f"process {self.processes.rank} does not find the scores of {missing} samples that others have written "
                f"to {self.files.folder}: teacher_cache must be a folder that all processes share"
            )

    def _place(self) -> torch.device:
        return device_of(self.teacher) or torch.device("cpu")

    def _ask(self, batch: Batch) -> Rows:
        """What is kept of the teacher's scores of a batch."""
        with torch.no_grad(), autocast(self._place().type, self._precision):
            scores = self._score(self.teacher, batch.to(device_of(self.teacher))).float()
        self._require_finite(scores, batch)
        self._classes, dtype = scores.shape[1], getattr(torch, self.cache.dtype)
        if self.cache.top_k is None:
            return {"scores": scores.clamp_max(torch.finfo(dtype).max).to("cpu", dtype)}
        kept = keep_top_k(scores, min(self.cache.top_k, self._classes), temperature=self.temperature)
        indices = kept.indices.to("cpu", torch.int32)
        return {"values": kept.values.to("cpu", dtype), "indices": indices, "rest": kept.rest.to("cpu", dtype)}

    def _require_finite(self, scores: Tensor, batch: Batch) -> None:
        """Refuse scores that no student could learn from; -inf is a class that the teacher leaves out."""
        wrong = (scores.isnan() | scores.isposinf()).any(1).cpu()
        counted = find_counted(batch.labels.cpu(), self._ignore_index)
        n_wrong = int((wrong if counted is None else wrong & counted).sum())
        if n_wrong:
            what = "samples" if len(batch.shape) == 1 else "positions"
            raise FloatingPointError(
                f"the teacher's scores of {n_wrong:,} of {len(scores):,} {what} of a batch are NaN or infinite"
            )

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

    def look_up(self, batch: Batch, device: torch.device) -> Tensor:
        """``(positions, classes)`` float32 scores of a batch, on ``device``; the teacher is not asked.

        Of ``top_k`` classes the rest is spread evenly: the objective puts it together again. Inputs are hashed where
        they are: a batch should be as the loader gives it, and not moved to a GPU before.

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
        return self._expand({name: tensor.to(device, non_blocking=True) for name, tensor in rows.items()})

    def _expand(self, rows: Mapping[str, Tensor]) -> Tensor:
        if "scores" in rows:
            return rows["scores"].float()
        return self.temperature * TopK(rows["values"], rows["indices"], rows["rest"]).spread(self._classes)


class _New:
    """What one fill has seen, and what of it was computed and is not written yet.

    Args:
        files: that get it.
        n_samples: of all batches; None: that is not known.
    """

    def __init__(self, files: ScoreFiles, n_samples: int | None) -> None:
        self.files, self.n_samples, self.n_seen, self.n_batches = files, n_samples, 0, 0
        self.compared = self.announced = False
        self.of_others: set[bytes] = set()  # which compute them, as their batch is the first that has them
        self._clear()

    def lacks(self, sample: bytes) -> bool:
        """Whether nobody has it, nor will have it of a batch before."""
        return sample not in self.files and sample not in self._samples and sample not in self.of_others

    def leave(self, samples: list[bytes]) -> None:
        """Leave those that are missing to the process whose batch it is."""
        self.of_others |= {sample for sample in samples if self.lacks(sample)}

    def _clear(self) -> None:
        self._samples: dict[bytes, int] = {}  # and how many rows each has
        self._rows: list[Rows] = []
        self._bytes, self._since = 0, time.monotonic()

    def announce(self, rows: Rows, batch: Batch, *, tells: bool = True) -> None:
        """Say how much disk it will take, and refuse a disk that has no room.

        Args:
            rows: of ``batch``, the first with a new sample.
            tells: or only refuses.
        """
        self.announced = True
        folder, each = self.files.folder, _size(rows) / batch.shape[0] + 40
        told = f"{folder} takes {each:,.0f} bytes for each sample"
        if self.n_samples is not None:
            most = self.n_samples - self.n_seen
            least = max(0, min(most, self.n_samples - len(self.files)))  # if all that is there is of these samples
            free, new = require_free(folder, int(each * least)), each * most
            size = f"{new / 1e6:,.0f} MB" if new >= 1e6 else f"{math.ceil(new / 1e3)} KB"
            told = f"{folder} takes up to {size} more; {free / 1e6:,.0f} MB are free"
        if tells:
            print(told, file=sys.stderr)

    def add(self, rows: Rows, samples: list[bytes], positions: int) -> None:
        """Those of ``samples`` that nobody has yet, of ``positions`` rows each."""
        for number, sample in enumerate(samples):
            if self.lacks(sample):
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
