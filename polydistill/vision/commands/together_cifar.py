"""Run several commands of distill_cifar.py in one process, so that their students learn together.

    python scripts/together_cifar.py runs.yaml

where runs.yaml names for each run the file for what it prints, and the words behind `distill_cifar.py`:

    a.txt: [--config, configs/cifar/wrn28_1_ban.yaml, --seed, 0, --out, runs/a]
    b.txt: [--config, configs/cifar/wrn28_1_ban.yaml, --seed, 1, --out, runs/b]

Steps of students of one architecture, objective and batch size are made together: for a GPU that one small network
leaves idle. Each run has its own folder, seed, order of images and checkpoints, and what it would have alone up to
rounding. Other steps are made one by one. If the runs are stopped or killed, the same command continues them.
`study.py --students_together 4` starts this command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polydistill.config.fields import check_fields
from polydistill.config.help_text import as_called
from polydistill.config.parsing import parse
from polydistill.config.plain_yaml import load_yaml
from polydistill.errors import Interrupted, UserError, run_script
from polydistill.learning.together import Command, Table, split_outputs
from polydistill.runs.interruption import StopSignals
from polydistill.vision.commands import distill_cifar
from polydistill.vision.joint import JointStep

SCRIPT = "python scripts/together_cifar.py"


@dataclass(frozen=True)
class TogetherConfig:
    """Which runs.

    Args:
        runs: a YAML file: for each run the file for what it prints, and its words.
    """

    runs: str

    def __post_init__(self) -> None:
        check_fields(self)


@run_script
def main(argv: list[str] | None = None, called: str = SCRIPT) -> None:
    """Do what the words ask for; None: those of this process. ``called`` is how a user calls it."""
    parsed = parse(
        TogetherConfig,
        argv,
        program=called,
        description=as_called(__doc__ or "", SCRIPT, called),
        default_name=None,
        first_word="runs",
    )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("torchrun shares one run among processes; this shares one process among runs: start it alone")
    commands = _read_commands(Path(parsed.config.runs))
    table = Table(JointStep)
    with split_outputs(), StopSignals() as stop:
        codes = table.run(commands, each_time=stop.tell_threads)
    print(f"{table.together:,} steps were made together, {table.alone:,} alone", file=sys.stderr)
    for command, code in zip(commands, codes, strict=True):
        print(f"{command.log}: {'ended well' if code == 0 else f'ended with code {code}'}", file=sys.stderr)
    if stop.received is not None and 128 + stop.received in codes:
        raise Interrupted(stop.received, "stopped: the same command goes on")
    if any(codes):
        raise SystemExit(1)


def _read_commands(path: Path) -> list[Command]:
    """Those in the file.

    Raises:
        UserError: it cannot be read, or names no run.
    """
    named: Mapping[str, Any] = load_yaml(path)
    for log, words in named.items():
        if not isinstance(words, list) or not all(isinstance(word, str | int | float) for word in words):
            raise UserError(f"{path}: {log} must be a list of words, like [--seed, 0, --out, runs/a], got {words!r}")
    if not named:
        raise UserError(f"{path} names no run")
    return [Command(distill_cifar.main, [str(word) for word in words], Path(log)) for log, words in named.items()]
