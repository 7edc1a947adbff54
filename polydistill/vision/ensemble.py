"""An ensemble of classifiers from several run folders: the mean of their class probabilities on the test images.

Contract: the members saw the same images as this run has, and are what their runs finished with. Nothing is trained.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from polydistill.device import prepare
from polydistill.errors import UserError
from polydistill.learning.own_objective import is_own
from polydistill.lineage.members import MembersConfig
from polydistill.losses import OBJECTIVES
from polydistill.runs import Run, read_summary
from polydistill.runs.correctness import write_correct
from polydistill.vision.classifier import load_classifier
from polydistill.vision.config import EvaluationConfig
from polydistill.vision.examiner import Examiner
from polydistill.vision.images.augmentation import Normalizer
from polydistill.vision.images.data import DataConfig, Images
from polydistill.vision.sources import describe_images, require_classes

CORRECT = "ensemble_correct.npz"  # which test images it got right


@dataclass(frozen=True)
class EnsembleConfig(MembersConfig):
    """Measure the mean of the class probabilities of several trained networks.

    Args:
        data: which images: those of the members.
    """

    data: DataConfig = field(default_factory=DataConfig)


class Member(NamedTuple):
    """A network, and what summary.json says of it: its generation, as its run has it, and its ``folder``."""

    network: nn.Module
    summary: Mapping[str, Any]


def measure_ensemble(config: EnsembleConfig, images: Images, run: Run) -> dict[str, Any]:
    """Measure the ensemble, and finish its run.

    Args:
        config: resolved.
        images: on the device of ``config``.
        run: its folder, not finished.

    Returns:
        what summary.json holds. It has no ``generations``, since nothing was trained.

    Raises:
        UserError: a member is missing or damaged, or saw other images.
        FloatingPointError: a metric is not finite.
    """
    started = time.perf_counter()
    device, data = prepare(config.device, config.threads), describe_images(images)
    examiner = Examiner(images, Normalizer.of(images.normalization, device), EvaluationConfig())
    members = []
    for name, folder in zip(config.names, config.folders(run.out), strict=True):
        member = open_member(folder, images, data, device)
        examiner.look(member.network)
        members.append({"folder": name, **member.summary})
    every = range(len(members))
    return run.finish(
        {
            "generations": [],
            "members": members,
            "ensembles": [{"members": [*every], "reference": None, "metrics": examiner.ensemble(every)}],
            "correct": [write_correct(run.out / CORRECT, examiner.correct(every))],
            "data": data,
            "throughput": {},
            "seconds": [round(time.perf_counter() - started, 1)],
        }
    )


def open_member(folder: Path, images: Images, data: Mapping[str, Any], device: torch.device) -> Member:
    """The network of the last generation of the finished run in ``folder``, on ``device``.

    Args:
        folder: of the run.
        images: of the ensemble.
        data: of :func:`describe_images`, of ``images``.
        device: where to put it.

    Raises:
        UserError: there is none, it is damaged, or it is of other images.
    """
    summary = read_summary(folder)
    try:
        last, seen = summary["generations"][-1], summary["data"]
        layout = summary["config"]["training"]["channels_last"]
    except (LookupError, TypeError) as error:
        raise UserError(f"{folder} holds no trained network: {error!r}") from error
    if seen != data:
        raise UserError(f"{folder} was trained and tested on other images than those of this ensemble")
    path = folder / f"generation_{last['generation']}.safetensors"
    classifier = load_classifier(path, device)
    require_classes(path, classifier.card["classes"], images.classes)
    if classifier.card["sha256"] != last["sha256"]:
        raise UserError(f"{path} holds other weights than those that its run ended with")
    classifier.take(images.normalization)
    memory_format = torch.channels_last if layout else torch.contiguous_format
    network = classifier.network.to(memory_format=memory_format)  # type: ignore[call-overload]
    return Member(network, {**last, "objective": last["objective"] or "labels"})


# ---- what a study asks of its arms -----------------------------------------------------------------------------------

COMMAND = ("ensemble_cifar", "polydistill-cifar-ensemble")
TRAINING = "epochs of training"
SECONDS = 3.0  # nothing is trained; the start of the process takes 2.4 s of one core


def training_of(config: Mapping[str, Any]) -> int:
    """The epochs of training of a run of a lineage, all its generations together; of a given teacher none.

    Args:
        config: of a lineage, as plain values.
    """
    generations, epochs = config["lineage"]["generations"], config["training"]["epochs"]
    own = config["student"].get("epochs") or epochs
    first = 0 if generations else epochs  # a student's teacher is given to it
    return int(first + generations * own)


def is_taught(config: Mapping[str, Any]) -> bool:
    """Whether the students of a lineage learn from a teacher at all, and not from labels alone."""
    name = config["student"]["objective"]
    return (is_own(name) or "teacher" in OBJECTIVES[name].takes) and config["lineage"]["generations"] > 0
