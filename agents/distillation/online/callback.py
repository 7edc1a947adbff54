"""Students that learn while their teacher does, as a callback of Stable-Baselines3.

Contract: what the teacher learns is bit for bit what it is without the callback. Its buffers and networks are only
read, and no generator but the callback's own is drawn from.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import Schedule

from polydistill.errors import require_choice
from polydistill.losses import get_objective
from polydistill_agents.distillation.algorithm import PolicyDistillation, Precision
from polydistill_agents.distillation.online.curves import TEACHER, Curves, ScoreOf
from polydistill_agents.distillation.online.group import Group
from polydistill_agents.distillation.online.labels import Labels, freeze
from polydistill_agents.distillation.online.requirements import check_model, check_returns, check_teacher
from polydistill_agents.distillation.online.seen import InReplay, InRollouts, Seen, SharedBatches
from polydistill_agents.distillation.online.students import Wanted, make_students, name_students
from polydistill_agents.distillation.settings import (
    check_averaging,
    check_choices,
    check_learning_rate,
    check_objective,
    keyword_arguments,
    positive_number,
    whole_number,
)
from polydistill_agents.teachers import Teacher

LABEL_SCORE = "distill/label_score"  # of whoever labels
COUNTERS = ("_watched", "_began_at", "_round_at", "_rounds")


class DistillCallback(BaseCallback):
    """Teach students from the replay of a DQN or QR-DQN, or the rollouts of a PPO or A2C, while it learns.

    ``model.learn(..., callback=DistillCallback(["net1", "net2"]))``. The students are there from its first step on.

    Args:
        students: one, a list of them, or a table from names to them; each is "net1", "net2", "net3", "nature" or a
            ``Size``, of frames; a list of the widths of linear layers; or "teacher", its own architecture. Two of one
            kind begin with different weights.
        labels: "best": by the teacher when it was best (Rusu et al. 2016, section 4.5), by the mean return of its last
            games of training; "best_score": likewise by ``score``. Students begin once there is such a teacher.
            "current": by the teacher as it is at each round of updates.
        score: from an agent, a function from observations to scores of actions, to its mean score, as
            :func:`polydistill_agents.evaluate` gives it: for the curves of teacher and students. None: there are none.
        score_every: steps between two points of the curves.
        best_games: over which the mean return is taken.
        learning_starts: observations that the teacher has seen before the students' first update.
        samples_per_step: samples that each student learns from per step of the teacher.
        round_steps: steps of the teacher between two rounds of updates.
        rollout_states: of a PPO or A2C, observations of its last rollouts that are drawn from.
        batch_size, objective, objective_kwargs, averaging: see
            :class:`~polydistill_agents.distillation.algorithm.PolicyDistillation`.
        learning_rate: of Adam; a number or a schedule of the teacher's remaining progress.
        temperature: T of ``policy_kl`` for Q-values. None: 0.01 for frames of Atari; else half of the median gap
            between the best two actions of whoever labels, measured again as that one is replaced.
        precision: of the Nature-CNNs of students and of whoever labels.
        log_every: rounds between two records of a student, which lie in a folder of its name within the model's.
        seed: root of the random streams; None draws one.
        verbose: 1: a line where a better teacher is taken.

    Each of :attr:`students` is a ``PolicyDistillation`` without an environment: it plays, is saved, and may go on. One
    whose loss is not finite stops, with a warning, and stays what it was before; the teacher goes on.

    Raises:
        ValueError: an argument that cannot work, by its name; when learning begins, also a model that is not fit.
    """

    def __init__(
        self,
        students: str | Sequence[Any] | Mapping[str, Wanted],
        *,
        labels: Literal["best", "best_score", "current"] = "best",
        score: ScoreOf | None = None,
        score_every: int = 50_000,
        best_games: int = 20,
        learning_starts: int = 1_024,
        samples_per_step: float = 2.0,
        round_steps: int = 512,
        rollout_states: int = 10_000,
        batch_size: int = 128,
        learning_rate: float | Schedule = 1e-3,
        objective: str = "policy_kl",
        objective_kwargs: dict[str, Any] | None = None,
        temperature: float | None = None,
        averaging: float = 0.05,
        precision: Precision = "float32",
        log_every: int = 8,
        seed: int | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.wanted = name_students(students)
        require_choice("labels", labels, ("best", "best_score", "current"))
        if labels == "best_score" and score is None:
            raise ValueError("labels='best_score' needs a function score= from an agent to its mean score")
        if score is not None and not callable(score):
            raise ValueError(f"score must be a function from an agent to its mean score, got {score!r:.80}")
        self._curves = Curves(score, whole_number("score_every", score_every, 1))
        self.learning_starts = whole_number("learning_starts", learning_starts, 1)
        self.samples_per_step = positive_number("samples_per_step", samples_per_step)
        self.round_steps = whole_number("round_steps", round_steps, 1)
        self.rollout_states = whole_number("rollout_states", rollout_states, 1)
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.log_every = whole_number("log_every", log_every, 1)
        check_choices(precision, 0.0, seed, "cpu")
        check_learning_rate(learning_rate)
        check_averaging(averaging)
        if temperature is not None:
            temperature = positive_number("temperature", temperature)
        objective_kwargs = keyword_arguments("objective_kwargs", objective_kwargs)
        check_objective(get_objective(objective), objective_kwargs, temperature or 1.0)
        self.seed = None if seed is None else int(seed)
        self._options: dict[str, Any] = {
            "learning_rate": learning_rate, "batch_size": batch_size, "samples_per_step": samples_per_step,
            "objective": objective, "objective_kwargs": objective_kwargs, "temperature": temperature,
            "averaging": averaging, "precision": precision,
        }  # fmt: skip
        self.precision = precision
        self.labels = Labels(labels, whole_number("best_games", best_games, 1), precision)
        self._group: Group | None = None
        self._watched = 0  # steps of the teacher, over all calls of learn with this callback: the clock of the rounds
        self._began_at: int | None = None  # on it, when the students began
        self._round_at = self._rounds = 0
        self._pending: Mapping[str, Any] | None = None
        self._seen: Seen | None = None

    @property
    def group(self) -> Group:
        """The students, and what they share.

        Raises:
            ValueError: learning has not begun.
        """
        if self._group is None:
            raise ValueError("the students are built when learning begins: model.learn(..., callback=...)")
        return self._group

    @property
    def students(self) -> dict[str, PolicyDistillation]:
        """By name; empty before learning begins."""
        return {} if self._group is None else self._group.students

    # ---- what Stable-Baselines3 calls --------------------------------------------------------------------------------

    def _init_callback(self) -> None:
        """Build the students, or look whether they fit another model that they go on beside."""
        model = self.model
        check_model(model)
        teacher = freeze(model, self.precision)
        check_teacher(model, teacher)
        if self.labels.which == "best":
            check_returns(self.training_env)
        if self._group is None:
            if self.seed is None:
                self.seed = int(np.random.SeedSequence().generate_state(1)[0])
            options = {**self._options, "device": model.device}
            students = make_students(self.wanted, teacher, model.action_space, self.seed, options)
            self._group = Group(students, self.batch_size, self.seed)
        for student in self.students.values():
            teacher.check_fits(student.observation_space, student.action_space)
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._apply(pending)
        self._seen = self._open_seen()

    def _open_seen(self) -> Seen:
        if isinstance(self.model, OffPolicyAlgorithm):
            assert self.model.replay_buffer is not None
            return InReplay(self.model.replay_buffer, self.model.device)
        assert isinstance(self.model, OnPolicyAlgorithm)
        if isinstance(self._seen, InRollouts):
            return self._seen
        return InRollouts(self.model.rollout_buffer, self.rollout_states, self.model.device)

    def _on_training_start(self) -> None:
        self._updates_before = self.group.updates
        self._curves.open(self.model.logger, self.students)

    def _on_step(self) -> bool:
        self._watched += self.training_env.num_envs
        self.labels.watch(self.model, self.locals["infos"])
        return True

    def _on_rollout_start(self) -> None:
        if isinstance(self._seen, InReplay):  # the step before is in the replay, and learned from
            self._go_on()

    def _on_rollout_end(self) -> None:
        if isinstance(self._seen, InRollouts):
            self._seen.add(self.model.rollout_buffer)  # type: ignore[attr-defined]
            self._go_on()

    def _on_training_end(self) -> None:
        self._go_on()
        self._curves.close(self.students, self.num_timesteps)
        if self.group.updates == self._updates_before:
            warnings.warn(f"the students made no update: {self._explain_none()}", stacklevel=2)

    def _explain_none(self) -> str:
        if self.labels.teacher is None and self.labels.which != "current":
            return self.labels.explain_none()
        if not self._has_seen_enough:
            held = f"{len(self._seen or ()):,} of learning_starts={self.learning_starts:,} observations"
            return f"the teacher has seen {held}; play more steps, or lower learning_starts"
        return f"play more steps, or lower round_steps={self.round_steps:,}"

    # ---- a round -----------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """A point of the curves and a round of updates, each if it is due."""
        self.num_timesteps = self.model.num_timesteps
        if self._curves.due(self._watched):
            self.score_all()
        if self._watched - self._round_at >= self.round_steps:
            self._round_at = self._watched
            self._round()

    def _round(self) -> None:
        now, taken_before = self._watched, self.labels.at_step
        teacher = self.labels.choose(self.model, now)
        if self.verbose and self.labels.which != "current" and self.labels.at_step != taken_before:
            print(
                f"step {self.num_timesteps:,}: the teacher is better than before ({self.labels.best:.2f}), and labels"
            )
        if teacher is None or not self._has_seen_enough:
            return
        self._teach(teacher)

    def _teach(self, teacher: Teacher) -> None:
        """The updates that are owed for what was watched since the students began."""
        assert self._seen is not None
        now, step = self._watched, self.num_timesteps
        if self._began_at is None:
            self._began_at = now - self.round_steps
        source = SharedBatches(self._seen, teacher)
        tempered = self.group.temper(source, self.labels.at_step, now)
        if tempered is not None and self.verbose:
            print(f"step {step:,}: {tempered}")
        owed = int((now - self._began_at) * self.samples_per_step / self.batch_size) - self.group.updates
        while owed > 0:
            n_updates = min(owed, source.most(self.batch_size))
            self.group.learn(source, n_updates, step, self.model._current_progress_remaining)
            owed -= n_updates
            if owed == 0:
                self._record()

    @property
    def _has_seen_enough(self) -> bool:
        assert self._seen is not None
        return len(self._seen) >= self.learning_starts or (self._seen.full and len(self._seen) > 0)

    def _record(self) -> None:
        if self.labels.which != "current":
            for student in self.students.values():
                student.logger.record(LABEL_SCORE, self.labels.best)
        self._rounds += 1
        if self._rounds % self.log_every == 0:
            self.group.dump(self.num_timesteps)

    def score_all(self) -> dict[str, float]:
        """Score the teacher as it is, as "teacher", and each student, as points of the curves.

        Raises:
            ValueError: there is no ``score``.
        """
        if self._curves.score is None:
            raise ValueError("give a function score= to DistillCallback: it says what is scored, and how")
        found = self._curves.add(freeze(self.model, "float32"), self.students, self.num_timesteps)
        self.labels.offer(self.model, found[TEACHER], self._watched)
        return found

    # ---- saved and gone on with --------------------------------------------------------------------------------------

    def save_students(self, folder: str | Path) -> dict[str, Path]:
        """Write each student as an ordinary DQN zip ``<name>.zip``, which stock ``DQN.load`` opens; the paths."""
        paths = {name: Path(folder) / f"{name}.zip" for name in self.students}
        for name, student in self.students.items():
            student.save(paths[name])
        return paths

    def state(self) -> dict[str, Any]:
        """All that decides the students' future but what their teacher has seen.

        Plain values and tensors on the CPU, which load with ``weights_only=True``. To be asked for between two calls of
        ``learn``, or in ``_on_rollout_start`` of a callback that stands behind this one.
        """
        return {
            "seed": self.seed,
            "counters": {name: getattr(self, name) for name in COUNTERS},
            "next_score": self._curves.next_at,
            "labels": self.labels.state(),
            "group": self.group.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`, when the model that was saved with it goes on: before its ``learn``.

        The replay of a DQN must be there again for the same batches; what a PPO or A2C had seen is not: it sees more.

        Raises:
            ValueError: the state is of other students; where they are not built yet, when learning begins.
        """
        if self.seed is None:
            self.seed = state["seed"]
        if self._group is None:
            self._pending = state
        else:
            self._apply(state)

    def _apply(self, state: Mapping[str, Any]) -> None:
        self.group.load_state(state["group"])
        self.labels.load_state(state["labels"], self.model)
        for name in COUNTERS:
            setattr(self, name, state["counters"][name])
        self._curves.next_at = state["next_score"]
