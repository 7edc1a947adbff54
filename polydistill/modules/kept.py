"""A lineage of one's own modules, in memory or kept in a run folder.

Contract: a folder that is continued, or shown again, holds the weights that its generations were finished with, and a
file of it never runs code.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from polydistill._environment import require_extra
from polydistill.errors import UserError
from polydistill.lineage import Generation, Lineage, LineageConfig
from polydistill.lineage.keeper import Examine, Keeper
from polydistill.modules.config import MAY_GROW, describe_run
from polydistill.modules.feed import doubt
from polydistill.modules.report import format_summary
from polydistill.modules.shares import check_may_keep
from polydistill.modules.world import FILE, ModuleWorld
from polydistill.provenance import weights_sha256
from polydistill.runs import Run
from polydistill.runs.checkpoint import CheckpointConfig
from polydistill.runs.interruption import StopSignals

KIND = "modules"
PRODUCTS = (FILE.format("*"),)
NEVER = CheckpointConfig(every_seconds=1e12)
Generations = Iterator[Generation[nn.Module]]


class InMemory(NamedTuple):
    """What the keeper of a lineage without a folder is told."""

    lineage: LineageConfig
    checkpoint: CheckpointConfig = NEVER


def distill_in_memory(domain: ModuleWorld, lineage: LineageConfig, examine: Examine | None) -> Generations:
    """The generations as they are finished; nothing is written."""
    keeper = Keeper(domain, InMemory(lineage), processes=domain.workshop.processes, examine=examine)
    for generation in Lineage(keeper, lineage):
        keeper.keep(generation)
        yield generation


def distill_in_folder(
    domain: ModuleWorld, lineage: LineageConfig, out: Path, checkpoint: CheckpointConfig, examine: Examine | None
) -> Generations:
    """The generations that the folder ``out`` has, then the others as they are finished; at the end the table is
    printed.

    Raises:
        UserError: the folder holds another run, cannot be written or read, or an extra is missing.
        Interrupted: a signal came, and what has been learned is saved.
    """
    require_extra("runs")
    require_extra("vision", "safetensors")
    processes = domain.workshop.processes
    check_may_keep(processes)
    config = describe_run(domain.workshop, lineage, checkpoint)
    with ExitStack() as stack:
        run = None  # but in the first process
        if processes.rank == 0:
            command = shlex.join(sys.argv)
            opened = Run.open(out, config, kind=KIND, command=command, products=PRODUCTS, may_grow=MAY_GROW)
            run = stack.enter_context(opened)
        summary = processes.first_says(None if run is None else run.summary)
        if summary is not None:
            yield from read_finished(domain, summary, out)
        else:
            if run is not None and (why := doubt(domain.given.batches)) is not None:
                print(f"{out}: goes on where it is stopped, but not bit for bit: {why}", file=sys.stderr)
            yield from _keep(domain, lineage, Keeper(domain, config, run, processes, StopSignals(), examine))
        if run is not None and run.summary is not None:
            print(format_summary(run.summary))
            print(f"\nsaved: {out / FILE.format('<k>')}   curves: tensorboard --logdir {out}")
            from polydistill.hub.worlds import finish_card  # needs what the base installation has not

            finish_card(run.summary, out, shown_again=summary is not None)


def _keep(domain: ModuleWorld, lineage: LineageConfig, keeper: Keeper[nn.Module]) -> Generations:
    """What ``keeper`` finds, then what is trained; signals are heeded while something is, and not in the caller's own
    code."""
    yield from keeper.resume()
    rest = iter(Lineage(keeper, lineage, keeper.generations))
    while True:
        with keeper.stop:
            generation = next(rest, None)
            if generation is None:
                break
            keeper.keep(generation)
        yield generation
    keeper.finish()


def read_finished(domain: ModuleWorld, summary: dict[str, Any], out: Path) -> Generations:
    """The generations of a finished run, with their members.

    Raises:
        UserError: a file is not what it was.
    """
    for saved in summary["generations"]:
        member = domain.read_member(saved["generation"], out)
        if weights_sha256(member.state_dict()) != saved["sha256"]:
            raise UserError(f"{out / FILE.format(saved['generation'])} holds other weights than those of the run")
        yield Generation(member=member, **saved)
