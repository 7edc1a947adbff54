"""What a lesson of one's own modules is made of: untrained networks, what they learn, and who trains them.

Contract: no network is built twice: the one that a rehearsal or a description looked at is the one that learns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from polydistill._environment import require_extra
from polydistill.learning.lesson import Lesson
from polydistill.learning.measures import measure, require_finite_metrics
from polydistill.learning.processes import ALONE
from polydistill.learning.sharded import shard, share_at_once
from polydistill.lineage.course import Validation
from polydistill.modules.arguments import Arguments
from polydistill.modules.batches import device_of
from polydistill.modules.examiner import predict
from polydistill.modules.feed import Feed
from polydistill.modules.schedule import Schedule, require_scheduler
from polydistill.modules.seeding import seeded
from polydistill.modules.shares import check_module, check_same_weights
from polydistill.modules.teacher_scores import TeacherScores
from polydistill.modules.training import ModuleTraining
from polydistill.modules.weights import copy_module, fit_weights, load_weights
from polydistill.streams import derive_seed

MUCH_AT_ONCE = 0.5  # of a sharded module's weights: it says so


class Workshop:
    """Makes them for one lineage.

    Args:
        given: what the user says.

    Attributes:
        n_classes: of the scores; None before the rehearsal.
        processes: that share each batch.
    """

    def __init__(self, given: Arguments) -> None:
        self.given = given
        self.n_classes: int | None = None
        self.processes = ALONE
        self._built: dict[int, nn.Module] = {}  # and not trained yet
        self._said = False  # that dividing them saves little

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
            self.make_schedule(optimizer),
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
            ignore_index=told.ignore_index,
        )
        scores.fill(told.batches, heed)
        return scores

    def make_schedule(self, optimizer: Optimizer) -> Schedule | None:
        """That of the optimiser's rate; None: it stays.

        Raises:
            TypeError, ValueError: see :func:`require_scheduler`.
        """
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

    def show(self, generation: int) -> nn.Module:
        """What :meth:`take` will give."""
        self._built[generation] = self.take(generation)
        return self._built[generation]

    def make(self, generation: int) -> nn.Module:
        """An untrained network, with the initial weights of ``generation``."""
        build, name = self.given.build, "build"
        if generation > 0 and self.given.build_student is not None:
            build, name = self.given.build_student, "build_student"
        with seeded(derive_seed(self.given.seed_of(generation), "initial weights", generation)):
            module: object = build()
        if not isinstance(module, nn.Module):
            raise TypeError(f"`{name}` must make a torch module, it made a {type(module).__name__}")
        check_module(module, name, self.processes)
        if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
            raise ValueError(f"`{name}` makes a module with lazy parameters: call it there on inputs, which makes them")
        return self._place(module, name)

    def _place(self, module: nn.Module, name: str) -> nn.Module:
        """The module of the argument ``name`` where it learns; the same in all processes."""
        told = self.given
        if told.shard and self.processes.size > 1:  # it need not fit on one device
            device, built = torch.device(told.device or "cpu"), device_of(module)
            if told.device is None and built is not None and built.type != "cpu":
                raise ValueError(f"`{name}` makes a module on {built}: with shard, name the device, as device='cuda'")
            check_same_weights(module.state_dict(), name, self.processes, device)
            shard(module, device, told.blocks, name)
            if self.processes.rank == 0 and not self._said:
                self._say_if_little_is_saved(module, name)
            return module
        placed = module if told.device is None else module.to(told.device)
        check_same_weights(placed.state_dict(), name, self.processes, device_of(placed))
        return placed

    def _say_if_little_is_saved(self, module: nn.Module, name: str) -> None:
        rest, neighbours, largest = share_at_once(module, self.given.blocks)
        if rest + neighbours > MUCH_AT_ONCE:
            self._said = True
            print(
                f"shard saves little memory: {rest + neighbours:.0%} of the weights of `{name}` are whole at once. "
                f"{rest:.0%} lie in no block; the largest block is {largest or 'missing'}. "
                "ModuleDomain(shard=(Block,)) chooses the classes of blocks",
                file=sys.stderr,
            )

    def _open_teacher(self, teacher: nn.Module | str | Path) -> nn.Module:
        if not isinstance(teacher, nn.Module):
            module = self.make(0)
            weights = load_weights(teacher)
            check_same_weights(weights, "teacher", self.processes, device_of(module))  # each may have a file of its own
            fit_weights(module, weights, teacher)
            return module
        return self._place(copy_module(teacher), "teacher")  # the caller's own keeps its mode, and may go on learning

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
            seed=self.given.seed_of(generation),
            generation=generation,
            options=options,
            classes=self.given.classes,
            group=self.processes.group,
            ignore_index=self.given.ignore_index,
        )
