"""Students that learn the same batches from one teacher, round by round.

Contract: one that goes wrong stays what it was before the bad update, and holds up nobody else.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from polydistill.learning.rewind import NonFiniteError
from polydistill.streams import torch_stream
from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill_agents.distillation.online.seen import SharedBatches
from polydistill_agents.distillation.watching import MEASURED_STATES
from polydistill_agents.teachers.temperature import Tempered, choose_temperature

TEMPERED_EVERY = 5_000  # steps: how often a temperature is measured, at most


class Group:
    """Students by name.

    Args:
        students: see :func:`~polydistill_agents.distillation.online.students.make_students`.
        batch_size: samples per update.
        seed: root of the random streams.

    Attributes:
        stopped: names of those whose loss, or whose weights, were not finite.
        updates: that each has made, or would have made.
    """

    def __init__(self, students: dict[str, PolicyDistillation], batch_size: int, seed: int) -> None:
        self.students, self.batch_size, self.seed = students, batch_size, seed
        self.stopped: list[str] = []
        self.updates = 0
        first = next(iter(students.values()))
        self._measures = first.temperature is None and first.lesson.teacher_kind == "q_values"
        self._measured_at: int | None = None

    def learn(self, source: SharedBatches, n_updates: int, step: int, remaining: float) -> None:
        """A round of all students.

        Args:
            source: what they learn from.
            n_updates: how many each makes.
            step: of the teacher.
            remaining: share of its steps that is left.
        """
        self.updates += n_updates
        for name, student in self.students.items():
            if name in self.stopped:
                continue
            student.lesson.teacher, student.num_timesteps = source.teacher, step
            student._current_progress_remaining = remaining
            try:
                student.learn_from(source, n_updates, self.batch_size)
            except NonFiniteError as error:
                self.stopped.append(name)
                warnings.warn(f"student {name} stops learning, and stays as it was before: {error}", stacklevel=2)

    def temper(self, source: SharedBatches, taken_at: int, step: int) -> Tempered | None:
        """Measure the temperature of the lessons, where it is not given and whoever labels is another one.

        Args:
            source: the states, and who labels.
            taken_at: when that one was taken, in steps that were watched.
            step: now, likewise.

        Returns:
            None where it stays.
        """
        last = self._measured_at
        if not self._measures or (last is not None and (taken_at <= last or step - last < TEMPERED_EVERY)):
            return None
        generator = torch_stream(self.seed, f"temperature of students that learn online, step {step}")
        _, scores = next(source.batches(1, MEASURED_STATES, generator))
        chosen, self._measured_at = choose_temperature(scores), step
        for student in self.students.values():
            student.temperature = chosen.temperature
            student.lesson.temper(chosen.temperature)
        return chosen

    def dump(self, step: int) -> None:
        """Write what was recorded of each."""
        for student in self.students.values():
            student.logger.dump(step)

    def state(self) -> dict[str, Any]:
        """What :meth:`load_state` needs, in plain values and tensors on the CPU."""
        return {
            "stopped": list(self.stopped),
            "updates": self.updates,
            "measured_at": self._measured_at,
            "students": {name: student.state() for name, student in self.students.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`.

        Raises:
            ValueError: it is of other students, or of others' settings.
        """
        if list(state["students"]) != list(self.students):
            there, here = ", ".join(state["students"]), ", ".join(self.students)
            raise ValueError(f"students: the state is of {there}, this callback teaches {here}")
        self.stopped, self.updates = list(state["stopped"]), state["updates"]
        self._measured_at = state["measured_at"]
        for name, student in self.students.items():
            if self._measures:
                student.temperature = None  # it takes that of the state
            student.load_state(state["students"][name])
