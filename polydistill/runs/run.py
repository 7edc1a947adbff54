"""One run folder: its config, metrics, TensorBoard events, checkpoints and summary.

Contract: ``metrics.jsonl`` holds no clock values, so that two runs of one config can be compared byte for byte; what
depends on the clock goes to ``timing.jsonl``. Every JSON value is valid JSON: NaN and infinities become null. A file
that others read whole (config.yaml, summary.json) is there complete or not at all. What is logged is in its file when
the call returns, and can be cut back to a :meth:`Run.position`, so that a run that was killed goes on without gaps or
doubles. One process at a time: the others are refused. An error of the disk is a
:class:`~polydistill.errors.UserError` that names the path. torch is imported when first needed, as is what only a run
needs: PyYAML and TensorBoard, of the extra runs.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polydistill._environment import require_extra
from polydistill.disk import atomic_write, disk_errors, remove_temporaries, sync_folder
from polydistill.provenance import git_state, hardware, versions
from polydistill.runs.checkpoint import Checkpoints, to_plain
from polydistill.runs.folder import FAILURE, SCHEMA, examine_folder, read_summary
from polydistill.runs.lock import FolderLock
from polydistill.runs.log import Log, plain_json
from polydistill.runs.progress import Progress

# What an unfinished run without a checkpoint leaves, beside the products of its world; a fresh start removes it.
PARTIAL = ("metrics.jsonl", "timing.jsonl", "tb", FAILURE.format("*"))


class Run:
    """One run folder, open for writing; a context manager. Made by :meth:`open`.

    Attributes:
        out: the folder.
        config: the resolved config as nested plain values.
        checkpoints: in ``checkpoints/``.
        summary: what summary.json holds; None until the run is finished. Not None right after :meth:`open`: this
            folder holds the finished run of the same config, and nothing must be logged.
        moved: the keys of ``may_move`` that name another place than the run began with.
    """

    def __init__(
        self, out: Path, config: dict[str, Any], *, kind: str, command: str, packages: Sequence[str] = ()
    ) -> None:
        from polydistill.config.plain_yaml import dump_yaml

        self.out, self.config, self.kind, self.command = out, config, kind, command
        self._packages = tuple(packages)
        self.summary: dict[str, Any] | None = None
        self.moved: Sequence[str] = ()
        self.checkpoints = Checkpoints(out / "checkpoints", kind=kind)
        self._start = time.monotonic()
        self._seconds_before = 0.0
        self._lock: FolderLock | None = None
        self._log = Log(out, {"config": f"```yaml\n{dump_yaml(config)}```"})

    @classmethod
    def open(
        cls,
        out: Path,
        config: object,
        *,
        kind: str,
        command: str,
        products: Sequence[str] = (),
        packages: Sequence[str] = (),
        may_grow: Sequence[str] = (),
        may_move: Sequence[str] = (),
    ) -> Run:
        """The run of ``config`` in the folder ``out``: new, to be continued, started over, or finished.

        Args:
            out: the folder; made where there is none. An unfinished run in it without a checkpoint is started over:
                its metrics, events and products are removed; if it had another config, one line on standard error says
                so. One with a checkpoint stays as it is: see :meth:`resume`.
            config: frozen dataclass, resolved (threads, precision and device too).
            kind: name of the world, for summary.json; a checkpoint of another kind is refused.
            command: the command line, for summary.json.
            products: patterns of the files that the world itself writes into the folder.
            packages: what its results depend on beside :data:`polydistill.provenance.PACKAGES`, for summary.json.
            may_grow: dotted keys of ``config`` that may be larger than those that the run began with. A finished run
                with a checkpoint is then unfinished again.
            may_move: dotted keys that say where something lies; the caller compares what lies there, see ``moved``.

        Raises:
            UserError: ``out`` holds a run of another config, or something that is no run, or cannot be written, or
                another process is working in it. Then nothing in it is changed.
        """
        require_extra("runs")
        from polydistill.config.plain_yaml import to_mapping

        run = cls(out, to_mapping(config), kind=kind, command=command, packages=packages)
        allowed = {"may_grow": may_grow, "may_move": may_move}
        standing = examine_folder(out, run.config, **allowed)
        if standing.state == "finished":
            run.summary, run.moved = read_summary(out), standing.moved
            return run
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        run._lock = FolderLock(out)
        try:
            run._prepare(products, **allowed)
        except BaseException:
            run._lock.release()
            raise
        return run

    def _prepare(self, products: Sequence[str], **allowed: Sequence[str]) -> None:
        """Make the folder ready for :meth:`log`. Examines it again: another process may just have finished in it."""
        from polydistill.config.plain_yaml import dump_yaml

        remove_temporaries(self.out)
        standing = examine_folder(self.out, self.config, **allowed)
        self.moved = standing.moved
        if standing.state == "finished":
            self.summary = read_summary(self.out)
            return
        if standing.grown and (self.out / "summary.json").exists():
            with disk_errors(self.out / "summary.json", "remove"):  # first: never a summary of another config
                (self.out / "summary.json").unlink()
                sync_folder(self.out)
        if standing.state == "begun":
            self._remove(*PARTIAL, *products)
        if standing.state == "new" or standing.grown or standing.replaced:
            atomic_write(self.out / "config.yaml", dump_yaml(self.config).encode())
        if standing.replaced:
            print(f"{self.out} held a run of another config that had no checkpoint: it is replaced", file=sys.stderr)

    def _remove(self, *patterns: str) -> None:
        for path in sorted({path for pattern in patterns for path in self.out.glob(pattern)}):
            with disk_errors(path, "remove"):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def log(self, role: str, step: int, values: Mapping[str, float], **context: Any) -> None:
        """Record numbers: a line in metrics.jsonl and a point in TensorBoard for each.

        Args:
            role: who they belong to, like ``generation_1``: one TensorBoard folder each, so that one chart
                overlays them. Letters, digits and ``_``.
            step: x of the point: environment steps or samples seen, never a clock.
            values: TensorBoard tag -> number. Not finite: null in the file, a NaN in TensorBoard.
            context: further plain values for the line in the file.

        Raises:
            UserError: the disk refused.
        """
        self._add("metrics.jsonl", role, step, values, context)

    def show_first(self, charts: Mapping[str, Sequence[str]]) -> None:
        """What TensorBoard's tab "Custom Scalars" shows, in this order: title -> tags. Called before :meth:`log`."""
        self._log.charts = charts

    def log_timing(self, role: str, step: int, values: Mapping[str, float]) -> None:
        """Record what depends on the clock (rates, seconds): a line in timing.jsonl, and a point in TensorBoard."""
        self._add("timing.jsonl", role, step, values, {})

    def _add(self, name: str, role: str, step: int, values: Mapping[str, float], context: Mapping[str, Any]) -> None:
        if self.summary is not None:
            raise RuntimeError("the run is finished: nothing more can be logged")
        self._log.add(name, role, step, values, context)

    def position(self) -> dict[str, Any]:
        """Where the run is: the sizes of the files that grow, which are on the disk then, and its seconds so far.

        For a checkpoint; :meth:`rewind` goes back to it.

        Raises:
            UserError: the disk refused.
        """
        return {"sizes": self._log.sizes(), "seconds": self._seconds(), "versions": versions(*self._packages)}

    def rewind(self, position: Mapping[str, Any]) -> None:
        """Cut metrics, timing and events back to ``position``, and count the seconds on from there.

        Raises:
            UserError: a file is shorter than it was at ``position``, or gone.
        """
        self._log.cut(position["sizes"])
        self._seconds_before, self._start = position["seconds"], time.monotonic()
        began, now = position["versions"].get("torch"), versions().get("torch")
        if began != now:
            print(f"the run began with torch {began} and goes on with {now}: its numbers may differ", file=sys.stderr)

    def save(self, state: Mapping[str, Any], step: int) -> Path:
        """Save a checkpoint of ``state`` and the run's position; see :meth:`Checkpoints.save`."""
        return self.checkpoints.save({"state": state, "position": self.position()}, step)

    def keep_failure(self, generation: int, error: FloatingPointError, state: object, batch: Mapping[str, Any]) -> Path:
        """Save what led to a number that is not finite as ``generation_<k>_failure.pt``; return its path.

        ``torch.load(path, weights_only=True)`` gives a dict of "error" (its text), "state" and "batch", on the CPU.

        Args:
            generation: k.
            error: what was raised.
            state: of the training before the bad update, or its weights.
            batch: with which it happened.

        Raises:
            UserError: the disk refused.
        """
        import torch

        path = self.out / FAILURE.format(generation)
        buffer = io.BytesIO()
        torch.save(to_plain({"error": str(error), "state": state, "batch": batch}, device="cpu"), buffer)
        atomic_write(path, buffer.getbuffer())
        return path

    def resume(self) -> dict[str, Any] | None:
        """The ``state`` of the last good checkpoint, with the run's files cut back to it; None: there is none.

        Raises:
            UserError: there are checkpoints, and the run can continue from none of them.
        """
        saved = self.checkpoints.latest()
        if saved is None:
            return None
        self.rewind(saved["position"])
        state: dict[str, Any] = saved["state"]
        return state

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._start

    def progress(self, description: str, total: int, unit: str = "steps", done: int = 0) -> Progress:
        """A progress bar on standard error, or a plain line about every 10 s where that is no terminal.

        Example:
            >>> with run.progress("generation 1", 1000, "steps") as bar:  # doctest: +SKIP
            ...     bar.advance(8, loss=0.5)
        """
        return Progress(description, total, unit, done)

    def finish(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Write summary.json: what the run itself knows, then ``summary``; the run is finished after that.

        Args:
            summary: ``throughput``, ``ensembles``, ``generations``, and values that replace the run's own.

        Returns:
            what was written; it is also in ``self.summary``.

        Raises:
            UserError: the disk refused; an old summary.json stays as it was.
        """
        known = {
            "schema": SCHEMA,
            "kind": self.kind,
            "command": self.command,
            "config": self.config,
            "seed": self.config.get("seed"),
            "device": self.config.get("device"),
            "hardware": hardware(),
            "versions": versions(*self._packages),
            "git": git_state(),
            "wall_seconds": round(self._seconds(), 3),
        }
        whole: dict[str, Any] = plain_json({**known, **summary})
        atomic_write(self.out / "summary.json", (json.dumps(whole, indent=2, allow_nan=False) + "\n").encode())
        self.summary = whole
        return whole

    def close(self) -> None:
        """Close the files and let other processes in."""
        try:
            self._log.close()
        finally:
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
