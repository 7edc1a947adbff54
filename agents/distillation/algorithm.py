"""Policy distillation (Rusu et al. 2016) as a Stable-Baselines3 algorithm.

The teacher plays, epsilon-greedily, or the student in its place; the frames and the teacher's scores of them fill a
replay; the student learns from batches of it to give the same policy. Symbols: z student scores, Q or t teacher
scores, T temperature (on the teacher's side only).

The contract: constructor, ``learn``, ``predict``, ``save``, ``load``, callbacks and TensorBoard tags are those of
Stable-Baselines3; the saved file is an ordinary DQN zip.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.dqn.policies import DQNPolicy

from polydistill.errors import require_choice
from polydistill.learning.lesson import Lesson
from polydistill.losses import get_objective
from polydistill.streams import derive_seed, numpy_stream
from polydistill_agents.distillation.acting import Beta, beta_ends, beta_schedule
from polydistill_agents.distillation.learner import Learner
from polydistill_agents.distillation.settings import (
    check_averaging,
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
from polydistill_agents.distillation.student_policy import choose_architecture, policy_name
from polydistill_agents.distillation.watching import WatchingAgent, no_teacher
from polydistill_agents.environments.atari import SHAPE
from polydistill_agents.networks.nature import Size
from polydistill_agents.networks.normalized import Statistics
from polydistill_agents.networks.q_scale import put_on_scale
from polydistill_agents.networks.scaling import take_statistics
from polydistill_agents.teachers import as_one_teacher

ATARI_TEMPERATURE = 0.01  # of Rusu et al. (2016), for clipped rewards
Precision = Literal["float32", "bfloat16"]
# of the constructor; with others the same state would go on to something else
SETTINGS = (
    "buffer_size", "learning_starts", "batch_size", "samples_per_step", "train_freq", "objective", "objective_kwargs",
    "temperature", "exploration_rate", "play", "beta_ends", "averaging", "precision", "generation", "root_seed",
    "n_envs",
)  # fmt: skip
COUNTERS = (
    "num_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining", "_rounds", "_played",
    "_updates_at_zero", "_round_steps",
)  # fmt: skip


class PolicyDistillation(WatchingAgent):
    """Teach a student the policy of a frozen teacher.

    Args:
        policy: the student's, as in Stable-Baselines3's DQN: "CnnPolicy", a Nature-CNN of frames ``(planes, height,
            width)`` uint8 of at least 36 x 36; "MlpPolicy", of numbers; "MultiInputPolicy", of a ``Dict`` of both.
        env: a ``VecEnv``, environment, or id of gymnasium with discrete actions. For Atari see
            :class:`polydistill_agents.environments.atari.AtariVecEnv`.
        teacher: whatever :func:`polydistill_agents.as_teacher` takes: a file, a Stable-Baselines3 model, a callable
            from observations to scores, or a list of these, whose mean policy teaches (of Q-values at ``temperature``).
            It may be missing as long as nothing is learned.
        learning_rate: of Adam; a number or a schedule of the remaining progress; None: from 1e-3 linearly to zero.
        buffer_size: samples kept in the replay: of Atari 7 KiB each of a stack that slides, else 7 KiB for each of its
            planes.
        learning_starts: samples in the replay before the first update. The updates of the warm-up are made after it.
        batch_size: samples per update.
        samples_per_step: samples learned from per step of play, so that ``samples_per_step / batch_size`` updates
            follow each step.
        train_freq: steps of all games between two rounds of updates, at most: a short call of ``learn`` has 8 rounds.
        objective: name in ``polydistill.losses.OBJECTIVES``.
        objective_kwargs: its further options.
        temperature: T of ``policy_kl`` and ``policy_kl_q`` for a teacher of Q-values, in their unit. One of logits is
            taken at 1. None: 0.01 (Rusu et al. 2016) for frames of Atari; else half of the median gap between the
            teacher's best two actions in the first states of play (:mod:`polydistill_agents.teachers.temperature`).
        exploration_rate: epsilon of whoever acts.
        play: the other actions: "greedy", or "sample": drawn from the policy of whoever acts, logits at T = 1, Q-values
            at ``temperature``.
        beta: probability that the teacher acts, for each game and step; else the student does, once it has begun to
            learn. 1: always the teacher (the paper); 0: the student; a pair: linearly from the first to the second
            (DAgger); or a function of the remaining progress.
        averaging: share of the updates so far over which the student's weights are averaged, below 1; 0: they are those
            of the last update. The mean is what is saved, scored and shown in play; what learns lies aside.
        size: widths of a "CnnPolicy", a name of ``SIZES`` or a ``Size``; None: the teacher's.
        precision: of a Nature-CNN's convolutions and hidden layer.
        generation: number of the student in its lineage; part of every random stream.
        policy_kwargs: Stable-Baselines3's, as far as the saved file can hold them: ``net_arch``, ``activation_fn``
            (where they are missing: the teacher's), ``normalize_images``, the widths of a ``NatureCNN``, and any
            optimiser.
        seed: root of the random streams, and of the environment's if it has none of its own (see
            :meth:`set_random_seed`); None draws one. No global generator is touched.

    Raises:
        ValueError: an argument that cannot work, by its name.
        UserError: a teacher that cannot be read, or is of another game.
    """

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
        temperature: float | None = None,
        exploration_rate: float = 0.05,
        play: Literal["greedy", "sample"] = "greedy",
        beta: Beta = 1.0,
        averaging: float = 0.0,
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
        self.policy_name = policy_name(policy)
        check_choices(precision, exploration_rate, seed, device)
        check_averaging(averaging)
        require_choice("play", play, ("greedy", "sample"))
        self._beta, self.beta_ends = beta_schedule(beta), beta_ends(beta)
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
        self.temperature = None if temperature is None else positive_number("temperature", temperature)
        self.objective, self.objective_kwargs = objective, keyword_arguments("objective_kwargs", objective_kwargs)
        check_objective(get_objective(objective), self.objective_kwargs, self.temperature or 1.0)
        source = None if teacher is None else as_one_teacher(teacher, self.temperature)
        self.lesson = Lesson(
            objective,
            source or no_teacher,
            teacher_kind="q_values" if source is None else source.kind,
            temperature=self.temperature or 1.0,
            generation=self.generation,
            options=self.objective_kwargs,
        )
        self.exploration_rate, self.size, self.precision = exploration_rate, size, precision
        self.play, self.averaging = play, float(averaging)
        self.root_seed = int(np.random.SeedSequence().generate_state(1)[0]) if self.seed is None else self.seed
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        check_spaces(self.policy_name, self.observation_space, self.action_space)
        self._choose_temperature()
        teachers_space = getattr(self.env, "teacher_space", None)  # where it sees another view than the student
        if self.teacher is not None:
            self.teacher.to(self.device).check_fits(teachers_space or self.observation_space, self.action_space)
        self._build_student(None if self.teacher is None or teachers_space else self.teacher.input_statistics)
        self._starts = np.ones(self.n_envs, dtype=bool)
        self._rounds = 0
        self._clear_dues()
        self._start_streams(self.root_seed)
        self.set_random_seed(self.seed)

    def _build_student(self, statistics: Statistics | None) -> None:
        """The student's network, its optimiser, and what makes its updates.

        Args:
            statistics: that its teacher has of the observations, where both see the same.
        """
        architecture = choose_architecture(self.policy_name, self.size, self.teacher, self.policy_kwargs)
        self.size = architecture.size
        self._build_policy(architecture, derive_seed(self.root_seed, "built weights", self.generation))
        if self.lesson.keeps_q:
            put_on_scale(self.student.q_net)
        self.learner = Learner(
            self.student,
            self.policy.optimizer,
            self.lesson,
            seed=self.root_seed,
            generation=self.generation,
            precision=self.precision,
            averaging=self.averaging,
            scaled=statistics is not None and take_statistics(self.student, statistics),
        )

    def _choose_temperature(self) -> None:
        """Choose a temperature if none was given. One that must be measured from play stays None."""
        if self.temperature is not None:
            return
        if self.observation_space.shape == SHAPE and self.observation_space.dtype == np.uint8:
            self.temperature = ATARI_TEMPERATURE
        elif self.teacher is not None and self.teacher.kind == "logits":
            self.temperature = 1.0
        elif self.play == "sample":
            raise ValueError("temperature is needed: Q-values are sampled at it (play='sample')")
        self.lesson.temper(self.temperature or 1.0)

    def _start_streams(self, seed: int) -> None:
        self.root_seed = seed
        self.explore = numpy_stream(seed, "exploration", self.generation)
        self.coins = numpy_stream(seed, "who acts", self.generation)
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
            **self._remembered(),
            "explore": self.explore.bit_generator.state,
            "coins": self.coins.bit_generator.state,
            "starts": self._starts.tolist(),
            "replay": None if self.replay is None else self.replay.position(),
            **read_records(self),
        }

    def _remembered(self) -> dict[str, Any]:
        """What the teacher remembers of the games."""
        memory = None if self.teacher is None else self.teacher.memory()
        return {} if memory is None else {"teacher_memory": memory}

    def load_state(self, state: Mapping[str, Any], *, new_games: bool = False) -> None:
        """Go on from :meth:`state`: ``learn(steps, reset_num_timesteps=False)`` then does what it would have done.

        The replay, and the observations of the games, must be there before; see :meth:`continue_play`.

        Args:
            state: of a student with the same settings.
            new_games: go on without them: the replay is filled again, and what was played before owes nothing.

        Raises:
            ValueError: the state is that of a student with other settings, or of another replay.
        """
        if self.temperature is None:
            self.temperature = state["settings"]["temperature"]
            self.lesson.temper(self.temperature or 1.0)
        for name, value in state["settings"].items():
            if getattr(self, name) != value:
                raise ValueError(f"the state is of a student with {name} {value}, this one has {getattr(self, name)}")
        position = None if self.replay is None else self.replay.position()
        if position != state["replay"] and not new_games:
            expected = state["replay"]
            raise ValueError(f"the replay must be filled before: it stands at {position}, the state at {expected}")
        self.learner.load_state(state)
        if self.teacher is not None:
            self.teacher.remember(state.get("teacher_memory"))
        counters = state["counters"]  # those of earlier versions lack the two that are given here
        earlier = {"_played": counters["num_timesteps"], "_round_steps": self.train_freq}
        for name, value in (earlier | counters).items():
            setattr(self, name, value)
        self._resumed_round_steps = self._round_steps  # of the call of learn that it was in, if it was
        self.explore.bit_generator.state = state["explore"]
        self.coins.bit_generator.state = state.get("coins", self.coins.bit_generator.state)  # earlier ones toss none
        self._starts = np.array(state["starts"], dtype=bool)
        load_records(self, state)
        if new_games:
            self._clear_dues()
