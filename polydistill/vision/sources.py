"""The sources of a run of classifiers, images and perhaps a teacher's file: found, checked, and compared by hash.

Contract: a run that is continued, or shown again, compares its sources by their bytes. Their place may change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from polydistill.errors import UserError
from polydistill.modules.weights import find_weights, fit_weights
from polydistill.provenance import weights_sha256
from polydistill.vision.classifier import Classifier, load_classifier
from polydistill.vision.config import CifarConfig
from polydistill.vision.downloads import local_file
from polydistill.vision.images.data import Images, ImageSet, load_images
from polydistill.vision.networks import StagedNetwork, build_network
from polydistill.vision.public_names import translate


def describe_images(images: Images) -> dict[str, Any]:
    """How many images there are of each kind, and a hash of them: what a result can be compared by."""
    parts = {"train": images.train, "validation": images.validation, "test": images.test}
    return {name: _describe(part) for name, part in parts.items()}


def _describe(part: ImageSet) -> dict[str, Any]:
    whole = {"images": part.images, "labels": part.labels}
    return {"images": len(part), "sha256": weights_sha256(whole) if len(part) else None}


def open_teacher(config: CifarConfig, images: Images, device: torch.device | str) -> Classifier:
    """The classifier in the file ``teacher.path``.

    A file without a card holds weights that something other than this project saved: they are taken for those of
    ``teacher.network``, by our names or by those of public code (:mod:`~polydistill.vision.public_names`), trained on
    pixels that are normalised as here, or as ``teacher.mean`` and ``teacher.std`` say.

    Raises:
        UserError: there is none, or it has another architecture, other classes, or another normalisation than
            ``teacher.mean`` and ``teacher.std`` say; or a student would share its first layer and not its pixels.
    """
    classifier = _open(config, images)
    if "first" in config.student.shared and classifier.normalization != images.normalization:
        raise UserError(
            f"student.shared has the first layer of {config.teacher.path}, whose pixels are normalised in another way "
            "than the student's: leave first out"
        )
    return classifier.to(device)


def _open(config: CifarConfig, images: Images) -> Classifier:
    path = local_file(config.teacher.path)
    if not _has_card(path):
        network, averages = _fill_network(config, path)
        card: dict[str, Any] = {"architecture": config.teacher.network, "classes": images.classes, "averages": averages}
        given = config.teacher.normalization
        if given is not None:
            card |= {"mean": list(given.mean), "std": list(given.std)}
        return Classifier(network.eval().requires_grad_(False), given or images.normalization, card)
    classifier = load_classifier(path)
    found, wanted = classifier.card["architecture"], config.teacher.network
    if found != wanted:
        raise UserError(f"{path} holds a {found}, but teacher.network is {wanted}; choose --teacher.network {found}")
    require_classes(path, classifier.card["classes"], images.classes)
    if config.teacher.normalization not in (None, classifier.normalization):
        mean, std = map(list, classifier.normalization)
        raise UserError(f"the card of {path} says mean {mean} and std {std}: leave teacher.mean and teacher.std out")
    return classifier


def require_classes(path: Path, found: int, wanted: int) -> None:
    """Check that the classifier in ``path`` tells as many classes apart as there are.

    Raises:
        UserError: it does not.
    """
    if found != wanted:
        raise UserError(f"{path} tells {found} classes apart, the images of this run have {wanted}")


def _has_card(path: Path) -> bool:
    return path.with_suffix(".json").exists()


def _fill_network(config: CifarConfig, path: Path) -> tuple[StagedNetwork, str]:
    """``teacher.network`` with the weights in a file that has no card, and the entry there if they are averages."""
    name, classes = config.teacher.network, config.data.n_classes
    network, (weights, averages) = build_network(name, classes), find_weights(path)
    try:
        translated = translate(weights)
    except ValueError as error:
        raise UserError(f"{path} holds a residual network of public code that is not here: {error}") from error
    if translated is not None:
        found, weights = translated
        if found != name:
            raise UserError(f"{path} holds a {found}, but teacher.network is {name}; choose --teacher.network {found}")
        require_classes(path, len(weights["head.weight"]), classes)
    fit_weights(network, weights, path, f"teacher.network {name} with {classes} classes")
    return network, averages


def require_same_images(config: CifarConfig, found: Mapping[str, Any], began: Mapping[str, Any]) -> None:
    """Compare two results of :func:`describe_images`.

    Raises:
        UserError: the images are not those that the run began with.
    """
    if found != began:
        where = f"data.root {config.data.root} holds" if config.data.root else "these are"
        raise UserError(f"{where} other images than those that this run began with; give --out another folder")


def require_same_teacher(config: CifarConfig, sha256: str) -> None:
    """Compare the weights in ``teacher.path`` with the sha256 of generation 0.

    Raises:
        UserError: they are not those that the run began with, or there are none.
    """
    path = local_file(config.teacher.path)
    if _has_card(path):
        found = load_classifier(path).card["sha256"]
    else:  # hashed as opened: the file may hold another float type, and leave shared weights out
        found = weights_sha256(_fill_network(config, path)[0].state_dict())
    if found != sha256:
        raise UserError(
            f"teacher.path {config.teacher.path} holds other weights than those that this run began with; "
            "give --out another folder"
        )


def require_same_sources(config: CifarConfig, summary: Mapping[str, Any], moved: Sequence[str]) -> None:
    """Check that images and teacher in changed places are those that a finished run was made from.

    Args:
        config: names the places.
        summary: of the run.
        moved: the keys of ``config`` that name other places than the run's own config does.

    Raises:
        UserError: they are not.
    """
    if "data.root" in moved:
        require_same_images(config, describe_images(load_images(config.data)), summary["data"])
    if "teacher.path" in moved:
        require_same_teacher(config, summary["generations"][0]["sha256"])
