"""TensorBoard's events of one role: one file that grows record by record, so that it can be cut anywhere between two.

TensorBoard's own writer starts a file per process, named by the second, and writes from a thread of its own: a run that
is killed and continued twice in a second would leave files in the wrong order, with points that were taken back. Here
a record is in the file when :meth:`EventFile.add` returns. A record's length does not depend on the clock, so that a
TensorBoard that is open while a run is cut and continued finds the next record where it looks for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from polydistill.disk import GrowingFile


class EventFile:
    """The scalars of one role, as TensorBoard reads them.

    Args:
        folder: of the role; the name of the file follows from it. What the file holds stays.

    Raises:
        OSError: the disk refused.
    """

    def __init__(self, folder: Path) -> None:
        self.file = GrowingFile(folder / f"events.out.tfevents.{folder.name}")
        if not self.file.size:
            self._write(file_version="brain.Event:2")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One record: a point of every tag at ``step``."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in values.items()]
        self._write(step=step, summary=Summary(value=points))

    def _write(self, **fields: object) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        RecordWriter(self).write(Event(wall_time=time.time(), **fields).SerializeToString())

    def write(self, record: bytes) -> None:
        """What the writer of records calls, once per record."""
        self.file.append(record)
