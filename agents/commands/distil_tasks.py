"""A distillation of several tasks from a command line: what of it differs from one of a single task."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from polydistill.config.plain_yaml import load_yaml
from polydistill.errors import UserError
from polydistill.lineage import Generation
from polydistill.losses import Finding, Report
from polydistill_agents.commands.distil import World
from polydistill_agents.lineage.agent_config import AgentConfig
from polydistill_agents.lineage.checkup import examine
from polydistill_agents.lineage.datasets import require_place
from polydistill_agents.lineage.multitask.config import SeveralTasks
from polydistill_agents.lineage.multitask.domain import MultitaskDomain
from polydistill_agents.lineage.multitask.opening import open_teachers, require_same_teachers
from polydistill_agents.lineage.multitask.plan import (
    KIND,
    PRODUCTS,
    check_run,
    format_plan,
    remember_speed,
    require_disk,
    require_same_start,
)
from polydistill_agents.lineage.multitask.report import format_summary
from polydistill_agents.lineage.multitask.view import TASKS
from polydistill_agents.lineage.opening import say_what_to_expect


def asks_for(field: str, argv: list[str] | None) -> bool:
    """Whether a command line, or the file of its ``--config``, names ``field``: several tasks are meant.

    Args:
        field: "games" or "tasks".
        argv: the words; None: those of this process.
    """
    words = sys.argv[1:] if argv is None else argv
    if any(word.partition("=")[0] == f"--{field}" for word in words):
        return True
    files = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    files += [behind for word, behind in pairwise(words) if word == "--config"]
    with contextlib.suppress(UserError):  # it is read again, and refused there
        return any(field in load_yaml(Path(file)) for file in files)
    return False


def show(summary: Mapping[str, Any], out: Path, wide: bool) -> None:
    """Print the table, and where each task's agent is."""
    print(format_summary(summary, wide=wide))
    last, names = summary["generations"][-1]["generation"], list(summary["generations"][-1]["metrics"][TASKS])
    zips = [out / f"generation_{last}_{name}.zip" for name in names]
    if all(path.is_file() for path in zips):
        print(f"\nsaved: {out}/generation_{last}_<task>.zip of {', '.join(names)} (DQN.load opens each)", end="")
    else:
        print(f"\nsaved: {out / f'generation_{last}.safetensors'} (too wide for zips that DQN.load opens)", end="")
    print("   curves: make tensorboard")


def _say(config: SeveralTasks) -> None:
    for name in config.names:
        one = config.of(name)
        if isinstance(one, AgentConfig):
            say_what_to_expect(one)


def _require_places(config: SeveralTasks) -> None:
    for name in config.names:
        require_place(config.of(name))


def _examine(domain: MultitaskDomain, generation: Generation[Any]) -> Report:
    """The doctor's report on each task's lesson, in one."""
    reports = {}
    for name, world in domain.worlds.items():
        alone = generation._replace(member=generation.member.of[name], metrics=generation.metrics[TASKS][name])
        reports[name] = examine(world.config, alone._replace(member=world.who_labels(alone)))
    findings = tuple(
        Finding(each.level, f"{name}: {each.text}") for name, report in reports.items() for each in report.findings
    )
    return Report("; ".join(f"{name}, {report.title}" for name, report in reports.items()), findings, {})


SEVERAL_TASKS = World(
    lambda _: KIND,
    lambda config: config.may_move,
    PRODUCTS,
    open_teachers,
    _require_places,
    require_same_teachers,
    require_same_start,
    check_run,
    require_disk,
    format_plan,
    _say,
    MultitaskDomain,
    _examine,
    remember_speed,
    show,
)
