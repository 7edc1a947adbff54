"""The model card of a lineage of classifiers of a folder, made from its summary.json and the files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polydistill.errors import UserError, list_first
from polydistill.hub.card import ModelCard, NothingTrainedError, name_of_teacher, trained_networks
from polydistill.hub.citation import FURLANELLO
from polydistill.hub.markup import block, bullets, code, table
from polydistill.hub.places import name_only
from polydistill.image_folders.library import PREFIX
from polydistill.image_folders.report import RULES, source
from polydistill.learning.measures import explain
from polydistill.learning.taught import network_of
from polydistill.modules.report import columns_of, tell_ema

TAGS = ("image-classification", "knowledge-distillation", "born-again-networks", "polydistill")
NAMED = 12  # classes that are named


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
    if not last["generation"] and _is_given(config):
        raise NothingTrainedError(f"{out} holds no network that was trained in it: its teacher was given")
    products = [*trained_networks(summary, out, _is_given(config), "network, classes, normalisation, size")]
    if not products or products[0].path.stem != f"generation_{last['generation']}":
        raise UserError(f"{out} holds no generation_{last['generation']}.safetensors with its card")
    network, data = network_of(config, last["generation"]), summary["data"]
    sections = [
        ("Classes", _classes(data["classes"])),
        ("Scores", _scores(summary)),
        ("How to use it", _opened(network, products[0].path.name, where)),
        ("The teacher", bullets(_teacher(summary))),
        ("Limits", bullets(_limits(summary))),
    ]
    return ModelCard(
        title=f"{code(network)} for {len(data['classes']):,} classes of pictures",
        opening=_opening(summary, network),
        library="timm" if network.startswith(PREFIX) else "polydistill",
        task="image-classification",
        tags=[*TAGS, *(["timm"] if network.startswith(PREFIX) else [])],
        results=[],  # the pictures are their owner's: nobody could compare
        products=products,
        sections=sections,
        teachers_licence=_teachers_licence(config),
        papers=[FURLANELLO],
    )


def _is_given(config: Mapping[str, Any]) -> bool:
    return bool(config["teacher"]["path"] or config["teacher"]["pretrained"])


def _opening(summary: Mapping[str, Any], network: str) -> str:
    config, last, data = summary["config"], summary["generations"][-1], summary["data"]
    number = last["generation"]
    if number:
        taught = f"generation {number - 1}" if number > 1 else "a network that was given"
        if number == 1 and not _is_given(config):
            taught = "generation 0, which learned from labels"
        made = f"It learned from the scores of {taught} (objective {code(last['objective'])}), by polydistill."
        if last["objective"] == "cross_entropy":
            made = "It learned from labels alone, as a control beside distilled ones, by polydistill."
    else:
        made = "It learned from labels alone, by polydistill, and may teach others."
    return (
        f"A {code(network)} of {last['parameters']:,} parameters. {made} It errs in "
        f"{100 * (1 - last['metrics']['test_accuracy']):.2f}% of {data['test']['images']:,} test pictures."
    )


def _classes(names: list[str]) -> str:
    return f"{list_first(map(code, names), NAMED)}; all of them, in order, are in the JSON."


def _scores(summary: Mapping[str, Any]) -> str:
    config, data = summary["config"], summary["data"]
    headers, rows = columns_of(summary, source(config))
    told = [index for index, name in enumerate(headers) if name != "seconds"]
    lines = [
        f"{data['train']['images']:,} training pictures of a folder of its owner's; {data['test']['images']:,} test "
        "pictures, seen once by each generation, when it was finished.",
        f"Kept are {RULES[config['evaluation']['selection']]}{tell_ema(config['training'])}.",
        f"{explain('test pictures')} KL is the mean KL divergence from its teacher.",
        "There is no interval: this is one run with one seed.",
    ]
    cells = [[row[index] for index in told] for row in rows]
    return f"{table([headers[index] for index in told], cells)}\n\n{bullets(lines)}"


def _opened(network: str, file: str, where: str) -> str:
    card = file.replace(".safetensors", ".json")
    words = "The JSON holds the classes in the order of the scores, and how pictures are resized, cut and normalised."
    if not network.startswith(PREFIX):
        command = f"polydistill-images --data.root FOLDER --teacher.path {where or file} --teacher.network {network}"
        return f"{words} As a teacher of others:\n\n{block(command, 'sh')}"
    fetch = (
        f"file, card = {file!r}, {card!r}"
        if not where
        else "from huggingface_hub import hf_hub_download\n\n"
        f"file, card = (hf_hub_download({where.removeprefix('hf://')!r}, name) for name in ({file!r}, {card!r}))"
    )
    program = f"""\
import json
from pathlib import Path

import timm
from PIL import Image

{fetch}
known = json.loads(Path(card).read_text())
network = timm.create_model(
    {network.removeprefix(PREFIX)!r},
    num_classes=len(known["classes"]),
    checkpoint_path=file,
    **known["options"],
).eval()
transform = timm.data.create_transform(
    known["image_size"],
    mean=known["mean"],
    std=known["std"],
    crop_pct=known["crop"],
    interpolation=known["interpolation"],
)
scores = network(transform(Image.open("picture.jpg").convert("RGB")).unsqueeze(0))
print(known["classes"][scores.argmax()])"""
    return f"{words}\n\n{block(program, 'python')}"


def _teacher(summary: Mapping[str, Any]) -> list[str]:
    config, first = summary["config"], summary["generations"][0]
    teacher = config["teacher"]
    who = "Generation 0 learned from labels, in this run."
    if teacher["path"]:
        who = f"Generation 0 is {name_of_teacher(teacher['path'])}."
    elif teacher["pretrained"]:
        who = "Generation 0 has the weights that timm fetches for it."
    if teacher["classes"]:
        who += f" Its classes were named by {code(name_only(teacher['classes']))}, and the folder's picked from them."
    sizes = f"A {code(teacher['network'])} of {first['parameters']:,} parameters"
    return [who, f"{sizes}; SHA-256 of its weights: {code(first['sha256'])}."]


def _teachers_licence(config: Mapping[str, Any]) -> str:
    if _is_given(config):
        return "The licences of generation 0 and of the pictures are not known here; ask their owners."
    return "Generation 0 was trained in this run, and is under the same. The licence of the pictures is not known here."


def _limits(summary: Mapping[str, Any]) -> list[str]:
    lines = [f"One run with one seed ({summary['seed']}).", "It knows no other classes."]
    if summary["data"]["left_out"]:
        lines.append(f"{summary['data']['left_out']:,} pictures could not be decoded, and counted for nothing.")
    return [*lines, "Its confidence outside of such pictures means nothing."]
