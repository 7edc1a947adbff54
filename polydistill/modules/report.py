"""A lineage of one's own modules as a table, made from summary.json alone: a finished run prints it again."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from polydistill.lineage.ensembles import name_members
from polydistill.runs import NARROW, format_narrow_table, format_table

MEASURED = ("test error %", "test NLL", "test ECE", "agreement", "KL", "validation error %", "epoch")
HEADERS = ("who", "learns by", *MEASURED, "parameters", "seconds")
IMPORTANCE = (*HEADERS[:4], "agreement", "epoch", "seconds", "validation error %", "test ECE", "KL", "parameters")
LONGEST_NAME = 36
Cell = str | float | None


def format_summary(summary: Mapping[str, Any], wide: bool = False) -> str:
    """Generations and ensembles; agreement and KL are with the teacher, of an ensemble with that of its first member.

    Args:
        summary: what summary.json holds.
        wide: every column of the table; else those that matter most, in 80 characters.
    """
    config = summary["config"]
    networks = [network["class"] for network in config["networks"].values()]
    what = " and ".join(dict.fromkeys(networks))
    epochs = f"{config['epochs']:,} epoch{'s' if config['epochs'] > 1 else ''}"
    source = "(given)" if config["teacher"] else "labels"
    return format_lineage(summary, f"{what}, {epochs}, seed {config['seed']}{tell_ema(config)}", source, wide)


def tell_ema(training: Mapping[str, Any]) -> str:
    """That networks are a mean of their weights, for the title; empty where they are not."""
    return f", mean of the weights (decay {training['ema']:g})" if training.get("ema") else ""


def format_lineage(summary: Mapping[str, Any], title: str, source: str, wide: bool) -> str:
    """The table below its title.

    Args:
        summary: what summary.json holds.
        title: one line, which is folded.
        source: by what generation 0 learns, or where it comes from.
        wide: every column.
    """
    headers, rows = columns_of(summary, source)
    importance = [name for name in IMPORTANCE if name in headers]
    table = format_table(headers, rows) if wide else format_narrow_table(headers, rows, importance)
    return f"{textwrap.fill(title, NARROW, break_on_hyphens=False)}\n\n{table}"


def columns_of(summary: Mapping[str, Any], source: str) -> tuple[list[str], list[list[Cell]]]:
    """The headers of the table, those of :data:`HEADERS` of which there is something to tell, and its rows."""
    rows = _rows(summary, source)
    told = [number for number, name in enumerate(HEADERS) if _is_told(name, [row[number] for row in rows])]
    return [HEADERS[number] for number in told], [[row[number] for number in told] for row in rows]


def _rows(summary: Mapping[str, Any], source: str) -> list[list[Cell]]:
    generations, rows = summary["generations"], []
    for generation, seconds in zip(generations, summary["seconds"], strict=True):
        learned = (generation["objective"] or source).rpartition(":")[2]  # of a loss of one's own, its function
        who, measured = f"generation {generation['generation']}", _measured(generation["metrics"])
        rows.append([who, learned, *measured, generation["parameters"], f"{seconds:.0f}"])
    for ensemble in summary["ensembles"]:
        name = f"ensemble of {name_members(ensemble['members'])}"
        parameters = sum(generations[member]["parameters"] for member in ensemble["members"])
        short = textwrap.shorten(name, LONGEST_NAME, placeholder=" ...")
        rows.append([short, "mean", *_measured(ensemble["metrics"]), parameters, None])
    return rows


def _is_told(header: str, column: list[Any]) -> bool:
    """A column of validation is there only where something was validated."""
    return header not in MEASURED[5:] or any(cell is not None for cell in column)


def _measured(metrics: Mapping[str, Any]) -> list[str | None]:
    def digits(name: str, n: int) -> str | None:
        return None if metrics[name] is None else f"{metrics[name]:.{n}f}"

    def error(name: str) -> str | None:
        accuracy = metrics.get(name)
        return None if accuracy is None else f"{100 * (1 - accuracy):.2f}"

    epoch = metrics.get("kept_epoch")
    measured = [error("test_accuracy"), *(digits(name, 3) for name in ("test_nll", "test_ece", "agreement", "kl"))]
    return [*measured, error("val_accuracy"), None if epoch is None else str(epoch)]
