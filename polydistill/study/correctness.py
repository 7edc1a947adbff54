"""Which test inputs the runs of a study got right, where they stored it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polydistill.errors import UserError
from polydistill.runs import read_summary
from polydistill.runs.correctness import read_correct
from polydistill.study.analysis import ReadCorrect
from polydistill.study.records import RunRecord


def correct_in(out: Path) -> ReadCorrect:
    """A reader for the runs of the study in ``out``, of their last generation.

    It gives None for a run that stored nothing, whose file is damaged, or whose test inputs are not those of the first
    run that was read: inputs can be drawn again only where all runs saw the same ones.
    """
    first: list[str] = []

    def read(record: RunRecord) -> NDArray[np.bool_] | None:
        try:
            folder = out / record.folder
            summary = read_summary(folder)
            tested = str(summary["data"]["test"]["sha256"])
            correct = read_correct(folder, summary["correct"][-1])
        except (UserError, LookupError, TypeError, AttributeError):
            return None
        first.append(tested)
        return correct if tested == first[0] else None

    return read
