"""The world of one's own modules: how a generation learns, what is measured of it, and how it is read back."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polydistill.learning.lesson import Lesson
from polydistill.learning.networks import freeze
from polydistill.lineage import Generation
from polydistill.lineage.course import Kept, Recorder, TrainingCourse, charts_of
from polydistill.lineage.ensembles import growing_ensembles
from polydistill.lineage.keeper import Keeper
from polydistill.modules.arguments import Arguments
from polydistill.modules.examiner import ModuleExaminer
from polydistill.modules.rehearsal import rehearse
from polydistill.modules.seeding import seeded
from polydistill.modules.weights import as_written, fit_weights, load_weights, save_weights
from polydistill.modules.workshop import Workshop
from polydistill.streams import derive_seed

FILE = "generation_{}.safetensors"


class ModuleWorld:
    """A :class:`~polydistill.lineage.keeper.KeptDomain`, of one lineage after another.

    Args:
        given: what the user says.

    Attributes:
        workshop: makes what the lineage needs.
        members: generation -> module, see :class:`~polydistill.modules.domain.ModuleDomain`.
    """

    charts = charts_of("batches")

    def __init__(self, given: Arguments) -> None:
        self.given = given
        self.begin()

    def begin(self) -> None:
        """Forget the lineage before."""
        self.workshop = Workshop(self.given)
        self._samples = 0  # that the latest generation has seen
        self._kept: Kept | None = None  # what was measured of its weights on the way
        told = self.given
        self._examiner = ModuleExaminer(told.test, told.seed, told.ignore_index, told.reading)

    @property
    def objective(self) -> str:
        """Name of the students' objective."""
        return self.given.objective_name

    @property
    def members(self) -> dict[int, nn.Module]:
        """See the class."""
        return self._examiner.members

    def network(self, member: nn.Module) -> nn.Module:
        """The member itself."""
        return member

    def train(self, teacher: nn.Module | None, begun: Mapping[str, Any] | None, keeper: Keeper[nn.Module]) -> nn.Module:
        """Generation 0 for None: the teacher that was given, or a module that learns from labels; or the student of
        ``teacher``."""
        generation, member = keeper.generation, self.prepare(teacher, keeper.generation)
        self._kept = None
        if teacher is not None or self.given.teacher is None:
            self._kept = self._learn(member, self.workshop.make_lesson(teacher, generation), begun, keeper)
        self._examiner.members[generation] = member
        if keeper.is_kept():
            with self.workshop.processes.peers_needed(among_others=True):
                save_weights(None if keeper.run is None else keeper.run.out / FILE.format(generation), member)
        return member

    def prepare(self, teacher: nn.Module | None, generation: int) -> nn.Module:
        """The network of ``generation`` before its first step, once a batch has gone through everything.

        Raises:
            TypeError, ValueError, UserError, FloatingPointError: something does not fit together.
        """
        if teacher is not None and self.workshop.n_classes is None:
            rehearse(self.workshop, teacher, generation - 1, learns=False)
        member = self.workshop.take(generation)
        if teacher is None:
            rehearse(self.workshop, member, 0, learns=self.given.teacher is None)
        return member

    def evaluate(self, member: nn.Module, teacher: nn.Module | None, keeper: Keeper[nn.Module]) -> dict[str, Any]:
        """``test_accuracy``, ``test_nll`` (nats per sample) and ``test_ece`` (calibration error) on the test batches;
        ``agreement`` with the teacher and ``kl``, KL(teacher || student), which are None for generation 0. With
        validation batches also ``val_accuracy`` of the weights that are kept, and ``kept_epoch``, after which it was
        measured; None for a teacher that was given.

        Raises:
            ValueError: the test batches are others than those of the generation before, or every label is ignored.
            FloatingPointError: scores or metrics are not finite.
        """
        generation = keeper.generation
        try:
            with self.workshop.processes.peers_needed(among_others=True):
                metrics = self._examiner.report(member, teacher, generation)
        except Exception as error:
            where = f"ModuleDomain.members[{generation}]"
            error.add_note(f"generation {generation} is trained: in this process {where} has it")
            raise
        if self.given.validation is not None:
            epoch, accuracy = self._kept or (None, None)
            metrics |= {"val_accuracy": accuracy, "kept_epoch": epoch}
        tested = {name.replace("_", "/"): metrics[name] for name in metrics if name.startswith("test_")}
        Recorder(keeper.run, generation).log(self._samples, tested)
        return metrics

    def ensemble(self, members: Sequence[int]) -> dict[str, Any]:
        """The same metrics of the mean of the members' probabilities.

        Its agreement and KL are with the teacher of its earliest member, the generation before that; None where that
        member is generation 0.

        Args:
            members: generations that have been evaluated, at least two, each once.

        Raises:
            ValueError: they are not.
        """
        return self._examiner.ensemble(members)

    # ---- what is kept ------------------------------------------------------------------------------------------------

    def state(self, generations: Sequence[Generation[nn.Module]]) -> dict[str, Any]:
        """What the labels of the test batches must still be when the run goes on, and how many threads computed."""
        return {"test": self._examiner.labels_sha256, "threads": torch.get_num_threads()}

    def read_members(self, saved: Mapping[str, Any], keeper: Keeper[nn.Module]) -> list[nn.Module]:
        """Read from their files.

        Raises:
            UserError: a file is not what it was.
        """
        threads = torch.get_num_threads()
        if keeper.run is not None and threads != saved["threads"]:
            print(
                f"the run began with {saved['threads']} threads and goes on with {threads}: last bits may differ",
                file=sys.stderr,
            )
        self._examiner.labels_sha256 = saved["test"]
        out = self.workshop.processes.first_says(None if keeper.run is None else keeper.run.out)
        return [self.read_member(generation, out) for generation in range(len(saved["generations"]))]

    def read_member(self, generation: int, out: Path) -> nn.Module:
        """The network of a finished generation, from the run folder ``out``, frozen."""
        path, member = out / FILE.format(generation), self.workshop.take(generation)
        processes = self.workshop.processes
        weights = processes.first_says(load_weights(path) if processes.rank == 0 else None)
        fit_weights(as_written(member, weights), weights, path)
        freeze(member)
        self._examiner.members[generation] = member
        return member

    def finish(self, keeper: Keeper[nn.Module]) -> dict[str, Any]:
        """The ensembles of the students, of a single one with its teacher."""
        students = keeper.config.lineage.generations
        found = []
        for members in [(0, 1)] if students == 1 else growing_ensembles(students):
            reference = min(members) - 1 if min(members) else None
            found.append({"members": list(members), "reference": reference, "metrics": self.ensemble(members)})
        return {"ensembles": found}

    def _learn(
        self, student: nn.Module, lesson: Lesson, begun: Mapping[str, Any] | None, keeper: Keeper[nn.Module]
    ) -> Kept | None:
        """The course of ``student``; where it was begun it goes on. What was measured of the weights that are kept."""
        known = self.workshop.ask_teacher(lesson, keeper.heed)
        with seeded(derive_seed(lesson.seed, "training", lesson.generation), self.given.batches) as feed:
            training = self.workshop.make_training(student, lesson, feed, known)
            recorder = Recorder(keeper.run, lesson.generation)
            course = TrainingCourse(training, recorder, self.workshop.make_validation(lesson.generation))
            if begun is not None:
                course.load_state(begun)
            keeper.follow(course)
        self._samples = training.samples
        student.zero_grad(set_to_none=True)
        return course.kept
