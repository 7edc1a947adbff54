"""How small can a student of an agent be? Students of several sizes, what each keeps of the score, and what it costs.

    python scripts/compress_agent.py --game pong                               the Pong teacher of the project
    python scripts/compress_agent.py --teacher.path dqn.zip --env CartPole-v1  one's own agent
    python scripts/compress_agent.py --teacher.path dqn.zip --env CartPole-v1 --sizes "[32x32, 8x8, 4]" --seeds 5
    python scripts/compress_agent.py --game pong --sizes "[net3, 8x8x8x32]" --out runs/tiny
    python scripts/compress_agent.py --game pong --dry_run                     the sizes, and what it would take

The folder gets the page report.html, the picture as sizes.png and sizes.svg, sizes.csv, and for each size the runs of
its students, runs/<size>/seed<n>, with student.zip, which stock Stable-Baselines3 opens, and student.safetensors. If
the sweep is stopped (Ctrl-C, SIGTERM) or killed, the same command continues it.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from polydistill._environment import MissingExtra, require_extra
from polydistill.config.parsing import parse
from polydistill.cores import usable_cores
from polydistill.errors import UserError, run_script
from polydistill.study.arms import make_plan
from polydistill.study.conduct import conduct, count_done, require_study_folder
from polydistill.study.executors.local import LocalExecutor
from polydistill.study.plan import Plan, amend, read_plan
from polydistill.study.records import RunRecord
from polydistill.study.runner import read_records
from polydistill.study.worlds import open_world
from polydistill_agents.lineage.compression.config import CompressionConfig
from polydistill_agents.lineage.compression.opening import Opened, format_forecast, open_sweep
from polydistill_agents.lineage.compression.page import CSV, PAGE, PICTURE, format_sweep, gather, write_sweep

SCRIPT = "python scripts/compress_agent.py"


@run_script
def main(argv: list[str] | None = None, called: str = SCRIPT) -> None:
    """Do what the words ask for; None: those of this process. ``called`` is how a user calls it."""
    description = (__doc__ or "").replace(SCRIPT, called)
    parsed = parse(CompressionConfig, argv, program=called, description=description, default_name="compress")
    try:
        require_extra("study")  # for the picture
    except MissingExtra as error:
        raise UserError(str(error)) from error
    command = shlex.join([*called.split(), *(sys.argv[1:] if argv is None else argv)])
    require_study_folder(parsed.out)
    opened = open_sweep(parsed.config)
    world, stored = open_world(opened.study.world), read_plan(parsed.out)
    plan = make_plan(opened.study, world, None, stored)
    workers = parsed.config.workers or usable_cores()
    if parsed.dry_run:
        records = read_records(plan, parsed.out)
        whole = plan if stored is None else amend(stored, plan, count_done(records), parsed.out)
        print(format_forecast(opened, whole, records, world, parsed.out, workers))
        return

    def report(kept: Plan, records: Sequence[RunRecord]) -> None:
        _report(parsed.out, opened, records, command)

    conduct(parsed.out, plan, world, LocalExecutor(workers), report, share=True)


def _report(out: Path, opened: Opened, records: Sequence[RunRecord], command: str) -> None:
    """Write the page of what is finished, once no run is to come, and print the answer."""
    if any(record.status in ("missing", "running") for record in records):
        return  # stopped: times are measured when no run disturbs them
    sweep = gather(out, opened, records, command)
    if sweep is None:
        return  # every run has failed
    write_sweep(out, sweep)
    print(format_sweep(sweep))
    print(f"\nsaved: {out}/{PAGE}, {PICTURE}.png, {PICTURE}.svg, {CSV}   students: {out}/runs/*/seed*/student.zip")
