"""One update of a student, and its optimiser.

Symbols: z student scores, t teacher scores, B batch of all processes together. One update is

    z = student(x),  t = teacher(x),  loss = (1 / B) sum of objective(z, t, labels),  gradient, SGD

Contract: the mean over the batch is taken here and nowhere else; nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polydistill.device import autocast, compile_network
from polydistill.learning.lesson import Lesson
from polydistill.learning.networks import Watched, share_weights
from polydistill.learning.processes import ALONE, Processes
from polydistill.learning.schedules import TrainingConfig


class Update:
    """One update of a student: scores, objective, gradient, optimiser. For any module and any inputs.

    Args:
        student: learns; in training mode.
        lesson: objective and teacher.
        optimizer: of the student's parameters.
        precision: float32, or bfloat16 or float16 for autocast; the objective is computed in float32 anyway. With
            float16 the loss is scaled by ``torch.amp.GradScaler``, which waits for the device: an update whose gradient
            is not finite is left out, and the next one has a smaller scale.
        processes: over which the gradient is summed.
        compiled: run both networks through torch.compile.
        clip_norm: largest Euclidean norm of the whole gradient, to which a larger one is scaled; None: any.
        score: the scores that student or teacher give for inputs; None: what they return.
        teacher_score: those of the teacher, where they are read otherwise.

    Attributes:
        skipped: updates that were left out.

    Raises:
        RuntimeError: student and teacher are one, or share weights.
        ValueError: they are on different devices; while learning, the student's scores have no gradient.
        TypeError: hidden states are to be matched, and a network shows none.
    """

    def __init__(
        self,
        student: nn.Module,
        lesson: Lesson,
        optimizer: torch.optim.Optimizer,
        *,
        precision: str = "float32",
        processes: Processes = ALONE,
        compiled: bool = False,
        clip_norm: float | None = None,
        score: Callable[[Any, Any], Tensor] | None = None,
        teacher_score: Callable[[Any, Any], Tensor] | None = None,
    ) -> None:
        if isinstance(lesson.teacher, nn.Module):
            _require_apart(student, lesson.teacher)
        self.student, self.lesson, self.optimizer, self.processes = student, lesson, optimizer, processes
        self.device = next(student.parameters()).device
        self.precision, self.clip_norm, self._score = precision, clip_norm, score or _call
        self._teacher_score = teacher_score or self._score
        self._scaler = torch.amp.GradScaler(self.device.type) if precision == "float16" else None
        self.skipped = 0
        self._watches = lesson.activation_weight > 0
        self._student: Callable[[Any], Any] = self._prepare(student, compiled)
        self._teacher: Callable[[Any], Any] | None = lesson.teacher
        if isinstance(lesson.teacher, nn.Module):
            self._teacher = self._prepare(lesson.teacher, compiled)

    def __call__(
        self,
        inputs: Any,
        labels: Tensor | None,
        n_batch: int | Tensor,
        permutation: Tensor | None = None,
        teacher_scores: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Do it.

        Args:
            inputs: this process's part of the batch, as ``score`` takes it.
            labels: ``(part,)`` int64; None where there are none.
            n_batch: size of the whole batch, of all processes; what counts of it.
            permutation: for an objective that wants one; see :meth:`Lesson.draw_permutation`.
            teacher_scores: ``(part, classes)`` scores that the teacher gave before; None: it computes them now. Of no
                use where hidden states are matched.

        Returns:
            student scores, teacher scores (None without a teacher), both ``(part, classes)`` float32, and this
            process's part of the mean loss, ``()``; all detached.
        """
        taught: list[Tensor] = []
        if self._watches:
            teacher_scores, taught = self._ask_teacher(inputs)
        elif teacher_scores is None:
            teacher_scores = self.teacher_scores(inputs)
        scores, states = self._ask_student(inputs)
        self._forget_gradients()
        pairs = list(zip(states, taught, strict=True))
        losses = self.lesson.backward(scores, teacher_scores, labels, permutation, self._scale_down(n_batch), pairs)
        self.apply()
        return scores.detach(), teacher_scores, losses.sum() / n_batch

    def in_parts(
        self,
        parts: Sequence[Any],
        labels: Tensor,
        n_batch: int | Tensor,
        permutation: Tensor | None = None,
        teacher_scores: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The same for a batch that comes in parts, whose gradients add up: of one part at a time the memory is needed.

        An objective that normalises over the batch sees the teacher's scores of all of it: up to rounding, and what
        depends on a part's other samples in the networks, as batch norm does, it is the same update.

        Args:
            parts: the inputs of each.
            labels: ``(batch,)`` int64, of all parts in their order.
            n_batch: as for a whole batch.
            permutation: of all.
            teacher_scores: of all, where they are known.

        Raises:
            ValueError: hidden states are to be matched, which is for whole batches.
        """
        if self._watches:
            raise ValueError("activation_weight is for whole batches: hidden states are not matched in parts")
        self._forget_gradients()
        coupled, teacher = self.lesson.couples_the_batch, teacher_scores
        if coupled and teacher is None:
            teacher = _join([self.teacher_scores(part) for part in parts])
        found: list[tuple[Tensor, Tensor | None, Tensor]] = []
        start, n_scaled = 0, self._scale_down(n_batch)
        for part in parts:
            of_part = self.teacher_scores(part) if teacher is None else None
            scores = self.student_scores(part)
            rows = slice(start, start + len(scores))
            if coupled:
                losses = self._backward_among_all(scores, rows, teacher, labels, permutation, n_scaled)
            else:
                drawn = None if permutation is None else permutation[rows]
                taught = of_part if teacher is None else teacher[rows]
                losses = self.lesson.backward(scores, taught, labels[rows], drawn, n_scaled)
            found.append((scores.detach(), of_part, losses))
            start = rows.stop
        self.apply()
        if teacher is None:
            teacher = _join([one for _, one, _ in found])
        return torch.cat([one for one, _, _ in found]), teacher, torch.cat([one for *_, one in found]).sum() / n_batch

    def with_closure(
        self,
        inputs: Any,
        labels: Tensor,
        n_batch: int | Tensor,
        permutation: Tensor | None = None,
        teacher_scores: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The same for an optimiser that evaluates the loss itself, as often as it wants, as LBFGS does; the scores and
        the loss are those of its first evaluation."""
        teacher = self.teacher_scores(inputs) if teacher_scores is None else teacher_scores
        found: list[tuple[Tensor, Tensor]] = []

        def evaluate() -> Tensor:
            scores = self.student_scores(inputs)
            self._forget_gradients()
            loss = self.lesson.backward(scores, teacher, labels, permutation, n_batch).sum() / n_batch
            self._finish_gradients()
            found.append((scores.detach(), loss))
            return self.processes.sum_(loss.clone())

        self.optimizer.step(evaluate)  # type: ignore[arg-type]
        return found[0][0], teacher, found[0][1]

    def _backward_among_all(
        self,
        scores: Tensor,
        rows: slice,
        teacher: Tensor | None,
        labels: Tensor,
        permutation: Tensor | None,
        n_batch: int | Tensor,
    ) -> Tensor:
        """:meth:`Lesson.backward` of the whole batch, of which the student's scores are known for ``rows`` alone; the
        losses of these. What couples the samples is the teacher's."""
        before, behind = (
            scores.new_zeros(rows.start, scores.shape[1]),
            scores.new_zeros(len(labels) - rows.stop, scores.shape[1]),
        )
        whole = torch.cat([before, scores, behind])
        return self.lesson.backward(whole, teacher, labels, permutation, n_batch)[rows]

    def student_scores(self, inputs: Any) -> Tensor:
        """``(part, classes)`` float32 scores of the student, with their graph."""
        return self._ask_student(inputs)[0]

    def _ask_student(self, inputs: Any) -> tuple[Tensor, list[Tensor]]:
        scores, states = self._ask(self._student, inputs, self._score)
        if not scores.requires_grad:
            raise ValueError(
                "the student's scores do not depend on its parameters: are they the right part of its output?"
            )
        return scores, states

    def apply(self) -> None:
        """One step of the optimiser along the gradients that the parameters have, of all processes."""
        self._finish_gradients()
        if self._scaler is None:
            self.optimizer.step()
            return
        before = self._scaler.get_scale()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.skipped += self._scaler.get_scale() < before

    def _scale_down(self, n_batch: int | Tensor) -> int | Tensor:
        """What the sum of the losses is divided by for the gradient: less, where the loss is scaled up."""
        if self._scaler is None:
            return n_batch
        return n_batch / self._scaler.scale(torch.ones((), device=self.device))

    def state(self) -> dict[str, Any]:
        """The scale of the loss, and what was left out; empty where it is not scaled. A copy."""
        return {} if self._scaler is None else {"scaler": self._scaler.state_dict(), "skipped": self.skipped}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        if self._scaler is not None:
            self._scaler.load_state_dict(dict(state["scaler"]))
            self.skipped = int(state["skipped"])

    def _finish_gradients(self) -> None:
        self.processes.sum_gradients_(self.student.parameters())
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.student.parameters(), self.clip_norm)

    def teacher_scores(self, inputs: Any) -> Tensor | None:
        """``(part, classes)`` float32 scores of the teacher, without a graph; None without a teacher."""
        return self._ask_teacher(inputs)[0]

    def _prepare(self, network: nn.Module, compiled: bool) -> nn.Module:
        watched = Watched(network) if self._watches else network
        return compile_network(watched, self.device) if compiled else watched

    def _ask_teacher(self, inputs: Any) -> tuple[Tensor | None, list[Tensor]]:
        if self._teacher is None:
            return None, []
        with torch.no_grad():
            return self._ask(self._teacher, inputs, self._teacher_score)

    def _ask(
        self, network: Callable[[Any], Any], inputs: Any, score: Callable[[Any, Any], Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Scores, and where they are matched the hidden states."""
        with autocast(self.device.type, self.precision):
            scores, states = network(inputs) if self._watches else (score(network, inputs), [])
        return scores.float(), states

    def _forget_gradients(self) -> None:
        """As the optimiser's ``zero_grad``, which tells a profiler of it; for a small network that takes as long as a
        layer.
        """
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


def make_optimizer(student: nn.Module, config: TrainingConfig, rate: float | Tensor) -> torch.optim.SGD:
    """SGD as ``config`` says, for every parameter that is not frozen; a frozen one does not decay either.

    Its momentum exists from the start, as zeros, which changes no step.
    """
    learning = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        learning,
        lr=rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
        fused=True,
    )
    if config.momentum:
        for parameter in learning:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _require_apart(student: nn.Module, teacher: nn.Module) -> None:
    devices = [{str(tensor.device) for tensor in _tensors(network)} for network in (student, teacher)]
    if all(devices) and devices[0].isdisjoint(devices[1]):
        ours, theirs = (", ".join(sorted(names)) for names in devices)
        raise ValueError(f"the student is on {ours}, its teacher on {theirs}: they must be on the same device")
    if share_weights(student, teacher):
        raise RuntimeError("the student shares weights with its teacher: it must be a network of its own")


def _join(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The parts' scores as those of the whole batch; None where there is no teacher."""
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None


def _call(network: Callable[[Any], Tensor], inputs: Tensor) -> Tensor:
    return network(inputs)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
