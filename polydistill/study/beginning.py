"""What the world itself finds wrong with the runs to come, before the first of them and before the plan is written."""

from __future__ import annotations

from collections.abc import Sequence

from polydistill.config.parsing import read_config
from polydistill.config.plain_yaml import flatten
from polydistill.study.arms import GIVEN
from polydistill.study.plan import Plan
from polydistill.study.planned import planned_runs
from polydistill.study.records import RunRecord
from polydistill.study.teachers import given_path
from polydistill.study.worlds import World


def require_start(plan: Plan, records: Sequence[RunRecord], world: World) -> None:
    """Let the world look at the config of each arm that has runs to come, as its first such seed has it.

    Args:
        plan: of the study.
        records: of its runs; where all are done, nothing is looked at.
        world: of them.

    Raises:
        UserError: as such a run would.
    """
    if world.check is None:
        return
    done = {record.key for record in records if record.status == "done"}
    configs = {}
    for run in planned_runs(plan):
        if run.key in done or run.members or run.arm in configs:
            continue
        settings = {**dict(flatten(run.config)), "seed": run.seed}
        settings[GIVEN] = "" if run.teacher else given_path(run.config, run.seed)
        configs[run.arm] = read_config(world.config_class, None, settings)
    if configs:
        world.check(list(configs.values()))
