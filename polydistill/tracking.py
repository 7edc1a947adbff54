"""One run folder: its config, metrics, TensorBoard events, progress bar and summary.

Contract: ``metrics.jsonl`` holds no clock values, so that two runs of one config can be compared byte for byte; what
depends on the clock goes to ``timing.jsonl``. Every JSON value is valid JSON: NaN and infinities become null. A file
that others read whole (config.yaml, summary.json) is there complete or not at all. An error of the disk is a
:class:`~polydistill.errors.UserError` that names the path. TensorBoard and rich are imported when first needed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from polydistill.errors import UserError
from polydistill.plain_yaml import dump_yaml, flatten, load_yaml, to_mapping
from polydistill.provenance import git_state, hardware, versions, weights_sha256

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["Progress", "Run", "atomic_write", "format_table", "weights_sha256"]

SCHEMA = 1
REDRAW_SECONDS = 0.2
LINE_SECONDS = 10.0
# What an unfinished run leaves, and a fresh start removes. checkpoints/ is left to those who write it.
PARTIAL = ("metrics.jsonl", "timing.jsonl", "tb", "student.zip", "generation_*.safetensors", "generation_*.json")


@contextlib.contextmanager
def disk_errors(path: Path, doing: str = "write") -> Iterator[None]:
    """Turn an OSError into one line that names the path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot {doing} {path}: {error.strerror or error}") from error


def atomic_write(path: Path, content: bytes) -> None:
    """Write the file so that a reader, or a crash, finds the old content or the new, never a part.

    Raises:
        UserError: the disk refused; the old file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)  # the new name is on the disk only when the folder is
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def plain_json(value: Any) -> Any:
    """The value with numpy and torch numbers, tuples and paths as JSON has them, and null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str | int | float | None) and hasattr(value, "tolist"):
        return plain_json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def require_same_config(out: Path, config: Mapping[str, Any], *, may_grow: Sequence[str] = ()) -> None:
    """Compare the config.yaml of the run folder ``out`` with ``config``, key by key.

    Args:
        out: a folder with a config.yaml.
        config: nested plain values, see :func:`polydistill.plain_yaml.to_mapping`.
        may_grow: dotted keys that may be larger here than there.

    Raises:
        UserError: they differ; the message names the first key that does.
    """
    old, new = (dict(flatten(mapping)) for mapping in (load_yaml(out / "config.yaml"), config))
    for key in [*new, *(key for key in old if key not in new)]:
        if key in old and key in new and (old[key] == new[key] or (key in may_grow and new[key] > old[key])):
            continue
        was, now = (repr(side[key]) if key in side else "not set" for side in (old, new))
        raise UserError(
            f"{out} holds a run of another config: {key} is {was} there and {now} here; give --out another folder"
        )


class Run:
    """One run folder, open for writing; a context manager. Made by :meth:`open`.

    Attributes:
        out: the folder.
        config: the resolved config as nested plain values.
        summary: what summary.json holds; None until the run is finished. Not None right after :meth:`open`: this
            folder holds the finished run of the same config, and nothing must be logged.
    """

    def __init__(self, out: Path, config: dict[str, Any], *, kind: str, command: str) -> None:
        self.out, self.config, self.kind, self.command = out, config, kind, command
        self.summary: dict[str, Any] | None = None
        self._start = time.monotonic()
        self._files: dict[str, TextIO] = {}
        self._writers: dict[str, SummaryWriter] = {}

    @classmethod
    def open(cls, out: Path, config: object, *, kind: Literal["atari", "cifar"], command: str) -> Run:
        """The run of ``config`` in the folder ``out``: new, started over, or finished.

        Args:
            out: the folder; made where there is none. An unfinished run in it is started over: its metrics, events
                and products are removed.
            config: frozen dataclass, resolved (threads, precision and device too).
            kind: goes to summary.json.
            command: the command line, for summary.json.

        Raises:
            UserError: ``out`` holds a run of another config, or something that is no run, or cannot be written.
                Then nothing in it is changed.
        """
        run = cls(out, to_mapping(config), kind=kind, command=command)
        with disk_errors(out):
            if out.exists() and not out.is_dir():
                raise UserError(f"{out} is a file; --out takes a folder")
            out.mkdir(parents=True, exist_ok=True)
            # a crash may leave the temporary file of config.yaml, which is nobody's data
            entries = [entry for entry in out.iterdir() if not re.fullmatch(r"\.config\.yaml\.\d+\.tmp", entry.name)]
        if not entries:
            atomic_write(out / "config.yaml", dump_yaml(run.config).encode())
            return run
        if not (out / "config.yaml").is_file():
            raise UserError(f"{out} is not empty and holds no run (no config.yaml); give --out another folder")
        require_same_config(out, run.config)
        if (out / "summary.json").exists():
            run.summary = run._read_summary()
        else:
            run._remove_partial()
        return run

    def _read_summary(self) -> dict[str, Any]:
        path = self.out / "summary.json"
        try:
            with disk_errors(path, "read"):
                summary = json.loads(path.read_text(encoding="utf-8"))
            if summary["schema"] != SCHEMA:
                raise UserError(f"{path} has schema {summary['schema']!r}, this version reads {SCHEMA}")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged; remove it, and the same command starts the run over") from error
        return dict(summary)

    def _remove_partial(self) -> None:
        for path in sorted(path for pattern in PARTIAL for path in self.out.glob(pattern)):
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
        self._append("metrics.jsonl", role, step, values, context)
        self._add_scalars(role, step, values)

    def log_timing(self, role: str, step: int, values: Mapping[str, float]) -> None:
        """Record what depends on the clock (rates, seconds): a line in timing.jsonl, and a point in TensorBoard."""
        self._append("timing.jsonl", role, step, values, {})
        self._add_scalars(role, step, values)

    def _append(self, name: str, role: str, step: int, values: Mapping[str, float], context: Mapping[str, Any]) -> None:
        if self.summary is not None:
            raise RuntimeError("the run is finished: nothing more can be logged")
        if not re.fullmatch(r"\w+", role):
            raise ValueError(f"a role is a folder's name of letters, digits and _, got {role!r}")
        line = plain_json({"role": role, "step": step, **context, "values": values})
        with disk_errors(self.out / name):
            if name not in self._files:
                self._files[name] = open(self.out / name, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
            self._files[name].write(json.dumps(line, allow_nan=False) + "\n")

    def _add_scalars(self, role: str, step: int, values: Mapping[str, float]) -> None:
        with disk_errors(self.out / "tb" / role):
            writer = self._writer(role)
            for tag, value in values.items():
                writer.add_scalar(tag, float(value), step)

    def _writer(self, role: str) -> SummaryWriter:
        if role not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            self._writers[role] = SummaryWriter(str(self.out / "tb" / role), flush_secs=30)
        return self._writers[role]

    def progress(self, description: str, total: int, unit: str = "steps", done: int = 0) -> Progress:
        """A progress bar on standard error, or a plain line about every 10 s where that is no terminal.

        Example:
            >>> with run.progress("generation 1", 1000, "steps") as bar:  # doctest: +SKIP
            ...     bar.advance(8, loss=0.5)
        """
        return Progress(description, total, unit, done)

    def finish(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Write summary.json: what the run knows of itself, then ``summary``; the run is then finished.

        Args:
            summary: ``throughput``, ``ensembles``, ``generations``, and whatever the caller knows better.

        Returns:
            what was written, also in ``self.summary``.

        Raises:
            UserError: the disk refused; there is no summary.json, or the old one.
        """
        known = {
            "schema": SCHEMA,
            "kind": self.kind,
            "command": self.command,
            "config": self.config,
            "seed": self.config.get("seed"),
            "device": self.config.get("device"),
            "hardware": hardware(),
            "versions": versions(),
            "git": git_state(),
            "wall_seconds": round(time.monotonic() - self._start, 3),
        }
        whole: dict[str, Any] = plain_json({**known, **summary})
        self._close()  # first: a finished run has all its events
        atomic_write(self.out / "summary.json", (json.dumps(whole, indent=2, allow_nan=False) + "\n").encode())
        self.summary = whole
        return whole

    def _close(self) -> None:
        with disk_errors(self.out):
            while self._writers:
                self._writers.popitem()[1].close()
            while self._files:
                self._files.popitem()[1].close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()


class Progress:
    """How far a loop is; a context manager. :meth:`advance` costs under a microsecond between two redraws."""

    def __init__(self, description: str, total: int, unit: str, done: int = 0) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = self._done_before = done  # what an earlier run did does not count for the rate
        self._numbers: dict[str, float] = {}
        self._bar: RichProgress | None = None
        self._start = self._shown_at = time.monotonic()
        self._interval = LINE_SECONDS

    def __enter__(self) -> Progress:
        self._start = self._shown_at = time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress

            text = TextColumn("{task.description}", markup=False)
            numbers = TextColumn("{task.fields[state]}", markup=False)
            self._bar = RichProgress(text, BarColumn(), numbers, console=Console(stderr=True), auto_refresh=False)
            self._bar.add_task(self.description, total=self.total, state="")
            self._bar.start()
            self._interval = REDRAW_SECONDS
        return self

    def __exit__(self, *error: object) -> None:
        self._show()
        if self._bar is not None:
            self._bar.stop()

    def advance(self, n: int = 1, **numbers: float) -> None:
        """``n`` more are done; ``numbers`` are shown beside, the newest value of each."""
        self.done += n
        self._numbers |= numbers
        if time.monotonic() - self._shown_at >= self._interval:
            self._show()

    def state(self) -> str:
        """Done, percent, rate, time left and numbers, as text."""
        seconds = time.monotonic() - self._start
        rate = (self.done - self._done_before) / seconds if seconds > 0 else 0.0
        parts = [f"{self.done:,}/{self.total:,} {self.unit} ({100 * self.done / max(self.total, 1):.0f}%)"]
        if rate:
            left = max(self.total - self.done, 0) / rate
            parts.append(f"{rate:,.4g} {self.unit}/s" if rate < 1000 else f"{rate:,.0f} {self.unit}/s")
            parts.append(f"eta {int(left) // 3600}:{int(left) // 60 % 60:02d}:{int(left) % 60:02d}")
        return ", ".join([*parts, *(f"{name} {float(value):.4g}" for name, value in self._numbers.items())])

    def _show(self) -> None:
        self._shown_at = time.monotonic()
        if self._bar is None:
            print(f"{self.description}: {self.state()}", file=sys.stderr, flush=True)
        else:
            self._bar.update(self._bar.task_ids[0], completed=self.done, state=self.state(), refresh=True)


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str | float | None]]) -> str:
    """A table for a terminal that is Markdown too; columns of numbers are right-aligned, None is ``-``.

    Example:
        >>> print(format_table(["game", "score"], [["pong", 20.5], ["breakout", 1234.0]]))
        | game     | score |
        | -------- | ----: |
        | pong     |  20.5 |
        | breakout | 1,234 |
    """
    cells = [[_cell(value) for value in row] for row in [headers, *rows]]
    if any(len(row) != len(headers) for row in cells):
        raise ValueError(f"every row needs {len(headers)} cells, got {[len(row) for row in cells[1:]]}")
    columns = list(zip(*cells, strict=True))
    widths = [max(3, *map(len, column)) for column in columns]
    numeric = [
        len(column) > 1 and all(re.match(r"[-+]?\.?\d|-$|nan|-?inf", c) for c in column[1:]) for column in columns
    ]
    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True)]
    lines = [
        [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        for row in [cells[0], rule, *cells[1:]]
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: str | float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) or (isinstance(value, float) and abs(value) >= 1000):
        return f"{value:,.0f}"
    text = f"{value:.4g}" if isinstance(value, float) else value
    return " ".join(text.split()).replace("|", r"\|")
