"""The doctor's visit to a lineage of one's own modules, see :func:`~polydistill.lineage.run_lineage`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polydistill.lineage import Generation
from polydistill.losses import OBJECTIVES, Report, doctor
from polydistill.modules.batches import Batch, device_of, read_batch
from polydistill.modules.outputs import Reading
from polydistill.modules.seeding import seeded
from polydistill.modules.trial import take_first
from polydistill.modules.workshop import Workshop
from polydistill.streams import derive_seed


class _OfBatch(nn.Module):
    """A module, as one of a whole :class:`~polydistill.modules.batches.Batch`."""

    def __init__(self, module: nn.Module, reading: Reading) -> None:
        super().__init__()
        self.module, self.reading, self.training = module, reading, module.training

    def forward(self, batch: Batch) -> Tensor:
        return self.reading.score(self.module, batch)


def examine(workshop: Workshop, teacher: Generation[nn.Module]) -> Report:
    """The doctor's report on what ``teacher`` would teach, from the first batch and a student thrown away.

    Raises:
        ValueError: the objective is a function of one's own, which the doctor does not know by name.
    """
    given, generation = workshop.given, teacher.generation + 1
    if given.objective_name not in OBJECTIVES:
        raise ValueError(
            f"the doctor examines objectives that it knows, and {given.objective_name} is a function: "
            "polydistill.losses.doctor compares it with the one that is meant, by loss_function="
        )
    student = workshop.make(generation).train()
    with seeded(derive_seed(given.seed, "doctor", generation), given.batches) as feed:
        batch = read_batch(take_first(feed, "batches", given.ignore_index)).to(device_of(student))
        lesson = workshop.make_lesson(teacher.member, generation, of_all_classes=True)
        rows = torch.arange(len(batch.labels), device=batch.labels.device)
        options = lesson.options(lesson.draw_permutation(rows, 0)) | {"ignore_index": given.ignore_index}
        readings = [given.reading(generation), given.reading(teacher.generation)]
        plain = all(reading.output is None and reading.inputs is None for reading in readings)
        if plain and len(batch.inputs) == 1 and not batch.keywords and len(batch.shape) == 1:
            return doctor(student, teacher.member, lesson.objective, batch.inputs[0], batch.labels, **options)
        networks = [_OfBatch(*pair) for pair in zip((student, teacher.member), readings, strict=True)]
        return doctor(networks[0], networks[1], lesson.objective, batch, batch.labels, **options)
