"""TensorBoard, metrics.jsonl, summary.json, progress bar: what a run tells of itself, in one place."""

from polydistill.disk import atomic_write, disk_errors
from polydistill.provenance import weights_sha256
from polydistill.tracking.progress import Progress
from polydistill.tracking.run import Run, require_same_config
from polydistill.tracking.table import format_interval, format_table

__all__ = [
    "Progress",
    "Run",
    "atomic_write",
    "disk_errors",
    "format_interval",
    "format_table",
    "require_same_config",
    "weights_sha256",
]
