"""A lineage of classifiers as a table, made from summary.json alone: a finished run prints it again."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from polydistill.learning.taught import TWIN
from polydistill.lineage.ensembles import name_members
from polydistill.runs import NARROW, format_narrow_table, format_table
from polydistill.vision.images.archives import RELEASES
from polydistill.vision.paper import PAPER as PAPERS_TABLES
from polydistill.vision.paper import paper_error

LONGEST_NAME = 36
PAPER = "paper's error %"
HEADERS = (
    "who", "learns by", "test error %", PAPER, "test NLL", "test ECE", "validation error %", "agreement", "parameters",
    "seconds",
)  # fmt: skip
PARTS = ("made_up", "train_images", "classes", "images_per_class")  # of a config: not all of the data
IMPORTANCE = (
    *HEADERS[:3], "agreement", PAPER, "seconds", "test NLL", "validation error %", "test ECE", "parameters",
)  # fmt: skip
RULES = {"last": "the weights of the last epoch", "best_val": "the weights of the best epoch on validation images"}
Row = dict[str, str | float | None]


def format_summary(summary: Mapping[str, Any], wide: bool = False) -> str:
    """Generations and ensembles, the paper's row beside ours where it has one; or an ensemble of several runs.

    Agreement is with the teacher on the test images; an ensemble's is that of its earliest member.

    Args:
        summary: what summary.json holds.
        wide: every column of the table; else those that matter most, in 80 characters.
    """
    if "members" in summary:
        return _format_members(summary)
    rows = rows_of(summary, wide)
    has_paper = any(row[PAPER] is not None for row in rows)
    title = textwrap.fill(_title(summary, has_paper=has_paper), NARROW, break_on_hyphens=False)
    cells = [[row[header] for header in HEADERS] for row in rows]
    importance = [header for header in IMPORTANCE if header != PAPER or has_paper]
    table = format_table(HEADERS, cells) if wide else format_narrow_table(HEADERS, cells, importance)
    return f"{title}\n\n{table}"


def rows_of(summary: Mapping[str, Any], wide: bool = False) -> list[Row]:
    """The rows of the table, each a value of every one of ``HEADERS``; ``wide``: with the architectures."""
    rows = [_generation_row(summary, index, wide) for index in range(len(summary["generations"]))]
    return rows + [_ensemble_row(ensemble, summary["generations"]) for ensemble in summary["ensembles"]]


def _format_members(summary: Mapping[str, Any]) -> str:
    """An ensemble of the networks of several runs, below its members."""
    members = summary["members"]
    rows = [
        [member["folder"], member["objective"], *_measured(member["metrics"]).values(), member["parameters"]]
        for member in members
    ]
    (ensemble,) = summary["ensembles"]
    parameters = sum(member["parameters"] for member in members)
    rows.append([f"ensemble of the {len(members)}", "mean", *_measured(ensemble["metrics"]).values(), parameters])
    data, images = summary["config"]["data"], summary["data"]["test"]["images"]
    title = f"{data['name']}{_say_classes(summary['config'])}, {images:,} test images, seed {summary['seed']}"
    return f"{title}\n\n{format_table(['who', 'learns by', *_measured(ensemble['metrics']), 'parameters'], rows)}"


def _title(summary: Mapping[str, Any], *, has_paper: bool) -> str:
    config = summary["config"]
    teacher, student = _networks(config)
    test, train = summary["data"]["test"]["images"], summary["data"]["train"]["images"]
    classes = config["data"].get("classes") or RELEASES[config["data"]["name"]].classes
    parts = [
        f"{config['data']['name']}{_say_classes(config)}, {train:,} training and {test:,} test images, "
        f"{_say_epochs(config)}, seed {summary['seed']}",
        RULES[config["evaluation"]["selection"]],
        _say_networks(teacher, student, len(summary["generations"]) - 1),
        f"guessing errs in {100 - 100 / classes:g}%",
    ]
    if has_paper:
        parts.append("the paper's errors are of one run of 200 epochs on all 50,000 images")
    return "; ".join(parts)


def _say_classes(config: Mapping[str, Any]) -> str:
    classes = config["data"].get("classes")
    return f" (its first {classes} classes)" if classes else ""


def _say_epochs(config: Mapping[str, Any]) -> str:
    epochs, own = config["training"]["epochs"], config["student"].get("epochs")
    text = f"{epochs:,} epoch{'s' if epochs > 1 else ''}"
    return text if own is None or not config["lineage"]["generations"] else f"{text} (the students {own:,})"


def _say_networks(teacher: str, student: str, students: int) -> str:
    if not students:
        return f"a {teacher} without students"
    return f"all are {teacher}" if student == teacher else f"generation 0 is {teacher}, the students are {student}"


def published(metric: str, config: Mapping[str, Any], generation: int) -> float | None:
    """The paper's value of an arm of a study; None where it has none, as for a part of the images.

    Args:
        metric: of the study; the paper has ``test_error``, in %.
        config: of the arm's runs, as plain values.
        generation: of its students. Those that learn from labels alone are the paper's generation 0.
    """
    data, student = config["data"], config["student"]
    if metric != "test_error" or any(data.get(part) for part in PARTS):
        return None
    teacher, network = _networks(config)
    if student["objective"] == "cross_entropy":
        return paper_error(data["name"], network, network, "cross_entropy", 0)
    row = PAPERS_TABLES.get((data["name"], teacher))
    if student.get("repeat") and generation == 1:  # the paper's second student of the same teacher is its BAN-1
        plain = network == teacher and not student.get("shared") and not student.get("activation_weight")
        again = row is not None and row.chain and student["objective"] == "ban" and plain
        return row.chain[0] if row is not None and again else None
    return _paper_error(config, generation)


def _paper_error(config: Mapping[str, Any], generation: int) -> float | None:
    """Of a generation of a lineage on all images; the paper has no numbers of matched hidden states."""
    student = config["student"]
    if generation and student.get("activation_weight"):
        return None
    shared = student.get("shared") or ()  # a run of an earlier version does not say
    return paper_error(config["data"]["name"], *_networks(config), student["objective"], generation, shared)


def _networks(config: Mapping[str, Any]) -> tuple[str, str]:
    """Of the teacher and of the students."""
    teacher, student = config["teacher"]["network"], config["student"]["network"]
    return teacher, teacher if student == TWIN else student


def _generation_row(summary: Mapping[str, Any], index: int, wide: bool) -> Row:
    config, generation = summary["config"], summary["generations"][index]
    teacher, student = _networks(config)
    paper = None
    if not config["data"].get("classes"):
        paper = _paper_error(config, index)
    return {
        "who": f"generation {index}" + (f", {student if index else teacher}" if wide else ""),
        "learns by": _objective(config, generation),
        PAPER: None if paper is None else f"{paper:.2f}",
        "parameters": generation["parameters"],
        "seconds": f"{summary['seconds'][index]:.0f}",
        **_measured(generation["metrics"]),
    }


def _ensemble_row(ensemble: Mapping[str, Any], generations: Sequence[Mapping[str, Any]]) -> Row:
    return {
        "who": textwrap.shorten(f"ensemble of {name_members(ensemble['members'])}", LONGEST_NAME, placeholder=" ..."),
        "learns by": "mean",
        PAPER: None,
        "parameters": sum(generations[member]["parameters"] for member in ensemble["members"]),
        "seconds": None,
        **_measured(ensemble["metrics"]),
    }


def _measured(metrics: Mapping[str, Any]) -> Row:
    agreement = metrics.get("agreement")
    return {
        "test error %": _error(metrics["test_accuracy"]),
        "test NLL": f"{metrics['test_nll']:.3f}",
        "test ECE": f"{metrics['test_ece']:.3f}",
        "validation error %": _error(metrics["val_accuracy"]),
        "agreement": None if agreement is None else f"{agreement:.3f}",
    }


def _objective(config: Mapping[str, Any], generation: Mapping[str, Any]) -> str:
    if generation["objective"] is not None:
        return str(generation["objective"]).rpartition(":")[2]  # of a loss of one's own, its function
    return "(a file)" if config["teacher"]["path"] else "labels"


def _error(accuracy: float | None) -> str | None:
    return None if accuracy is None else f"{100 * (1 - accuracy):.2f}"
