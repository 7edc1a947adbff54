"""A lineage of one's own model and data: any module that gives ``(batch, classes)`` scores, any iterable of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from polydistill.streams import derive_seed
from polydistill.vision.evaluation import compare, evaluation_mode, measure
from polydistill.vision.lesson import Lesson
from polydistill.vision.update import Update

Batches = Iterable[tuple[Tensor, Tensor]]


class ModuleDomain:
    """Generations of modules that ``build`` makes, for :class:`polydistill.lineage.Lineage`.

    Args:
        build: makes a fresh module on the device where it shall be; called once per generation, with torch's generator
            seeded for it (and put back afterwards).
        batches: ``(inputs, labels)`` pairs, iterated once per epoch: a list, or a ``DataLoader``. Inputs are anything
            that the module takes, labels ``(batch,)`` int64.
        test: the same, for the metrics.
        epochs: passes over ``batches`` for each generation.
        optimizer: makes one from parameters.
        objective: of the students; generation 0 learns by cross_entropy.
        options: of the objective. Permutations cannot be fixed: the samples have no numbers here.
        classes: how many there are; needed by an objective that permutes them, as dkpp.
        seed: root of the random streams.

    Example:
        >>> from polydistill.lineage import Lineage, LineageConfig
        >>> data = [(torch.eye(3), torch.arange(3))]
        >>> domain = ModuleDomain(lambda: nn.Linear(3, 3), data, data, epochs=50)
        >>> [generation.metrics["test_accuracy"] for generation in Lineage(domain, LineageConfig(1))]
        [1.0, 1.0]
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
    ) -> None:
        self.build, self.batches, self.test, self.epochs = build, batches, test, epochs
        self.optimizer = optimizer or (lambda parameters: torch.optim.SGD(parameters, 0.1, 0.9, nesterov=True))
        self._objective, self.options, self.classes, self.seed = objective, dict(options or {}), classes, seed
        if self.options.get("permutation") == "fixed":
            raise ValueError("permutation cannot be fixed for batches whose samples have no numbers")
        self._test_logits: dict[int, Tensor] = {}

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
        """Accuracy, negative log-likelihood and calibration error on the test batches, agreement with the teacher."""
        with evaluation_mode(member):
            parts = [(member(inputs).float(), labels) for inputs, labels in self.test]
        logits, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        self._test_logits[generation] = logits
        metrics: dict[str, Any] = {f"test_{name}": value for name, value in measure(logits, labels).items()}
        if teacher is None:
            return {**metrics, "agreement": None, "kl": None}
        return metrics | compare(logits, self._test_logits[generation - 1])

    def _train(self, lesson: Lesson, generation: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "initial weights", generation))
            student = self.build()
        update = Update(student, lesson, self.optimizer(student.parameters()))
        student.train()
        step = 0
        for epoch in range(self.epochs):
            batch = -1
            for batch, (inputs, labels) in enumerate(self.batches):
                _, _, loss = update(inputs, labels, len(labels), lesson.draw_permutation(labels, step))
                step += 1
                if not torch.isfinite(loss):
                    raise FloatingPointError(
                        f"the loss {lesson.objective} of generation {generation} is {loss.item()} at batch {batch + 1} "
                        f"of epoch {epoch + 1}"
                    )
            if batch < 0:
                raise ValueError(
                    f"no batches in epoch {epoch + 1}: `batches` must be iterable once per epoch, like a list or a "
                    "DataLoader; a generator is empty after the first"
                )
        return student
