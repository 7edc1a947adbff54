"""What a study knows of its runs: one record each, read from their folders, and ``results.csv`` with a row for each.

Contract: a record holds flat numbers only, and nothing is invented: what a run did not measure has no key. The teacher
of a seed is a run too; its arm is called :data:`TEACHER`, which no arm of a plan is.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from polydistill.disk import atomic_write, disk_errors
from polydistill.errors import UserError
from polydistill.runs import read_summary
from polydistill.runs.lock import require_unlocked

TEACHER = "teacher"  # the arm of the runs that make the teachers
RESULTS = "results.csv"
Status = Literal["done", "running", "failed", "missing"]
Direction = Literal["lower", "higher"]


class Metric(NamedTuple):
    """A metric by which arms can be compared.

    Attributes:
        direction: which is better.
        name: in a sentence.
        unit: in a sentence; empty: none.
        reached: of a time until something happens, the metric that is 1 where it did and 0 where the run ended before:
            then the time is that of the whole run.
    """

    direction: Direction
    name: str
    unit: str = ""
    reached: str = ""


METRICS = {
    "test_error": Metric("lower", "test error", "points"),  # in %
    "test_accuracy": Metric("higher", "test accuracy"),
    "test_nll": Metric("lower", "test NLL", "nats"),
    "test_ece": Metric("lower", "test calibration error"),
    "score": Metric("higher", "score"),
    "score_mean": Metric("higher", "score"),
    "score_after": Metric("higher", "score after learning on"),
    "score_iqm": Metric("higher", "interquartile mean of the score"),
    "human_normalized": Metric("higher", "human-normalised score"),
    "teacher_normalized": Metric("higher", "teacher-normalised score"),
    "agreement": Metric("higher", "agreement with the teacher"),
    "steps_to_95": Metric("lower", "play needed to reach 0.95 of the teacher", "steps", reached="reached_95"),
}
# metrics of a study that no summary holds: made from one that it holds
DERIVED: dict[str, tuple[str, Callable[[float], float]]] = {
    "test_error": ("test_accuracy", lambda accuracy: 100 * (1 - accuracy)),
    "score": ("score_mean", lambda score: score),
}


@dataclass(frozen=True)
class RunRecord:
    """One run of a study: an arm of it, or the teacher of a seed.

    Args:
        arm: its name; :data:`TEACHER` for the run that made the seed's teacher.
        seed: root of its random streams.
        folder: its run folder, relative to the study's.
        status: done; running (now, in whatever process); failed; missing: there is no result, and no process.
        metrics: of its last generation or its ensemble, finite numbers by name: ``test_accuracy``, ``test_error`` (in
            %), ``score``
        teacher_metrics: of the generation before it; empty where there is none.
        seconds: that the run took, by its own clock; 0 where it is not done.
        why: of a failure, one line.
    """

    arm: str
    seed: int
    folder: str
    status: Status
    metrics: Mapping[str, float] = field(default_factory=dict)
    teacher_metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    why: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """Arm and seed: what the run is called in its study."""
        return self.arm, self.seed


def read_record(out: Path, arm: str, seed: int, folder: str, why: str = "") -> RunRecord:
    """What the run folder ``out / folder`` says of the run.

    Args:
        out: folder of the study.
        arm: of the run.
        seed: of the run.
        folder: relative to ``out``.
        why: how an earlier try failed, if one did and no process is at work.
    """
    path = out / folder
    if not (path / "summary.json").exists():
        if is_locked(path):
            return RunRecord(arm, seed, folder, "running")
        return RunRecord(arm, seed, folder, "failed" if why else "missing", why=why)
    try:
        summary = read_summary(path)
        generations = summary["generations"] or summary["ensembles"]  # a run without generations is an ensemble
        return RunRecord(
            arm,
            seed,
            folder,
            "done",
            metrics=flat_metrics(generations[-1]["metrics"]),
            teacher_metrics=flat_metrics(generations[-2]["metrics"]) if len(generations) > 1 else {},
            seconds=float(summary["wall_seconds"]),
        )
    except UserError as error:
        return RunRecord(arm, seed, folder, "failed", why=str(error))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        return RunRecord(arm, seed, folder, "failed", why=f"{path / 'summary.json'} is no summary of a run: {error!r}")


def is_locked(folder: Path) -> bool:
    """Whether a process is at work in the run folder."""
    try:
        require_unlocked(folder)
    except UserError:
        return True
    return False


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among the metrics of a summary, and those that are made from them.

    Example:
        >>> flat_metrics({"test_accuracy": 0.75, "val_accuracy": None, "score_ci95": [1.0, 2.0]})
        {'test_accuracy': 0.75, 'test_error': 25.0}
    """
    flat = {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    made = {name: make(flat[source]) for name, (source, make) in DERIVED.items() if source in flat}
    return flat | made


# ---- results.csv ---------------------------------------------------------------------------------------------------


def write_results(out: Path, records: Sequence[RunRecord]) -> None:
    """Write ``results.csv``: one row per run, metrics as columns; an empty cell was not measured.

    Raises:
        UserError: the disk refused; the old file is as it was.
    """
    own = _names(record.metrics for record in records)
    teachers = _names(record.teacher_metrics for record in records)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["arm", "seed", "status", "seconds", *own, *(f"teacher_{name}" for name in teachers), "folder", "why"]
    )
    for record in records:
        measured = [record.metrics.get(name, "") for name in own]
        taught = [record.teacher_metrics.get(name, "") for name in teachers]
        seconds = record.seconds or ""
        writer.writerow([*record.key, record.status, seconds, *measured, *taught, record.folder, record.why])
    atomic_write(out / RESULTS, text.getvalue().encode())


def read_failures(out: Path) -> dict[tuple[str, int], str]:
    """``(arm, seed): why`` of the runs that ``results.csv`` calls failed.

    Raises:
        UserError: it cannot be read.
    """
    path = out / RESULTS
    if not path.exists():
        return {}
    with disk_errors(path, "read"):
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    try:
        return {(row["arm"], int(row["seed"])): row["why"] for row in rows if row["status"] == "failed"}
    except (LookupError, TypeError, ValueError):
        return {}  # not ours, or edited: it is written anew from the folders


def _names(mappings: Iterable[Mapping[str, float]]) -> list[str]:
    return sorted({name for mapping in mappings for name in mapping})
