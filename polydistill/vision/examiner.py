"""The metrics of each generation, alone, beside its teacher, and in ensembles.

Contract: each generation predicts the test images once in a process; everything else is computed from its logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from polydistill.learning.measures import compare, ensemble_logits, measure, require_finite_metrics
from polydistill.vision.config import EvaluationConfig
from polydistill.vision.evaluation import predict, require_finite
from polydistill.vision.images.augmentation import Normalizer
from polydistill.vision.images.data import Images


class Examiner:
    """Measures generations 0, 1, ... in their order.

    Args:
        images: test, and perhaps validation.
        normalizer: of the pixels.
        config: which ensembles; and the rule that selected weights, for the report.
    """

    def __init__(self, images: Images, normalizer: Normalizer, config: EvaluationConfig) -> None:
        self.images, self.normalizer, self.config = images, normalizer, config
        self._test_logits: list[Tensor] = []
        self._val_logits: list[Tensor] = []

    @property
    def images_to_see(self) -> int:
        """How many images each generation predicts in :meth:`look`."""
        return len(self.images.test) + len(self.images.validation)

    def look(self, member: nn.Module, seen: Callable[[int], None] | None = None) -> None:
        """Predict with the next generation; ``seen`` is called now and then with a number of images."""
        self._test_logits.append(predict(member, self.images.test, self.normalizer, seen))
        if len(self.images.validation):
            self._val_logits.append(predict(member, self.images.validation, self.normalizer, seen))

    def correct(self, members: Sequence[int] = (-1,)) -> NDArray[np.bool_]:
        """``(test images,)``: which of them the latest generation, or the ensemble of ``members``, got right."""
        guess = self._logits(self._test_logits, members).argmax(dim=1)
        right: NDArray[np.bool_] = (guess == self.images.test.labels).cpu().numpy()
        return right

    def remembered(self, member: nn.Module, seen: Callable[[int], None] | None = None) -> float:
        """The accuracy of the latest generation on its training images, not augmented, in evaluation mode.

        Raises:
            NonFiniteError: its scores are not finite.
        """
        train = self.images.train
        logits = predict(member, train, self.normalizer, seen)
        require_finite(logits, train, f"generation {len(self._test_logits) - 1} on the training images")
        return int((logits.argmax(dim=1) == train.labels).sum()) / len(train)

    def report(self, objective: str | None) -> dict[str, Any]:
        """The metrics of the latest generation, for summary.json.

        Args:
            objective: by which it learned from the generation before; None: it had no teacher.

        Raises:
            NonFiniteError: its scores are not finite.
            FloatingPointError: a metric is not finite.
        """
        whose = f"generation {len(self._test_logits) - 1} ({objective or 'labels'})"
        require_finite(self._test_logits[-1], self.images.test, f"{whose} on the test images")
        if self._val_logits:
            require_finite(self._val_logits[-1], self.images.validation, f"{whose} on the validation images")
        metrics = self._measure([len(self._test_logits) - 1])
        alone = {"agreement": None, "kl": None}
        metrics |= alone if objective is None else compare(self._test_logits[-1], self._test_logits[-2])
        require_finite_metrics(metrics, whose)
        return {**metrics, "selection": self.config.selection}

    def ensembles(self, generations: int) -> list[dict[str, Any]]:
        """The configured ensembles of a lineage with ``generations`` students: mean of their probabilities.

        Each is ``members``, ``reference`` and ``metrics``. Agreement and KL are with the generation ``reference``, the
        teacher of the earliest member; all three are None where that member is generation 0.

        Raises:
            FloatingPointError: a metric is not finite.
        """
        found = []
        for members in self.config.chosen_ensembles(generations):
            reference = min(members) - 1 if min(members) else None
            metrics = self.ensemble(members, reference)
            found.append({"members": list(members), "reference": reference, "metrics": metrics})
        return found

    def ensemble(self, members: Sequence[int], reference: int | None = None) -> dict[str, Any]:
        """The metrics of the mean probability of ``members``, at least 2; agreement and KL are with ``reference``.

        Raises:
            FloatingPointError: a metric is not finite.
        """
        metrics = self._measure(members) | {"agreement": None, "kl": None}
        if reference is not None:
            metrics |= compare(self._logits(self._test_logits, members), self._test_logits[reference].double())
        require_finite_metrics(metrics, f"the ensemble of {', '.join(map(str, members))} on the test images")
        return metrics

    def _measure(self, members: Sequence[int]) -> dict[str, Any]:
        """The metrics of one generation, or of the mean probability of several."""
        measured = measure(self._logits(self._test_logits, members), self.images.test.labels)
        metrics: dict[str, Any] = {f"test_{name}": value for name, value in measured.items()}
        metrics["val_accuracy"] = None
        if self._val_logits:
            logits = self._logits(self._val_logits, members)
            metrics["val_accuracy"] = measure(logits, self.images.validation.labels)["accuracy"]
        return metrics

    @staticmethod
    def _logits(of_all: list[Tensor], members: Sequence[int]) -> Tensor:
        """The logits of one generation; of several the float64 logits of the mean probability."""
        return of_all[members[0]] if len(members) == 1 else ensemble_logits([of_all[member] for member in members])
