"""What summary.json holds of the games of an agent: of the teacher, of a student, of an ensemble of students."""

from __future__ import annotations

from typing import Any

from polydistill_agents.environments.evaluation import Evaluation
from polydistill_agents.lineage.baseline import Baseline
from polydistill_agents.lineage.students import AnyConfig


def measured(config: AnyConfig, result: Evaluation, masked: Evaluation | None, baseline: Baseline) -> dict[str, Any]:
    """The metrics of an agent.

    Args:
        config: of the run.
        result: its games.
        masked: games without invalid actions; None where the environment does not say which these are.
        baseline: of which they are a share; that of the teacher's own games has none.
    """
    metrics: dict[str, Any] = {
        "score_mean": result.mean,
        "score_iqm": result.iqm,
        "score_ci95": result.interval(config.seed),
        "episodes": len(result.scores),
        "truncated": result.truncated,
        "n_actions": result.n_actions,
        "game_actions": result.game_actions,
        "protocol": config.evaluation.protocol,
        "human_normalized": config.task.human_normalized(result.mean),
        "teacher_normalized": None,
        "teacher_normalized_ci95": None,
        "agreement": result.agreement,
        "scores": result.scores.tolist(),
    }
    if masked is not None:
        metrics |= {"invalid_share": result.invalid_share, "masked_score_mean": masked.mean}
    if result.scores is not baseline.teacher:
        normalized, interval = baseline.normalize(config.task, result.scores, config.seed)
        metrics |= {"teacher_normalized": normalized, "teacher_normalized_ci95": interval}
    return metrics
