"""Measure the mean of the class probabilities of trained classifiers, as an arm of a study does.

    python scripts/ensemble_cifar.py --config FILE --out runs/ensemble/seed0 --seed 0
    python scripts/ensemble_cifar.py --members "[../a, ../b]" --data.root DIR --out runs/ensemble

The members are finished run folders of distill_cifar.py, named from the folder of this run; {seed} in a name stands for
the seed. Data must be theirs. The run folder gets summary.json, and which test images the ensemble got right.
"""

from __future__ import annotations

import shlex
import sys

from polydistill.config.parsing import parse
from polydistill.config.plain_yaml import to_mapping
from polydistill.errors import run_script
from polydistill.runs import Run, examine_folder, read_summary, stored_config
from polydistill.vision.ensemble import CORRECT, EnsembleConfig, measure_ensemble
from polydistill.vision.images.data import load_images
from polydistill.vision.report import format_summary

SCRIPT = "python scripts/ensemble_cifar.py"


@run_script
def main(argv: list[str] | None = None, called: str = SCRIPT) -> None:
    """Do what the words ask for; None: those of this process. ``called`` is how a user calls it."""
    parsed = parse(
        EnsembleConfig,
        argv,
        program=called,
        description=(__doc__ or "").replace(SCRIPT, called),
        default_name="ensemble",
    )
    config = parsed.config.resolve(stored_config(parsed.out))
    standing = examine_folder(parsed.out, to_mapping(config), may_move=("data.root",))
    if standing.state == "finished":
        print(format_summary(read_summary(parsed.out)))
        return
    if parsed.dry_run:
        members = "\n".join(map(str, config.folders(parsed.out)))
        print(f"the mean of {len(config.members)} networks, the last of each of\n{members}\n{standing.describe()}")
        return
    command = shlex.join([*called.split(), *(sys.argv[1:] if argv is None else argv)])
    images = load_images(config.data, config.device)
    with Run.open(
        parsed.out, config, kind="cifar", command=command, products=(CORRECT,), may_move=("data.root",)
    ) as run:
        summary = run.summary or measure_ensemble(config, images, run)
    print(format_summary(summary))
