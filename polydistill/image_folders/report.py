"""A lineage of classifiers of a folder as a table, made from summary.json alone: a finished run prints it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from polydistill.errors import printable
from polydistill.learning.taught import network_of
from polydistill.modules.report import format_lineage, tell_ema

RULES = {"last": "the weights of the last epoch", "best_val": "the weights of the best epoch on validation pictures"}


def format_summary(summary: Mapping[str, Any], wide: bool = False) -> str:
    """Generations and ensembles; agreement and KL are with the teacher, of an ensemble with that of its first member.

    Args:
        summary: what summary.json holds.
        wide: every column of the table; else those that matter most, in 80 characters.
    """
    config, data = summary["config"], summary["data"]
    teacher, student = network_of(config, 0), network_of(config, 1)
    who = f"{teacher} and its twins" if teacher == student else f"{teacher} teaches {student}"
    name = printable(PurePath(config["data"]["root"]).name)
    left_out = f" ({data['left_out']:,} that cannot be decoded left out)" if data["left_out"] else ""
    epochs = config["training"]["epochs"]
    title = (
        f"{who} on {name}: {len(data['classes']):,} classes, {data['train']['images']:,} pictures to learn from, "
        f"{data['test']['images']:,} to be tested on{left_out}, {epochs:,} epoch{'s' if epochs > 1 else ''}, "
        f"seed {config['seed']}{tell_ema(config['training'])}"
    )
    return format_lineage(summary, title, source(config), wide)


def source(config: Mapping[str, Any]) -> str:
    """What generation 0 learned from, or where it comes from."""
    teacher = config["teacher"]
    return "(a file)" if teacher["path"] else "(timm's)" if teacher["pretrained"] else "labels"
