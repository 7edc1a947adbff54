"""A lineage of one's own model and data: any module that gives ``(batch, classes)`` scores, any iterable of batches."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polydistill.streams import derive_seed
from polydistill.vision.evaluation import compare, ensemble_logits, evaluation_mode, measure
from polydistill.vision.lesson import Lesson
from polydistill.vision.update import Update

Batches = Iterable[tuple[Tensor, Tensor]]


class ModuleDomain:
    """Generations of modules that ``build`` makes, for :class:`polydistill.lineage.Lineage`.

    Args:
        build: makes a fresh module on the device where it shall be; called once per generation, with torch's
            generators, of the CPU and of the GPUs, seeded for it (and put back afterwards).
        batches: ``(inputs, labels)`` pairs, iterated once per epoch: a list, or a ``DataLoader``. Inputs are anything
            that the module takes, labels ``(batch,)`` int64.
        test: the same, for the metrics; in the same order each time.
        epochs: passes over ``batches`` for each generation.
        optimizer: makes one from parameters.
        objective: of the students; generation 0 learns by cross_entropy.
        options: of the objective. Permutations cannot be fixed: the samples have no numbers here.
        classes: how many there are; needed by an objective that permutes them, as dkpp.
        seed: root of the random streams.
        build_student: makes the modules of the students, where they are another network than generation 0; None:
            ``build`` does.

    Raises:
        ValueError: fixed permutations are asked for; while training, ``batches`` has none.
        FloatingPointError: while training, at the end of an epoch in which a loss was not finite, or at the end of all
            where a weight is not.

    Example:
        >>> from polydistill.lineage import Lineage, LineageConfig
        >>> data = [(torch.eye(3), torch.arange(3))]
        >>> domain = ModuleDomain(lambda: nn.Linear(3, 3), data, data, epochs=50)
        >>> [generation.metrics["test_accuracy"] for generation in Lineage(domain, LineageConfig(1))]
        [1.0, 1.0]
        >>> domain.ensemble([0, 1])["test_accuracy"]
        1.0
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        batches: Batches,
        test: Batches,
        *,
        epochs: int,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        objective: str = "ban",
        options: dict[str, Any] | None = None,
        classes: int | None = None,
        seed: int = 0,
        build_student: Callable[[], nn.Module] | None = None,
    ) -> None:
        self.build, self.build_student, self.epochs = build, build_student, epochs
        self.batches, self.test = batches, test
        self.optimizer = optimizer or (lambda parameters: torch.optim.SGD(parameters, 0.1, 0.9, nesterov=True))
        self._objective, self.options, self.classes, self.seed = objective, dict(options or {}), classes, seed
        if self.options.get("permutation") == "fixed":
            raise ValueError("permutation cannot be fixed for batches whose samples have no numbers")
        self._test_logits: dict[int, Tensor] = {}
        self._test_labels: Tensor | None = None

    @property
    def objective(self) -> str:
        """Name of the students' objective."""
        return self._objective

    def network(self, member: nn.Module) -> nn.Module:
        """The member itself."""
        return member

    def first(self) -> nn.Module:
        """Generation 0, which learns from labels."""
        return self._train(Lesson("cross_entropy", seed=self.seed), 0)

    def teach(self, teacher: nn.Module, generation: int) -> nn.Module:
        """The student of ``generation``."""
        lesson = Lesson(
            self._objective,
            teacher,
            seed=self.seed,
            generation=generation,
            options=self.options,
            classes=self.classes,
        )
        return self._train(lesson, generation)

    def evaluate(self, member: nn.Module, teacher: nn.Module | None, generation: int) -> dict[str, Any]:
        """Accuracy, negative log-likelihood and calibration error on the test batches; agreement with the teacher and
        KL(teacher || student), which are None for generation 0.

        Raises:
            ValueError: the test batches are others than those of the generation before.
        """
        with evaluation_mode(member):
            parts = [(member(inputs).float(), labels) for inputs, labels in self.test]
        logits, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        if self._test_labels is not None and not torch.equal(labels, self._test_labels):
            raise ValueError("the labels of `test` differ from one generation to the next: it must not be shuffled")
        self._test_logits[generation], self._test_labels = logits, labels
        return self._measure(logits, None if teacher is None else generation - 1)

    def ensemble(self, members: Sequence[int]) -> dict[str, Any]:
        """The same metrics of the mean of the members' probabilities.

        Its agreement and KL are with the teacher of its earliest member, the generation before that; None where that
        member is generation 0.

        Args:
            members: generations that have been evaluated, at least two, each once.

        Raises:
            ValueError: they are not.
        """
        there = sorted(self._test_logits)
        if len(members) < 2 or len(set(members)) != len(members) or not set(members) <= set(there):
            raise ValueError(
                f"an ensemble has at least 2 members, each once, of the generations {there} evaluated so far; "
                f"got {list(members)}"
            )
        logits = ensemble_logits([self._test_logits[member] for member in members])
        return self._measure(logits, min(members) - 1 if min(members) else None)

    def _measure(self, logits: Tensor, reference: int | None) -> dict[str, Any]:
        assert self._test_labels is not None
        measured = measure(logits, self._test_labels)
        metrics: dict[str, Any] = {f"test_{name}": value for name, value in measured.items()}
        if reference is None:
            return {**metrics, "agreement": None, "kl": None}
        return metrics | compare(logits, self._test_logits[reference].to(logits.dtype))

    def _train(self, lesson: Lesson, generation: int) -> nn.Module:
        with _seeded(derive_seed(self.seed, "initial weights", generation)):
            student = self.build_student() if generation and self.build_student else self.build()
        update = Update(student, lesson, self.optimizer(student.parameters()))
        student.train()
        step = 0
        for epoch in range(self.epochs):
            losses: list[Tensor] = []
            for inputs, labels in self.batches:
                rows = torch.arange(len(labels), device=labels.device)  # a permutation of its own for each sample
                _, _, loss = update(inputs, labels, len(labels), lesson.draw_permutation(rows, step))
                losses.append(loss)
                step += 1
            if not losses:
                raise ValueError(
                    f"no batches in epoch {epoch + 1}: `batches` must be iterable once per epoch, like a list or a "
                    "DataLoader; a generator is empty after the first"
                )
            _require_finite(losses, f"the loss {lesson.objective} of generation {generation}", epoch)
        if not torch.stack([parameter.isfinite().all() for parameter in student.parameters()]).all():
            raise FloatingPointError(
                f"the loss {lesson.objective} of generation {generation} leads to weights that are not finite in its "
                "last step"
            )
        student.zero_grad(set_to_none=True)
        return student


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's generators, of the CPU and of the GPUs, seeded while the context lasts, and then as before."""
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    gpus = list(range(torch.cuda.device_count())) if in_use else []
    try:
        with torch.random.fork_rng(devices=gpus):
            torch.manual_seed(seed)
            yield
    finally:
        if not in_use:  # what torch.manual_seed leaves a GPU that is used for the first time, here or later
            torch.cuda.manual_seed_all(torch.initial_seed())


def _require_finite(losses: list[Tensor], whose: str, epoch: int) -> None:
    """Refuse an epoch one of whose losses is not finite; the one time in it that the device is waited for."""
    for batch, loss in enumerate(torch.stack(losses).tolist()):
        if not math.isfinite(loss):
            raise FloatingPointError(f"{whose} is {loss} at batch {batch + 1} of epoch {epoch + 1}")
