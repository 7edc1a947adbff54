"""The students' lesson is tried on a batch before generation 0 begins, so that its errors come early.

Contract: nothing of the trial stays, and no random stream moves: the run is bit for bit the same without it.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from polydistill.learning.rewind import NonFiniteError
from polydistill.vision.sources import open_teacher
from polydistill.vision.workshop import Workshop

FEW = 8  # images, on a CPU; a GPU tries the whole batch, to see whether its memory suffices
GENTLE = 1e-6  # learning rate: what is tried is the lesson, not the schedule


def check(workshop: Workshop) -> None:
    """Try what comes before the first step, and keep nothing of it.

    Raises:
        UserError, FloatingPointError, ValueError: what the run would refuse.
    """
    teacher = workshop.config.teacher
    if teacher.path:
        open_teacher(workshop.config, workshop.images, workshop.device)
        return
    workshop.make_trainer(workshop.make_student(teacher.network, 0), workshop.make_lesson(None, 0), 0)
    if workshop.config.lineage.generations:
        rehearse(workshop)


def rehearse(workshop: Workshop) -> None:
    """Two steps of generation 1 on a student that is thrown away, taught by an untrained network.

    Raises:
        UserError: the memory does not suffice for the batch.
        FloatingPointError: the loss is not finite.
        ValueError, TypeError, RuntimeError: what the objective, the networks or the processes refuse.
    """
    config = workshop.config
    images = workshop.images.train.images[: workshop.processes.size * FEW]
    teacher = workshop.make_student(config.teacher.network, 0)
    _take_statistics(teacher, workshop.normalizer(workshop.processes.share(images)))
    lesson = workshop.make_lesson(teacher, 1)
    whole = workshop.device.type == "cuda" or workshop.processes.size > 1
    batch_size = config.training.batch_size if whole else min(FEW, config.training.batch_size)
    gentle = dataclasses.replace(config.training, learning_rate=GENTLE, weight_decay=0.0, compile=False)
    tried = dataclasses.replace(gentle, batch_size=batch_size, log_every_steps=2)
    try:
        student = workshop.make_student(config.student_network, 1, teacher)
        trainer = workshop.make_trainer(student, lesson, 1, tried)
        trainer.is_trial = True
        next(trainer.run())
        trainer.keep()
    except torch.OutOfMemoryError as error:
        raise workshop.out_of_memory(config.student_network) from error
    except NonFiniteError as error:
        raise FloatingPointError(f"{error}: seen in a trial before the first step of generation 0") from error


def _take_statistics(network: nn.Module, inputs: Tensor) -> None:
    """Give the batch norms the statistics of ``inputs``: without any, an untrained deep network overflows."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.SyncBatchNorm):
            layer.momentum = 1.0
    with torch.no_grad():
        network.train()(inputs)
