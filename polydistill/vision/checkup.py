"""The doctor's visit to a lineage of classifiers, see :func:`~polydistill.lineage.run_lineage`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polydistill.learning.networks import start_learning
from polydistill.learning.own_objective import is_own
from polydistill.lineage import Generation
from polydistill.losses import doctor
from polydistill.losses.examination.doctor import Report
from polydistill.vision.workshop import Workshop

SAMPLES = 256
PLAIN = "ban"  # what a loss of one's own is compared with


def examine(workshop: Workshop, teacher: Generation[nn.Module]) -> Report:
    """The doctor's report on what ``teacher`` would teach, from training images and a student thrown away.

    The images lie apart by the same step, since those of one class may follow each other; the teacher's accuracy is the
    one on them.
    """
    config, images, generation = workshop.config, workshop.images.train, teacher.generation + 1
    student = workshop.make_student(config.student_network, generation, teacher.member)
    start_learning(student)
    samples = min(SAMPLES, len(images))
    chosen = torch.arange(samples, device=images.labels.device) * len(images) // samples
    lesson = workshop.make_lesson(teacher.member, generation)
    options = lesson.options(lesson.draw_permutation(chosen, 0))
    pixels, labels = workshop.normalizer(images.images[chosen]), images.labels[chosen]
    if not is_own(lesson.objective):
        return doctor(student, teacher.member, lesson.objective, pixels, labels, **options)

    def loss(scores: Tensor, targets: Tensor | None, labels: Tensor | None) -> Tensor:
        return lesson(scores, targets, labels, None)

    plain = doctor(student, teacher.member, PLAIN, pixels, labels)
    beside = doctor(student, teacher.member, PLAIN, pixels, labels, loss_function=loss)
    # what is said of the loss itself is no fault: nobody meant it to be the plain one
    said = [
        finding._replace(level="suspicious") if finding.level == "wrong" else finding
        for finding in beside.findings[len(plain.findings) :]
    ]
    return Report(f"{lesson.objective} beside {plain.title}", (*plain.findings, *said), plain.terms)
