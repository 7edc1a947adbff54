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

import dataclasses
import functools
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from polydistill.config.help_text import as_called
from polydistill.config.parsing import Parsed, parse
from polydistill.config.plain_yaml import to_mapping
from polydistill.cores import as_before, say_if_loaded
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
from polydistill.learning.processes import is_first_process
from polydistill.lineage import run_lineage
from polydistill.modules.checkup import examine
from polydistill.modules.shares import join_processes
from polydistill.runs import Run, examine_folder, read_summary, stored_config
from polydistill.runs.folder import Standing
from polydistill.runs.space import require_room

SCRIPT = "python scripts/distill_images.py"
MAY_GROW = ("lineage.generations",)  # of a run that is there
PACKAGES = ("timm", "torchvision", "pillow")


@run_script
def main(argv: list[str] | None = None, called: str = SCRIPT) -> None:
    """Do what the words ask for; None: those of this process. ``called`` is how a user calls it."""
    first = is_first_process()
    description = as_called(__doc__ or "", SCRIPT, called)
    parsed = parse(ImagesConfig, argv, program=called, description=description, default_name="images", distils=True)
    stored = stored_config(parsed.out)
    config = dataclasses.replace(parsed.config, **as_before(vars(parsed.config), stored))
    standing = examine_folder(parsed.out, to_mapping(config), may_grow=MAY_GROW, may_move=config.may_move(stored))
    if standing.state == "finished" and not parsed.dry_run:  # shown anywhere: without its pictures
        summary = read_summary(parsed.out)
        if first:
            present(summary, parsed, format_summary(summary, wide=parsed.wide), shown_again=True)
        return
    if first:
        check_sharing(parsed)
    config = parsed.config.resolve(stored)
    if parsed.dry_run:
        folders = check_run(config, parsed.out, standing.moved)
        plan = format_plan(config, folders, parsed.out, measure=parsed.measure)
        print(f"{plan}\n{parsed.out}: {standing.describe()}")
        return
    command = shlex.join([*called.split(), *(sys.argv[1:] if argv is None else argv)])
    made = run(config, parsed, standing, command)
    if first:
        present(made, parsed, format_summary(made, wide=parsed.wide))


def run(config: ImagesConfig, parsed: Parsed[ImagesConfig], standing: Standing, command: str) -> Mapping[str, Any]:
    """What summary.json holds at the end; no folder is made before everything that the run needs was found."""
    out, processes = parsed.out, join_processes(config.device)
    folders = read_data(config)
    check_objective(config, len(folders.train.classes))
    n_bytes = disk_bytes(config, folders)
    begun = require_same_start(config, folders, out, standing.moved)
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
        may_grow=MAY_GROW,
        may_move=config.may_move(stored_config(out)),
    ) as opened:
        if opened.summary is None:
            say_if_loaded()
        summary = run_lineage(domain, config, opened, processes, examine=doctor)
    remember_speed(config, summary)
    return summary
