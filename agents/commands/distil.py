"""A distillation from a command line: look at the folder, at the teacher, then run, or print what would run."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from polydistill.config.parsing import Parsed
from polydistill.config.plain_yaml import to_mapping
from polydistill.cores import as_before, say_if_loaded
from polydistill.errors import UserError
from polydistill.hub.sharing import check_sharing, share
from polydistill.lineage import Generation, run_lineage
from polydistill.losses import Report
from polydistill.runs import Run, examine_folder, read_summary, stored_config
from polydistill_agents.environments.atari import PACKAGES
from polydistill_agents.environments.gym_env import GameError
from polydistill_agents.files.sb3_zip import how_to_go_on, read_agent
from polydistill_agents.lineage.agent_config import AgentConfig
from polydistill_agents.lineage.checkup import examine
from polydistill_agents.lineage.config import MAY_MOVE
from polydistill_agents.lineage.datasets import require_place
from polydistill_agents.lineage.domain import AgentDomain
from polydistill_agents.lineage.learning_on import PRODUCT
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
from polydistill_agents.lineage.student_file import find_student
from polydistill_agents.lineage.students import AnyConfig

MAY_GROW = ("lineage.generations",)  # of a run that is there


class World(NamedTuple):
    """What differs between a distillation of one task and one of several; ``teacher`` is one, or one of each task.

    Attributes:
        kind_of: from a config to the name of its world.
        may_move_of: from a config to the keys of files that may lie elsewhere.
        products: patterns of the files that a run writes.
        open_teacher: from a resolved config to its teacher.
        require_place: of a config, before its run begins.
        require_same_teacher: of a config, its teacher and generation 0 of a summary.
        require_same_start: of a config, its teacher and a run folder.
        check_run: likewise; it refuses what the run would refuse.
        require_disk: likewise; it refuses a folder without room.
        format_plan: of a config, its teacher, a run folder, and whether to ``measure``.
        say_what_to_expect: of a config.
        open_domain: of a config and its teacher.
        examine: of a domain and a generation, the doctor's report.
        remember_speed: of a config and a summary.
        show: of a summary, a run folder, and whether wide.
    """

    kind_of: Callable[[Any], str]
    may_move_of: Callable[[Any], Sequence[str]]
    products: Sequence[str]
    open_teacher: Callable[[Any], Any]
    require_place: Callable[[Any], None]
    require_same_teacher: Callable[[Any, Any, Mapping[str, Any]], None]
    require_same_start: Callable[[Any, Any, Path], None]
    check_run: Callable[[Any, Any, Path], None]
    require_disk: Callable[[Any, Any, Path], None]
    format_plan: Callable[..., str]
    say_what_to_expect: Callable[[Any], None]
    open_domain: Callable[[Any, Any], Any]
    examine: Callable[[Any, Generation[Any]], Report]
    remember_speed: Callable[[Any, Mapping[str, Any]], None]
    show: Callable[[Mapping[str, Any], Path, bool], None]


def distil(parsed: Parsed[Any], argv: list[str] | None, called: str, world: World | None = None) -> None:
    """Make the run that a command line asks for, or go on with it, and print its table.

    Args:
        parsed: what is asked for, a config of agents.
        argv: the words; None: those of this process.
        called: how it is called, for summary.json.
        world: of the config; None: one task.

    Raises:
        UserError: the folder, the teacher or the machine does not allow it.
    """
    given, world = parsed.config, world or ONE_TASK
    if parsed.doctor and not given.student.has_teacher:
        raise UserError("the doctor looks at what a teacher teaches: leave --doctor out with student.objective td")
    stored = stored_config(parsed.out)
    before = as_before({"precision": given.precision, **vars(given)}, stored)
    config = dataclasses.replace(given, **{name: before[name] for name in before if name in vars(given)})
    allowed = {"may_grow": MAY_GROW, "may_move": world.may_move_of(config)}
    standing = examine_folder(parsed.out, to_mapping(config), **allowed)
    if standing.state == "finished" and not parsed.dry_run:  # shown anywhere: without its teacher, its GPU, its cores
        summary = read_summary(parsed.out)
        if standing.moved:
            teacher = world.open_teacher(dataclasses.replace(config, device="cpu"))
            world.require_same_teacher(config, teacher, summary["generations"][0])
        world.show(summary, parsed.out, parsed.wide)
        share(summary, parsed, shown_again=True)
        return
    check_sharing(parsed)
    config = given.resolve(stored)
    if standing.state in ("new", "begun"):
        world.require_place(config)
    teacher = world.open_teacher(config)
    if parsed.dry_run:
        if standing.state != "finished":
            world.check_run(config, teacher, parsed.out)
        plan = world.format_plan(config, teacher, parsed.out, measure=parsed.measure)
        print(f"{plan}\n{parsed.out}: {standing.describe()}")
        return
    if standing.moved or standing.grown:  # before the folder is changed
        world.require_same_start(config, teacher, parsed.out)
    command = shlex.join([*called.split(), *(sys.argv[1:] if argv is None else argv)])
    whose = {"products": world.products, "packages": PACKAGES}
    with Run.open(parsed.out, config, kind=world.kind_of(config), command=command, **whose, **allowed) as run:
        if run.summary is None:
            world.require_disk(config, teacher, run.out)
            say_if_loaded()
            world.say_what_to_expect(config)
        domain = world.open_domain(config, teacher)

        def look(generation: Generation[Any]) -> Report:
            return world.examine(domain, generation)

        try:
            summary = run_lineage(domain, config, run, examine=look if parsed.doctor else None)
        except GameError as error:
            raise GameError(f"{error}; what was saved is kept, and the same command goes on from there") from error
        world.remember_speed(config, summary)
        world.show(summary, run.out, parsed.wide)
    share(summary, parsed)


def show(summary: Mapping[str, Any], out: Path, wide: bool) -> None:
    """Print the table, and how to use what was saved."""
    print(format_summary(summary, wide=wide))
    student = find_student(out / "student")
    opens = "DQN.load opens it" if student.suffix == ".zip" else "wider than DQN.load's networks: as_teacher opens it"
    print(f"\nsaved: {student} ({opens})   curves: make tensorboard")
    learned_on = out / PRODUCT
    if learned_on.is_file():
        print(f"saved: {learned_on} (the student after it learned on, a DQN)")
        print(how_to_go_on(learned_on, read_agent(learned_on).score_kind))
    elif student.suffix == ".zip" and student.is_file():
        print(how_to_go_on(student, read_agent(student).score_kind))


def _say(config: AnyConfig) -> None:
    if isinstance(config, AgentConfig):
        say_what_to_expect(config)


def _examine(domain: AgentDomain, generation: Generation[Any]) -> Report:
    return examine(domain.config, generation._replace(member=domain.who_labels(generation)))


ONE_TASK = World(
    kind_of,
    lambda _: MAY_MOVE,
    PRODUCTS,
    open_teacher,
    require_place,
    require_same_teacher,
    require_same_start,
    check_run,
    require_disk,
    format_plan,
    _say,
    AgentDomain,
    _examine,
    remember_speed,
    show,
)
