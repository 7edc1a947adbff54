"""The result of a distillation as a table, made from summary.json alone: a finished run prints it again."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from polydistill.runs import NARROW, format_interval, format_narrow_table, format_table
from polydistill.statistics import FEWEST, ROUGH
from polydistill_agents.environments.task import open_task

HEADERS = (
    "who", "score", "95% over games", "of human", "of teacher", "of teacher, 95% over games", "agreement", "parameters",
    "seconds",
)  # fmt: skip
IMPORTANCE = (
    "who", "score", "95% over games", "of teacher", "agreement", "parameters", "of human", "seconds",
    "of teacher, 95% over games",
)  # fmt: skip


def format_summary(summary: Mapping[str, Any], wide: bool = False) -> str:
    """Teacher and students, best read top to bottom, below random play and a human player of the score table.

    Args:
        summary: what summary.json holds.
        wide: all columns; else those that matter most, in 80 characters.
    """
    game = summary["config"]["game"]
    row = open_task(game).reference
    rows: list[list[str | float | None]] = []
    if row is not None:
        for name, score, of_human in (("random", row.random, 0.0), ("human", row.human, 1.0)):
            rows.append([name, format_points(score), None, f"{of_human:.2f}", *[None] * 5])
    records = []
    for generation, seconds in zip(summary["generations"], summary["seconds"], strict=True):
        metrics = generation["metrics"]
        who = "teacher" if generation["generation"] == 0 else f"student {generation['generation']}"
        records.append(GamesPlayed.of_metrics(who, metrics))
        rows.append(
            [
                who,
                format_points(metrics["score_mean"]),
                format_points_interval(metrics["score_ci95"]),
                _number(metrics["human_normalized"]),
                _number(metrics["teacher_normalized"], 3),
                format_interval(metrics["teacher_normalized_ci95"], 3),
                _number(metrics["agreement"], 3),
                generation["parameters"],
                f"{seconds:.0f}",
            ]
        )
    first = summary["generations"][0]["metrics"]
    lines = [
        f"{game}, {count_games(first['episodes'])} each, protocol {first['protocol']}, seed {summary['seed']}",
        "",
        format_table(HEADERS, rows) if wide else format_narrow_table(HEADERS, rows, IMPORTANCE),
        *format_notes(notes(game, first["protocol"], records)),
    ]
    return "\n".join(lines)


class GamesPlayed(NamedTuple):
    """What :func:`notes` looks at: who played how many games, how many were cut, with how many actions of how many.

    ``n_actions`` and ``game_actions`` are 0 where they are not known.
    """

    who: str
    episodes: int
    truncated: int
    n_actions: int
    game_actions: int

    @classmethod
    def of_metrics(cls, who: str, metrics: Mapping[str, Any]) -> GamesPlayed:
        """Of the metrics in summary.json; earlier versions did not write the last three."""
        counts = (metrics.get(name, 0) for name in ("truncated", "n_actions", "game_actions"))
        return cls(who, metrics["episodes"], *counts)


def notes(game: str, protocol: str, played: Sequence[GamesPlayed]) -> list[str]:
    """What a reader of the scores must know, one line each; usually nothing."""
    rules, found = open_task(game).protocol(protocol), []
    fewest = min((one.episodes for one in played), default=ROUGH)
    if fewest < FEWEST:
        found.append(f"fewer than {FEWEST} games have no interval")
    elif fewest < ROUGH:
        found.append(f"fewer than {ROUGH} games: the interval is rough")
    for one in played:
        if one.truncated:
            found.append(f"{one.who}: {one.truncated} of {one.episodes} games were cut at {rules.max_steps:,} steps")
    if any(one.truncated for one in played) and not rules.fire_on_reset:
        found.append(f"{protocol} presses no FIRE: an agent that learned with FIRE may wait forever")
    everything = [one for one in played if one.n_actions > one.game_actions > 0]
    if everything:
        who = "" if len(everything) == len(played) > 1 else ", ".join(one.who for one in everything) + ": "
        actions, own = everything[0].n_actions, everything[0].game_actions
        found.append(f"{who}all {actions} actions of the joystick, where {game} uses {own}")
    return found


def format_notes(found: Sequence[str], width: int = NARROW) -> list[str]:
    """The lines that stand below a table."""
    return [textwrap.fill(f"note: {note}", width, subsequent_indent="  ", break_long_words=False) for note in found]


def count_games(episodes: int) -> str:
    """``1 full game``, ``30 full games``."""
    return f"{episodes:,} full game{'s' * (episodes != 1)}"


def format_points(score: float) -> str:
    """Points of a game, with as many digits as matter."""
    return f"{score:z.{_digits(score)}f}"


def format_points_interval(ends: Sequence[float | None] | None) -> str:
    """:func:`~polydistill.runs.format_interval` for points of a game."""
    return format_interval(ends, min((_digits(end) for end in ends or () if end is not None), default=2))


def _digits(points: float) -> int:
    size = abs(points)
    return 2 if size < 100 else 1 if size < 1000 else 0


def _number(value: float | None, digits: int = 2) -> str | None:
    return None if value is None else f"{value:z.{digits}f}"
