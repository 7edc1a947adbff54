"""A distillation from a command line: look at the folder, at the teacher, then run, or print what would run."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polydistill.config.parsing import Parsed
from polydistill.config.plain_yaml import to_mapping
from polydistill.cores import as_before, say_if_loaded
from polydistill.errors import UserError
from polydistill.lineage import Generation, run_lineage
from polydistill.losses import Report
from polydistill.runs import Run, examine_folder, read_summary, stored_config
from polydistill_agents.environments.atari import PACKAGES
from polydistill_agents.environments.gym_env import GameError
from polydistill_agents.files.sb3_zip import how_to_go_on, read_agent
from polydistill_agents.lineage.agent_config import AgentConfig
from polydistill_agents.lineage.checkup import examine
from polydistill_agents.lineage.config import MAY_MOVE
from polydistill_agents.lineage.course import AnyConfig
from polydistill_agents.lineage.domain import AgentDomain
from polydistill_agents.lineage.opening import open_teacher, require_same_teacher, say_what_to_expect
from polydistill_agents.lineage.plan import (
    PRODUCTS,
    check_run,
    format_plan,
    kind_of,
    remember_speed,
    require_disk,
    require_same_start,
)
from polydistill_agents.lineage.report import format_summary

MAY_GROW = ("lineage.generations",)  # of a run that is there


def distil(parsed: Parsed[Any], argv: list[str] | None, called: str) -> None:
    """Make the run that a command line asks for, or go on with it, and print its table.

    Args:
        parsed: what is asked for, a config of agents.
        argv: the words; None: those of this process.
        called: how it is called, for summary.json.

    Raises:
        UserError: the folder, the teacher or the machine does not allow it.
    """
    given: AnyConfig = parsed.config
    if parsed.doctor and not given.student.has_teacher:
        raise UserError("the doctor looks at what a teacher teaches: leave --doctor out with student.objective td")
    stored = stored_config(parsed.out)
    before = as_before({"precision": given.precision, **vars(given)}, stored)
    config = dataclasses.replace(given, **{name: before[name] for name in before if name in vars(given)})
    allowed = {"may_grow": MAY_GROW, "may_move": MAY_MOVE}
    standing = examine_folder(parsed.out, to_mapping(config), **allowed)
    if standing.state == "finished" and not parsed.dry_run:  # shown anywhere: without its teacher, its GPU, its cores
        summary = read_summary(parsed.out)
        if standing.moved:
            teacher = open_teacher(dataclasses.replace(config, device="cpu"))
            require_same_teacher(config, teacher, summary["generations"][0]["sha256"])
        show(summary, parsed.out, parsed.wide)
        return
    config = given.resolve(stored)
    teacher = open_teacher(config)
    if parsed.dry_run:
        if standing.state != "finished":
            check_run(config, teacher, parsed.out)
        plan = format_plan(config, teacher, parsed.out, measure=parsed.measure)
        print(f"{plan}\n{parsed.out}: {standing.describe()}")
        return
    if standing.moved or standing.grown:  # before the folder is changed
        require_same_start(config, teacher, parsed.out)
    command = shlex.join([*called.split(), *(sys.argv[1:] if argv is None else argv)])
    whose = {"products": PRODUCTS, "packages": PACKAGES}
    with Run.open(parsed.out, config, kind=kind_of(config), command=command, **whose, **allowed) as run:
        if run.summary is None:
            require_disk(config, teacher, run.out)
            say_if_loaded()
            if isinstance(config, AgentConfig):
                say_what_to_expect(config)
        domain = AgentDomain(config, teacher)

        def look(generation: Generation[Any]) -> Report:
            return examine(domain.config, generation)

        try:
            summary = run_lineage(domain, config, run, examine=look if parsed.doctor else None)
        except GameError as error:
            raise GameError(f"{error}; what was saved is kept, and the same command goes on from there") from error
        remember_speed(config, summary)
        show(summary, run.out, parsed.wide)


def show(summary: Mapping[str, Any], out: Path, wide: bool) -> None:
    """Print the table, and how to use what was saved."""
    print(format_summary(summary, wide=wide))
    student = out / "student.zip"
    print(f"\nsaved: {student} (DQN.load opens it)   curves: make tensorboard")
    if student.is_file():
        print(how_to_go_on(student, read_agent(student).score_kind))
