"""A sweep before its first run: its teacher, its sizes, the study whose arms they are, and what it would take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from polydistill.config.parsing import read_config
from polydistill.runs import format_table
from polydistill.study.arms import ONE_CORE
from polydistill.study.config import StudyConfig
from polydistill.study.forecast import forecast_time
from polydistill.study.plan import Plan
from polydistill.study.planned import planned_runs
from polydistill.study.records import RunRecord
from polydistill.study.worlds import World, open_world
from polydistill_agents.lineage.compression.answer import tell_percent
from polydistill_agents.lineage.compression.config import CompressionConfig
from polydistill_agents.lineage.compression.sizes import Swept, choose_sizes
from polydistill_agents.lineage.opening import open_teachers
from polydistill_agents.networks.nature import count_parameters
from polydistill_agents.teachers import Teacher


class Opened(NamedTuple):
    """A sweep before its first run.

    Attributes:
        config: as the user gave it.
        played: name of the game or environment.
        teacher: on the CPU.
        sizes: the largest student first.
        study: whose arms they are.
    """

    config: CompressionConfig
    played: str
    teacher: Teacher
    sizes: list[Swept]
    study: StudyConfig

    @property
    def names(self) -> list[str]:
        """Of the sizes."""
        return [swept.name for swept in self.sizes]


def open_sweep(config: CompressionConfig) -> Opened:
    """Read the teacher and choose the sizes. Writes nothing.

    Raises:
        UserError: a setting is none of a run's, the teacher does not open or does not fit, or a size is none.
    """
    run = read_config(open_world(config.world).config_class, None, config.all_settings | ONE_CORE | {"device": "cpu"})
    teacher = open_teachers(run)
    n_actions = teacher.count_actions(run.task)
    sizes = choose_sizes(config.wanted, teacher, run.task.observation_space, n_actions, config.played)
    study = config.study({swept.name: swept.keys for swept in sizes})
    return Opened(config, config.played, teacher, sizes, study)


def format_forecast(
    opened: Opened, plan: Plan, records: Sequence[RunRecord], world: World, out: Path, workers: int
) -> str:
    """The sizes, what of them is finished, and what the rest takes. Writes nothing.

    Args:
        opened: the sweep.
        plan: with the amendments that would be made.
        records: of its runs.
        world: of them.
        out: folder of the sweep, for the text.
        workers: runs at once.
    """
    assert opened.teacher.network is not None  # of a file
    whole = count_parameters(opened.teacher.network)
    rows = [("teacher", f"{whole:,}", "100%")]
    rows += [(swept.name, f"{swept.parameters:,}", tell_percent(swept.parameters / whole)) for swept in opened.sizes]
    done = {record.key for record in records if record.status == "done"}
    runs = planned_runs(plan)
    return "\n".join(
        [
            format_table(("size", "parameters", "of teacher's"), rows),
            f"{opened.played}: {len(runs)} runs in {out}, {len(done)} finished; plan {plan.sha256[:12]}",
            f"time: {forecast_time([run for run in runs if run.key not in done], world, workers)}",
        ]
    )
