"""What students' scores are compared with: those of random play and of the first teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polydistill.errors import UserError
from polydistill.provenance import weights_sha256
from polydistill.statistics import ROUGH, Interval, bootstrap_interval, bootstrap_normalized_interval
from polydistill.streams import derive_seed
from polydistill_agents.environments.evaluation import Evaluation
from polydistill_agents.environments.random_play import measure_random, no_better_than_random
from polydistill_agents.environments.task import Task
from polydistill_agents.files.card import card_score
from polydistill_agents.lineage.config import AtariConfig
from polydistill_agents.lineage.shared_games import SharedGames
from polydistill_agents.lineage.students import AnyConfig
from polydistill_agents.teachers import Teacher
from polydistill_agents.teachers.zoo import find_teacher

TOLERANCE = 0.1  # of an expected score, beside what the games leave open
TOLERANCE_ROUGH = 0.5  # where so few were played that they leave open almost everything


class Baseline(NamedTuple):
    """Scores of random play and of the teacher.

    Attributes:
        teacher: of its games.
        random: mean of random play; None where it is not known.
        measured: the games of random play, where no table has its score.
        apart: whether both differ, so that there is something between them.
    """

    teacher: NDArray[np.float64]
    random: float | None
    measured: NDArray[np.float64] | None
    apart: bool

    @classmethod
    def of_task(cls, config: AnyConfig, teacher: NDArray[np.float64], games: SharedGames | None = None) -> Baseline:
        """From the table of reference scores, or measured in as many games as the teacher has played.

        Args:
            config: of the run.
            teacher: scores of its games.
            games: of random play, which another run may have played; None: they are this run's own.
        """
        row = config.task.reference
        if row is not None:
            return cls(teacher, row.random, None, float(teacher.mean()) > row.random)
        seed = derive_seed(config.seed, "random play")

        def play() -> NDArray[np.float64]:
            return measure_random(config.task, len(teacher), seed, n_threads=config.threads)

        measured = play() if games is None else games.of_random_play(play)
        return cls(teacher, float(measured.mean()), measured, no_better_than_random(teacher, measured) is None)

    @classmethod
    def of_metrics(cls, config: AnyConfig, metrics: Mapping[str, Any]) -> Baseline:
        """From what the teacher's generation has in summary.json."""
        teacher, row = np.array(metrics["scores"]), config.task.reference
        if row is not None:
            return cls(teacher, row.random, None, float(teacher.mean()) > row.random)
        measured = np.array(metrics["random_scores"])
        return cls(teacher, float(measured.mean()), measured, no_better_than_random(teacher, measured) is None)

    def metrics(self) -> dict[str, Any]:
        """What was measured, for summary.json."""
        if self.measured is None:
            return {}
        return {
            "random_mean": self.random,
            "random_ci95": bootstrap_interval(self.measured, generator=np.random.default_rng(0)),
            "random_scores": self.measured.tolist(),
        }

    def normalize(self, task: Task, scores: NDArray[np.float64], seed: int) -> tuple[float | None, Interval | None]:
        """Scores between random play (0) and the teacher (1), and the interval over games; None where both are one.

        Args:
            task: that was played.
            scores: of a student's games.
            seed: of the resamples.
        """
        if self.random is None or not self.apart:
            return None, None
        mean = task.teacher_normalized(float(scores.mean()), float(self.teacher.mean()), self.random)
        generator = np.random.default_rng(seed)
        return mean, bootstrap_normalized_interval(scores, self.teacher, self.random, generator=generator)

    def check_expected(self, expected: float | None, played: Evaluation) -> None:
        """Compare the teacher's games with the score that it is known for.

        Args:
            expected: that score; None where it is not known.
            played: its games.

        Raises:
            UserError: it plays otherwise here.
        """
        if expected is None:
            return
        interval = played.interval()
        half = 0.0 if interval is None else (interval.high - interval.low) / 2
        share = TOLERANCE if len(played.scores) >= ROUGH else TOLERANCE_ROUGH
        allowed = share * max(abs(expected), abs(expected - (self.random or 0.0))) + half
        if abs(played.mean - expected) > allowed:
            raise UserError(
                f"the teacher scores {played.mean:.4g} in {len(played.scores)} games, and is known for {expected:.4g}: "
                "does it see and play what it was trained on (wrappers, frame stack, sticky actions, scale of the "
                "observations, version of the environment)? teacher.expected_score names another score"
            )


def expected_score(config: AnyConfig, teacher: Teacher) -> float | None:
    """What the first teacher is known for: by the config, else by the card beside its file."""
    if config.teacher.expected_score is not None or teacher.network is None:
        return config.teacher.expected_score
    path = Path(config.teacher.path) if config.teacher.path else None
    if path is None and isinstance(config, AtariConfig):
        path = find_teacher(config.game)
    if path is None or config.evaluation.play not in ("greedy", "protocol"):
        return None
    return card_score(path, weights_sha256(teacher.network.state_dict()), config.evaluation.protocol)
