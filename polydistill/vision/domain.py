"""The world of CIFAR for a lineage: generation 0 learns from labels, every other one from the one before."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from polydistill.learning.processes import ALONE, Processes
from polydistill.learning.rewind import NonFiniteError
from polydistill.learning.together import table_here
from polydistill.lineage import Generation
from polydistill.lineage.course import Recorder, TrainingCourse, charts_of
from polydistill.lineage.keeper import Keeper
from polydistill.runs import Run
from polydistill.runs.correctness import KeptAnswers
from polydistill.runs.shared_store import SharedStore
from polydistill.vision.classifier import Classifier, load_classifier, save_classifier
from polydistill.vision.config import CifarConfig
from polydistill.vision.evaluation import validation_of
from polydistill.vision.examiner import Examiner
from polydistill.vision.images.data import Images, Normalization
from polydistill.vision.introduction import find_better, introduce
from polydistill.vision.networks import build_network
from polydistill.vision.rehearsal import rehearse
from polydistill.vision.sources import describe_images, open_teacher, require_same_images
from polydistill.vision.workshop import Workshop

UNIT = "images"


class CifarDomain:
    """Generation 0 is trained on labels, or read from a file; each is kept as ``generation_<k>.safetensors``.

    A :class:`~polydistill.lineage.keeper.KeptDomain`.

    Args:
        config: resolved, see :meth:`CifarConfig.resolve`.
        images: on the device of ``config``.
        processes: that share each batch.

    Raises:
        UserError: see :meth:`CifarConfig.check_processes`.
    """

    charts = charts_of(UNIT)

    def __init__(self, config: CifarConfig, images: Images, processes: Processes = ALONE) -> None:
        self.config, self.images, self.processes = config, images, processes
        self.workshop = Workshop(config, images, processes)
        self._examiner = Examiner(images, self.workshop.normalizer, config.evaluation)
        self._answers = KeptAnswers()
        self._supposes = False  # that the pixels of a teacher from a file are normalised as here: nothing says it

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

    def train(self, teacher: nn.Module | None, begun: Mapping[str, Any] | None, keeper: Keeper[nn.Module]) -> nn.Module:
        """Generation 0 for None, or the student of ``teacher``; where it was begun it goes on."""
        if teacher is not None:
            return self._train(self.config.student_network, teacher, begun, keeper)
        given = self.config.teacher
        if given.path:
            opened = open_teacher(self.config, self.images, self.workshop.device)
            if opened.card.get("averages") and keeper.run is not None:
                print(f"{given.path} holds averaged weights ({opened.card['averages']}): they teach", file=sys.stderr)
            self._supposes = "mean" not in opened.card
            self._save(opened.network, given.network, None, keeper, opened.normalization)
            opened.take(self.images.normalization)
            return self.workshop.place(opened.network)
        if begun is None and self.config.lineage.generations:
            rehearse(self.workshop)
        return self._train(given.network, None, begun, keeper)

    def _train(
        self, architecture: str, teacher: nn.Module | None, begun: Mapping[str, Any] | None, keeper: Keeper[nn.Module]
    ) -> nn.Module:
        generation, workshop = keeper.generation, self.workshop
        student = workshop.make_student(architecture, generation, teacher)
        lesson = workshop.make_lesson(teacher, generation)
        trainer = workshop.make_trainer(student, lesson, generation, store=SharedStore.of_environment())
        validation = validation_of(self.images.validation, workshop.normalizer, self.config.evaluation)
        course = TrainingCourse(trainer, Recorder(keeper.run, generation, UNIT), validation)
        if begun is not None:
            course.load_state(begun)
        try:
            keeper.follow(course)
        except torch.OutOfMemoryError as error:
            raise workshop.out_of_memory(architecture) from error
        student.zero_grad(set_to_none=True)  # gradients may lie in the memory of the trainer's CUDA graphs
        self._save(student, architecture, lesson.objective, keeper)
        return student

    def evaluate(self, member: nn.Module, teacher: nn.Module | None, keeper: Keeper[nn.Module]) -> dict[str, Any]:
        """The metrics of summary.json; this is the one time that the generation sees the test set."""
        self._look(member, keeper.generation, keeper.run)
        try:
            metrics = self._examiner.report(None if teacher is None else self.objective)
            metrics["train_accuracy"] = self._remember(member, keeper)
        except NonFiniteError as error:
            raise keeper.keep_failure(error, member.state_dict()) from error
        self._keep_answers(keeper.run)
        if not keeper.generation and self.config.teacher.path and keeper.run is not None:
            print(self._introduce(member, metrics["test_accuracy"]), file=sys.stderr)
        tested = {name.replace("_", "/"): metrics[name] for name in metrics if name.startswith("test_")}
        samples = self.config.training_of(keeper.generation).epochs * len(self.images.train)
        Recorder(keeper.run, keeper.generation, UNIT).log(samples, tested)
        return metrics

    def _introduce(self, member: nn.Module, accuracy: float) -> str:
        """A line about the teacher from a file."""
        better = find_better(member, self.images.test, self.images.normalization) if self._supposes else None
        path = self.config.teacher.path
        return introduce(path, accuracy, self.images.classes, better, supposed=self._supposes)

    def _look(self, member: nn.Module, generation: int, run: Run | None) -> None:
        with Recorder(run, generation, UNIT).progress("is tested", self._examiner.images_to_see) as bar:
            self._examiner.look(member, bar.add)

    def _remember(self, member: nn.Module, keeper: Keeper[nn.Module]) -> float:
        recorder = Recorder(keeper.run, keeper.generation, UNIT)
        with recorder.progress("looks back at its training images", len(self.images.train)) as bar:
            return self._examiner.remembered(member, bar.add)

    def _keep_answers(self, run: Run | None) -> None:
        """Write which test images the latest generation got right."""
        if run is not None:
            self._answers.keep(run.out, self._examiner.correct())

    def state(self, generations: Sequence[Generation[nn.Module]]) -> dict[str, Any]:
        """What the images, and the files of right and wrong answers, must still be when the run goes on."""
        return {"data": self.data, "correct": self._answers.records}

    def read_members(self, saved: Mapping[str, Any], keeper: Keeper[nn.Module]) -> list[nn.Module]:
        """Read from their files, in every process, and tested, since ensembles need what they predict.

        Raises:
            UserError: the images or the files are not what they were.
        """
        require_same_images(self.config, self.data, saved["data"])
        members = []
        for generation in range(len(saved["generations"])):
            members.append(self._read(generation, keeper.run))
            self._look(members[-1], generation, keeper.run)
            if "correct" not in saved:  # of a version that did not keep them
                self._keep_answers(keeper.run)
        if "correct" in saved and keeper.run is not None:
            self._answers.go_on(keeper.run.out, saved["correct"])
        return members

    def _read(self, generation: int, run: Run | None) -> nn.Module:
        saved = None
        if run is not None:
            opened = load_classifier(run.out / f"generation_{generation}.safetensors")
            saved = opened.network.state_dict(), opened.normalization
        weights, normalization = self.processes.first_says(saved)
        architecture = self.config.student_network if generation else self.config.teacher.network
        with torch.device("meta"):
            network = build_network(architecture, self.images.classes)
        network.load_state_dict(weights, assign=True)
        member = Classifier(network, normalization, {})
        member.take(self.images.normalization)
        return self.workshop.place(member.network)

    def finish(self, keeper: Keeper[nn.Module]) -> dict[str, Any]:
        """What summary.json says of classifiers beside."""
        ensembles = self._examiner.ensembles(self.config.lineage.generations)
        sizes: dict[str, Any] = {"processes": self.processes.size, "data": self.data}
        table = table_here()
        if table is not None:  # its times are those of all runs there
            sizes["runs_together"] = table.size
        return {"ensembles": ensembles, "correct": self._answers.records, **sizes}

    def _save(
        self,
        network: nn.Module,
        architecture: str,
        objective: str | None,
        keeper: Keeper[nn.Module],
        normalization: Normalization | None = None,
    ) -> None:
        if keeper.run is None:
            return
        save_classifier(
            keeper.run.out / f"generation_{keeper.generation}.safetensors",
            network,
            architecture,
            self.images.classes,
            normalization or self.images.normalization,
            dataset=self.config.data.name,
            generation=keeper.generation,
            objective=objective,
            seed=self.config.seed,
        )
