"""A lineage of one's own model and data: any module that gives ``(batch, classes)`` scores, any iterable of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from polydistill.learning.lesson import Lesson, check_options
from polydistill.learning.modules import trial
from polydistill.learning.modules.examiner import ModuleExaminer
from polydistill.learning.modules.seeding import seeded
from polydistill.learning.modules.training import train
from polydistill.learning.modules.weights import cast_up, copy_module, fit_weights, load_weights
from polydistill.learning.networks import share_weights
from polydistill.losses import as_objective
from polydistill.losses.checks import check_integer
from polydistill.losses.objectives import OwnObjective
from polydistill.streams import derive_seed

Batches = Iterable[Any]
LARGEST_SEED = 2**63 - 1


class ModuleDomain:
    """Generations of modules that ``build`` makes, for :class:`polydistill.lineage.Lineage`.

    A batch is ``(inputs, labels)``; ``(input, input, ..., labels)``, with the labels last; or a mapping, as Hugging
    Face has them, with the labels under "labels", whose other entries are the module's keyword arguments. What is on
    another device than the module is moved there. The module gives scores ``(batch, classes)``, an output with
    ``.logits`` or ``["logits"]``, or a tuple that begins with them. Scores may also be ``(batch, time, classes)`` with
    labels ``(batch, time)``, or ``(batch, classes, height, width)`` with labels ``(batch, height, width)``: each
    position counts as a sample. (Where there are as many positions as classes, what is which follows from the batches
    before; of a first batch a warning says how it is read.) A score belongs to the label at its own position; a causal
    language model needs labels that are shifted by one. Use autocast in the module's ``forward``; around the lineage it
    has no effect. Under ``DistributedDataParallel`` each process takes the mean over what counts in its own batches,
    and reports on its own test batches.

    **Seeds.** ``seed`` decides all that is drawn while a generation is built and trained, by torch, numpy and Python:
    initial weights, dropout, the shuffling of a ``DataLoader`` (with a generator of its own, too) and its workers. Two
    processes with one seed make the same students, and arms of one seed have the same generation 0 and the same order
    of batches, with other objectives or students too: batches draw from a stream of their own. (Of Python's ``random``
    there is one stream for all.) Afterwards all generators are as before. An iterable that draws from a generator that
    it keeps to itself cannot be seeded: make it a ``DataLoader``, or draw from torch's global one. A sampler with
    ``set_epoch``, as ``DistributedSampler``, is told the epoch, from 0 for each generation; its seed is its own.

    **Going on.** ``Lineage(domain, config, done=...)`` with the generations that an earlier run has finished trains
    those after them, as the unbroken run would have. A generation cannot be continued in its middle.

    **Mistakes** in the arguments are errors of the constructor. To find the others, one batch of each kind goes through
    both networks and the objective before the first step.

    Args:
        build: makes a fresh module on its device; called once per generation. One that returns a
            pretrained network is trained again, as generation 0: if you have a teacher, give ``teacher``.
        batches: iterated once per epoch: a list, or a ``DataLoader``.
        test: the same, for the metrics; in the same order each time (a ``DataLoader`` that shuffles is).
        epochs: passes over ``batches`` for each generation, >= 1.
        optimizer: makes one from parameters; None: SGD with rate 0.1 and Nesterov momentum 0.9. Its rate is not
            scheduled.
        objective: of the students: a name in ``polydistill.losses.OBJECTIVES``, or a function of ``(student, teacher,
            labels)``, scores ``(batch, classes)`` twice and labels ``(batch,)``, that returns a loss for each sample,
            ``(batch,)``. One of ``polydistill.losses`` is given what it takes. Generation 0 learns by cross_entropy.
        options: of the objective. Permutations cannot be fixed: the samples have no numbers here.
        classes: how many there are; needed by an objective that permutes them, as dkpp.
        seed: root of the random streams, >= 0.
        build_student: makes the modules of the students, where they are another network than generation 0; None:
            ``build`` does.
        teacher: generation 0, which is not trained then, only evaluated: a module, of which a copy is used (in the
            inputs' float type, where its own is a shorter one), or the path of a file of weights for what ``build``
            makes (``.safetensors``, or of ``torch.save(module.state_dict())``).
        ignore_index: label of samples (or positions) that count for nothing, in training and metrics, as padding; a
            function of one's own gets only the others, for which each batch waits for a GPU. None: each
            label must be a class.

    Attributes:
        members: generation -> module, of all that were trained or given in this process; also where an error came
            before the generation was reported, so that nothing that was trained is lost.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of range; before the first step, what does not fit together in the first batches;
            while training, a label that is no class (looked at where labels are on the CPU).
        UserError: before the first step, the teacher's file is missing or does not fit.
        FloatingPointError: while training, at the end of an epoch in which a loss was not finite, or at the end of all
            where a weight is not; when evaluated, scores or metrics that are not.

    Example:
        >>> from polydistill.lineage import Lineage, LineageConfig
        >>> data = [(torch.eye(3), torch.arange(3))]
        >>> domain = ModuleDomain(lambda: nn.Linear(3, 3), data, data, epochs=50)
        >>> [generation.metrics["test_accuracy"] for generation in Lineage(domain, LineageConfig(1))]
        [1.0, 1.0]
        >>> domain.ensemble([0, 1])["test_accuracy"]
        1.0

        A later process needs a generation's summary, plain JSON values, and its weights:

        >>> from polydistill.lineage import Generation
        >>> zero = next(iter(Lineage(domain, LineageConfig(2))))
        >>> summary, weights = zero.summary(), zero.member.state_dict()
        >>> member = domain.build()
        >>> keys = member.load_state_dict(weights)
        >>> done = [Generation(member=member, **summary)]
        >>> [generation.generation for generation in Lineage(domain, LineageConfig(2), done)]
        [1, 2]
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        batches: Batches,
        test: Batches,
        *,
        epochs: int,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        objective: str | Callable[..., Tensor] = "ban",
        options: Mapping[str, Any] | None = None,
        classes: int | None = None,
        seed: int = 0,
        build_student: Callable[[], nn.Module] | None = None,
        teacher: nn.Module | str | Path | None = None,
        ignore_index: int | None = -100,
    ) -> None:
        self.build, self.build_student, self.epochs = build, build_student, epochs
        self.batches, self.test, self.teacher, self.ignore_index = batches, test, teacher, ignore_index
        self.optimizer = optimizer or (lambda parameters: torch.optim.SGD(parameters, 0.1, 0.9, nesterov=True))
        self.options, self.classes, self.seed = dict(options or {}), classes, seed
        self._objective = objective
        self._check_arguments(optimizer)
        self._examiner = ModuleExaminer(test, seed, ignore_index)
        self._built: dict[int, nn.Module] = {}  # for the trial, and not trained yet
        self._n_classes: int | None = None  # known after the trial

    @property
    def objective(self) -> str:
        """Name of the students' objective."""
        return as_objective(self._objective).name

    @property
    def members(self) -> dict[int, nn.Module]:
        """See the class."""
        return self._examiner.members

    def network(self, member: nn.Module) -> nn.Module:
        """The member itself."""
        return member

    def first(self) -> nn.Module:
        """Generation 0: the teacher that was given, or a module that learns from labels."""
        self._examiner = ModuleExaminer(self.test, self.seed, self.ignore_index)
        self._built = {}
        member = self._make(0) if self.teacher is None else self._open_teacher(self.teacher)
        self._try(member, 0, learns=self.teacher is None)
        if self.teacher is None:
            self._train(member, Lesson("cross_entropy", seed=self.seed, ignore_index=self.ignore_index), 0)
        self._examiner.members[0] = member
        return member

    def teach(self, teacher: nn.Module, generation: int) -> nn.Module:
        """The student of ``generation``."""
        if self._n_classes is None:
            self._try(teacher, generation - 1, learns=False)
        student = self._built.pop(generation) if generation in self._built else self._make(generation)
        self._train(student, self._lesson(teacher, generation), generation)
        self._examiner.members[generation] = student
        return student

    def recall(self, member: nn.Module, generation: int) -> None:
        """Take ``member`` as that generation, which an earlier run has finished."""
        if generation == 0:
            self._examiner = ModuleExaminer(self.test, self.seed, self.ignore_index)
        self._examiner.members[generation] = member

    def evaluate(self, member: nn.Module, teacher: nn.Module | None, generation: int) -> dict[str, Any]:
        """``test_accuracy``, ``test_nll`` (nats per sample) and ``test_ece`` (calibration error) on the test batches;
        ``agreement`` with the teacher and ``kl``, KL(teacher || student), which are None for generation 0.

        Raises:
            ValueError: the test batches are others than those of the generation before, or every label is ignored.
            FloatingPointError: scores or metrics are not finite.
        """
        try:
            return self._examiner.report(member, teacher, generation)
        except Exception as error:
            error.add_note(f"generation {generation} is not lost: ModuleDomain.members[{generation}]")
            raise

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

    def _make(self, generation: int) -> nn.Module:
        build, name = self.build, "build"
        if generation > 0 and self.build_student is not None:
            build, name = self.build_student, "build_student"
        with seeded(derive_seed(self.seed, "initial weights", generation)):
            module: object = build()
        if not isinstance(module, nn.Module):
            raise TypeError(f"`{name}` must make a torch module, it made a {type(module).__name__}")
        if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
            raise ValueError(f"`{name}` makes a module with lazy parameters: call it there on inputs, which makes them")
        return module

    def _open_teacher(self, teacher: nn.Module | str | Path) -> nn.Module:
        if not isinstance(teacher, nn.Module):
            module = self._make(0)
            fit_weights(module, load_weights(teacher), teacher)
            return module
        return copy_module(teacher)  # the caller's own keeps its mode, and may go on learning

    def _lesson(self, teacher: nn.Module, generation: int) -> Lesson:
        return Lesson(
            self._objective,
            teacher,
            seed=self.seed,
            generation=generation,
            options=self.options,
            classes=self.classes,
            ignore_index=self.ignore_index,
        )

    def _try(self, teacher: nn.Module, generation: int, *, learns: bool) -> None:
        """One batch through ``teacher``, which is ``generation`` and perhaps about to learn itself, its student and the
        objective; see :mod:`~polydistill.learning.modules.trial`."""
        whose = "the module that `build` makes" if learns else "the teacher"
        with seeded(derive_seed(self.seed, "trial"), self.batches):
            given = trial.take_first(self.batches, "batches", self.ignore_index)
            if not learns:
                cast_up(teacher, given)
            scores, batch = trial.try_network(teacher, given, whose, "batches", self.ignore_index)
        with seeded(derive_seed(self.seed, "trial, test"), self.test):
            first = trial.take_first(self.test, "test", self.ignore_index)
            trial.try_network(teacher, first, whose, "test", self.ignore_index)
        n_classes = scores.shape[1]
        for name, batches in (("batches", self.batches), ("test", self.test)):
            trial.check_all_labels(batches, name, n_classes, self.ignore_index)
        if self.classes is not None and self.classes != n_classes:
            raise ValueError(f"`classes` is {self.classes}, but {whose} gives {n_classes} scores per sample")
        of_student = self._try_student(teacher, generation + 1, given, n_classes)
        if learns:
            trial.try_optimizer(teacher, self.optimizer, whose)
        lesson = self._lesson(nn.Identity(), generation + 1)
        with seeded(derive_seed(self.seed, "trial")):
            trial.try_lesson(lesson, of_student, scores.to(of_student.device), batch.labels.to(of_student.device))
        self._n_classes = n_classes

    def _try_student(self, teacher: nn.Module, generation: int, given: Any, n_classes: int) -> Tensor:
        """Build the student of ``generation``, and give its scores of the batch ``given``."""
        student = self._built[generation] = self._make(generation)
        if share_weights(student, teacher):
            name = "build" if self.build_student is None else "build_student"
            raise ValueError(
                f"`{name}` must make a fresh module each time, what it makes shares weights with the teacher"
            )
        with seeded(derive_seed(self.seed, "trial")):
            scores, _ = trial.try_network(student, given, "the student", "batches", self.ignore_index)
        if scores.shape[1] != n_classes:
            raise ValueError(
                f"the student gives {scores.shape[1]} scores per sample and its teacher {n_classes}: both must tell "
                "the same classes apart"
            )
        trial.try_optimizer(student, self.optimizer, "the student")
        return scores

    def _train(self, student: nn.Module, lesson: Lesson, generation: int) -> None:
        with seeded(derive_seed(self.seed, "training", generation), self.batches) as batches:
            optimizer = self.optimizer(student.parameters())
            train(student, lesson, optimizer, batches, self.epochs, self.ignore_index, self._n_classes)

    def _check_arguments(self, optimizer: object) -> None:
        for name, function in (("build", self.build), ("build_student", self.build_student), ("optimizer", optimizer)):
            if isinstance(function, nn.Module):
                advice = "lambda: Net(...); what you have trained is given as `teacher`"
                raise TypeError(f"`{name}` must be a function that makes a module, as {advice}; got a module")
            if not callable(function) and (function is not None or name == "build"):
                raise TypeError(f"`{name}` must be a function, got a {type(function).__name__}")
        trial.check_batches(self.batches, "batches")
        trial.check_batches(self.test, "test")
        check_integer("epochs", self.epochs, 1)
        check_integer("seed", self.seed, 0, LARGEST_SEED)
        if self.classes is not None:
            check_integer("classes", self.classes, 2)
        if self.ignore_index is not None:
            check_integer("ignore_index", self.ignore_index, -LARGEST_SEED, LARGEST_SEED)
        if not isinstance(self.teacher, nn.Module | str | Path | None):
            raise TypeError(f"`teacher` must be a module or the path of a file, got a {type(self.teacher).__name__}")
        objective = as_objective(self._objective)
        if not isinstance(objective, OwnObjective):
            check_options(objective.name, self.options)
            if self.options.get("permutation") == "fixed":
                raise ValueError("permutation cannot be fixed for batches whose samples have no numbers")
        if objective.needs_permutation and self.classes is None:
            raise ValueError(f"objective {objective.name} permutes classes: it must be told how many, by `classes`")
