"""The model card of a lineage of classifiers, made from its summary.json and the files beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polydistill.errors import UserError
from polydistill.hub.card import ModelCard, NothingTrainedError, Result, name_of_teacher, trained_networks
from polydistill.hub.citation import FURLANELLO
from polydistill.hub.markup import block, bullets, code, table
from polydistill.learning.measures import explain
from polydistill.learning.taught import network_of
from polydistill.vision.report import HEADERS, PAPER, RULES, rows_of
from polydistill.vision.report import PARTS as LEFT_OUT

BORN_AGAIN = "[born-again networks](https://arxiv.org/abs/1805.04770)"
TAGS = ("image-classification", "knowledge-distillation", "born-again-networks", "polydistill")
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}


def make_card(summary: Mapping[str, Any], out: Path, where: str = "") -> ModelCard:
    """What there is to tell of a run.

    Args:
        summary: of a finished run.
        out: its folder.
        where: the card is to be read, as ``hf://org/name``; empty: in the folder.

    Raises:
        UserError: the last generation's file is missing, or nothing was trained.
    """
    config, last = summary["config"], summary["generations"][-1]
    given = bool(config["teacher"]["path"])
    products = [*trained_networks(summary, out, given, "architecture, classes, normalisation")]
    if not last["generation"] and given:
        raise NothingTrainedError(f"{out} holds no network that was trained in it: its teacher came from a file")
    if not products:
        raise UserError(f"{out} holds no generation_{last['generation']}.safetensors with its card")
    data, network = config["data"], network_of(config, last["generation"])
    sections = [
        ("Scores", _scores(summary)),
        ("How to use it", _opened(config, products[0].path.name, where)),
        ("The teacher", bullets(_teacher(summary))),
        ("Limits", bullets(_limits(summary))),
    ]
    return ModelCard(
        title=f"{code(network)} for {_images(config).partition(', which')[0]}",
        opening=_opening(summary, network),
        library="polydistill",
        task="image-classification",
        tags=[*TAGS, *([data["name"]] if _is_published(data) else [])],
        results=_results(config, last["metrics"]),
        products=products,
        sections=sections,
        teachers_licence=_teachers_licence(config),
        papers=[FURLANELLO],
    )


def _results(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[Result]:
    """The accuracy on the test images, where these are the published ones."""
    data = config["data"]
    if not _is_published(data) or data["classes"] or data["test_images"]:
        return []
    return [Result(data["name"], DATASETS[data["name"]], "accuracy", round(metrics["test_accuracy"], 6))]


def _opening(summary: Mapping[str, Any], network: str) -> str:
    config, last = summary["config"], summary["generations"][-1]
    number, metrics = last["generation"], last["metrics"]
    if number and last["objective"] == "cross_entropy":
        made = f"It is a control beside {BORN_AGAIN}: it learned from labels alone, by polydistill."
    elif number:
        taught = "generation 0, which learned from labels" if number == 1 else f"generation {number - 1}"
        if number == 1 and config["teacher"]["path"]:
            taught = "a network that was given"
        made = f"It is generation {number} of {BORN_AGAIN}: it learned from the scores of {taught}"
        made = f"{made} (objective {code(last['objective'])}), by polydistill."
    else:
        made = "It learned from labels alone, by polydistill, and may teach others."
    return (
        f"A {code(network)} of {last['parameters']:,} parameters for {_images(config)}. {made} It errs in "
        f"{100 * (1 - metrics['test_accuracy']):.2f}% of {summary['data']['test']['images']:,} test images."
    )


def _is_published(data: Mapping[str, Any]) -> bool:
    """Whether the images are those that all others know by this name."""
    return bool(data["official"] and (data["root"] or not data["made_up"]))


def _images(config: Mapping[str, Any]) -> str:
    data = config["data"]
    name = DATASETS[data["name"]]
    if data["made_up"] and not data["root"]:
        return f"made-up images in the form of {name}, which show colours alone"
    if not data["official"]:
        return f"images of its owner's in the form of {name}"
    return name + (f" (its first {data['classes']} classes)" if data["classes"] else "")


def _scores(summary: Mapping[str, Any]) -> str:
    config, data = summary["config"], summary["data"]
    rows = rows_of(summary)
    told = [name for name in HEADERS if name != "seconds" and any(row[name] is not None for row in rows)]
    lines = [
        f"{data['train']['images']:,} training images of {_images(config)}; {data['test']['images']:,} test images, "
        "seen once by each generation, when it was finished.",
        f"Kept are {RULES[config['evaluation']['selection']]}.",
        "Pixels are normalised with the means and deviations in the JSON; there is no augmentation in the test.",
        explain("test images"),
        "There is no interval: this is one run with one seed. Whether a student is better than its teacher is for a "
        "study of several seeds to say.",
    ]
    if PAPER in told:
        lines.append("The paper's errors are of one run of 200 epochs on all 50,000 images.")
    return f"{table(told, [[row[name] for name in told] for row in rows])}\n\n{bullets(lines)}"


def _opened(config: Mapping[str, Any], file: str, where: str) -> str:
    named = where or file
    program = f"""\
import torch
from polydistill.vision import load_classifier

classifier = load_classifier({named!r})
images = torch.zeros(4, 32, 32, 3, dtype=torch.uint8)  # (batch, height, width, red green blue), as they are
print(classifier(images).argmax(dim=1))"""
    words = (
        "Pixels are normalised inside. What is opened is compared with the SHA-256 in its JSON, and nothing in it is "
        "executed. As a teacher of others:"
    )
    command = f"polydistill-cifar --data.name {config['data']['name']} --teacher.path {named} --teacher.network "
    command += f"{network_of(config, config['lineage']['generations'])} --out runs/student"
    return "\n\n".join([block(program, "python"), words, block(command, "sh")])


def _teacher(summary: Mapping[str, Any]) -> Sequence[str]:
    config, first = summary["config"], summary["generations"][0]
    path = config["teacher"]["path"]
    who = f"Generation 0 is {name_of_teacher(path)}." if path else "Generation 0 learned from labels, in this run."
    sizes = f"A {code(config['teacher']['network'])} of {first['parameters']:,} parameters"
    told = [who, f"{sizes}; SHA-256 of its weights: {code(first['sha256'])}."]
    mean, std = (config["teacher"].get(name) for name in ("mean", "std"))
    if mean:
        told.append(f"It sees pixels normalised by mean {mean} and standard deviation {std}.")
    return told


def _teachers_licence(config: Mapping[str, Any]) -> str:
    images = f"{DATASETS[config['data']['name']]} has terms of its own." if _is_published(config["data"]) else ""
    if config["teacher"]["path"]:
        return f"The licence of generation 0 is not known here; ask its owner. {images}".rstrip()
    return f"Generation 0 was trained in this run, and is under the same. {images}".rstrip()


def _limits(summary: Mapping[str, Any]) -> list[str]:
    config = summary["config"]
    parts = ", ".join(
        f"{name.replace('_', ' ')} {config['data'][name]:,}" for name in LEFT_OUT if config["data"].get(name)
    )
    lines = [
        f"One run with one seed ({summary['seed']}).",
        "It takes images of 32 x 32 pixels, and knows no other classes.",
    ]
    if parts:
        lines.append(f"Not all of the data was used: {parts}.")
    return [*lines, "Its confidence outside of such images means nothing."]
