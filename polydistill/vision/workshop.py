"""What a lesson of classifiers is made of: untrained students, what they learn, and who trains them."""

from __future__ import annotations

import torch
from torch import nn

from polydistill.device import prepare
from polydistill.errors import UserError
from polydistill.learning.lesson import Lesson
from polydistill.learning.processes import ALONE, Processes
from polydistill.learning.schedules import TrainingConfig
from polydistill.runs.shared_store import SharedStore
from polydistill.streams import derive_seed
from polydistill.vision.config import CifarConfig
from polydistill.vision.images.augmentation import Normalizer
from polydistill.vision.images.data import Images
from polydistill.vision.networks import build_network
from polydistill.vision.networks.sharing import share_layers
from polydistill.vision.training import Trainer


class Workshop:
    """Makes them, as a config says, for all generations of a run.

    Args:
        config: resolved, see :meth:`CifarConfig.resolve`.
        images: on the device of ``config``.
        processes: that share each batch.

    Raises:
        UserError: see :meth:`CifarConfig.check_processes`.
    """

    def __init__(self, config: CifarConfig, images: Images, processes: Processes = ALONE) -> None:
        config.check_processes(processes.size)
        self.config, self.images, self.processes = config, images, processes
        self.device = prepare(config.device, config.threads)
        self.normalizer = Normalizer.of(images.normalization, self.device)

    def make_student(self, architecture: str, generation: int, teacher: nn.Module | None = None) -> nn.Module:
        """An untrained network on the device, with initial weights of its own.

        Args:
            architecture: name of the network.
            generation: whose.
            teacher: some layers may be copied from it and frozen, as the config says; None: no layer is.
        """
        seed = derive_seed(self.config.stream_seed(generation), "initial weights", generation)
        student: nn.Module = build_network(architecture, self.images.classes, seed=seed)
        if teacher is not None:
            share_layers(student, teacher, self.config.student.shared)
        if self.config.training.sync_batchnorm and self.processes.size > 1:
            student = nn.SyncBatchNorm.convert_sync_batchnorm(student)  # type: ignore[no-untyped-call]
        return self.place(student)

    def place(self, network: nn.Module) -> nn.Module:
        """``network`` on the device, in the configured layout."""
        memory_format = torch.channels_last if self.config.training.channels_last else torch.contiguous_format
        return network.to(self.device).to(memory_format=memory_format)  # type: ignore[call-overload,no-any-return]

    def make_lesson(self, teacher: nn.Module | None, generation: int) -> Lesson:
        """What ``generation`` learns: from labels, or from ``teacher``, which is frozen by it."""
        seed = self.config.stream_seed(generation)
        if teacher is None:
            smoothing = {"label_smoothing": self.config.teacher.label_smoothing}
            return Lesson("cross_entropy", None, seed=seed, generation=generation, options=smoothing)
        return Lesson(
            self.config.student.find_objective(),
            teacher,
            seed=seed,
            generation=generation,
            options=self.config.student.options(),
            classes=self.images.classes,
            group=self.processes.group,
            activation_weight=self.config.student.activation_weight or 0.0,
        )

    def make_trainer(
        self,
        student: nn.Module,
        lesson: Lesson,
        generation: int,
        training: TrainingConfig | None = None,
        store: SharedStore | None = None,
    ) -> Trainer:
        """The trainer of ``student`` on the training images, as configured or as ``training`` says.

        Args:
            student: of :meth:`make_student`.
            lesson: of :meth:`make_lesson`.
            generation: of the student.
            training: another schedule than the configured one.
            store: where other runs with the same batches find the scores of their common teacher.
        """
        return Trainer(
            student,
            lesson,
            self.images.train,
            self.normalizer,
            training or self.config.training_of(generation),
            seed=self.config.stream_seed(generation),
            generation=generation,
            precision=self.config.precision,
            processes=self.processes,
            store=store,
        )

    def out_of_memory(self, architecture: str) -> UserError:
        """The one line for a step of ``architecture`` that the memory does not suffice for."""
        batch = f"training.batch_size {self.config.training.batch_size:,}"
        return UserError(f"out of memory on {self.device} with {batch} for {architecture}; choose a smaller batch size")
