"""Distil an agent of an Atari game into its twin, or into a smaller one.

    python scripts/distill_atari.py                                            the Pong teacher of the project
    python scripts/distill_atari.py --student.size net3 --out runs/small       a student of 4 % of the parameters
    python scripts/distill_atari.py --lineage.generations 3 --out runs/born    each student teaches the next
    python scripts/distill_atari.py --doctor                                   examines each lesson before it begins
    python scripts/distill_atari.py --game breakout --teacher.path dqn.zip     one's own Stable-Baselines3 agent
    python scripts/distill_atari.py --games "{pong: dqn.zip, breakout: a.zip}" one student of several games

The run folder gets summary.json, TensorBoard curves, student.zip, which stock Stable-Baselines3 opens, and README.md,
its card in the form of the Hugging Face Hub. If the run is stopped (Ctrl-C, SIGTERM) or killed, the same command
continues it, and the result is the same.

With several games each has a zip, generation_1_pong.zip; --games {} --help shows the flags of such a run.
"""

from __future__ import annotations

from typing import Any

from polydistill.config.parsing import parse
from polydistill.errors import run_script
from polydistill_agents.commands.distil import distil
from polydistill_agents.commands.distil_tasks import SEVERAL_TASKS, asks_for
from polydistill_agents.lineage.config import AtariConfig
from polydistill_agents.lineage.multitask.games import ManyGamesConfig

SCRIPT = "python scripts/distill_atari.py"


@run_script
def main(argv: list[str] | None = None, called: str = SCRIPT) -> None:
    """Do what the words ask for; None: those of this process. ``called`` is how a user calls it."""
    description = (__doc__ or "").replace(SCRIPT, called)
    options: dict[str, Any] = {"program": called, "description": description, "distils": True}
    if asks_for("games", argv):
        distil(parse(ManyGamesConfig, argv, default_name="games", **options), argv, called, SEVERAL_TASKS)
    else:
        distil(parse(AtariConfig, argv, default_name="pong", **options), argv, called)
