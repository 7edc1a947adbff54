"""Train a DQN teacher of an Atari game with Stable-Baselines3, to be distilled by distill_atari.py.

    python scripts/train_teacher.py --game pong --out runs/teacher_pong

Students of other sizes may learn while it does:

    python scripts/train_teacher.py --game pong --students "[net1, net2, net3]" --out runs/teacher_pong

The same command again continues from the newest good checkpoint in the folder, or prints the score of a finished
teacher. At the end the folder holds teacher.zip, an ordinary Stable-Baselines3 zip, and teacher.json, its card;
likewise net1.zip, net1.json, and so on; and README.md, which tells people of them in the form of the Hugging Face Hub.
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
from polydistill.hub.worlds import finish_card
from polydistill.runs import format_interval, stored_config
from polydistill.runs.interruption import StopSignals
from polydistill.runs.lock import require_unlocked
from polydistill.runs.space import require_room
from polydistill_agents.environments.evaluation import Evaluation
from polydistill_agents.files.sb3_zip import how_to_go_on
from polydistill_agents.lineage.beside_teacher import (
    TeacherAndStudentsConfig,
    finish_students,
    format_students,
    make_callback,
)
from polydistill_agents.lineage.teacher_card import read_training
from polydistill_agents.teachers.training import finish_teacher, train_teacher
from polydistill_agents.teachers.training_config import DISK_BYTES, check_folder, finished_card, open_folder

SCRIPT = "python scripts/train_teacher.py"


@run_script
def main(argv: list[str] | None = None, called: str = SCRIPT) -> None:
    """Do what the words ask for; None: those of this process. ``called`` is how a user calls it."""
    description = (__doc__ or "").replace(SCRIPT, called)
    parsed = parse(TeacherAndStudentsConfig, argv, program=called, description=description, default_name="teacher")
    stored = stored_config(parsed.out)
    config = dataclasses.replace(parsed.config, **as_before(vars(parsed.config), stored))
    card = finished_card(config, parsed.out)
    if card is not None:  # shown anywhere: without its GPU, its cores
        if parsed.dry_run:
            print(dump_yaml(to_mapping(config)))
            print(f"{parsed.out}: the teacher there is finished: its score would be printed")
        else:
            show(card, parsed.out)
            finish_card(read_training(parsed.out), parsed.out, shown_again=True)
        return
    config = parsed.config.resolve(stored)
    if parsed.dry_run:
        standing = check_folder(config, parsed.out)
        require_unlocked(parsed.out)
        require_room(parsed.out, DISK_BYTES, quiet=True)
        print(dump_yaml(to_mapping(config)))
        gibibytes = config.buffer_size * 2 * 4 * 84 * 84 / 2**30
        print(f"would train for {config.steps:,} steps in {parsed.out}; the replay takes {gibibytes:.1f} GiB of memory")
        if config.students is not None:
            print(f"students that would learn meanwhile: {', '.join(config.names)}")
        print(f"{parsed.out}: {standing.describe()}")
        return
    words = sys.argv[1:] if argv is None else argv
    command = shlex.join([*called.split(), *words])
    with open_folder(config, parsed.out), StopSignals() as stop:
        say_if_loaded()
        card = _train(config, parsed.out, command, stop)
    show(card, parsed.out)
    finish_card(read_training(parsed.out), parsed.out)


def _train(config: TeacherAndStudentsConfig, out: Path, command: str, stop: StopSignals) -> dict[str, Any]:
    """Train the teacher, and the students beside it: the card."""
    if config.students is None:
        return finish_teacher(train_teacher(config, out, stop), config, out, command, stop)
    callback = make_callback(config)
    model = train_teacher(config, out, stop, callback)

    def finish_others(played: Evaluation) -> dict[str, Any]:
        return finish_students(callback, config, out, played, stop)

    return finish_teacher(model, config, out, command, stop, finish_others)


def show(card: Mapping[str, Any], out: Path) -> None:
    """Print the score in the card of the teacher in ``out``, and the table of its students."""
    score = card["evaluation"]
    interval = f"95% over {score['episodes']} games: {format_interval(score['score_ci95'])}"
    print(f"{out / 'teacher.zip'}: mean {score['score_mean']:.2f} ({interval})")
    if "students" in card:
        print()
        print(format_students(card))
        for student in card["students"]:
            print(how_to_go_on(out / f"{student['student']}.zip", student["scores"]))
