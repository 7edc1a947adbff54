"""Score the mean of the policies of students from several runs, as an arm of a study does.

    python scripts/ensemble_agents.py --config FILE --out runs/ensemble/seed0 --seed 0
    python scripts/ensemble_agents.py --members "[../a, ../b]" --out runs/ensemble

The members are finished run folders of distill_atari.py or distill_agent.py, named from the folder of this run; {seed}
in a name stands for the seed. They played the same task, and were scored in the same way; so is the ensemble. The
student at the end of each is a member, at its own temperature. The run folder gets summary.json.
"""

from __future__ import annotations

import shlex
import sys

import torch

from polydistill.config.parsing import parse
from polydistill.config.plain_yaml import to_mapping
from polydistill.errors import run_script
from polydistill.runs import Run, examine_folder, read_summary, stored_config
from polydistill_agents.environments.atari import PACKAGES
from polydistill_agents.lineage.ensemble import EnsembleConfig, measure_ensemble, open_runs
from polydistill_agents.lineage.report import format_summary

SCRIPT = "python scripts/ensemble_agents.py"


@run_script
def main(argv: list[str] | None = None, called: str = SCRIPT) -> None:
    """Do what the words ask for; None: those of this process. ``called`` is how a user calls it."""
    description = (__doc__ or "").replace(SCRIPT, called)
    parsed = parse(EnsembleConfig, argv, program=called, description=description, default_name="ensemble")
    config = parsed.config.resolve(stored_config(parsed.out))
    standing = examine_folder(parsed.out, to_mapping(config))
    if standing.state == "finished":
        print(format_summary(read_summary(parsed.out)))
        return
    members = open_runs(config, parsed.out)
    if parsed.dry_run:
        folders = "\n".join(str(member.folder) for member in members)
        print(f"the mean of {len(members)} students, the last of each of\n{folders}\n{standing.describe()}")
        return
    torch.set_num_threads(config.threads)
    command = shlex.join([*called.split(), *(sys.argv[1:] if argv is None else argv)])
    kind = members[0].summary["kind"]
    with Run.open(parsed.out, config, kind=kind, command=command, packages=PACKAGES) as run:
        summary = run.summary or measure_ensemble(config, members, run)
    print(format_summary(summary))
