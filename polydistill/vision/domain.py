"""The world of CIFAR for a lineage: generation 0 learns from labels, every other one from the one before."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polydistill.device import prepare
from polydistill.errors import UserError
from polydistill.learning.lesson import Lesson
from polydistill.learning.processes import ALONE, Processes
from polydistill.learning.rewind import NonFiniteError
from polydistill.learning.schedules import TrainingConfig
from polydistill.lineage import Generation
from polydistill.runs import Run
from polydistill.runs.interruption import StopSignals
from polydistill.streams import derive_seed
from polydistill.vision.classifier import load_classifier, save_classifier
from polydistill.vision.config import CifarConfig
from polydistill.vision.continuation import Continuation
from polydistill.vision.course import Course, Recorder
from polydistill.vision.examiner import Examiner
from polydistill.vision.images.augmentation import Normalizer
from polydistill.vision.images.data import Images
from polydistill.vision.networks import build_network
from polydistill.vision.rehearsal import rehearse
from polydistill.vision.sources import describe_images, open_teacher, require_same_images
from polydistill.vision.training import Trainer

CHARTS = {  # of TensorBoard, in their order
    "accuracy on the validation images": ["val/accuracy"],
    "accuracy on the test images": ["test/accuracy"],
    "accuracy and agreement with the teacher on the training images": ["train/accuracy", "train/agreement"],
    "loss": ["train/loss"],
}


class CifarDomain:
    """Generation 0 is trained on labels, or read from a file; students are trained by :class:`Trainer`.

    Args:
        config: resolved, see :meth:`CifarConfig.resolve`.
        images: on the device of ``config``.
        run: where metrics and ``generation_<k>.safetensors`` go; None: nowhere (the other processes of torchrun).
        processes: that share each batch.
        stop: the signals that this process received; None: it heeds none.

    Attributes:
        generations: finished so far, see :meth:`restore` and :meth:`keep`.
        seconds: wall clock of each generation so far, training and evaluation.
        throughput: rates by name, for summary.json.

    Raises:
        UserError: see :meth:`CifarConfig.check_processes`.
    """

    def __init__(
        self,
        config: CifarConfig,
        images: Images,
        run: Run | None,
        processes: Processes = ALONE,
        stop: StopSignals | None = None,
    ) -> None:
        config.check_processes(processes.size)
        self.config, self.images, self.run, self.processes = config, images, run, processes
        self.device = prepare(config.device, config.threads)
        self.normalizer = Normalizer.of(images.normalization, self.device)
        self.seconds: list[float] = []
        self.throughput: dict[str, float] = {}
        self._examiner = Examiner(images, self.normalizer, config.evaluation)
        self.generations: list[Generation[nn.Module]] = []
        self._continuation = Continuation(run, config.checkpoint, processes, stop)
        self._begun: dict[str, Any] | None = None  # the state of a generation that was not finished
        if run is not None:
            run.show_first(CHARTS)

    @property
    def objective(self) -> str:
        """Name of the students' objective."""
        return self.config.student.objective

    def network(self, member: nn.Module) -> nn.Module:
        """The member itself."""
        return member

    @functools.cached_property
    def data(self) -> dict[str, Any]:
        """How many images there are of each kind, and a hash of them: what a result can be compared by."""
        return describe_images(self.images)

    def restore(self) -> None:
        """Go on from the last checkpoint of the run, if there is one: fills ``generations``.

        Raises:
            UserError: the checkpoints, the images or the files of the generations are not what they were.
        """
        state = self._continuation.restore()
        if state is None:
            return
        require_same_images(self.config, self.data, state["data"])
        for record in state["generations"]:
            member = self._reopen(record["generation"])
            self._look(member, record["generation"])
            self.generations.append(Generation(member=member, **record))
        self.seconds, self.throughput, self._begun = state["seconds"], state["throughput"], state["begun"]

    def keep(self, generation: Generation[nn.Module]) -> None:
        """Note that ``generation`` is finished, and save that.

        Raises:
            Interrupted: a signal came meanwhile, and this is not the last generation.
            UserError: the disk refused.
        """
        self.generations.append(generation)
        last = generation.generation == self.config.lineage.generations
        self._save_state(None, None if last else f"after generation {generation.generation}")

    def _save_state(self, course: Course | None, where: str | None) -> None:
        def state() -> dict[str, Any]:
            return {
                "generations": [generation.summary() for generation in self.generations],
                "seconds": self.seconds,
                "throughput": self.throughput,
                "data": self.data,
                "begun": None if course is None else course.state(),
            }

        self._continuation.save(state, 0 if course is None else course.trainer.steps, where)

    def check(self) -> None:
        """Try what comes before the first step, and keep nothing of it.

        Raises:
            UserError, FloatingPointError, ValueError: what the run would refuse.
        """
        if self.config.teacher.path:
            open_teacher(self.config, self.images, self.device)
            return
        network = self.make_student(self.config.teacher.network, 0)
        self.make_trainer(network, self._first_lesson(), 0)
        rehearse(self)

    def first(self) -> nn.Module:
        """Generation 0."""
        teacher = self.config.teacher
        if teacher.path:
            self.seconds.append(0.0)
            return self._open_teacher()
        if self._begun is None:
            rehearse(self)
        return self._train(teacher.network, self._first_lesson(), 0)

    def _first_lesson(self) -> Lesson:
        options = {"label_smoothing": self.config.teacher.label_smoothing}
        return Lesson("cross_entropy", None, seed=self.config.seed, generation=0, options=options)

    def teach(self, teacher: nn.Module, generation: int) -> nn.Module:
        """The student of ``generation``, taught by ``teacher``."""
        return self._train(self.config.student_network, self.make_lesson(teacher, generation), generation)

    def make_lesson(self, teacher: nn.Module, generation: int) -> Lesson:
        """What the student of ``generation`` learns from ``teacher``, which is frozen by it."""
        return Lesson(
            self.config.student.objective,
            teacher,
            seed=self.config.seed,
            generation=generation,
            options=self.config.student.options(),
            classes=self.images.classes,
            group=self.processes.group,
        )

    def evaluate(self, member: nn.Module, teacher: nn.Module | None, generation: int) -> dict[str, Any]:
        """The metrics of summary.json; this is the one time that the generation sees the test set."""
        started = time.perf_counter()
        self._look(member, generation)
        try:
            metrics = self._examiner.report(None if teacher is None else self.objective)
        except NonFiniteError as error:
            path = self._keep_failure(generation, error, member.state_dict())
            raise FloatingPointError(f"{error}; they, and the weights that gave them, are in {path}") from error
        tested = {name.replace("_", "/"): metrics[name] for name in metrics if name.startswith("test_")}
        Recorder(self.run, generation).log(self.config.training.epochs * len(self.images.train), tested)
        self.seconds[-1] += time.perf_counter() - started
        return metrics

    def _look(self, member: nn.Module, generation: int) -> None:
        with Recorder(self.run, generation).progress("is tested", self._examiner.images_to_see) as bar:
            self._examiner.look(member, bar.add)

    def summary(self) -> dict[str, Any]:
        """What summary.json says of the finished lineage."""
        return {
            "generations": [generation.summary() for generation in self.generations],
            "ensembles": self._examiner.ensembles(self.config.lineage.generations),
            "throughput": self.throughput,
            "seconds": [round(seconds, 1) for seconds in self.seconds],
            "processes": self.processes.size,
            "data": self.data,
        }

    def _open_teacher(self) -> nn.Module:
        classifier = open_teacher(self.config, self.images, self.device)
        self._save(classifier.network, self.config.teacher.network, 0, None)
        return self._place(classifier.network)

    def _reopen(self, generation: int) -> nn.Module:
        """A finished generation of this run, from its file, in every process."""
        weights = None
        if self.run is not None:
            weights = load_classifier(self.run.out / f"generation_{generation}.safetensors").network.state_dict()
        architecture = self.config.student_network if generation else self.config.teacher.network
        with torch.device("meta"):
            network = build_network(architecture, self.images.classes)
        network.load_state_dict(self.processes.first_says(weights), assign=True)
        return self._place(network)

    def _train(self, architecture: str, lesson: Lesson, generation: int) -> nn.Module:
        student = self.make_student(architecture, generation)
        trainer = self.make_trainer(student, lesson, generation)
        course = Course(trainer, self.images.validation, self.config.evaluation, Recorder(self.run, generation))
        if self._begun is not None:
            course.load_state(self._begun)
            self._begun = None
        try:
            course.run(self._continuation.due, functools.partial(self._save_within, course))
        except NonFiniteError as error:
            path = self._keep_failure(generation, error, trainer.state())
            raise FloatingPointError(f"{error}; the state then and the batch are in {path}") from error
        except torch.OutOfMemoryError as error:
            raise self.out_of_memory(architecture) from error
        self.seconds.append(course.seconds)
        self._note_speed(generation, course.seconds, course.validating_seconds)
        student.zero_grad(set_to_none=True)  # gradients may lie in the memory of the trainer's CUDA graphs
        self._save(student, architecture, generation, lesson)
        return student

    def _save_within(self, course: Course) -> None:
        trainer = course.trainer
        self._save_state(course, f"in generation {trainer.generation} after step {trainer.steps:,}")

    def _keep_failure(self, generation: int, error: NonFiniteError, state: dict[str, Any]) -> Path | str:
        return "the run folder" if self.run is None else self.run.keep_failure(generation, error, state, error.batch)

    def make_student(self, architecture: str, generation: int) -> nn.Module:
        """An untrained network on the device, with initial weights of its own."""
        seed = derive_seed(self.config.seed, "initial weights", generation)
        student = build_network(architecture, self.images.classes, seed=seed)
        if self.config.training.sync_batchnorm and self.processes.size > 1:
            student = nn.SyncBatchNorm.convert_sync_batchnorm(student)  # type: ignore[no-untyped-call]
        return self._place(student)

    def make_trainer(
        self, student: nn.Module, lesson: Lesson, generation: int, training: TrainingConfig | None = None
    ) -> Trainer:
        """The trainer of ``student`` on this domain's training images, as configured or as ``training`` says."""
        return Trainer(
            student,
            lesson,
            self.images.train,
            self.normalizer,
            training or self.config.training,
            seed=self.config.seed,
            generation=generation,
            precision=self.config.precision,
            processes=self.processes,
        )

    def out_of_memory(self, architecture: str) -> UserError:
        """The one line for a step of ``architecture`` that the memory does not suffice for."""
        batch = f"training.batch_size {self.config.training.batch_size:,}"
        return UserError(f"out of memory on {self.device} with {batch} for {architecture}; choose a smaller batch size")

    def _place(self, network: nn.Module) -> nn.Module:
        memory_format = torch.channels_last if self.config.training.channels_last else torch.contiguous_format
        return network.to(self.device).to(memory_format=memory_format)  # type: ignore[call-overload,no-any-return]

    def _note_speed(self, generation: int, seconds: float, evaluating: float) -> None:
        """Both rates, since a timer that leaves something out flatters: of learning, and of learning and validation."""
        images = self.config.training.epochs * len(self.images.train)
        role = f"generation_{generation}"
        self.throughput[f"{role}_train_samples_per_second"] = round(images / (seconds - evaluating), 1)
        self.throughput[f"{role}_train_and_validation_samples_per_second"] = round(images / seconds, 1)

    def _save(self, network: nn.Module, architecture: str, generation: int, lesson: Lesson | None) -> None:
        if self.run is None:
            return
        save_classifier(
            self.run.out / f"generation_{generation}.safetensors",
            network,
            architecture,
            self.images.classes,
            self.images.normalization,
            dataset=self.config.data.name,
            generation=generation,
            objective=None if lesson is None else lesson.objective,
            seed=self.config.seed,
        )
