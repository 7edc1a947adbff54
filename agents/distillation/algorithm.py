"""Policy distillation (Rusu et al. 2016) as a Stable-Baselines3 algorithm.

The teacher plays, epsilon-greedily; its frames and scores fill a replay; the student learns from batches of it to
give the same policy. Symbols: z student scores, Q or t teacher scores, T temperature (on the teacher's side only).

The contract: constructor, ``learn``, ``predict``, ``save``, ``load``, callbacks and TensorBoard tags are those of
Stable-Baselines3; the saved file is an ordinary DQN zip.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import LinearSchedule, safe_mean
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.dqn.policies import DQNPolicy

from polydistill.errors import require_choice
from polydistill.learning.lesson import Lesson
from polydistill.learning.rewind import NonFiniteError
from polydistill.losses import get_objective
from polydistill.streams import derive_seed, numpy_stream
from polydistill_agents.distillation.acting import Actor, TeacherActs
from polydistill_agents.distillation.agent import NatureAgent
from polydistill_agents.distillation.dues import Dues
from polydistill_agents.distillation.learner import Learner
from polydistill_agents.distillation.replay import FrameReplay
from polydistill_agents.distillation.settings import (
    check_choices,
    check_learning_rate,
    check_log_folder,
    check_objective,
    check_replay,
    check_spaces,
    keyword_arguments,
    positive_number,
    whole_number,
)
from polydistill_agents.distillation.state import load_records, read_attributes, read_records
from polydistill_agents.distillation.student_policy import check_policy, choose_size
from polydistill_agents.environments.steps import Step
from polydistill_agents.networks.nature import Size
from polydistill_agents.teachers import Teacher, as_teacher

Precision = Literal["float32", "bfloat16"]
MIN_ROUNDS = 8  # of a call of learn: a schedule that ends at zero would else leave a short one nothing
# of the constructor; with others the same state would go on to something else
SETTINGS = (
    "buffer_size", "learning_starts", "batch_size", "samples_per_step", "train_freq", "objective", "objective_kwargs",
    "temperature", "exploration_rate", "play", "precision", "generation", "root_seed", "n_envs",
)  # fmt: skip
COUNTERS = (
    "num_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining", "_rounds", "_played",
    "_updates_at_zero", "_round_steps",
)  # fmt: skip


def no_teacher(observations: Any = None) -> torch.Tensor:
    """Who labels where nobody does."""
    raise ValueError("there is no teacher: pass one to PolicyDistillation(..., teacher=...) or to load")


class PolicyDistillation(NatureAgent):
    """Teach a student the policy of a frozen teacher.

    Args:
        policy: "CnnPolicy", the DQN policy of Stable-Baselines3 with a Nature-CNN.
        env: a ``VecEnv`` (or environment) of frames ``(planes, height, width)`` uint8, usually a stack of grey ones in
            :class:`polydistill_agents.environments.atari.AtariVecEnv`; colours do too.
        teacher: path of a DQN zip, Stable-Baselines3 model, or callable from frames to scores. It may be missing
            as long as nothing is learned.
        learning_rate: of Adam; a number or a schedule of the remaining progress; None: from 1e-3 linearly to zero.
        buffer_size: samples kept in the replay: 7 KiB each of a stack that slides, else 7 KiB for each of its planes.
        learning_starts: samples in the replay before the first update. The updates of the warm-up are made after it.
        batch_size: samples per update.
        samples_per_step: samples learned from per step of play, so that ``samples_per_step / batch_size`` updates
            follow each step.
        train_freq: steps of all games between two rounds of updates, at most: a short call of ``learn`` has 8 rounds.
        objective: name in ``polydistill.losses.OBJECTIVES``.
        objective_kwargs: its further options.
        temperature: T of ``policy_kl`` for a teacher of Q-values, in their unit. A teacher of logits is taken at 1.
        exploration_rate: epsilon of the acting teacher.
        play: its other actions: "greedy", or "sample": drawn from its policy, logits at T = 1, Q-values at
            ``temperature``.
        size: widths of the student, a name of ``SIZES`` or a ``Size``; None: the teacher's.
        precision: of the student's convolutions and hidden layer.
        generation: number of the student in its lineage; part of every random stream.
        policy_kwargs: Stable-Baselines3's, as far as the saved file can hold them: ``net_arch``, ``activation_fn``,
            ``normalize_images``, the widths of a ``NatureCNN``, and any optimiser.
        seed: root of the random streams, and of the environment's if it has none of its own (see
            :meth:`set_random_seed`); None draws one. No global generator is touched.

    Raises:
        ValueError: an argument that cannot work, by its name.
        UserError: a teacher that cannot be read, or is of another game.
    """

    last_step: Step  # of play

    def __init__(
        self,
        policy: str | type[DQNPolicy] = "CnnPolicy",
        env: GymEnv | str | None = None,
        teacher: Any = None,
        learning_rate: float | Schedule | None = None,
        buffer_size: int = 100_000,
        learning_starts: int = 4_096,
        batch_size: int = 128,
        samples_per_step: float = 12.0,
        train_freq: int = 64,
        objective: str = "policy_kl",
        objective_kwargs: dict[str, Any] | None = None,
        temperature: float = 0.01,
        exploration_rate: float = 0.05,
        play: Literal["greedy", "sample"] = "greedy",
        size: str | Size | None = None,
        precision: Precision = "float32",
        generation: int = 1,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        check_policy(policy)
        check_choices(precision, exploration_rate, seed, device)
        require_choice("play", play, ("greedy", "sample"))
        check_log_folder(tensorboard_log)
        if learning_rate is not None:
            check_learning_rate(learning_rate)
        if env is None and _init_setup_model:
            raise ValueError("env is missing: PolicyDistillation needs the game that is played")
        super().__init__(
            policy,
            env,
            learning_rate if learning_rate is not None else LinearSchedule(1e-3, 0.0, 1.0),
            keyword_arguments("policy_kwargs", policy_kwargs),
            stats_window_size,
            tensorboard_log,
            verbose,
            device,
            support_multi_env=True,
            seed=None if seed is None else int(seed),
        )
        self.buffer_size = whole_number("buffer_size", buffer_size, 1)
        self.learning_starts = whole_number("learning_starts", learning_starts, 0)
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.train_freq = whole_number("train_freq", train_freq, 1)
        check_replay(self.buffer_size, self.batch_size, self.learning_starts)
        whole_number("stats_window_size", stats_window_size, 1)
        self.generation = whole_number("generation", generation, 0)
        self.samples_per_step = positive_number("samples_per_step", samples_per_step)
        self.temperature = positive_number("temperature", temperature)
        self.objective, self.objective_kwargs = objective, keyword_arguments("objective_kwargs", objective_kwargs)
        check_objective(get_objective(objective), self.objective_kwargs, self.temperature)
        source = None if teacher is None else as_teacher(teacher)
        self.lesson = Lesson(
            objective,
            source or no_teacher,
            teacher_kind="q_values" if source is None else source.kind,
            temperature=self.temperature,
            generation=self.generation,
            options=self.objective_kwargs,
        )
        self.exploration_rate, self.size, self.precision = exploration_rate, size, precision
        self.play = play
        self.root_seed = int(np.random.SeedSequence().generate_state(1)[0]) if self.seed is None else self.seed
        self._played, self._updates_at_zero = 0, 0  # steps, and updates before them, since the counters were set
        self._round_steps = self._resumed_round_steps = 0  # steps of all games in a round of this call of learn
        if _init_setup_model:
            self._setup_model()

    @property
    def teacher(self) -> Teacher | None:
        """Who labels; None where the student was opened without one."""
        return None if self.lesson.teacher is no_teacher else cast(Teacher, self.lesson.teacher)

    @property
    def _learned_kind(self) -> str:
        return self.lesson.score_kind

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        check_spaces(self.observation_space, self.action_space)
        if self.teacher is not None:
            self.teacher.to(self.device).check_fits(self.observation_space, self.action_space)
        self.size = choose_size(self.size, self.teacher, self.policy_kwargs)
        self._build_policy(self.size, derive_seed(self.root_seed, "built weights", self.generation))
        self.learner = Learner(
            self.student,
            self.policy.optimizer,
            self.lesson,
            seed=self.root_seed,
            generation=self.generation,
            precision=self.precision,
        )
        self._starts = np.ones(self.n_envs, dtype=bool)
        self._rounds = 0  # of play and updates in this run, over all calls of learn
        self._clear_dues()
        self._start_streams(self.root_seed)
        self.set_random_seed(self.seed)

    def _start_streams(self, seed: int) -> None:
        self.root_seed = seed
        self.explore = numpy_stream(seed, "exploration", self.generation)
        self.learner.start_streams(seed)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Start the random streams from ``seed``, those of the environment too, as Stable-Baselines3 does.

        No global generator is touched. An environment that was made with a seed of its own (:class:`AtariVecEnv`'s
        ``seed=``) keeps it. Later generations have other games than the first.
        """
        if seed is None:
            return
        self._start_streams(seed)
        games = seed if self.generation == 1 else derive_seed(seed, "environments of play", self.generation) % 2**31
        self.action_space.seed(games)
        if self.env is not None and getattr(self.env, "own_seed", None) is None:
            self.env.seed(games)

    def _make_replay(self) -> FrameReplay:
        stack, height, width = self.observation_space.shape  # type: ignore[misc]
        capacity = max(self.buffer_size // self.n_envs, 1) * self.n_envs
        n_actions = int(self.action_space.n)  # type: ignore[attr-defined]
        return FrameReplay(capacity, self.n_envs, stack, (height, width), n_actions, self.device)

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "PolicyDistillation",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Let the teacher play ``total_timesteps`` steps and teach the student from them.

        Updates are owed for the steps that were played since the counters were set, by ``reset_num_timesteps`` or by
        :meth:`load`; they are made once the replay holds ``learning_starts`` samples.

        Args:
            total_timesteps: agent steps of all games together; rounded up to whole steps of all games.
            callback: as in Stable-Baselines3; every hook is called.
            log_interval: rounds of updates between two records; None: no records.
            tb_log_name: name of the run in ``tensorboard_log``.
            reset_num_timesteps: start counting from zero (and the games anew).
            progress_bar: show Stable-Baselines3's.

        Raises:
            ValueError: there is no teacher or no environment.

        Warns:
            UserWarning: steps were played, and no update was made.
        """
        self._require_what_learning_needs(log_interval)
        if reset_num_timesteps:
            self._clear_dues()
        if reset_num_timesteps or self._last_obs is None:  # the games start anew
            self._starts, self._rounds = np.ones(self.n_envs, dtype=bool), 0
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        if self.replay is None:
            self.replay = self._make_replay()
        assert isinstance(self.env, VecEnv)
        in_a_round = min(self.train_freq, (total_timesteps - self.num_timesteps) // (self.n_envs * MIN_ROUNDS))
        self._round_steps, self._resumed_round_steps = self._resumed_round_steps or max(int(in_a_round), 1), 0
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
        """Who acts: the teacher, with random numbers from ``generator``."""
        sampled = self.lesson.temperature if self.play == "sample" else None
        return TeacherActs(self.exploration_rate, sampled, generator)

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, replay: FrameReplay) -> bool:
        """Play the steps of a round, or up to the total; False if a callback asks to stop.

        Callbacks find the step in ``model.last_step``, and its parts among their ``locals``.
        """
        callback.on_rollout_start()
        for _ in range(self._round_steps):
            self.last_step = step = self._play(env, replay)
            self.num_timesteps += env.num_envs
            self._played += env.num_envs
            callback.update_locals(step._asdict())
            if not callback.on_step():
                return False
            self._update_info_buffer(step.infos, step.dones)
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            self._episode_num += int(step.dones.sum())
            if self.num_timesteps >= self._total_timesteps:
                break
        callback.on_rollout_end()
        return True

    def _play(self, env: VecEnv, replay: FrameReplay) -> Step:
        """One step of all games, labelled by the teacher."""
        observations, starts = self._last_obs, self._starts
        assert isinstance(observations, np.ndarray)
        frames = torch.from_numpy(observations).to(self.device)
        try:
            scores = self.learner.label(frames)
        except NonFiniteError as error:
            raise self._located(error) from None
        replay.add(observations, scores, starts)
        actions = self.actor(self.explore)(frames, scores)
        step = Step(observations, starts, scores, actions, *env.step(actions))  # type: ignore[arg-type]
        self._last_obs, self._starts = step.new_obs, step.dones
        return step

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """Make ``gradient_steps`` updates of the student from the replay.

        Raises:
            NonFiniteError: the loss is not finite; the student is as it was before that update.
        """
        assert self.replay is not None
        self._update_learning_rate(self.policy.optimizer)
        try:
            done = self.learner.round(self.replay, gradient_steps, batch_size)
        except NonFiniteError as error:
            self._n_updates += error.batch["update"] - 1
            raise self._located(error, f", update {self._n_updates + 1:,}") from None
        self._n_updates += gradient_steps
        self.logger.record("train/loss", done.loss)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("distill/loss", done.loss)
        self.logger.record("distill/replay_agreement", done.agreement)
        if done.label_share is not None:
            self.logger.record("distill/label_share", done.label_share)

    def _located(self, error: NonFiniteError, more: str = "") -> NonFiniteError:
        where = f"generation {self.generation} at step {self.num_timesteps:,}{more}"
        return NonFiniteError(f"{error}: {where}", error.batch)

    def state(self) -> dict[str, Any]:
        """All that decides the future but the inner state of the games and the frames of the replay.

        Plain values and tensors on the CPU, which load with ``weights_only=True``. To be asked for between two rounds:
        before or after :meth:`learn`, or in a callback's ``on_rollout_start``. A
        :class:`~polydistill_agents.environments.recording.Recording` brings back the rest.
        """
        return {
            "settings": read_attributes(self, SETTINGS),
            "counters": read_attributes(self, COUNTERS),
            **self.learner.state("cpu"),
            "explore": self.explore.bit_generator.state,
            "starts": self._starts.tolist(),
            "replay": None if self.replay is None else self.replay.position(),
            **read_records(self),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`: ``learn(steps, reset_num_timesteps=False)`` then does what it would have done.

        The replay, and the observations of the games, must be there before; see :meth:`continue_play`.

        Raises:
            ValueError: the state is that of a student with other settings, or of another replay.
        """
        for name, value in state["settings"].items():
            if getattr(self, name) != value:
                raise ValueError(f"the state is of a student with {name} {value}, this one has {getattr(self, name)}")
        position = None if self.replay is None else self.replay.position()
        if position != state["replay"]:
            expected = state["replay"]
            raise ValueError(f"the replay must be filled before: it stands at {position}, the state at {expected}")
        self.learner.load_state(state)
        counters = state["counters"]  # those of earlier versions lack the two that are given here
        earlier = {"_played": counters["num_timesteps"], "_round_steps": self.train_freq}
        for name, value in (earlier | counters).items():
            setattr(self, name, value)
        self._resumed_round_steps = self._round_steps  # of the call of learn that it was in, if it was
        self.explore.bit_generator.state = state["explore"]
        self._starts = np.array(state["starts"], dtype=bool)
        load_records(self, state)

    def continue_play(self, first: NDArray[np.uint8], steps: Iterable[Step]) -> None:
        """Fill an empty replay with what is played again, and stand where the games then stand.

        Args:
            first: what the games show before the first step.
            steps: of :meth:`polydistill_agents.environments.recording.Recording.play_again`.
        """
        self.replay = self._make_replay()
        self._last_obs, self._last_episode_starts = first, np.ones(self.n_envs, dtype=bool)
        for step in steps:
            self.replay.add(step.observations, step.scores, step.starts)
            self._last_obs, self._last_episode_starts = step.new_obs, step.dones

    def dump_logs(self) -> None:
        """Write the records: the acting teacher's scores, rates, losses; x is steps of play."""
        seconds = max((time.time_ns() - self.start_time) / 1e9, sys.float_info.epsilon)
        fps = int((self.num_timesteps - self._num_timesteps_at_start) / seconds)
        if self.ep_info_buffer:
            self.logger.record("teacher/ep_rew_mean", safe_mean([game["r"] for game in self.ep_info_buffer]))
            self.logger.record("teacher/ep_len_mean", safe_mean([game["l"] for game in self.ep_info_buffer]))
        self.logger.record("time/fps", fps)
        self.logger.record("time/time_elapsed", int(seconds), exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)
