"""Compare ways to teach in many seeds, paired by seed: plan, runs in parallel, results.

    python scripts/study.py                                              two arms, three seeds: under two minutes
    python scripts/study.py --config FILE --dry_run                      the plan, its cost, and what it could see
    python scripts/study.py --config FILE --out runs/study --seeds 50
    python scripts/study.py --runs 'runs/*' --out runs/found             runs that are there, whoever started them

Each seed trains its own teacher; its arms share teacher, initial weights and data order. The plan is written and hashed
before the first run. If the study is stopped (Ctrl-C, SIGTERM) or killed, the same command continues it. Its folder
gets plan.json, results.csv (one row per run, as they finish), report.html, report.md, table.tex and methods.txt, and
runs/<arm>/seed<n>, each a run folder of its own.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from polydistill.config.parsing import Parsed, parse
from polydistill.cores import usable_cores
from polydistill.disk import disk_errors
from polydistill.errors import UserError, run_script
from polydistill.runs.lock import FolderLock
from polydistill.study.analysis import analyse
from polydistill.study.arms import leaves_gpu, make_plan
from polydistill.study.beginning import require_start
from polydistill.study.conduct import conduct, count_done, require_study_folder
from polydistill.study.config import StudyConfig
from polydistill.study.correctness import correct_in
from polydistill.study.executors.choice import make_executor, require_executor
from polydistill.study.forecast import format_forecast, warning_of_too_few
from polydistill.study.found import read_found
from polydistill.study.plan import Plan, amend, read_plan, write_plan
from polydistill.study.records import RESULTS, RunRecord, write_results
from polydistill.study.report import HTML, MARKDOWN, write_report
from polydistill.study.runner import read_records
from polydistill.study.table import format_results
from polydistill.study.teachers import require_given
from polydistill.study.worlds import open_world

SCRIPT = "python scripts/study.py"
SMOKE = StudyConfig(  # as configs/smoke/study.yaml, which an installation does not hold
    world="cifar",
    settings={"lineage.generations": 1},
    arms={"labels": {"student.objective": "cross_entropy"}, "ban_l": {"student.objective": "ban_l"}},
    contrasts=(("ban_l", "labels"),),
    seeds=3,
)


@run_script
def main(argv: list[str] | None = None, called: str = SCRIPT) -> None:
    """Do what the words ask for; None: those of this process. ``called`` is how a user calls it."""
    words = sys.argv[1:] if argv is None else argv
    reads = any(word.partition("=")[0] == "--runs" for word in words)
    parsed = parse(
        StudyConfig,
        argv,
        program=called,
        description=(__doc__ or "").replace(SCRIPT, called),
        default_name="study",
        default_config=None if reads else SMOKE,
    )
    command = shlex.join([*called.split(), *words])
    require_study_folder(parsed.out)
    if parsed.config.runs:
        _report_found(parsed, command)
        return
    require_executor(parsed.config.executor)
    world = open_world(parsed.config.world, installed=parsed.config.executor != "local")
    stored = read_plan(parsed.out)
    plan = make_plan(parsed.config, world, parsed.file, stored)
    workers = parsed.config.workers
    if not workers and parsed.config.executor == "local":
        workers = 1 if plan.base.get("device") == "cuda" else usable_cores()
    records = read_records(plan, parsed.out)
    require_given(plan, records)
    require_start(plan, records, world, parsed.out)
    if leaves_gpu(parsed.config, world, parsed.file, plan):
        print("warning: runs are on the CPU; --settings.device cuda takes the GPU, one run at a time", file=sys.stderr)
    if parsed.dry_run:
        whole = plan if stored is None else amend(stored, plan, count_done(records), parsed.out)
        print(format_forecast(whole, records, world, parsed.out, workers or 1))
        if parsed.config.students_together > 1:
            together = f"{parsed.config.students_together} runs of an arm in each process"
            print(f"{together}: the time is that of runs by themselves, one for each worker")
        return
    few = warning_of_too_few(plan)
    if few:
        print(f"warning: {few}", file=sys.stderr)

    def report(kept: Plan, ended: Sequence[RunRecord]) -> None:
        _report(parsed.out, kept, ended, command)

    executor = make_executor(parsed.config, parsed.out, workers)
    share = parsed.config.share_scores and parsed.config.executor != "slurm"  # whose runs outlive this process
    conduct(parsed.out, plan, world, executor, report, share=share, together=parsed.config.students_together)


def _report_found(parsed: Parsed[StudyConfig], command: str) -> None:
    """The study of runs that are there."""
    plan, records = read_found(parsed.config, parsed.out)
    if parsed.dry_run:
        print(format_results(plan, records))
        return
    stored = read_plan(parsed.out)
    if stored is not None and not stored.found:
        raise UserError(f"{parsed.out} holds a study that was planned; give --out another folder")
    with disk_errors(parsed.out):
        parsed.out.mkdir(parents=True, exist_ok=True)
    with FolderLock(parsed.out):
        write_plan(parsed.out, plan)
        write_results(parsed.out, records)
        _report(parsed.out, plan, records, command)


def _report(out: Path, plan: Plan, records: Sequence[RunRecord], command: str) -> None:
    """Write the report of the results so far, and print the answer and the means."""
    analysis = analyse(plan, records, correct_in(out))
    write_report(out, plan, records, analysis, command=command)
    print("\n".join([*analysis.answer, "", format_results(plan, records)]))
    print(f"\nsaved: {out}/{HTML}, {MARKDOWN}, {RESULTS}   curves: tensorboard --logdir {out}/runs")
