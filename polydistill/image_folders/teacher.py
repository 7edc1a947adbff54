"""A teacher that one has: weights of a file or of timm, and which of its scores belong to which class of the folder.

Contract: opening a file runs no code from it, and a teacher that does not fit the folder is refused in one line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from polydistill.disk import disk_errors
from polydistill.errors import UserError, printable
from polydistill.image_folders.config import ImagesConfig
from polydistill.image_folders.folder import list_names
from polydistill.image_folders.library import PREFIX
from polydistill.image_folders.networks import PictureNetwork, expectations, make_network
from polydistill.modules.weights import fit_weights, load_weights
from polydistill.vision.downloads import LARGEST_CARD, local_file


def open_teacher(config: ImagesConfig, classes: Sequence[str]) -> PictureNetwork:
    """The teacher that ``config`` gives, with a score for each class of the folder, in their order; on the CPU.

    Raises:
        UserError: it is not there, or its weights, its architecture or its classes do not fit.
    """
    name, side = config.network_of(0)
    names = read_class_names(config.teacher.classes) if config.teacher.classes else None
    if config.teacher.pretrained:
        where = f"timm's {name.removeprefix(PREFIX)}"
        weights: dict[str, Tensor] = make_network(name, len(classes), side, pretrained=True).state_dict()
    else:
        path = local_file(config.teacher.path)
        where, weights = str(path), load_weights(path)
        names = _names_in_card(config, path) if names is None else names
    heads = expectations(name).heads
    found = _count_classes(weights, heads)
    if config.teacher.classes and names is not None and found not in (None, len(names)):
        raise UserError(f"{config.teacher.classes} names {len(names):,} classes, and {where} tells {found:,} apart")
    _require_count(where, found, len(classes if names is None else names))
    if names is not None and list(names) != list(classes):
        weights = _pick(weights, heads, _places(names, classes, config.teacher.classes or where), where)
    network = make_network(name, len(classes), side)
    fit_weights(network, weights, where, f"teacher.network {name} with {len(classes):,} classes")
    return _wrap(config, 0, network)


def make_untrained(config: ImagesConfig, generation: int, classes: int) -> PictureNetwork:
    """The network of ``generation`` with initial weights from torch's global generator."""
    name, side = config.network_of(generation)
    return _wrap(config, generation, make_network(name, classes, side))


def _wrap(config: ImagesConfig, generation: int, network: nn.Module) -> PictureNetwork:
    name, side = config.network_of(generation)
    return PictureNetwork(network, expectations(name), side, channels_last=config.training.channels_last)


def read_class_names(file: str) -> list[str]:
    """The names of a teacher's classes in its order: a JSON list, or one per line.

    Raises:
        UserError: it cannot be read, holds something else, or a name twice.
    """
    path = Path(file)
    with disk_errors(path, "read"):
        content = path.read_bytes()[: LARGEST_CARD + 1]
    try:
        if len(content) > LARGEST_CARD:
            raise ValueError("it is too large")
        text = content.decode("utf-8-sig")
        found = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
        names = [name.strip() for name in found]
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"teacher.classes {file} is no list of names, one per line or in JSON: {error}") from None
    names = [name for name in names if name]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UserError(f"teacher.classes {file} has {list_names(twice)} twice: which score is meant?")
    return names


def _require_count(whose: str, found: int | None, wanted: int) -> None:
    """Refuse a teacher with another number of scores, with both numbers."""
    if found is not None and found != wanted:
        raise UserError(
            f"{whose} tells {found:,} classes apart, and {wanted:,} are expected: name the classes of the teacher in "
            "its order by --teacher.classes FILE, one per line, and those of the folder are picked by name"
        )


def _places(names: Sequence[str], classes: Sequence[str], where: str) -> list[int]:
    """Which score of the teacher each class of the folder has."""
    place = {name: index for index, name in enumerate(names)}
    if unknown := [name for name in classes if name not in place]:
        raise UserError(f"{where} names no class {list_names(unknown)} of the folder; it names {list_names(names)}")
    return [place[name] for name in classes]


def _count_classes(weights: Mapping[str, Tensor], heads: Sequence[str]) -> int | None:
    """The rows of the last layer; None: it is not found, and the weights will not fit."""
    rows = {len(tensor) for key, tensor in weights.items() if _is_of(key, heads) and tensor.dim()}
    return rows.pop() if len(rows) == 1 else None


def _pick(weights: Mapping[str, Tensor], heads: Sequence[str], places: Sequence[int], where: str) -> dict[str, Tensor]:
    """The weights with these rows of the last layer alone: softmax over them is the teacher's, knowing the class is one
    of the folder's."""
    if not any(_is_of(key, heads) for key in weights):
        raise UserError(f"{where} has no last layer {heads[0]}, from which the folder's classes could be picked")
    return {key: tensor[list(places)] if _is_of(key, heads) else tensor for key, tensor in weights.items()}


def _is_of(key: str, heads: Sequence[str]) -> bool:
    """Whether a weight is one of the last layer."""
    return any(f".{key}".endswith((f".{head}.weight", f".{head}.bias")) for head in heads)


def _names_in_card(config: ImagesConfig, path: Path) -> list[str] | None:
    """The classes in the card of an earlier run, beside its weights; None: there is no such card.

    Raises:
        UserError: the card is of another network.
    """
    card = path.with_suffix(".json")
    if path.suffix != ".safetensors" or not card.is_file() or card.stat().st_size > LARGEST_CARD:
        return None
    try:
        found = json.loads(card.read_text(encoding="utf-8"))
        network, classes = found["architecture"], found["classes"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return None
    if network != config.teacher.network:
        raise UserError(
            f"{path} holds a {printable(str(network))}, but teacher.network is {config.teacher.network}; choose "
            f"--teacher.network {printable(str(network))}"
        )
    return classes
