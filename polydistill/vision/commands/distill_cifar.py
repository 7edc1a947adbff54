"""Train generations of classifiers on CIFAR-10 or CIFAR-100, each taught by the one before.

    python scripts/distill_cifar.py                                                   the smoke config: seconds
    python scripts/distill_cifar.py --config configs/cifar/wrn28_1_ban.yaml           downloads CIFAR-100 once
    python scripts/distill_cifar.py --config ... --data.root DIR                      data that you have already
    python scripts/distill_cifar.py --config ... --doctor                             examines each lesson first
    torchrun --nproc_per_node 2 scripts/distill_cifar.py --config ...                 on several GPUs

If the run is stopped (Ctrl-C, SIGTERM) or killed, the same command continues it, and the result is the same; a
larger --lineage.generations continues a finished one. The run folder gets summary.json, TensorBoard curves,
generation_<k>.safetensors, which polydistill.vision.load_classifier opens, and README.md, a card in the form of the
Hugging Face Hub.
"""

from __future__ import annotations

import functools
import shlex
import sys
from contextlib import ExitStack

from polydistill.config.help_text import as_called
from polydistill.config.parsing import Parsed, parse
from polydistill.cores import say_if_loaded
from polydistill.errors import run_script
from polydistill.hub.sharing import check_sharing, present
from polydistill.learning.processes import Processes, open_processes
from polydistill.learning.schedules import TrainingConfig
from polydistill.learning.together import once, table_here
from polydistill.lineage import LineageConfig, run_lineage
from polydistill.lineage.beginning import look
from polydistill.runs import Run, read_summary
from polydistill.runs.space import require_room
from polydistill.vision.checkup import examine
from polydistill.vision.config import CifarConfig, StudentConfig, TeacherConfig
from polydistill.vision.domain import CifarDomain
from polydistill.vision.images.data import DataConfig, load_images
from polydistill.vision.plan import PRODUCTS, check_run, disk_bytes, format_plan, remember_speed, require_same_start
from polydistill.vision.report import format_summary
from polydistill.vision.sources import open_teacher, require_same_sources

SCRIPT = "python scripts/distill_cifar.py"
SMOKE = CifarConfig(  # as configs/smoke/cifar.yaml, which an installation does not hold
    data=DataConfig(made_up=600, train_images=600, test_images=300, validation_images=100),
    teacher=TeacherConfig(network="resnet-8"),
    student=StudentConfig(objective="ban_l"),
    training=TrainingConfig(epochs=8, batch_size=25, learning_rate=0.1, schedule="one_cycle", log_every_steps=10),
    lineage=LineageConfig(generations=2),
)


@run_script
def main(argv: list[str] | None = None, called: str = SCRIPT) -> None:
    """Do what the words ask for; None: those of this process. ``called`` is how a user calls it."""
    parsed = parse(
        CifarConfig,
        argv,
        program=called,
        description=as_called(__doc__ or "", SCRIPT, called),
        default_name="cifar",
        default_config=SMOKE,
        distils=True,
    )
    command = shlex.join([*called.split(), *(sys.argv[1:] if argv is None else argv)])
    with open_processes(parsed.config.device) as processes:
        _run(parsed, command, processes)


def _run(parsed: Parsed[CifarConfig], command: str, processes: Processes) -> None:
    """What one process does; the first one's folder counts, and the others need none."""
    out, first = parsed.out, processes.rank == 0
    config, stored, standing, allowed = look(out, parsed.config, processes)
    if standing.state == "finished" and not parsed.dry_run:  # shown anywhere: without its data, its GPU, its cores
        if first:
            summary = read_summary(out)
            require_same_sources(config, summary, standing.moved)
            present(summary, parsed, format_summary(summary, wide=parsed.wide), shown_again=True)
        return
    if first:
        check_sharing(parsed)
    config = processes.ask_first(lambda: parsed.config.resolve(stored))
    if parsed.dry_run:
        if first and standing.state != "finished":
            check_run(config, out, standing.moved)
        if first:
            print(f"{format_plan(config, out, measure=parsed.measure)}\n{out}: {standing.describe()}")
        return
    with ExitStack() as stack:
        config.check_processes(processes.size)
        images = processes.in_turn(
            lambda: once((config.data, config.device), lambda: load_images(config.data, config.device))
        )
        if config.teacher.path and standing.state in {"new", "begun"}:
            open_teacher(config, images, "cpu")
        if first and (standing.moved or standing.grown):
            require_same_start(config, images, out, standing.moved)
        run = None  # and no folder before everything that it needs was found
        if first:
            opened = Run.open(out, config, kind="cifar", command=command, products=PRODUCTS, **allowed)
            run = stack.enter_context(opened)
            if run.summary is None:
                require_room(run.out, disk_bytes(config, len(images.train)))
                say_if_loaded()
        domain = CifarDomain(config, images, processes)
        doctor = functools.partial(examine, domain.workshop) if parsed.doctor else None
        summary = run_lineage(domain, config, run, processes, examine=doctor)
        if run is not None and table_here() is None:
            remember_speed(config, summary)
    if run is not None:
        present(summary, parsed, format_summary(summary, wide=parsed.wide))
