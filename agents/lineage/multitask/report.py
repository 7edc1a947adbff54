"""The result of a student of several tasks as a table, a row per task, made from summary.json alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from polydistill.lineage.ensembles import name_members
from polydistill.runs import format_interval, format_narrow_table, format_table
from polydistill_agents.environments.task import open_task
from polydistill_agents.lineage.multitask.view import TASKS
from polydistill_agents.lineage.report import (
    GamesPlayed,
    Row,
    count_games,
    format_notes,
    format_number,
    format_points,
    format_points_interval,
    notes,
)

HEADERS = (
    "task", "student", "random", "teacher", "score", "95% over games", "of teacher", "of teacher, 95% over games",
    "% of teacher", "agreement",
)  # fmt: skip
IMPORTANCE = (
    "task", "student", "score", "teacher", "of teacher", "% of teacher", "agreement", "95% over games", "random",
    "of teacher, 95% over games",
)  # fmt: skip


def format_summary(summary: Mapping[str, Any], wide: bool = False) -> str:
    """A row for each task and student, or ensemble of students, then what all tasks come to.

    Args:
        summary: what summary.json holds.
        wide: all columns; else those that matter most, in 80 characters.
    """
    first, *students = summary["generations"]
    told = [name for name in HEADERS if name != "student" or len(students) > 1]
    rows = [[row[name] for name in told] for row in rows_of(summary)]
    teachers, parameters = first["metrics"][TASKS], summary["generations"][-1]["parameters"]
    one = next(iter(teachers.values()))
    table = (
        format_table(told, rows)
        if wide
        else format_narrow_table(told, rows, [name for name in IMPORTANCE if name in told])
    )
    lines = [
        f"{len(teachers)} tasks, {count_games(one['episodes'])} of each, protocol {one['protocol']}, "
        f"seed {summary['seed']}; one student of {parameters:,} parameters",
        "",
        table,
        "",
        *(line for who, metrics in _who_learned(summary) for line in _means(metrics, who if len(students) > 1 else "")),
        *format_notes(notes_of(summary)),
    ]
    return "\n".join(lines)


def rows_of(summary: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of the table, each a value of every one of ``HEADERS``."""
    for task, teacher in summary["generations"][0]["metrics"][TASKS].items():
        random = random_score(summary["config"], task, teacher)
        for who, of_tasks in _who_learned(summary):
            metrics = of_tasks[TASKS][task]
            share = metrics["percent_of_teacher"]
            yield {
                "task": task,
                "student": who.removeprefix("student "),
                "random": None if random is None else format_points(random),
                "teacher": format_points(teacher["score_mean"]),
                "score": format_points(metrics["score_mean"]),
                "95% over games": format_points_interval(metrics["score_ci95"]),
                "of teacher": format_number(metrics["teacher_normalized"], 3),
                "of teacher, 95% over games": format_interval(metrics["teacher_normalized_ci95"], 3),
                "% of teacher": None if share is None else f"{share:.1f}",
                "agreement": format_number(metrics["agreement"], 3),
            }


def _who_learned(summary: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The students, then their ensembles: the name and the metrics of each."""
    for student in summary["generations"][1:]:
        yield f"student {student['generation']}", student["metrics"]
    for ensemble in summary["ensembles"]:
        yield f"ensemble of {name_members(ensemble['members'])}", ensemble["metrics"]


def random_score(config: Mapping[str, Any], task: str, teacher: Mapping[str, Any]) -> float | None:
    """Of random play, as it was measured, or from the table of a game."""
    if "random_mean" in teacher:
        return float(teacher["random_mean"])
    row = open_task(task).reference if "games" in config else None
    return None if row is None else row.random


def _means(metrics: Mapping[str, Any], who: str) -> Iterator[str]:
    """The geometric means over the tasks, or why there are none; ``who`` is empty where there is one student."""
    whose = f"{who}: " if who else ""
    for name, what, digits, unit in (
        ("teacher_normalized", "of teacher", 3, ""),
        ("percent_of_teacher", "% of teacher", 1, "%"),
    ):
        mean = metrics[f"{name}_geometric_mean"]
        if mean is not None:
            yield f"{whose}geometric mean of {what!r}: {mean:.{digits}f}{unit}"
            continue
        bad = [task for task, each in metrics[TASKS].items() if each[name] is None or each[name] <= 0]
        yield f"{whose}geometric mean of {what!r}: not defined, no positive number in {', '.join(bad)}"


def notes_of(summary: Mapping[str, Any]) -> list[str]:
    """What a reader of the scores must know, one line each; usually nothing."""
    return list(dict.fromkeys(_notes(summary)))


def _notes(summary: Mapping[str, Any]) -> Iterator[str]:
    is_atari = "games" in summary["config"]
    for task in summary["generations"][0]["metrics"][TASKS]:
        who_played = [(f"teacher of {task}", summary["generations"][0]["metrics"])]
        who_played += [(f"{who} in {task}", metrics) for who, metrics in _who_learned(summary)]
        played = [GamesPlayed.of_metrics(who, metrics[TASKS][task]) for who, metrics in who_played]
        if not is_atari and not summary["config"][TASKS][task]["env_max_steps"]:
            played = [one._replace(truncated=0) for one in played]
        protocol = summary["generations"][0]["metrics"][TASKS][task]["protocol"]
        yield from notes(task if is_atari else None, protocol, played)
        teacher = summary["generations"][0]["metrics"][TASKS][task]
        if "dataset_sha256" in teacher and teacher["sha256"] is None:
            yield f"{task}: the teacher's score is that of which the data set tells: it did not play here"
