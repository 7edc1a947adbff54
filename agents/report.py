"""The result of a distillation as a table, made from summary.json alone: a finished run prints it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents.scores import reference
from polydistill.tracking import format_interval, format_table

HEADERS = (
    "who", "mean score", "95% interval", "of human", "of teacher", "95% interval", "agreement", "parameters", "seconds",
)  # fmt: skip


def format_summary(summary: Mapping[str, Any]) -> str:
    """Teacher and students, best read top to bottom, below random play and a human player of the score table."""
    game = summary["config"]["game"]
    row = reference(game)
    rows: list[list[str | float | None]] = []
    if row is not None:
        for name, score, of_human in (("random play", row.random, 0.0), ("human player", row.human, 1.0)):
            rows.append([name, score, None, f"{of_human:.2f}", *[None] * 5])
    for generation, seconds in zip(summary["generations"], summary["seconds"], strict=True):
        metrics = generation["metrics"]
        rows.append(
            [
                "teacher" if generation["generation"] == 0 else f"student {generation['generation']}",
                f"{metrics['score_mean']:.2f}",
                format_interval(metrics["score_ci95"]),
                _number(metrics["human_normalized"]),
                _number(metrics["teacher_normalized"], 3),
                format_interval(metrics["teacher_normalized_ci95"], 3),
                _number(metrics["agreement"], 3),
                generation["parameters"],
                f"{seconds:.0f}",
            ]
        )
    first = summary["generations"][0]["metrics"]
    title = f"{game}, {first['episodes']} full games each, protocol {first['protocol']}, seed {summary['seed']}"
    return f"{title}\n\n{format_table(HEADERS, rows)}"


def _number(value: float | None, digits: int = 2) -> str | None:
    return None if value is None else f"{value:.{digits}f}"
