"""Studies: arms x seeds, paired by seed. A plan, runs in parallel, records. Knows no world: a run is a command."""

from polydistill.study.plan import Amendment, Arm, Plan, keep_plan, read_plan
from polydistill.study.records import TEACHER, RunRecord, read_record, write_results

__all__ = [
    "TEACHER",
    "Amendment",
    "Arm",
    "Plan",
    "RunRecord",
    "keep_plan",
    "read_plan",
    "read_record",
    "write_results",
]
