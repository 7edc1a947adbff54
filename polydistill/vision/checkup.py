"""The doctor's visit to a lineage of classifiers: each lesson is examined before it begins."""

from __future__ import annotations

import torch
from torch import nn

from polydistill.errors import UserError
from polydistill.losses import doctor
from polydistill.losses.examination.doctor import Report
from polydistill.vision.domain import CifarDomain

SAMPLES = 256


class ExaminedCifarDomain(CifarDomain):
    """A :class:`~polydistill.vision.domain.CifarDomain` that prints the doctor's report before it teaches.

    Raises:
        UserError: while teaching, if the doctor finds something wrong.
    """

    def teach(self, teacher: nn.Module, generation: int) -> nn.Module:
        """The student of ``generation``, taught by ``teacher``, after the examination."""
        report = examine(self, teacher, generation)
        if self.processes.rank == 0:
            print(report, flush=True)
        if not report.healthy:
            raise UserError(f"the doctor finds the lesson of generation {generation} wrong: {report.wrong[0]}")
        return super().teach(teacher, generation)


def examine(domain: CifarDomain, teacher: nn.Module, generation: int) -> Report:
    """The doctor's report on the lesson of ``generation``, from training images and a student thrown away.

    The images lie apart by the same step, since those of one class may follow each other; the teacher's accuracy is the
    one on them.
    """
    config, images = domain.config, domain.images.train
    student = domain.make_student(config.student_network, generation).train()
    samples = min(SAMPLES, len(images))
    chosen = torch.arange(samples, device=images.labels.device) * len(images) // samples
    lesson = domain.make_lesson(teacher, generation)
    options = lesson.options(lesson.draw_permutation(chosen, 0))
    pixels = domain.normalizer(images.images[chosen])
    return doctor(student, teacher, lesson.objective, pixels, images.labels[chosen], **options)
