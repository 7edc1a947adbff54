"""Train generations of classifiers on a folder of pictures, each taught by the one before.

    python scripts/distill_images.py --data.root FOLDER --teacher.network timm:resnet18
    python scripts/distill_images.py --data.root FOLDER --teacher.network timm:resnet18 --teacher.path FILE
        --student.network timm:mobilenetv3_small_100 --student.objective hinton_kd      a smaller student of a teacher
    python scripts/distill_images.py --config configs/images/own_folder.yaml --data.root FOLDER --dry_run
    torchrun --nproc_per_node 2 scripts/distill_images.py --config ...              on several GPUs

FOLDER holds train/<class>/*.jpg to learn from, and val/<class>/*.jpg to be tested on. A teacher that is not given, by
--teacher.path or --teacher.pretrained, is trained on the labels first. The student is its twin unless
--student.network names another; timm:NAME is any network of timm.

If the run is stopped (Ctrl-C, SIGTERM) or killed, the same command continues it, and the result is the same; a
larger --lineage.generations continues a finished one. The run folder gets summary.json, TensorBoard curves,
generation_<k>.safetensors, which timm opens, generation_<k>.json with the classes and what is done to pictures, and
README.md, a card in the form of the Hugging Face Hub.
"""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from polydistill.config.help_text import as_called
from polydistill.config.parsing import Parsed, parse
from polydistill.cores import say_if_loaded
from polydistill.errors import UserError, run_script
from polydistill.hub.sharing import check_sharing, present
from polydistill.image_folders.config import ImagesConfig
from polydistill.image_folders.data import read_data
from polydistill.image_folders.domain import ImagesDomain
from polydistill.image_folders.plan import (
    KIND,
    PRODUCTS,
    check_objective,
    check_run,
    disk_bytes,
    format_plan,
    remember_speed,
    require_same_start,
)
from polydistill.image_folders.report import format_summary
from polydistill.learning.processes import Processes, open_processes
from polydistill.lineage import run_lineage
from polydistill.lineage.beginning import Beginning, look
from polydistill.modules.checkup import examine
from polydistill.runs import Run, read_summary
from polydistill.runs.space import require_room

SCRIPT = "python scripts/distill_images.py"
PACKAGES = ("timm", "torchvision", "pillow")


@run_script
def main(argv: list[str] | None = None, called: str = SCRIPT) -> None:
    """Do what the words ask for; None: those of this process. ``called`` is how a user calls it."""
    description = as_called(__doc__ or "", SCRIPT, called)
    parsed = parse(ImagesConfig, argv, program=called, description=description, default_name="images", distils=True)
    command = shlex.join([*called.split(), *(sys.argv[1:] if argv is None else argv)])
    with open_processes(parsed.config.device) as processes:
        _begin(parsed, command, processes)


def _begin(parsed: Parsed[ImagesConfig], command: str, processes: Processes) -> None:
    """What one process does; the first one's folder counts, and the others need none."""
    out, first = parsed.out, processes.rank == 0
    config, stored, standing, allowed = look(out, parsed.config, processes)
    if standing.state == "finished" and not parsed.dry_run:  # shown anywhere: without its pictures
        if first:
            summary = read_summary(out)
            present(summary, parsed, format_summary(summary, wide=parsed.wide), shown_again=True)
        return
    if first:
        check_sharing(parsed)
    config = processes.ask_first(lambda: parsed.config.resolve(stored))
    if parsed.dry_run:
        if first:
            folders = check_run(config, out, standing.moved)
            plan = format_plan(config, folders, out, measure=parsed.measure)
            print(f"{plan}\n{out}: {standing.describe()}")
        return
    made = _run(parsed, Beginning(config, stored, standing, allowed), command, processes)
    if first:
        present(made, parsed, format_summary(made, wide=parsed.wide))


def _run(
    parsed: Parsed[ImagesConfig], begins: Beginning[ImagesConfig], command: str, processes: Processes
) -> Mapping[str, Any]:
    """What summary.json holds at the end; no folder is made before everything that the run needs was found."""
    out, config, standing = parsed.out, begins.config, begins.standing
    folders = read_data(config)
    check_objective(config, len(folders.train.classes))
    n_bytes = disk_bytes(config, folders)
    begun = processes.ask_first(lambda: require_same_start(config, folders, out, standing.moved))
    try:
        domain = ImagesDomain(config, folders, processes, begun=begun)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    doctor = functools.partial(examine, domain.workshop) if parsed.doctor else None
    if processes.rank > 0:
        return run_lineage(domain, config, None, processes, examine=doctor)
    if standing.state != "finished":
        require_room(out, n_bytes)
    with Run.open(
        out,
        config,
        kind=KIND,
        command=command,
        products=PRODUCTS,
        packages=PACKAGES,
        **begins.allowed,
    ) as opened:
        if opened.summary is None:
            say_if_loaded()
        summary = run_lineage(domain, config, opened, processes, examine=doctor)
    remember_speed(config, summary)
    return summary
