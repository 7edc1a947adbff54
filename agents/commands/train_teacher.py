"""Train a DQN teacher of an Atari game with Stable-Baselines3, to be distilled by distill_atari.py.

    python scripts/train_teacher.py --game pong --out runs/teacher_pong

The same command again continues from the newest good checkpoint in the folder, or prints the score of a finished
teacher. At the end the folder holds teacher.zip, an ordinary Stable-Baselines3 zip, and teacher.json, its card.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polydistill.config.parsing import parse
from polydistill.config.plain_yaml import dump_yaml, to_mapping
from polydistill.cores import as_before, say_if_loaded
from polydistill.errors import run_script
from polydistill.runs import format_interval, stored_config
from polydistill.runs.interruption import StopSignals
from polydistill.runs.lock import require_unlocked
from polydistill.runs.space import require_room
from polydistill_agents.teachers.training import (
    DISK_BYTES,
    TeacherTrainingConfig,
    check_folder,
    finish_teacher,
    finished_card,
    open_folder,
    train_teacher,
)

SCRIPT = "python scripts/train_teacher.py"


@run_script
def main(argv: list[str] | None = None, called: str = SCRIPT) -> None:
    """Do what the words ask for; None: those of this process. ``called`` is how a user calls it."""
    description = (__doc__ or "").replace(SCRIPT, called)
    parsed = parse(TeacherTrainingConfig, argv, program=called, description=description, default_name="teacher")
    stored = stored_config(parsed.out)
    config = dataclasses.replace(parsed.config, **as_before(vars(parsed.config), stored))
    card = finished_card(config, parsed.out)
    if card is not None:  # shown anywhere: without its GPU, its cores
        if parsed.dry_run:
            print(dump_yaml(to_mapping(config)))
            print(f"{parsed.out}: the teacher there is finished: its score would be printed")
        else:
            show(card, parsed.out)
        return
    config = parsed.config.resolve(stored)
    if parsed.dry_run:
        standing = check_folder(config, parsed.out)
        require_unlocked(parsed.out)
        require_room(parsed.out, DISK_BYTES, quiet=True)
        print(dump_yaml(to_mapping(config)))
        gibibytes = config.buffer_size * 2 * 4 * 84 * 84 / 2**30
        print(f"would train for {config.steps:,} steps in {parsed.out}; the replay takes {gibibytes:.1f} GiB of memory")
        print(f"{parsed.out}: {standing.describe()}")
        return
    words = sys.argv[1:] if argv is None else argv
    command = shlex.join([*called.split(), *words])
    with open_folder(config, parsed.out), StopSignals() as stop:
        say_if_loaded()
        model = train_teacher(config, parsed.out, stop)
        card = finish_teacher(model, config, parsed.out, command, stop)
    show(card, parsed.out)


def show(card: Mapping[str, Any], out: Path) -> None:
    """Print the score in the card of the teacher in ``out``."""
    score = card["evaluation"]
    interval = f"95% over {score['episodes']} games: {format_interval(score['score_ci95'])}"
    print(f"{out / 'teacher.zip'}: mean {score['score_mean']:.2f} ({interval})")
