"""Distil an agent of an Atari game into its twin, or into a smaller one.

    python scripts/distill_atari.py                                            the Pong teacher of the project
    python scripts/distill_atari.py --student.size net3 --out runs/small       a student of 4 % of the parameters
    python scripts/distill_atari.py --lineage.generations 3 --out runs/born    each student teaches the next
    python scripts/distill_atari.py --doctor                                   examines each lesson before it begins
    python scripts/distill_atari.py --game breakout --teacher.path dqn.zip     one's own Stable-Baselines3 agent

The run folder gets summary.json, TensorBoard curves, and student.zip, which stock Stable-Baselines3 opens. Stopped
(Ctrl-C, SIGTERM) or killed, the same command goes on, and ends as if nothing had happened.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("atari")

import shlex

from agents.checkup import ExaminedAtariDomain
from agents.config import AtariConfig
from agents.domain import AtariDomain, open_teacher
from agents.plan import format_plan, require_disk
from agents.report import format_summary
from agents.sb3_zip import how_to_go_on, read_agent
from polydistill.config import parse
from polydistill.errors import run_script
from polydistill.interruption import StopSignals
from polydistill.lineage import Lineage
from polydistill.tracking import Run

MAY_GROW = ("lineage.generations",)  # of a run that is there


@run_script
def main(argv: list[str] | None = None) -> None:
    parsed = parse(
        AtariConfig, argv, program="distill_atari.py", description=__doc__, default_name="pong", distils=True
    )
    config = parsed.config.resolve()
    teacher = open_teacher(config)
    if parsed.dry_run:
        print(format_plan(config, teacher, parsed.out))
        return
    words = sys.argv[1:] if argv is None else argv
    command = shlex.join(["python", "scripts/distill_atari.py", *words])
    folder = Run.open(parsed.out, config, kind="atari", command=command, may_grow=MAY_GROW)
    with folder as run, StopSignals() as stop:
        if run.summary is None:
            require_disk(config, teacher, run.out)
            domain = (ExaminedAtariDomain if parsed.doctor else AtariDomain)(config, teacher, run, stop)
            for generation in Lineage(domain, config.lineage, domain.resume()):
                domain.keep(generation)
            domain.finish()
        assert run.summary is not None
        print(format_summary(run.summary))
        student = run.out / "student.zip"
        print(f"\nsaved: {student} (DQN.load opens it)   curves: make tensorboard")
        if student.is_file():
            print(how_to_go_on(student, read_agent(student).scores))


if __name__ == "__main__":
    main()
