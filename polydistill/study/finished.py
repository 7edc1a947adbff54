"""Whether the finished runs in a study's folder are those of its plan, and learned from each other as it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polydistill.errors import UserError
from polydistill.runs import read_summary, require_same_config
from polydistill.study.arms import GIVEN
from polydistill.study.datasets import own_files
from polydistill.study.plan import PLACES
from polydistill.study.planned import Key, PlannedRun
from polydistill.study.records import TEACHER, RunRecord
from polydistill.study.teachers import MORE, further_paths, given_path

OF_ALL_SEEDS = ("test", "whole")  # parts of the data of which no seed draws any
SUMS = ("sha256", "sizes_sha256")  # of a part; the second of the sizes of files, where the first is of their names


class FinishedRuns:
    """Checks them one by one.

    Args:
        out: folder of the study.
        runs: of the plan.
        records: of these runs, as they are at the time of a check.
    """

    def __init__(self, out: Path, runs: Mapping[Key, PlannedRun], records: Mapping[Key, RunRecord]) -> None:
        self.out, self.runs, self.records = out, runs, records
        self._data: dict[tuple[str, str, int | None], tuple[str, str]] = {}  # part, sum, seed -> who had it first, it
        self._given: dict[str, tuple[str, str | None]] = {}  # file of a teacher -> who had it first, its sha256

    def check(self, run: PlannedRun) -> None:
        """Look at one run.

        Raises:
            UserError: it is finished, and another than the plan's, or its teacher or members are not its seed's, or its
                data are not those of the other runs.
        """
        if self.records[run.key].status != "done":
            return
        folder = self.out / run.folder
        config = {**run.config, "seed": run.seed, **own_files(run)}
        require_same_config(folder, config, may_move=(*PLACES, GIVEN, MORE))
        summary = read_summary(folder)
        self._require_same_data(run, summary.get("data"))
        if run.teacher is not None:
            self._require_origin(folder, "teacher", run.teacher, summary["generations"][0]["sha256"])
        elif not run.members and run.arm != TEACHER:
            self._require_same_given(run, summary["generations"][0].get("sha256"))
        for member, ours in zip(run.members, summary.get("members", ()), strict=True):
            self._require_origin(folder, "member", member, ours["sha256"])

    def _require_origin(self, folder: Path, what: str, origin: Key, ours: str) -> None:
        """Refuse a finished run whose teacher or member is not what the run ``origin`` ended with, where that is done.

        Args:
            folder: of the finished run.
            what: the origin is.
            origin: a run of the study.
            ours: sha256 of the network that the finished run had.
        """
        there = self.out / self.runs[origin].folder
        if self.records[origin].status == "done" and read_summary(there)["generations"][-1]["sha256"] != ours:
            raise UserError(f"{folder} had another {what} than {there}; remove it, and the same command runs it again")

    def _require_same_data(self, run: PlannedRun, data: Any) -> None:
        """Refuse a finished run that was tested on other data than the others, or learned from other than its seed's.

        Which of them are held out may go by the seed. A sum that a run of an earlier version has not is not compared.
        """
        for part, held in data.items() if isinstance(data, Mapping) else ():
            for name in [name for name in SUMS if isinstance(held, Mapping) and held.get(name)]:
                key = part, name, None if part in OF_ALL_SEEDS else run.seed
                first, known = self._data.setdefault(key, (run.folder, held[name]))
                if held[name] != known:
                    raise UserError(
                        f"{self.out / run.folder} had other data ({part}) than {self.out / first}: put them back as "
                        f"they were and remove {self.out / run.folder}, or give --out another folder"
                    )

    def _require_same_given(self, run: PlannedRun, sha256: str | None) -> None:
        """Refuse a finished run whose given teacher is not that of the others to which the same file was given."""
        path = ", ".join([given_path(run.config, run.seed), *further_paths(run.config, run.seed)])
        first, known = self._given.setdefault(path, (run.folder, sha256))
        if sha256 != known:
            raise UserError(
                f"{self.out / run.folder} had another teacher than {self.out / first}, though both had "
                f"{path or 'the default'}: the file was changed in between; remove the runs of one of the two"
            )
