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


def format_summary(summary: Mapping[str, Any], wide: bool = False) -> str:
    """Generations and ensembles; agreement and KL are with the teacher, of an ensemble with that of its first member.

    Args:
        summary: what summary.json holds.
        wide: every column of the table; else those that matter most, in 80 characters.
    """
    config, generations = summary["config"], summary["generations"]
    rows = []
    for generation, seconds in zip(generations, summary["seconds"], strict=True):
        learned = generation["objective"] or ("(given)" if config["teacher"] else "labels")
        measured = _measured(generation["metrics"])
        rows.append([f"generation {generation['generation']}", learned, *measured, generation["parameters"], seconds])
    for ensemble in summary["ensembles"]:
        name = f"ensemble of {name_members(ensemble['members'])}"
        parameters = sum(generations[member]["parameters"] for member in ensemble["members"])
        short = textwrap.shorten(name, LONGEST_NAME, placeholder=" ...")
        rows.append([short, "mean", *_measured(ensemble["metrics"]), parameters, None])
    cells = [[*row[:-1], None if row[-1] is None else f"{row[-1]:.0f}"] for row in rows]
    told = [number for number, name in enumerate(HEADERS) if _is_told(name, [row[number] for row in cells])]
    headers = [HEADERS[number] for number in told]
    cells = [[row[number] for number in told] for row in cells]
    networks = [network["class"] for network in config["networks"].values()]
    what = " and ".join(dict.fromkeys(networks))
    epochs = f"{config['epochs']:,} epoch{'s' if config['epochs'] > 1 else ''}"
    averaged = f", mean of the weights (decay {config['ema']:g})" if config.get("ema") else ""
    title = textwrap.fill(f"{what}, {epochs}, seed {config['seed']}{averaged}", NARROW)
    importance = [name for name in IMPORTANCE if name in headers]
    table = format_table(headers, cells) if wide else format_narrow_table(headers, cells, importance)
    return f"{title}\n\n{table}"


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
