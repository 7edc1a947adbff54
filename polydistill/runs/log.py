"""The files of a run that grow: metrics.jsonl, timing.jsonl, and TensorBoard's events of each role.

Contract: a line or a point is in its file when the call returns, and every file can be cut back to :meth:`Log.sizes`,
after which the run goes on as if nothing later had been written.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polydistill.disk import GrowingFile, disk_errors, sync_folder
from polydistill.errors import UserError
from polydistill.runs.events import EventFile

EVENTS = "tb/*/events.out.tfevents.*"
GROWING = ("metrics.jsonl", "timing.jsonl", EVENTS)


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


class Log:
    """The growing files of the run folder ``out``; each is made when first written to.

    The first file of events begins with what belongs to the whole run: ``texts``, and a layout of its ``charts``.

    Attributes:
        texts: title -> Markdown.
        charts: title -> tags; what matters first.

    Raises:
        UserError: in every method, if the disk refuses.
    """

    def __init__(self, out: Path, texts: Mapping[str, str] | None = None) -> None:
        self.out, self.texts = out, dict(texts or {})
        self.charts: Mapping[str, Sequence[str]] = {}
        self._files: dict[str, GrowingFile] = {}
        self._events: dict[str, EventFile] = {}
        self._new = False

    def add(self, name: str, role: str, step: int, values: Mapping[str, float], context: Mapping[str, Any]) -> None:
        """A line in the file ``name``, and a point in TensorBoard for each of the values."""
        if not re.fullmatch(r"\w+", role):
            raise ValueError(f"a role is a folder's name of letters, digits and _, got {role!r}")
        line = plain_json({"role": role, "step": step, **context, "values": values})
        with disk_errors(self.out / name):
            if name not in self._files:
                self._files[name], self._new = GrowingFile(self.out / name), True
            self._files[name].append(f"{json.dumps(line, allow_nan=False)}\n".encode())
        with disk_errors(self.out / "tb" / role):
            if role not in self._events:
                first = not any(self.out.glob(EVENTS))
                self._events[role], self._new = EventFile(self.out / "tb" / role), True
                if first:
                    self._begin(self._events[role])
            self._events[role].add(step, values)

    def _begin(self, events: EventFile) -> None:
        for title, text in self.texts.items():
            events.add_text(title, text)
        if self.charts:
            events.add_charts(self.charts)

    def sizes(self) -> dict[str, int]:
        """Size in bytes of every file; so much of it is on the disk, and would survive a loss of power."""
        with disk_errors(self.out):
            for file in [*self._files.values(), *(events.file for events in self._events.values())]:
                file.sync()
            if self._new:
                for folder in [self.out / "tb" / role for role in self._events] + [self.out / "tb", self.out]:
                    sync_folder(folder)
                self._new = False
            return {name: path.stat().st_size for name, path in self._paths().items()}

    def cut(self, sizes: Mapping[str, int]) -> None:
        """Cut every file back to what it was at :meth:`sizes`; those that were not there are removed.

        Raises:
            UserError: a file is shorter than that, or gone; nothing is changed then.
        """
        self.close()
        paths = self._paths()
        for name, size in sizes.items():
            if name not in paths or paths[name].stat().st_size < size:
                raise UserError(
                    f"{self.out / name} has lost something that the checkpoint needs: it was changed from outside; "
                    f"remove {self.out / 'checkpoints'}, and the same command starts the run over"
                )
        for name, path in paths.items():
            with disk_errors(path, "cut"):
                if name in sizes:
                    os.truncate(path, sizes[name])
                else:
                    path.unlink()

    def close(self) -> None:
        """Close the files; the next call opens them again."""
        with disk_errors(self.out):
            while self._events:
                self._events.popitem()[1].file.close()
            while self._files:
                self._files.popitem()[1].close()

    def _paths(self) -> dict[str, Path]:
        return {str(path.relative_to(self.out)): path for pattern in GROWING for path in self.out.glob(pattern)}
