"""The first lesson, tried before the first step: one batch of each kind through both networks, loss and optimiser.

Contract: the networks that are tried are those that are taken from the workshop afterwards, and their weights stay as
they are; no random number of the run is drawn.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from polydistill.learning.networks import share_weights
from polydistill.modules import trial
from polydistill.modules.batches import Batch, read_batch
from polydistill.modules.feed import count_batches
from polydistill.modules.labels import check_all_labels, check_labels, require_classes
from polydistill.modules.sample_hashes import require_repetition
from polydistill.modules.seeding import seeded
from polydistill.modules.shares import check_source
from polydistill.modules.weights import cast_up
from polydistill.modules.workshop import Workshop
from polydistill.streams import derive_seed


def rehearse(workshop: Workshop, teacher: nn.Module, generation: int, *, learns: bool) -> None:
    """Try the lesson of the student after ``generation``; the workshop knows then how many classes there are.

    Args:
        workshop: of the lineage.
        teacher: is ``generation``.
        generation: 0, or the last that is finished.
        learns: the teacher is about to learn itself.

    Raises:
        TypeError, ValueError, FloatingPointError, UserError: something does not fit together; see
            :mod:`~polydistill.modules.trial`.
    """
    told = workshop.given
    whose = "the module that `build` makes" if learns else "the teacher"
    check_source(told.batches, workshop.processes, told.parts)
    if told.teacher_cache is not None:
        require_repetition(told.batches)
    reading, sources = told.reading(generation), {"batches": told.batches, "test": told.test}
    if told.validation is not None:
        sources["validation"] = told.validation
    with seeded(derive_seed(told.seed, "trial"), told.batches):
        given = trial.take_first(told.batches, "batches", told.ignore_index)
        if not learns:
            cast_up(teacher, given)
        scores, batch = trial.try_network(teacher, given, whose, "batches", reading)
    labels, firsts = {"batches": batch.labels}, {"batches": given}
    for name in [name for name in sources if name != "batches"]:
        with seeded(derive_seed(told.seed, f"trial, {name}"), sources[name]):
            firsts[name] = trial.take_first(sources[name], name, told.ignore_index)
            labels[name] = read_batch(firsts[name]).labels
            require_classes(labels[name], f"the first batch of `{name}`")
            trial.try_network(teacher, firsts[name], whose, name, reading)
    n_classes = scores.shape[1]
    of_student = _try_student(workshop, teacher, generation + 1, firsts, n_classes)
    for name in sources:
        check_labels(labels[name], n_classes, f"the first batch of `{name}`", told.ignore_index)
        check_all_labels(sources[name], name, n_classes, told.ignore_index)
    if told.classes is not None and told.classes != n_classes:
        raise ValueError(f"`classes` is {told.classes}, but {whose} gives {n_classes} scores per sample")
    if learns:
        _try_learning(workshop, teacher, batch, whose, generation)
    lesson = workshop.make_lesson(nn.Identity(), generation + 1)
    with seeded(derive_seed(told.seed, "trial")):
        trial.try_lesson(lesson, of_student, scores.to(of_student.device), batch.labels.to(of_student.device))
    workshop.n_classes = n_classes


def _try_student(
    workshop: Workshop, teacher: nn.Module, generation: int, firsts: dict[str, Any], n_classes: int
) -> Tensor:
    """The scores that the student of ``generation`` gives for the first of ``batches``, which is one of ``firsts``: the
    first batch of each source that it will see."""
    told, student = workshop.given, workshop.show(generation)
    if share_weights(student, teacher):
        name = "build" if told.build_student is None else "build_student"
        raise ValueError(f"`{name}` must make a fresh module each time, what it makes shares weights with the teacher")
    with seeded(derive_seed(told.seed, "trial")):
        found = {
            name: trial.try_network(student, first, "the student", name, told.reading(generation))
            for name, first in firsts.items()
        }
    scores, batch = found["batches"]
    if scores.shape[1] != n_classes:
        raise ValueError(
            f"the student gives {scores.shape[1]} scores per sample and its teacher {n_classes}: both must tell the "
            "same classes apart"
        )
    _try_learning(workshop, student, batch, "the student", generation)
    schedule = workshop.make_schedule(told.optimizer(student.parameters()))
    if schedule is not None:
        schedule.require_steps(count_batches(told.batches), told.epochs)
    return scores


def _try_learning(workshop: Workshop, network: nn.Module, batch: Batch, whose: str, generation: int) -> None:
    told = workshop.given
    trial.try_optimizer(network, told.optimizer, whose, told.parts, told.precision)
    n_parts = workshop.processes.size * told.parts
    part = batch if n_parts == 1 else batch.split(n_parts)[0]  # as much as will be computed with its graph at once
    with seeded(derive_seed(told.seed, "trial, gradient")):
        trial.try_gradient(network, part, whose, told.reading(generation))
    if told.precision == "float16":
        with seeded(derive_seed(told.seed, "trial, float16")):
            trial.try_precision(network, batch, whose, told.reading(generation))
