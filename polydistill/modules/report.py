"""A lineage of one's own modules as a table, made from summary.json alone: a finished run prints it again."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from polydistill.lineage.ensembles import name_members
from polydistill.runs import NARROW, format_narrow_table, format_table

HEADERS = ("who", "learns by", "test error %", "test NLL", "test ECE", "agreement", "KL", "parameters", "seconds")
IMPORTANCE = (*HEADERS[:4], "agreement", "seconds", "test ECE", "KL", "parameters")
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
    networks = [network["class"] for network in config["networks"].values()]
    what = " and ".join(dict.fromkeys(networks))
    epochs = f"{config['epochs']:,} epoch{'s' if config['epochs'] > 1 else ''}"
    title = textwrap.fill(f"{what}, {epochs}, seed {config['seed']}", NARROW)
    table = format_table(HEADERS, cells) if wide else format_narrow_table(HEADERS, cells, IMPORTANCE)
    return f"{title}\n\n{table}"


def _measured(metrics: Mapping[str, Any]) -> list[str | None]:
    def digits(name: str, n: int) -> str | None:
        return None if metrics[name] is None else f"{metrics[name]:.{n}f}"

    error = f"{100 * (1 - metrics['test_accuracy']):.2f}"
    return [error, digits("test_nll", 3), digits("test_ece", 3), digits("agreement", 3), digits("kl", 3)]
