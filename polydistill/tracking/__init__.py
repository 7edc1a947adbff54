"""TensorBoard, metrics.jsonl, summary.json, progress bar: what a run tells of itself, in one place."""

from polydistill.tracking.folder import Standing, examine_folder, read_summary, require_same_config, stored_config
from polydistill.tracking.progress import Progress
from polydistill.tracking.run import Run
from polydistill.tracking.table import NARROW, format_interval, format_narrow_table, format_table

__all__ = [
    "NARROW",
    "Progress",
    "Run",
    "Standing",
    "examine_folder",
    "format_interval",
    "format_narrow_table",
    "format_table",
    "read_summary",
    "require_same_config",
    "stored_config",
]
