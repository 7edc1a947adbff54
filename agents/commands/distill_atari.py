"""Distil an agent of an Atari game into its twin, or into a smaller one.

    python scripts/distill_atari.py                                            the Pong teacher of the project
    python scripts/distill_atari.py --student.size net3 --out runs/small       a student of 4 % of the parameters
    python scripts/distill_atari.py --lineage.generations 3 --out runs/born    each student teaches the next
    python scripts/distill_atari.py --doctor                                   examines each lesson before it begins
    python scripts/distill_atari.py --game breakout --teacher.path dqn.zip     one's own Stable-Baselines3 agent

The run folder gets summary.json, TensorBoard curves, and student.zip, which stock Stable-Baselines3 opens. If the
run is stopped (Ctrl-C, SIGTERM) or killed, the same command continues it, and the result is the same.
"""

from __future__ import annotations

from polydistill.config.parsing import parse
from polydistill.errors import run_script
from polydistill_agents.commands.distil import distil
from polydistill_agents.lineage.config import AtariConfig

SCRIPT = "python scripts/distill_atari.py"


@run_script
def main(argv: list[str] | None = None, called: str = SCRIPT) -> None:
    """Do what the words ask for; None: those of this process. ``called`` is how a user calls it."""
    description = (__doc__ or "").replace(SCRIPT, called)
    parsed = parse(AtariConfig, argv, program=called, description=description, default_name="pong", distils=True)
    distil(parsed, argv, called)
