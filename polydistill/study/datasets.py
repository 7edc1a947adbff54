"""Files of play that the runs of a study write, or learn from: each run has its own, by its seed and its arm.

``{seed}`` and ``{arm}`` in ``save_dataset`` and ``dataset`` stand for those of the run.
"""

from __future__ import annotations

from polydistill.errors import UserError
from polydistill.runs.folder import SEED
from polydistill.study.plan import Plan
from polydistill.study.planned import PlannedRun, planned_runs

ARM = "{arm}"
SAVED, READ = "save_dataset", "dataset"  # keys of a run's config


def own_files(run: PlannedRun) -> dict[str, str]:
    """The keys of a run that name such files, with its own names; empty: it has none."""
    named = {key: run.config.get(key) for key in (SAVED, READ)}
    return {key: path.replace(SEED, str(run.seed)).replace(ARM, run.arm) for key, path in named.items() if path}


def require_own_files(plan: Plan) -> None:
    """Refuse a plan of which two runs would write the same file.

    Raises:
        UserError: naming the two, and what to put into its name.
    """
    writers: dict[str, PlannedRun] = {}
    for run in planned_runs(plan):
        path = own_files(run).get(SAVED)
        if path is not None and writers.setdefault(path, run) is not run:
            raise UserError(
                f"{writers[path].name} and {run.name} would both write {path}: put {SEED} and {ARM} into its name, as "
                f"{SAVED}: play/{ARM}-{SEED}.safetensors"
            )
