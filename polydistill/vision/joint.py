"""The steps of several trainers in one go: one batch of batches, one pass through stacked networks, one call of the
loss.

Contract: each student's step is the one that its trainer would make alone, up to the rounding of a grouped convolution;
each has its own images, order, permutation, learning rate and optimiser.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from polydistill.device import autocast
from polydistill.errors import UserError
from polydistill.learning.graphs import StepGraphs
from polydistill.learning.stacked import StackedNetworks, structure_of
from polydistill.vision.images.augmentation import take_batch
from polydistill.vision.training import Trainer


class JointStep:
    """Makes a step of each trainer at once; a :class:`~polydistill.learning.together.JointSteps`.

    Args:
        trainers: whose :meth:`Trainer.kind_of_step` is one.

    Raises:
        UserError: the memory does not suffice for so many students.
    """

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        self.trainers = list(trainers)
        with self._in_memory():
            self._students = StackedNetworks([trainer.student for trainer in trainers])
            for trainer in trainers:
                trainer.settle()
            self._teacher, self._teachers = _stack_teachers(trainers)
        self._graphs = StepGraphs() if trainers[0].captures else None

    def make(self, diagnose: bool, inputs: Sequence[Sequence[Tensor]]) -> None:
        """See :meth:`~polydistill.learning.together.JointSteps.make`.

        Raises:
            UserError: the memory does not suffice for so many students.
        """
        stacked = [torch.stack(given) for given in zip(*inputs, strict=True)]
        with self._in_memory():
            if self._graphs is None:
                self._make(diagnose, *stacked)
            else:
                self._graphs.run(self._make, self._tensors, diagnose, *stacked)

    @contextlib.contextmanager
    def _in_memory(self) -> Iterator[None]:
        """One line where the memory does not suffice."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory on {self.trainers[0].device} with {len(self.trainers)} students together; choose a "
                "smaller --students_together"
            ) from error

    def release(self) -> None:
        """See :meth:`~polydistill.learning.together.JointSteps.release`."""
        self._students.release()
        for trainer in self.trainers:
            trainer.settle()

    def _make(self, diagnose: bool, rows: Tensor, permutations: Tensor | None = None) -> None:
        """The whole step, from ``(students, batch, 4)`` rows of the plans on; this is what a CUDA graph records."""
        first, shape = self.trainers[0], rows.shape[:2]
        images, labels = take_batch(first.data, rows.flatten(0, 1))
        inputs, labels = _as_batches(first.normalizer(images), shape), _as_batches(labels, shape)
        taught = self._teacher_scores(inputs)
        with autocast(first.device.type, first.update.precision):
            scores = self._students(inputs)
        scores = scores.float()
        self._students.forget_gradients()
        losses = first.lesson.backward(scores, taught, labels, permutations, shape[1])
        self._students.hand_out_gradients()
        means, scores = losses.sum(dim=1) / shape[1], scores.detach()
        for number, trainer in enumerate(self.trainers):
            trainer.update.apply()
            its = None if taught is None else taught[number]
            trainer.note(means[number], scores[number], its, labels[number], diagnose=diagnose)

    def _teacher_scores(self, inputs: Tensor) -> Tensor | None:
        """``(students, batch, classes)`` float32; None: there is no teacher."""
        first, shape = self.trainers[0], inputs.shape[:2]
        if first.lesson.teacher is None:
            return None
        if self._teachers is not None:
            with torch.no_grad(), autocast(first.device.type, first.update.precision):
                stacked = self._teachers(inputs)
            return stacked.float()
        if self._teacher is not None:
            scores = self._teacher.update.teacher_scores(inputs.flatten(0, 1))
            assert scores is not None
            return _as_batches(scores, shape)
        each = [trainer.update.teacher_scores(own) for trainer, own in zip(self.trainers, inputs, strict=True)]
        return torch.stack([scores for scores in each if scores is not None])

    def _tensors(self) -> list[Tensor]:
        """Every tensor that a step changes."""
        return [tensor for trainer in self.trainers for tensor in trainer.tensors()]


def _stack_teachers(trainers: Sequence[Trainer]) -> tuple[Trainer | None, StackedNetworks | None]:
    """The trainer whose teacher is that of all, or the teachers in one; neither: each is asked by itself."""
    teachers = [trainer.lesson.teacher for trainer in trainers]
    networks = [teacher for teacher in teachers if isinstance(teacher, nn.Module)]
    if len(networks) < len(teachers) or len({structure_of(network) for network in networks}) > 1:
        return (trainers[0] if len(set(map(id, teachers))) == 1 else None), None
    if all(_have_same_weights(networks[0], network) for network in networks):
        return trainers[0], None
    return None, StackedNetworks(networks, learning=False)


def _have_same_weights(first: nn.Module, second: nn.Module) -> bool:
    weights = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return first is second or all(torch.equal(own, other) for own, other in weights)


def _as_batches(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """``(students * batch, ...)`` as ``(students, batch, ...)``."""
    return tensor.view(*shape, *tensor.shape[1:])
