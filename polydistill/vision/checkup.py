"""The doctor's visit to a lineage of classifiers: each lesson is examined before it begins."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from polydistill.errors import UserError
from polydistill.losses import doctor, draw_permutation, get_objective
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
    options: dict[str, Any] = dict(config.student.options())
    objective = get_objective(config.student.objective)
    options.pop("permutation", None)
    if objective.needs_permutation:
        drawn = draw_permutation(samples, domain.images.classes, generator=torch.Generator().manual_seed(0))
        options["permutation"] = drawn.to(domain.device)
    if objective.tempered:  # as a lesson of classifiers has it
        options.setdefault("temperature", 1.0)
    pixels = domain.normalizer(images.images[chosen])
    return doctor(student, teacher, objective.name, pixels, images.labels[chosen], **options)
