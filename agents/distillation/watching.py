"""An agent that learns by watching play: a round of steps, then the updates that they owe, in turn.

Contract: callbacks are called as Stable-Baselines3 calls them; they find a step of play in ``model.last_step``, and its
parts among their ``locals``.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterable
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule
from stable_baselines3.common.utils import safe_mean
from stable_baselines3.common.vec_env import VecEnv

from polydistill.learning.lesson import Lesson, policy_temperature
from polydistill.learning.rewind import NonFiniteError
from polydistill.streams import torch_stream
from polydistill_agents.distillation.acting import Actor, StudentActs, TeacherActs
from polydistill_agents.distillation.agent import StudentAgent
from polydistill_agents.distillation.dues import Dues
from polydistill_agents.distillation.frame_replay import open_replay
from polydistill_agents.distillation.learner import Learner, Source
from polydistill_agents.distillation.replay import Replay
from polydistill_agents.distillation.rounds import Round
from polydistill_agents.distillation.settings import whole_number
from polydistill_agents.environments.masks import read_masks
from polydistill_agents.environments.steps import Step
from polydistill_agents.networks.observations import Arrays, Tensors, to_tensors
from polydistill_agents.teachers import Teacher, mask_scores
from polydistill_agents.teachers.recorded import RecordedTeacher
from polydistill_agents.teachers.temperature import choose_temperature

MEASURED_STATES = 2048  # from which a temperature is chosen
Chosen = tuple[Any, NDArray[np.bool_], torch.Tensor, NDArray[np.int64]]  # the first parts of a ``Step``
MIN_ROUNDS = 8  # of a call of learn: a schedule that ends at zero would else leave a short one nothing


def no_teacher(observations: Any = None) -> torch.Tensor:
    """Who labels where nobody does."""
    raise ValueError("there is no teacher: pass one to PolicyDistillation(..., teacher=...) or to load")


class WatchingAgent(StudentAgent):
    """Play, replay and updates; a subclass says with which settings, and what begins them.

    Attributes:
        learner: makes the updates.
        last_step: of play.
    """

    lesson: Lesson
    learner: Learner
    last_step: Step
    play: str
    beta_ends: list[float] | None
    coins: np.random.Generator  # of who acts, and of the student that acts
    root_seed: int
    temperature: float | None  # None: it is measured before the first update
    generation: int
    buffer_size: int
    learning_starts: int
    batch_size: int
    train_freq: int
    samples_per_step: float
    _beta: Schedule
    _starts: NDArray[np.bool_]  # where the observations of the games are the first
    _rounds: int  # of play and updates in this run, over all calls of learn
    _played = _updates_at_zero = 0  # steps, and updates before them, since the counters were set
    _round_steps = _resumed_round_steps = 0  # steps of all games in a round of this call of learn

    @property
    def teacher(self) -> Teacher | None:
        """Who labels; None where the student was opened without one."""
        return None if self.lesson.teacher is no_teacher else cast(Teacher, self.lesson.teacher)

    @property
    def _learned_kind(self) -> str:
        return self.lesson.score_kind

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "PolicyDistillation",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Play ``total_timesteps`` steps, which the teacher labels, and teach the student from them.

        Updates are owed for the steps that were played since the counters were set, by ``reset_num_timesteps`` or by
        :meth:`load`; they are made once the replay holds ``learning_starts`` samples.

        Args:
            total_timesteps: agent steps of all games together; rounded up to whole steps of all games.
            callback: as in Stable-Baselines3; every hook is called.
            log_interval: rounds of updates between two records; None: no records.
            tb_log_name: name of the run in ``tensorboard_log``.
            reset_num_timesteps: count from zero, and start new games.
            progress_bar: show Stable-Baselines3's.

        Raises:
            ValueError: there is no teacher or no environment.

        Warns:
            UserWarning: steps were played, and no update was made.
        """
        self._require_what_learning_needs(log_interval)
        total_timesteps, callback = self._stand_ready(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        assert isinstance(self.env, VecEnv)
        assert self.replay is not None
        updates_before, stopped = self._n_updates, False
        callback.on_training_start(locals(), globals())
        while self.num_timesteps < total_timesteps:
            stopped = not self.collect_rollouts(self.env, callback, self.replay)
            if stopped:
                break
            updates = self._dues().now
            if updates:
                self.train(updates, self.batch_size)
            self._rounds += 1
            if log_interval is not None and self._rounds % log_interval == 0:
                self.dump_logs()
        self._round_steps = 0
        callback.on_training_end()
        if self._n_updates == updates_before and self.num_timesteps > self._num_timesteps_at_start:
            warnings.warn(f"learn made no update: {self._dues().explain_none(stopped, self.train_freq)}", stacklevel=2)
        return self

    def _stand_ready(
        self, total_timesteps: int, callback: MaybeCallback, reset: bool, tb_log_name: str, progress_bar: bool = False
    ) -> tuple[int, BaseCallback]:
        """Games, replay and callback for a call of :meth:`learn`; the total to play to, and the callback."""
        if reset:
            self._clear_dues()
        if reset or self._last_obs is None:  # new games start
            self._starts, self._rounds = np.ones(self.n_envs, dtype=bool), 0
            assert self.teacher is not None
            self.teacher.begin(self.n_envs)
        total_timesteps, callback = self._setup_learn(total_timesteps, callback, reset, tb_log_name, progress_bar)
        if self.replay is None:
            self.replay = self._make_replay()
        in_a_round = min(self.train_freq, (total_timesteps - self.num_timesteps) // (self.n_envs * MIN_ROUNDS))
        self._round_steps, self._resumed_round_steps = self._resumed_round_steps or max(int(in_a_round), 1), 0
        self.student.eval()
        return total_timesteps, callback

    def _require_what_learning_needs(self, log_interval: int | None) -> None:
        if self.teacher is None:
            no_teacher()
        if self.env is None:
            raise ValueError("there is no environment: pass one to load(..., env=...) or to set_env")
        if log_interval is not None:
            whole_number("log_interval", log_interval, 1)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        """As Stable-Baselines3's, but never below 0: the last step of all games may lead beyond the total."""
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        self._current_progress_remaining = max(self._current_progress_remaining, 0.0)

    def _clear_dues(self) -> None:
        """Count from here: nothing is owed."""
        self._played, self._updates_at_zero = 0, self._n_updates

    def _dues(self) -> Dues:
        assert self.replay is not None
        made = self._n_updates - self._updates_at_zero
        return Dues(self._played, made, self.replay, self.learning_starts, self.samples_per_step, self.batch_size)

    def actor(self, generator: np.random.Generator) -> Actor:
        """The teacher that acts, with random numbers from ``generator``; or what was done in play that is over."""
        if isinstance(self.teacher, RecordedTeacher):
            teacher = self.teacher
            return lambda observations, scores: teacher.acted()
        sampled = self.lesson.temperature if self.play == "sample" else None
        return TeacherActs(self.exploration_rate, sampled, generator)

    def _act(self, observations: Tensors, scores: torch.Tensor) -> NDArray[np.int64]:
        """Actions of the teacher or, where beta asks for it, of a student that has begun to learn."""
        actions = self.actor(self.explore)(observations, scores)
        if self.beta_ends == [1.0, 1.0] or (self.teacher is not None and self.teacher.recorded):
            return actions
        beta = 1.0 if self.learner.untouched else self._beta(self._current_progress_remaining)
        sampled = policy_temperature(self.score_kind, self.temperature or 1.0) if self.play == "sample" else None
        student = StudentActs(self.student_scores, self.exploration_rate, sampled, self.coins)
        actions, by_teacher = student.replace(actions, observations, beta)
        self.logger.record_mean("distill/teacher_action_share", float(by_teacher.mean()))
        return actions

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, replay: Replay) -> bool:
        """Play the steps of a round, or up to the total; False if a callback asks to stop.

        Callbacks find the step in ``model.last_step``, and its parts among their ``locals``.
        """
        callback.on_rollout_start()
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        for _ in range(self._round_steps):
            if not self._note(self._play(env, replay), callback):
                return False
            if self.num_timesteps >= self._total_timesteps:
                break
        callback.on_rollout_end()
        return True

    def _note(self, step: Step, callback: BaseCallback) -> bool:
        """Count a step that was played; False if the callback asks to stop."""
        self.last_step, n_envs = step, len(step.actions)
        self.num_timesteps += n_envs
        self._played += n_envs
        callback.update_locals(step._asdict())
        if not callback.on_step():
            return False
        self._update_info_buffer(step.infos, step.dones)
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        self._episode_num += int(step.dones.sum())
        return True

    def label(self, env: VecEnv, seen: Tensors, starts: NDArray[np.bool_]) -> torch.Tensor:
        """What the student is taught in the states that ``env`` shows: the teacher's scores, of its own view where it
        has one, -inf for what the environment forbids where it learned with masks. Its memory moves on.

        Args:
            env: the games.
            seen: what they show the student.
            starts: ``(n_envs,)`` where a new game begins.

        Raises:
            NonFiniteError: see :meth:`~polydistill_agents.distillation.learner.Learner.label`.
        """
        view = getattr(env, "teacher_view", None)
        scores = self.learner.label(seen if view is None else to_tensors(view, self.device), starts)
        if self.teacher is not None and self.teacher.masks and (masks := read_masks(env)) is not None:
            scores = mask_scores(scores, masks)
        return scores

    def _play(self, env: VecEnv, replay: Replay) -> Step:
        """One step of all games, labelled by the teacher."""
        chosen = self._choose(env, replay)
        return self._take(chosen, env.step(chosen[-1]))

    def _choose(self, env: VecEnv, replay: Replay) -> Chosen:
        """What is done next in all games, labelled by the teacher."""
        observations, starts = self._last_obs, self._starts
        assert observations is not None
        seen = to_tensors(observations, self.device)
        try:
            scores = self.label(env, seen, starts)
        except NonFiniteError as error:
            raise self._located(error) from None
        replay.add(observations, scores, starts)
        return observations, starts, scores, self._act(seen, scores)

    def _take(self, chosen: Chosen, came: Any) -> Step:
        """The step of what was :meth:`chosen <_choose>` and ``came`` of it; the games stand behind it."""
        step = Step(*chosen, *came)
        self._last_obs, self._starts = step.new_obs, step.dones
        return step

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """Make ``gradient_steps`` updates of the student from the replay.

        Raises:
            NonFiniteError: the loss is not finite; the student is as it was before that update.
        """
        assert self.replay is not None
        self.learn_from(self.replay, gradient_steps, batch_size)

    def learn_from(self, source: Source, gradient_steps: int, batch_size: int) -> None:
        """As :meth:`train`, from play that lies in ``source``."""
        if self.temperature is None:
            self._measure_temperature(source)
        self._update_learning_rate(self.policy.optimizer)
        try:
            done = self.learner.round(source, gradient_steps, batch_size)
        except NonFiniteError as error:
            self._n_updates += error.batch["update"] - 1
            raise self._located(error, f", update {self._n_updates + 1:,}") from None
        self._n_updates += gradient_steps
        self._record(done)

    def _record(self, done: Round) -> None:
        """What a round has shown, for the next dump."""
        self.logger.record("train/loss", done.loss)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("distill/loss", done.loss)
        self.logger.record("distill/replay_agreement", done.agreement)
        self.logger.record("distill/replay_regret", done.regret)
        if done.label_share is not None:
            self.logger.record("distill/label_share", done.label_share)
        if done.errors is not None:
            self.logger.record("distill/max_q_error", done.errors.best)
            self.logger.record("distill/worst_q_error", done.errors.worst)

    def _measure_temperature(self, source: Source) -> None:
        """Choose the temperature of the lesson from the first states of play."""
        _, scores = next(source.batches(1, MEASURED_STATES, torch_stream(self.root_seed, "temperature")))
        chosen = choose_temperature(scores)
        self.temperature = chosen.temperature
        self.lesson.temper(self.temperature)
        if self.verbose:
            print(chosen)

    def _located(self, error: NonFiniteError, more: str = "") -> NonFiniteError:
        where = f"generation {self.generation} at step {self.num_timesteps:,}{more}"
        return NonFiniteError(f"{error}: {where}", error.batch)

    def continue_play(self, first: Arrays, steps: Iterable[Step]) -> None:
        """Fill an empty replay with what is played again, and stand where the games then stand.

        Args:
            first: what the games show before the first step.
            steps: of :meth:`polydistill_agents.environments.recording.Recording.play_again`.
        """
        self.replay = self._make_replay()
        self._last_obs, self._starts = first, np.ones(self.n_envs, dtype=bool)
        for step in steps:
            self.replay.add(step.observations, step.scores, step.starts)
            self._last_obs, self._starts = step.new_obs, step.dones

    def _make_replay(self) -> Replay:
        capacity = max(self.buffer_size // self.n_envs, 1) * self.n_envs
        n_actions = int(self.action_space.n)  # type: ignore[attr-defined]
        return open_replay(self.observation_space, capacity, self.n_envs, n_actions, self.device)

    def dump_logs(self) -> None:
        """Write the records: scores of the watched games, whoever acts in them, rates, losses; x is steps."""
        seconds = max((time.time_ns() - self.start_time) / 1e9, sys.float_info.epsilon)
        fps = int((self.num_timesteps - self._num_timesteps_at_start) / seconds)
        if self.ep_info_buffer:
            self.logger.record("teacher/ep_rew_mean", safe_mean([game["r"] for game in self.ep_info_buffer]))
            self.logger.record("teacher/ep_len_mean", safe_mean([game["l"] for game in self.ep_info_buffer]))
        self.logger.record("time/fps", fps)
        self.logger.record("time/time_elapsed", int(seconds), exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)
