"""Distil an agent of an Atari game into its twin, or into a smaller one.

    python scripts/distill_atari.py                                            the Pong teacher of the project
    python scripts/distill_atari.py --student.size net3 --out runs/small       a student of 4 % of the parameters
    python scripts/distill_atari.py --lineage.generations 3 --out runs/born    each student teaches the next
    python scripts/distill_atari.py --doctor                                   examines each lesson before it begins
    python scripts/distill_atari.py --game breakout --teacher.path dqn.zip     one's own Stable-Baselines3 agent

The run folder gets summary.json, TensorBoard curves, and student.zip, which stock Stable-Baselines3 opens. If the
run is stopped (Ctrl-C, SIGTERM) or killed, the same command continues it, and the result is the same.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("atari")

import dataclasses
import functools
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polydistill.config.parsing import parse
from polydistill.config.plain_yaml import to_mapping
from polydistill.cores import as_before, say_if_loaded
from polydistill.errors import run_script
from polydistill.lineage import run_lineage
from polydistill.runs import Run, examine_folder, read_summary, stored_config
from polydistill_agents.environments.atari import PACKAGES
from polydistill_agents.files.sb3_zip import how_to_go_on, read_agent
from polydistill_agents.lineage.checkup import examine
from polydistill_agents.lineage.config import MAY_MOVE, AtariConfig
from polydistill_agents.lineage.domain import AtariDomain, open_teacher, require_same_teacher
from polydistill_agents.lineage.plan import (
    PRODUCTS,
    check_run,
    format_plan,
    remember_speed,
    require_disk,
    require_same_start,
)
from polydistill_agents.lineage.report import format_summary

MAY_GROW = ("lineage.generations",)  # of a run that is there


@run_script
def main(argv: list[str] | None = None) -> None:
    parsed = parse(
        AtariConfig, argv, program="distill_atari.py", description=__doc__, default_name="pong", distils=True
    )
    stored = stored_config(parsed.out)
    config = dataclasses.replace(parsed.config, **as_before(vars(parsed.config), stored))
    allowed = {"may_grow": MAY_GROW, "may_move": MAY_MOVE}
    standing = examine_folder(parsed.out, to_mapping(config), **allowed)
    if standing.state == "finished" and not parsed.dry_run:  # shown anywhere: without its teacher, its GPU, its cores
        summary = read_summary(parsed.out)
        if standing.moved:
            teacher = open_teacher(dataclasses.replace(config, device="cpu"))
            require_same_teacher(config, teacher, summary["generations"][0]["sha256"])
        show(summary, parsed.out, parsed.wide)
        return
    config = parsed.config.resolve(stored)
    teacher = open_teacher(config)
    if parsed.dry_run:
        if standing.state != "finished":
            check_run(config, teacher, parsed.out)
        plan = format_plan(config, teacher, parsed.out, measure=parsed.measure)
        print(f"{plan}\n{parsed.out}: {standing.describe()}")
        return
    if standing.moved or standing.grown:  # before the folder is changed
        require_same_start(config, teacher, parsed.out)
    words = sys.argv[1:] if argv is None else argv
    command = shlex.join(["python", "scripts/distill_atari.py", *words])
    whose = {"products": PRODUCTS, "packages": PACKAGES}
    with Run.open(parsed.out, config, kind="atari", command=command, **whose, **allowed) as run:
        if run.summary is None:
            require_disk(config, teacher, run.out)
            say_if_loaded()
        doctor = functools.partial(examine, config) if parsed.doctor else None
        summary = run_lineage(AtariDomain(config, teacher), config, run, examine=doctor)
        remember_speed(config, summary)
        show(summary, run.out, parsed.wide)


def show(summary: Mapping[str, Any], out: Path, wide: bool) -> None:
    """Print the table, and how to use what was saved."""
    print(format_summary(summary, wide=wide))
    student = out / "student.zip"
    print(f"\nsaved: {student} (DQN.load opens it)   curves: make tensorboard")
    if student.is_file():
        print(how_to_go_on(student, read_agent(student).score_kind))


if __name__ == "__main__":
    main()
