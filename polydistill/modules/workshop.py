"""What a lesson of one's own modules is made of: untrained networks, what they learn, and who trains them.

Contract: what is made for a trial or a description is used afterwards; nothing is built twice.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from polydistill._environment import require_extra
from polydistill.learning.lesson import Lesson
from polydistill.learning.measures import measure, require_finite_metrics
from polydistill.learning.networks import share_weights
from polydistill.learning.processes import ALONE
from polydistill.lineage import LineageConfig
from polydistill.lineage.course import Validation
from polydistill.modules import trial
from polydistill.modules.arguments import Arguments
from polydistill.modules.batches import Batch, read_batch
from polydistill.modules.config import (
    ModuleConfig,
    describe_batches,
    describe_choice,
    describe_network,
    describe_optimizer,
    plain,
)
from polydistill.modules.examiner import predict
from polydistill.modules.feed import Feed
from polydistill.modules.labels import check_all_labels, require_classes
from polydistill.modules.sample_hashes import require_repetition
from polydistill.modules.schedule import Schedule, require_scheduler
from polydistill.modules.seeding import seeded
from polydistill.modules.shares import check_module, check_source
from polydistill.modules.teacher_scores import TeacherScores
from polydistill.modules.training import ModuleTraining
from polydistill.modules.weights import cast_up, copy_module, fit_weights, load_weights
from polydistill.provenance import weights_sha256
from polydistill.runs.checkpoint import CheckpointConfig
from polydistill.streams import derive_seed


class Workshop:
    """Makes them for one lineage.

    Args:
        given: what the user says.

    Attributes:
        n_classes: of the scores; None before the trial.
        processes: that share each batch.
    """

    def __init__(self, given: Arguments) -> None:
        self.given = given
        self.n_classes: int | None = None
        self.processes = ALONE
        self._built: dict[int, nn.Module] = {}  # and not trained yet

    def make_training(
        self, student: nn.Module, lesson: Lesson, feed: Feed, known: TeacherScores | None = None
    ) -> ModuleTraining:
        """That of ``student``, on the batches of ``feed``, of which the teacher's scores may be ``known``."""
        told = self.given
        optimizer = told.optimizer(student.parameters())
        return ModuleTraining(
            student,
            lesson,
            optimizer,
            feed,
            self._make_schedule(optimizer),
            parts=told.parts,
            precision=told.precision,
            compiled=told.compile,
            clip_norm=told.clip_norm,
            ema=told.ema,
            processes=self.processes,
            readings=(told.reading(lesson.generation), told.reading(lesson.generation - 1)),
            known=known,
            epochs=told.epochs,
            log_every_steps=told.log_every_steps,
            ignore_index=told.ignore_index,
            n_classes=self.n_classes,
        )

    def ask_teacher(self, lesson: Lesson, heed: Callable[[str], None]) -> TeacherScores | None:
        """The teacher's scores of all that its student will see, computed where they are not on disk yet; None where
        they are not kept there.

        Args:
            lesson: of the student.
            heed: see :meth:`TeacherScores.fill`.
        """
        told = self.given
        if told.teacher_cache is None or not isinstance(lesson.teacher, nn.Module):
            return None
        require_extra("vision", "safetensors", "filelock")
        score = told.reading(lesson.generation - 1).score
        scores = TeacherScores(
            lesson.teacher,
            told.teacher_cache,
            score,
            precision=told.precision,
            temperature=told.teacher_cache.temperature(told.objective_name, told.options),
            processes=self.processes,
        )
        scores.fill(told.batches, heed)
        return scores

    def _make_schedule(self, optimizer: Optimizer) -> Schedule | None:
        if self.given.scheduler is None:
            return None
        return Schedule(require_scheduler(self.given.scheduler(optimizer), optimizer), self.given.schedule_by)

    def make_validation(self, generation: int) -> Validation | None:
        """How the course of ``generation`` is measured on the validation batches; None where there are none."""
        told = self.given
        if told.validation is None:
            return None
        batches = told.validation

        def measure_on_batches(student: nn.Module, whose: str) -> dict[str, float]:
            scores, labels = predict(
                student, batches, "validation", told.seed, told.ignore_index, told.reading(generation)
            )
            if not scores.isfinite().all():
                raise FloatingPointError(f"the scores of {whose} are not finite")
            measured = measure(scores, labels)
            require_finite_metrics(measured, whose)
            return measured

        what = "the validation batches"
        return Validation(measure_on_batches, what, keep_best=told.keep_best, patience=told.patience)

    def take(self, generation: int) -> nn.Module:
        """The untrained network of ``generation``, or the teacher that was given."""
        if generation in self._built:
            return self._built.pop(generation)
        if generation == 0 and self.given.teacher is not None:
            return self._open_teacher(self.given.teacher)
        return self.make(generation)

    def make(self, generation: int) -> nn.Module:
        """An untrained network, with the initial weights of ``generation``."""
        build, name = self.given.build, "build"
        if generation > 0 and self.given.build_student is not None:
            build, name = self.given.build_student, "build_student"
        with seeded(derive_seed(self.given.seed, "initial weights", generation)):
            module: object = build()
        if not isinstance(module, nn.Module):
            raise TypeError(f"`{name}` must make a torch module, it made a {type(module).__name__}")
        check_module(module, name, self.processes)
        if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
            raise ValueError(f"`{name}` makes a module with lazy parameters: call it there on inputs, which makes them")
        return self._place(module)

    def _place(self, module: nn.Module) -> nn.Module:
        return module if self.given.device is None else module.to(self.given.device)

    def _open_teacher(self, teacher: nn.Module | str | Path) -> nn.Module:
        if not isinstance(teacher, nn.Module):
            module = self.make(0)
            fit_weights(module, load_weights(teacher), teacher)
            return module
        return self._place(copy_module(teacher))  # the caller's own keeps its mode, and may go on learning

    def make_lesson(self, teacher: nn.Module | None, generation: int, *, of_all_classes: bool = False) -> Lesson:
        """What ``generation`` learns; ``of_all_classes``, also where only a teacher's most likely ones are kept."""
        if teacher is None:
            return Lesson("cross_entropy", seed=self.given.seed, ignore_index=self.given.ignore_index)
        objective, options = self.given.objective, self.given.options
        cache = self.given.teacher_cache
        if cache is not None and cache.top_k is not None and not of_all_classes:
            objective, options = cache.objective(self.given.objective_name, options), {}
        return Lesson(
            objective,
            teacher,
            seed=self.given.seed,
            generation=generation,
            options=options,
            classes=self.given.classes,
            group=self.processes.group,
            ignore_index=self.given.ignore_index,
        )

    def try_lesson(self, teacher: nn.Module, generation: int, *, learns: bool) -> None:
        """One batch through ``teacher``, which is ``generation`` and perhaps about to learn itself, its student and the
        objective; see :mod:`~polydistill.modules.trial`."""
        whose = "the module that `build` makes" if learns else "the teacher"
        check_source(self.given.batches, self.processes, self.given.parts)
        if self.given.teacher_cache is not None:
            require_repetition(self.given.batches)
        with seeded(derive_seed(self.given.seed, "trial"), self.given.batches):
            given = trial.take_first(self.given.batches, "batches", self.given.ignore_index)
            if not learns:
                cast_up(teacher, given)
            reading = self.given.reading(generation)
            scores, batch = trial.try_network(teacher, given, whose, "batches", self.given.ignore_index, reading)
        with seeded(derive_seed(self.given.seed, "trial, test"), self.given.test):
            first = trial.take_first(self.given.test, "test", self.given.ignore_index)
            require_classes(read_batch(first).labels, "the first batch of `test`")
            trial.try_network(teacher, first, whose, "test", self.given.ignore_index, reading)
        n_classes = scores.shape[1]
        sources = {"batches": self.given.batches, "test": self.given.test, "validation": self.given.validation}
        for name, batches in sources.items():
            check_all_labels(batches, name, n_classes, self.given.ignore_index)
        if self.given.classes is not None and self.given.classes != n_classes:
            raise ValueError(f"`classes` is {self.given.classes}, but {whose} gives {n_classes} scores per sample")
        of_student = self._try_student(teacher, generation + 1, given, n_classes)
        if learns:
            self._try_learning(teacher, batch, whose, generation)
        lesson = self.make_lesson(nn.Identity(), generation + 1)
        with seeded(derive_seed(self.given.seed, "trial")):
            trial.try_lesson(lesson, of_student, scores.to(of_student.device), batch.labels.to(of_student.device))
        self.n_classes = n_classes

    def _try_student(self, teacher: nn.Module, generation: int, given: Any, n_classes: int) -> Tensor:
        """Build the student of ``generation``, and give its scores of the batch ``given``."""
        student = self._built[generation] = self.take(generation)
        if share_weights(student, teacher):
            name = "build" if self.given.build_student is None else "build_student"
            raise ValueError(
                f"`{name}` must make a fresh module each time, what it makes shares weights with the teacher"
            )
        with seeded(derive_seed(self.given.seed, "trial")):
            reading = self.given.reading(generation)
            scores, batch = trial.try_network(
                student, given, "the student", "batches", self.given.ignore_index, reading
            )
        if scores.shape[1] != n_classes:
            raise ValueError(
                f"the student gives {scores.shape[1]} scores per sample and its teacher {n_classes}: both must tell "
                "the same classes apart"
            )
        self._try_learning(student, batch, "the student", generation)
        self._make_schedule(self.given.optimizer(student.parameters()))
        return scores

    def _try_learning(self, network: nn.Module, batch: Batch, whose: str, generation: int) -> None:
        told = self.given
        trial.try_optimizer(network, told.optimizer, whose, told.parts, told.precision)
        if told.precision == "float16":
            with seeded(derive_seed(told.seed, "trial, float16")):
                trial.try_precision(network, batch, whose, told.reading(generation))

    def describe(self, lineage: LineageConfig, checkpoint: CheckpointConfig) -> ModuleConfig:
        """What decides a run, for its folder."""
        first, student = self.take(0), self.take(1)
        self._built |= {0: first, 1: student}
        trial.try_optimizer(student, self.given.optimizer, "the student", self.given.parts, self.given.precision)
        return ModuleConfig(
            seed=self.given.seed,
            epochs=self.given.epochs,
            log_every_steps=self.given.log_every_steps,
            device="" if self.given.device is None else str(self.given.device),
            precision=self.given.precision,
            compile=self.given.compile,
            parts=self.given.parts,
            clip_norm=self.given.clip_norm,
            scheduler=self._describe_schedule(student),
            keep_best=self.given.keep_best,
            patience=self.given.patience,
            ema=self.given.ema,
            output=describe_choice(self.given.output),
            teacher_output=describe_choice(self.given.teacher_output),
            teacher_inputs=describe_choice(self.given.teacher_inputs),
            teacher_cache={} if self.given.teacher_cache is None else self.given.teacher_cache.describe(),
            objective=self.given.objective_name,
            options=plain(self.given.options),
            ignore_index=self.given.ignore_index,
            networks={"generation_0": describe_network(first), "students": describe_network(student)},
            teacher="" if self.given.teacher is None else weights_sha256(first.state_dict()),
            optimizer=describe_optimizer(self.given.optimizer(student.parameters())),
            data={
                "batches": describe_batches(self.given.batches),
                "test": describe_batches(self.given.test),
                "validation": describe_batches(self.given.validation),
            },
            lineage=lineage,
            checkpoint=checkpoint,
        )

    def _describe_schedule(self, student: nn.Module) -> dict[str, Any]:
        schedule = self._make_schedule(self.given.optimizer(student.parameters()))
        if schedule is None:
            return {}
        settings = {name: value for name, value in schedule.state().items() if not name.startswith("_")}
        return {"class": type(schedule.scheduler).__name__, "by": schedule.by, **plain(settings)}
