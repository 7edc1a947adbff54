"""The model card of a lineage of one's own modules, made from its summary.json and the files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polydistill.errors import UserError
from polydistill.hub.card import ModelCard, NothingTrainedError, trained_networks
from polydistill.hub.citation import FURLANELLO
from polydistill.hub.markup import block, bullets, code
from polydistill.learning.measures import explain
from polydistill.modules.report import format_summary

HUB = "hf://"
TAGS = ("knowledge-distillation", "born-again-networks", "polydistill")


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
    products = [*trained_networks(summary, out, bool(config["teacher"]))]
    if not last["generation"] and config["teacher"]:
        raise NothingTrainedError(f"{out} holds no network that was trained in it: its teacher was given")
    if not products or products[0].path.stem != f"generation_{last['generation']}":
        raise UserError(f"{out} holds no generation_{last['generation']}.safetensors")
    return ModelCard(
        title=f"{code(_network(config, last['generation']))}, distilled",
        opening=_opening(summary),
        library="pytorch",
        task="other",
        tags=TAGS,
        results=[],
        products=products,
        sections=[
            ("Scores", _scores(summary)),
            ("How to use it", _opened(config, last["generation"], where)),
            ("The teacher", bullets([_teacher(summary)])),
            ("Limits", bullets(_limits(summary))),
        ],
        teachers_licence=_teachers_licence(config),
        papers=[FURLANELLO],
    )


def _network(config: Mapping[str, Any], generation: int) -> str:
    return str(config["networks"]["students" if generation else "generation_0"]["class"])


def _opening(summary: Mapping[str, Any]) -> str:
    config, last = summary["config"], summary["generations"][-1]
    number = last["generation"]
    made = "It learned from labels alone, by polydistill, and may teach others."
    if number:
        taught = f"generation {number - 1} (objective {code(last['objective'])})"
        made = f"It learned from the scores of {taught}, by polydistill."
        if last["objective"] == "cross_entropy":
            made = "It learned from labels alone, as a control beside distilled ones, by polydistill."
    return (
        f"A module {code(_network(config, number))} of {last['parameters']:,} parameters, a classifier of its owner's "
        f"data. {made} It errs in {100 * (1 - last['metrics']['test_accuracy']):.2f}% of its owner's test batches."
    )


def _scores(summary: Mapping[str, Any]) -> str:
    table = format_summary(summary, wide=True).partition("\n\n")[2]
    lines = [
        "The test batches were seen once by each generation, when it was finished. Each label that counts is a sample.",
        explain("samples"),
        "There is no interval: this is one run with one seed.",
    ]
    if summary["config"].get("ema"):
        lines.append(f"The weights are an exponential mean over the steps, with decay {summary['config']['ema']:g}.")
    return f"{table}\n\n{bullets(lines)}"


def _opened(config: Mapping[str, Any], generation: int, where: str) -> str:
    file = f"generation_{generation}.safetensors"
    place = f'"{file}"'
    download = ""
    if where:
        download = "from huggingface_hub import hf_hub_download\n"
        place = f'hf_hub_download("{where.removeprefix(HUB)}", "{file}")'
    program = f"""\
{download}from safetensors.torch import load_file

weights = load_file({place})  # names and tensors; nothing is executed
# module.load_state_dict(weights), module.eval()"""
    words = (
        f"The file holds the `state_dict` of a module of the class {code(_network(config, generation))}, without its "
        "code: make that module as the program below did, and load them. In `ModuleDomain` the file teaches others as "
        f'`teacher="{file}"`.'
    )
    return f"{words}\n\n{block(program, 'python')}"


def _teacher(summary: Mapping[str, Any]) -> str:
    config, first = summary["config"], summary["generations"][0]
    who = "was given" if config["teacher"] else "learned from labels, in this run"
    network = code(_network(config, 0))
    return (
        f"Generation 0, a {network} of {first['parameters']:,} parameters, {who}; SHA-256 of its weights: "
        f"{code(first['sha256'])}."
    )


def _teachers_licence(config: Mapping[str, Any]) -> str:
    if config["teacher"]:
        return "The licence of generation 0 is not known here; ask its owner."
    return "Generation 0 was trained in this run, and is under the same."


def _limits(summary: Mapping[str, Any]) -> list[str]:
    return [
        f"One run with one seed ({summary['seed']}).",
        "The files do not say which inputs it takes and which classes it tells apart: ask its owner.",
        "Its confidence outside of such inputs means nothing.",
    ]
