"""Where the runs of a seed share the scores of their teacher, so that one computes them and the others read them.

Contract: it changes no result, see :mod:`polydistill.runs.shared_store`; nothing of it is left once the runs of a seed
are finished, and nothing is taken over from a start of the study before, whose code may have been another.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from polydistill.disk import disk_errors
from polydistill.runs.shared_store import VARIABLE
from polydistill.study.planned import Key, PlannedRun
from polydistill.study.records import TEACHER
from polydistill.study.teachers import given_path

FOLDER = "scores"  # in the folder of the study


class SharedScores:
    """A folder per seed.

    Args:
        out: folder of the study.
        runs: of the plan.
        workers: runs at once. Runs that learn side by side compute the same scores at the same time, so that nothing is
            gained unless more have the same teacher than there are workers.
    """

    def __init__(self, out: Path, runs: Iterable[PlannedRun], workers: int) -> None:
        self.folder, self.workers = out / FOLDER, workers
        self._taught = Counter(map(_teacher_of, runs))

    def environment(self, run: PlannedRun) -> tuple[tuple[str, str], ...]:
        """The variables that tell ``run`` where to look; none where it shares with nobody."""
        teacher = _teacher_of(run)
        if teacher is None or self._taught[teacher] <= self.workers:
            return ()
        return ((VARIABLE, str((self.folder / f"seed{run.seed}").absolute())),)

    @staticmethod
    def forget(out: Path) -> None:
        """Remove what another start of the study in ``out`` has left.

        Raises:
            UserError: the disk refused.
        """
        with disk_errors(out / FOLDER, "remove"):
            if (out / FOLDER).is_dir():
                shutil.rmtree(out / FOLDER)

    def clear(self, pending: Iterable[PlannedRun]) -> None:
        """Remove the folders of all seeds but those of ``pending``, the runs that are not finished.

        Raises:
            UserError: the disk refused.
        """
        if not self.folder.is_dir():
            return
        needed = {f"seed{run.seed}" for run in pending}
        with disk_errors(self.folder, "remove"):
            for folder in self.folder.iterdir():
                if folder.name not in needed:
                    shutil.rmtree(folder)
            if not needed:
                self.folder.rmdir()


def _teacher_of(run: PlannedRun) -> Key | None:
    """Whose scores the run may share with others: an arm, or a path, and the seed; None: it has no teacher."""
    if run.arm == TEACHER or run.members:
        return None
    return run.teacher or (given_path(run.config, run.seed), run.seed)
