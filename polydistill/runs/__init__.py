"""A run's folder on disk: config, metrics, TensorBoard events, checkpoints and summary; and its progress bar."""

from polydistill.runs.folder import Standing, examine_folder, read_summary, require_same_config, stored_config
from polydistill.runs.progress import Progress
from polydistill.runs.run import Run
from polydistill.runs.table import NARROW, format_interval, format_narrow_table, format_table

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
