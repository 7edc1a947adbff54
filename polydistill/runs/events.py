"""TensorBoard's events of one role: one file that grows record by record, so that it can be cut after any of them.

TensorBoard's own writer starts a file per process, named by the second, and writes from a thread of its own: a run that
is killed and continued twice in a second would leave files in the wrong order, with points that were taken back. Here
a record is in the file when :meth:`EventFile.add` returns. A record's length does not depend on the clock, so that a
TensorBoard that is open while a run is cut and continued finds the next record where it looks for it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from polydistill.disk import GrowingFile


class EventFile:
    """The scalars of one role, as TensorBoard reads them; texts and a layout of charts too.

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

    def add_text(self, tag: str, text: str) -> None:
        """One record: Markdown for TensorBoard's tab of texts."""
        from tensorboard.plugins.text.plugin_data_pb2 import TextPluginData

        content = TextPluginData(version=0).SerializeToString()
        self._add_plugin(f"{tag}/text_summary", "text", text.encode(), content, dimensions=[1])

    def add_charts(self, charts: Mapping[str, Sequence[str]]) -> None:
        """One record: the charts of TensorBoard's tab of custom scalars, in their order, each opened.

        Args:
            charts: title -> tags of the curves in it; each role that has them adds its own.
        """
        from tensorboard.plugins.custom_scalar import layout_pb2

        drawn = [
            layout_pb2.Chart(
                title=title, multiline=layout_pb2.MultilineChartContent(tag=[f"^{re.escape(t)}$" for t in tags])
            )
            for title, tags in charts.items()
        ]
        layout = layout_pb2.Layout(category=[layout_pb2.Category(title="what matters first", chart=drawn)])
        self._add_plugin("custom_scalars__config__", "custom_scalars", layout.SerializeToString())

    def _add_plugin(
        self, tag: str, plugin: str, value: bytes, content: bytes = b"", dimensions: Sequence[int] = ()
    ) -> None:
        """A value that only one of TensorBoard's plugins reads."""
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in dimensions])
        tensor = TensorProto(dtype="DT_STRING", string_val=[value], tensor_shape=shape)
        data = SummaryMetadata.PluginData(plugin_name=plugin, content=content)
        metadata = SummaryMetadata(plugin_data=data)
        self._write(step=0, summary=Summary(value=[Summary.Value(tag=tag, tensor=tensor, metadata=metadata)]))

    def _write(self, **fields: object) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        RecordWriter(self).write(Event(wall_time=time.time(), **fields).SerializeToString())

    def write(self, record: bytes) -> None:
        """Called by TensorBoard's ``RecordWriter``, once per record."""
        self.file.append(record)
