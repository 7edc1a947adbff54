"""A lineage of classifiers as a table, made from summary.json alone: a finished run prints it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polydistill.tracking import format_table
from polydistill.vision.config import TWIN
from polydistill.vision.paper import paper_error

HEADERS = (
    "who", "learns by", "test error %", "paper's error %", "test NLL", "test ECE", "validation error %", "agreement",
    "parameters", "seconds",
)  # fmt: skip


def format_summary(summary: Mapping[str, Any]) -> str:
    """Generations and ensembles, the paper's row beside ours where it has one.

    Agreement is with the teacher; an ensemble's is that of its earliest member.
    """
    config = summary["config"]
    teacher = config["teacher"]["network"]
    student = teacher if config["student"]["network"] == TWIN else config["student"]["network"]
    rows: list[list[str | float | None]] = []
    for generation, seconds in zip(summary["generations"], summary["seconds"], strict=True):
        index, metrics = generation["generation"], generation["metrics"]
        paper = paper_error(config["data"]["name"], teacher, student, config["student"]["objective"], index)
        rows.append(
            [
                f"generation {index}, {student if index else teacher}",
                _objective(config, generation),
                _error(metrics["test_accuracy"]),
                None if paper is None else f"{paper:.2f}",
                f"{metrics['test_nll']:.3f}",
                f"{metrics['test_ece']:.3f}",
                _error(metrics["val_accuracy"]),
                _agreement(metrics),
                generation["parameters"],
                f"{seconds:.0f}",
            ]
        )
    for ensemble in summary["ensembles"]:
        rows.append(_ensemble_row(ensemble, summary["generations"]))
    rules = {"last": "the weights of the last epoch", "best_val": "the weights of the best epoch on validation images"}
    test, train = summary["data"]["test"]["images"], summary["data"]["train"]["images"]
    title = (
        f"{config['data']['name']}, {train:,} training and {test:,} test images, "
        f"{config['training']['epochs']} epochs, seed {summary['seed']}; {rules[config['evaluation']['selection']]}"
    )
    if any(row[HEADERS.index("paper's error %")] for row in rows):
        title += "; the paper's errors are of one run of 200 epochs on all 50,000 images"
    return f"{title}\n\n{format_table(HEADERS, rows)}"


def _objective(config: Mapping[str, Any], generation: Mapping[str, Any]) -> str:
    if generation["objective"] is not None:
        return str(generation["objective"])
    return "(a file)" if config["teacher"]["path"] else "labels"


def _ensemble_row(ensemble: Mapping[str, Any], generations: list[Mapping[str, Any]]) -> list[str | float | None]:
    metrics = ensemble["metrics"]
    parameters = sum(generations[member]["parameters"] for member in ensemble["members"])
    return [
        "ensemble of " + ", ".join(map(str, ensemble["members"])),
        "mean probability",
        _error(metrics["test_accuracy"]),
        None,
        f"{metrics['test_nll']:.3f}",
        f"{metrics['test_ece']:.3f}",
        _error(metrics["val_accuracy"]),
        _agreement(metrics),
        parameters,
        None,
    ]


def _agreement(metrics: Mapping[str, Any]) -> str | None:
    agreement = metrics.get("agreement")
    return None if agreement is None else f"{agreement:.3f}"


def _error(accuracy: float | None) -> str | None:
    return None if accuracy is None else f"{100 * (1 - accuracy):.2f}"
