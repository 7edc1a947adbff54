"""What is written of students that learn online: records within their teacher's, and scores of whole games.

Each student has a folder of its name within the folder of the model's logger, and the teacher's score one called
"teacher"; so TensorBoard draws them over one another, under the tags of every student.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from stable_baselines3.common.logger import (
    CSVOutputFormat,
    JSONOutputFormat,
    Logger,
    TensorBoardOutputFormat,
    configure,
)

from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill_agents.teachers import Teacher

SCORE = "eval/mean_reward"
TEACHER = "teacher"
FORMATS = {TensorBoardOutputFormat: "tensorboard", CSVOutputFormat: "csv", JSONOutputFormat: "json"}

ScoreOf = Callable[[Teacher], float]  # from an agent to its mean score


def logger_within(logger: Logger, name: str) -> Logger:
    """A logger of the folder ``name`` within that of ``logger``, with the kinds of files that it writes."""
    kinds = [kind for form, kind in FORMATS.items() if any(isinstance(one, form) for one in logger.output_formats)]
    if logger.dir is None or not kinds:
        return Logger(None, [])
    return configure(str(Path(logger.dir) / name), kinds)


class Curves:
    """Scores of the teacher and of its students, again and again.

    Args:
        score: how an agent is scored; None: there are no curves.
        every: steps of the teacher between two points.
    """

    def __init__(self, score: ScoreOf | None, every: int) -> None:
        self.score, self.every, self.next_at = score, every, 0
        self._logger = Logger(None, [])

    def open(self, logger: Logger, students: Mapping[str, PolicyDistillation]) -> None:
        """Give each its logger within that of the model."""
        for name, student in students.items():
            student.set_logger(logger_within(logger, name))
        if self.score is not None:
            self._logger = logger_within(logger, TEACHER)

    def due(self, step: int) -> bool:
        """Whether a point is due after so many steps that were watched; the next one is then ``every`` steps later."""
        if self.score is None or step < self.next_at:
            return False
        self.next_at = (step // self.every + 1) * self.every
        return True

    def add(self, teacher: Teacher, students: Mapping[str, PolicyDistillation], step: int) -> dict[str, float]:
        """A point of each: the scores by name."""
        assert self.score is not None
        found = {TEACHER: float(self.score(teacher))}
        self._write(self._logger, found[TEACHER], step)
        for name, student in students.items():
            found[name] = float(self.score(Teacher(student.student_scores, kind=student.score_kind)))
            self._write(student.logger, found[name], step)
        return found

    def _write(self, logger: Logger, score: float, step: int) -> None:
        logger.record(SCORE, score)
        logger.dump(step)

    def close(self, students: Mapping[str, PolicyDistillation], step: int) -> None:
        """Write what is left of the records."""
        for student in students.values():
            student.logger.dump(step)
            student.logger.close()
        self._logger.close()
