"""What a generation learns from: an objective of :mod:`polydistill.losses`, its options, and a frozen teacher.

Symbols: z student scores, t teacher scores, both ``(batch, classes)``. Contract: one lesson is for the update and for
the doctor alike; the teacher is in evaluation mode and needs no gradient; an option that the objective does not take is
refused, never ignored; nothing here waits for a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from polydistill import losses
from polydistill.learning.networks import freeze
from polydistill.losses import Objective, activation_l2, as_objective, fix_permutation, get_objective, gradient_shares
from polydistill.losses.description import compute, compute_closed
from polydistill.losses.ignored import find_counted, most_likely, set_aside
from polydistill.losses.objectives import OwnObjective
from polydistill.losses.options import refuse_unknown
from polydistill.streams import derive_seed

Sum = TypeVar("Sum", Tensor, float)
Teacher = Callable[[Any], Tensor]  # a module, or any function from inputs to scores that has no graph


class Tally(NamedTuple, Generic[Sum]):
    """Sums over samples, of which a report makes means."""

    samples: Sum
    correct: Sum
    agreed: Sum  # the student chooses what the teacher does
    diagnosed: Sum  # samples that have the following
    label_share: Sum
    largest_weight: Sum  # of cwtm, in the sample's batch, and the next
    effective_share: Sum


class Lesson:
    """An objective with all that it needs besides the student's scores.

    Args:
        objective: name in ``polydistill.losses.OBJECTIVES``, or a function of one's own, see
            :func:`polydistill.losses.as_objective`.
        teacher: a module is frozen here: evaluation mode, no gradients; None for an objective of labels alone.
        teacher_kind: of its scores: "logits", or "q_values".
        temperature: of Q-values, see :func:`policy_temperature`.
        seed: root of the random streams (permutations).
        generation: of the student.
        options: of the objective, see :func:`check_options`.
        classes: how many there are, for an objective that permutes them.
        group: of the processes that share a batch; None: there is one.
        ignore_index: label of samples that do not count; None: all count.
        activation_weight: weight, beside the objective, of the distance between the hidden states of student and
            teacher (:func:`polydistill.losses.activation_l2`, added up over the states), >= 0.

    Attributes:
        objective: its name.
        teacher_kind: as given.
        temperature: at which the softmax of the teacher's scores is its policy: what an objective takes whose
            temperature is in their unit, where its options name no other.
        score_kind: of the student that has learned it: "logits", or of a regression the teacher's.
        keeps_q: the student's scores are the teacher's Q-values, tempered as those are.

    Raises:
        ValueError: an option that the objective does not take, no teacher where it needs one, or one of logits where it
            needs Q-values.
    """

    def __init__(
        self,
        objective: str | Callable[..., Tensor],
        teacher: Teacher | None = None,
        *,
        teacher_kind: str = "logits",
        temperature: float = 1.0,
        seed: int = 0,
        generation: int = 0,
        options: Mapping[str, Any] | None = None,
        classes: int | None = None,
        group: dist.ProcessGroup | None = None,
        ignore_index: int | None = None,
        activation_weight: float = 0.0,
    ) -> None:
        if not 0 <= activation_weight < math.inf:
            raise ValueError(f"activation_weight must be a number of at least 0, got {activation_weight}")
        self.classes, self.group, self.activation_weight = classes, group, activation_weight
        self._function = as_objective(objective)
        self.objective, self.teacher, self.seed, self.generation = self._function.name, teacher, seed, generation
        if teacher is None and "teacher" in self._function.takes:
            raise ValueError(f"objective {self.objective} needs a teacher, and there is none")
        if activation_weight and not isinstance(teacher, nn.Module):
            raise ValueError("activation_weight is for a teacher that is a network, whose hidden states can be seen")
        if not isinstance(self._function, OwnObjective):
            check_options(self.objective, options or {})
        if self._function.needs_permutation and classes is None:
            raise ValueError(f"objective {self.objective} permutes classes: it must be told how many there are")
        require_kind(self._function, teacher_kind)
        self.score_kind = learned_kind(self._function, teacher_kind)
        self.keeps_q = self._function.needs_q_values
        self._options = dict(options or {})
        self._permutation = self._options.pop("permutation", "fresh") if self._function.needs_permutation else "fresh"
        self.teacher_kind = teacher_kind
        self._tempers = self._function.sharpens and "temperature" not in self._options
        self.temper(temperature)
        self._ignore_index = ignore_index
        if ignore_index is not None:
            self._options["ignore_index"] = ignore_index
        if isinstance(teacher, nn.Module):
            freeze(teacher)

    def temper(self, temperature: float) -> None:
        """Take another temperature of Q-values, where the options name none; see :attr:`temperature`."""
        self.temperature = policy_temperature(self.teacher_kind, temperature)
        if self._tempers:
            self._options["temperature"] = self.temperature

    def __call__(
        self, scores: Tensor, teacher: Tensor | None, labels: Tensor | None, permutation: Tensor | None
    ) -> Tensor:
        """The loss per sample, ``(batch,)``; see the objective for arguments and errors."""
        options = self.options(permutation)
        if self._function.batch_coupled:
            options["group"] = self.group
        if teacher is not None and labels is not None and self._ignore_index is not None:
            # a teacher's scores of padding may be NaN
            counted = find_counted(labels, self._ignore_index)
            assert counted is not None
            teacher = teacher.masked_fill(~counted.unsqueeze(-1), 0.0)
        return self._function(scores, teacher, labels, **options)

    @property
    def couples_the_batch(self) -> bool:
        """Whether a sample's loss depends on the teacher's scores of the rest of its batch."""
        return self._function.batch_coupled

    @property
    def kind(self) -> Hashable:
        """What lessons have in common whose losses are computed in one call: all but teachers and permutations."""
        teacher = None if self.teacher is None else self.teacher_kind
        return self._function, teacher, tuple(sorted(self._options.items())), self.classes, self._ignore_index

    def backward(
        self,
        scores: Tensor,
        teacher: Tensor | None,
        labels: Tensor | None,
        permutation: Tensor | None,
        n_batch: int | Tensor,
        states: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> Tensor:
        """The loss per sample, detached; the gradient of their sum / ``n_batch`` flows to what ``scores`` are made of.
        All tensors may have a dimension of students before the others, in each of which there is a batch.

        ``states`` are pairs of the student's hidden states and the teacher's, whose distance counts too. Where the
        objective has a closed form it needs no graph between scores and loss, which takes longer than a small
        network's layers.
        """
        if self._function.has_closed_form and self._ignore_index is None and not states:
            described = self._function.describe(scores, teacher, labels, **self.options(permutation))
            closed = compute_closed(described)
            if closed is not None:
                losses, gradient = closed
                scores.backward(gradient.div_(n_batch))  # type: ignore[no-untyped-call]
                return losses
            losses = compute(described)
        elif scores.dim() > 2 and isinstance(self._function, OwnObjective):  # which knows of one student
            losses = self._of_each_student(scores, teacher, labels)
        else:
            losses = self(scores, teacher, labels, permutation)
        for own, its in states:
            losses = losses + self.activation_weight * activation_l2(own, its)
        losses.backward(torch.ones_like(losses).div_(n_batch))  # type: ignore[no-untyped-call]
        return losses.detach()

    def _of_each_student(self, scores: Tensor, teacher: Tensor | None, labels: Tensor | None) -> Tensor:
        """``(students, batch)`` losses, computed student by student."""
        losses = []
        for number, own in enumerate(scores):
            taught, labelled = (None if given is None else given[number] for given in (teacher, labels))
            losses.append(self(own, taught, labelled, None))
        return torch.stack(losses)

    def options(self, permutation: Tensor | None = None) -> dict[str, Any]:
        """What the objective takes besides scores and labels: for the update, and for the doctor.

        Args:
            permutation: of :meth:`draw_permutation`.
        """
        return dict(self._options) if permutation is None else {**self._options, "permutation": permutation}

    def draw_permutation(self, ids: Tensor, step: int) -> Tensor | None:
        """What an objective that permutes classes does with a batch; None for any other.

        Args:
            ids: ``(batch,)`` int64, which training samples these are; each once, since samples with the same number
                are permuted alike.
            step: updates before this one.

        Returns:
            ``(batch, classes - 1)`` int64, made on the device of ``ids``: a function of (seed, generation, step, id),
            or, where permutations are fixed, of (seed, generation, id).
        """
        if not self._function.needs_permutation or self.classes is None:
            return None
        stream = "permutation" if self._permutation == "fixed" else f"permutation, step {step}"
        return fix_permutation(ids, self.classes, seed=derive_seed(self.seed, stream, self.generation))

    def tally(self, scores: Tensor, teacher: Tensor | None, labels: Tensor, *, diagnose: bool) -> Tensor:
        """Sums over this process's part of a batch, a :class:`Tally` in one float64 tensor, for :meth:`summarize`.

        Args:
            scores: of the student, detached.
            teacher: scores, or None.
            labels: ``(batch,)`` int64; a sample whose label is ignored is not in the sums. Of ``(batch, classes)``
                probabilities the most likely class counts.
            diagnose: also the gradient's shares and, for cwtm, the weights of the samples in the whole batch, which
                cost more; every process must have a sample, and with a group two small messages are sent.
        """
        labels = most_likely(labels, self._ignore_index)
        if self._ignore_index is not None:
            return self._tally_counted(scores, teacher, labels, diagnose=diagnose)
        sums = torch.zeros(len(Tally._fields), dtype=torch.float64, device=scores.device)
        tally = Tally(*sums.unbind())
        guesses = scores.argmax(dim=1)
        tally.samples.fill_(len(labels))  # a number assigned would be copied from the host, which no graph records
        tally.correct.copy_((guesses == labels).sum())
        if teacher is None:
            return sums
        tally.agreed.copy_((guesses == teacher.argmax(dim=1)).sum())
        if diagnose:
            tally.diagnosed.fill_(len(labels))
            tally.label_share.copy_(gradient_shares(scores, teacher, labels).label_share.double().sum())
            if self.objective == "cwtm":
                largest, effective = self._measure_weights(teacher)
                tally.largest_weight.copy_(len(labels) * largest)
                tally.effective_share.copy_(len(labels) * effective)
        return sums

    def _tally_counted(self, scores: Tensor, teacher: Tensor | None, labels: Tensor, *, diagnose: bool) -> Tensor:
        """:meth:`tally` of the samples whose label is not ignored."""
        counted = find_counted(labels, self._ignore_index)
        assert counted is not None
        labels, ignored = set_aside(labels, counted), ~counted.unsqueeze(1)
        scores = scores.masked_fill(ignored, 0.0)  # of padding they may be anything
        sums = torch.zeros(len(Tally._fields), dtype=torch.float64, device=scores.device)
        tally = Tally(*sums.unbind())
        guesses = scores.argmax(dim=1)
        tally.samples.copy_(counted.sum())
        tally.correct.copy_(((guesses == labels) & counted).sum())
        if teacher is None:
            return sums
        teacher = teacher.masked_fill(ignored, 0.0)
        tally.agreed.copy_(((guesses == teacher.argmax(dim=1)) & counted).sum())
        if diagnose:
            tally.diagnosed.copy_(tally.samples)
            shares = gradient_shares(scores, teacher, labels).label_share.double()
            tally.label_share.copy_(shares.masked_fill(~counted, 0.0).sum())
            if self.objective == "cwtm":
                largest, effective = self._measure_weights(teacher, counted)
                tally.largest_weight.copy_((tally.samples * largest).nan_to_num(0.0))  # NaN where none counts
                tally.effective_share.copy_((tally.samples * effective).nan_to_num(0.0))
        return sums

    def _measure_weights(self, teacher: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Largest weight and effective share of cwtm's weights over the batch of all processes, ``()`` float64; of the
        samples that are ``counted`` if they are not all."""
        confidence = teacher.double().softmax(dim=1).amax(dim=1)
        ones = torch.ones_like(confidence)
        if counted is not None:
            confidence, ones = confidence * counted, ones * counted
        largest = confidence.max()
        sums = torch.stack([ones, confidence, confidence.square()]).sum(dim=1)
        if self.group is not None:
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.group)
            dist.all_reduce(sums, group=self.group)
        samples, total, squares = sums.unbind()
        return largest * samples / total, total.square() / (samples * squares)

    def summarize(self, sums: list[float]) -> dict[str, float]:
        """TensorBoard tag -> mean, from summed tallies.

        ``train/agreement`` is the share of training samples for which student and teacher choose the same class;
        ``distill/label_share`` says how much of the gradient of cross-entropy with the teacher is the label's (the
        rest is dark knowledge). For cwtm, ``distill/largest_weight`` is the largest weight of a sample in its batch
        (1: all are equal), and ``distill/effective_share`` is (mean w)^2 / mean w^2, the share of the batch that
        counts.
        """
        tally = Tally(*sums)
        if not tally.samples:
            return {}
        values = {"train/accuracy": tally.correct / tally.samples}
        if self.teacher is None:
            return values
        values["train/agreement"] = tally.agreed / tally.samples
        if tally.diagnosed:
            values["distill/label_share"] = tally.label_share / tally.diagnosed
            if self.objective == "cwtm":
                values["distill/largest_weight"] = tally.largest_weight / tally.diagnosed
                values["distill/effective_share"] = tally.effective_share / tally.diagnosed
        return values


def policy_temperature(kind: str, temperature: float) -> float:
    """T at which the softmax of scores is a policy: Q-values are sharpened, logits are taken as they are.

    Args:
        kind: of the scores, "q_values" or "logits".
        temperature: T > 0 of Q-values, in their unit.
    """
    return temperature if kind == "q_values" else 1.0


def learned_kind(objective: Objective, teacher_kind: str) -> str:
    """Kind of the scores of a student that learns by ``objective`` from scores of ``teacher_kind``."""
    return "logits" if objective.score_kind == "logits" else teacher_kind


def require_kind(objective: Objective, teacher_kind: str) -> None:
    """Refuse a teacher whose scores ``objective`` has no use for.

    Raises:
        ValueError: it keeps Q-values, and the teacher has none.
    """
    if objective.needs_q_values and teacher_kind != "q_values":
        raise ValueError(
            f"objective {objective.name} keeps Q-values, and the teacher gives logits: choose policy_kl, or a teacher "
            "of Q-values, like a DQN"
        )


def check_options(objective: str, options: Mapping[str, object]) -> None:
    """Refuse options that ``objective`` does not take, and values that are out of range.

    Args:
        objective: name in ``polydistill.losses.OBJECTIVES``.
        options: its numbers, see :attr:`polydistill.losses.Objective.options`, and for one that permutes classes
            ``permutation``: "fresh" in every step, or "fixed" for each sample.

    Raises:
        ValueError: naming the option, and those that there are.
        TypeError: a value that is no number.
    """
    numbers = dict(options)
    if get_objective(objective).needs_permutation:
        permutation = numbers.pop("permutation", "fresh")
        refuse_unknown(objective, numbers, {"permutation": None})
        if permutation not in ("fresh", "fixed"):
            raise ValueError(f"permutation must be fresh or fixed, got {permutation!r}")
    losses.check_options(objective, **numbers)
