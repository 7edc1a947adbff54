"""Policy distillation (Rusu et al. 2016) as a Stable-Baselines3 algorithm.

The teacher plays, epsilon-greedily; its frames and scores fill a replay; the student learns from batches of it to
give the same policy. Symbols: z student scores, Q or t teacher scores, T temperature (on the teacher's side only).

The contract: constructor, ``learn``, ``predict``, ``save``, ``load``, callbacks and TensorBoard tags are those of
Stable-Baselines3; the saved file is an ordinary DQN zip.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import LinearSchedule, get_system_info, safe_mean
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.dqn.policies import CnnPolicy, DQNPolicy, QNetwork

from polydistill.device import few_rows
from polydistill.errors import UserError, require_choice
from polydistill.learning.rewind import NonFiniteError
from polydistill.losses import get_objective, gradient_shares
from polydistill.streams import derive_seed, numpy_stream, torch_stream
from polydistill_agents.distillation.dues import clear_dues, explain_no_update, updates_due
from polydistill_agents.distillation.nonfinite import all_finite, find_nonfinite_update
from polydistill_agents.distillation.replay import FrameReplay
from polydistill_agents.distillation.settings import (
    check_choices,
    check_environment,
    check_learning_rate,
    check_log_folder,
    check_objective,
    check_replay,
    check_same_game,
    check_spaces,
    keyword_arguments,
    positive_number,
    whole_number,
)
from polydistill_agents.distillation.state import learning_state, load_learning_state, weights_state
from polydistill_agents.distillation.student_policy import as_in_file, check_policy, choose_size, make_policy_kwargs
from polydistill_agents.environments.evaluation import choose_actions
from polydistill_agents.environments.recording import Take
from polydistill_agents.files.places import Place, target_of
from polydistill_agents.files.sb3_zip import read_agent, rebuild_scores, write_dqn_zip
from polydistill_agents.networks.corner import cut_padding
from polydistill_agents.networks.nature import Size, begins_as_nature, compute_scores, initialize_from_data
from polydistill_agents.teachers import Teacher, as_teacher

Precision = Literal["float32", "bfloat16"]
MIN_ROUNDS = 8  # of a call of learn: a schedule that ends at zero would else leave a short one nothing
INITIAL_STATES = 1024  # states of play from which the scale of the initial weights is taken


class PolicyDistillation(BaseAlgorithm):
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

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"CnnPolicy": CnnPolicy}
    policy: DQNPolicy

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
        self.teacher: Teacher | None = None if teacher is None else as_teacher(teacher)
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
        self._objective = get_objective(objective)
        check_objective(self._objective, self.objective_kwargs, self.temperature)
        self.exploration_rate, self.size, self.precision = exploration_rate, size, precision
        self.play = play
        self.root_seed = int(np.random.SeedSequence().generate_state(1)[0]) if self.seed is None else self.seed
        self.replay: FrameReplay | None = None
        self._played, self._updates_at_zero = 0, 0  # steps, and updates before them, since the counters were set
        self._loaded_score_kind: str | None = None
        self._loaded_updates = 0
        self._round_steps = self._resumed_round_steps = 0  # steps of all games in a round of this call of learn
        if _init_setup_model:
            self._setup_model()

    @property
    def student(self) -> QNetwork:
        """The network that learns."""
        return self.policy.q_net

    @property
    def score_kind(self) -> str:
        """Kind of the student's scores: the objective's, or for a regression the teacher's; of a file, as it says."""
        if self._loaded_score_kind is not None and self._n_updates == self._loaded_updates:
            return self._loaded_score_kind
        return self._learned_score_kind

    @property
    def _learned_score_kind(self) -> str:
        if self._objective.score_kind == "logits":
            return "logits"
        return "q_values" if self.teacher is None else self.teacher.kind

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        check_spaces(self.observation_space, self.action_space)
        if self.teacher is not None:
            self.teacher.to(self.device).check_fits(self.observation_space, self.action_space)
        self.size = choose_size(self.size, self.teacher, self.policy_kwargs)
        kwargs = make_policy_kwargs(self.policy_kwargs, self.size)
        # layers draw from the global generator of the CPU, given back after; learning begins with better weights
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.root_seed, "built weights", self.generation))
            self.policy = self.policy_class(self.observation_space, self.action_space, self.lr_schedule, **kwargs)  # type: ignore[assignment]
        self.policy = self.policy.to(self.device)
        self.policy.q_net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for target, online in zip(self.policy.q_net_target.parameters(), self.student.parameters(), strict=True):
            target.data = online.data  # nothing bootstraps here: no second copy
        self._built_versions = self._weight_versions()
        self._starts = np.ones(self.n_envs, dtype=bool)
        self._rounds = 0  # of play and updates in this run, over all calls of learn
        self._start_streams()
        self.set_random_seed(self.seed)

    def _start_streams(self) -> None:
        self._explore = numpy_stream(self.root_seed, "exploration", self.generation)
        self._order = torch_stream(self.root_seed, "data order", self.generation)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Start the random streams from ``seed``, those of the environment too, as Stable-Baselines3 does.

        No global generator is touched. An environment that was made with a seed of its own (:class:`AtariVecEnv`'s
        ``seed=``) keeps it. Later generations have other games than the first.
        """
        if seed is None:
            return
        self.root_seed = seed
        self._start_streams()
        games = seed if self.generation == 1 else derive_seed(seed, "environments of play", self.generation) % 2**31
        self.action_space.seed(games)
        if self.env is not None and getattr(self.env, "own_seed", None) is None:
            self.env.seed(games)

    def _weight_versions(self) -> list[tuple[int, int]]:
        """Changes whenever a weight of the student is written or replaced."""
        return [(id(weight), weight._version) for weight in self.student.parameters()]

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
            clear_dues(self)
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
            updates = updates_due(self)
            if updates:
                self.train(updates, self.batch_size)
            self._rounds += 1
            if log_interval is not None and self._rounds % log_interval == 0:
                self.dump_logs()
        self._round_steps = 0
        callback.on_training_end()
        if self._n_updates == updates_before and self.num_timesteps > self._num_timesteps_at_start:
            warnings.warn(f"learn made no update: {explain_no_update(self, stopped)}", stacklevel=2)
        return self

    def _require_what_learning_needs(self, log_interval: int | None) -> None:
        if self.teacher is None:
            raise ValueError("there is no teacher: pass one to PolicyDistillation(..., teacher=...) or to load")
        if self.env is None:
            raise ValueError("there is no environment: pass one to load(..., env=...) or to set_env")
        if log_interval is not None:
            whole_number("log_interval", log_interval, 1)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        """As Stable-Baselines3's, but never below 0: the last step of all games may lead beyond the total."""
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        self._current_progress_remaining = max(self._current_progress_remaining, 0.0)

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, replay: FrameReplay) -> bool:
        """Let the teacher play the steps of a round, or up to the total; False if a callback asks to stop."""
        assert self.teacher is not None
        sampled = self.target_temperature if self.play == "sample" else None
        callback.on_rollout_start()
        for _ in range(self._round_steps):
            observations = self._last_obs
            assert isinstance(observations, np.ndarray)
            scores = self.teacher(torch.from_numpy(observations).to(self.device))
            if not bool(scores.amax(dim=1).isfinite().all()):  # -inf masks an action, but not all of them
                where = f"generation {self.generation} at step {self.num_timesteps:,}"
                message = f"the teacher's scores are not finite: {where}"
                raise NonFiniteError(message, {"observations": torch.from_numpy(observations), "targets": scores})
            replay.add(observations, scores, self._starts)
            actions = choose_actions(scores, self.exploration_rate, self._explore, sampled)
            self._last_obs, rewards, dones, infos = env.step(actions)  # type: ignore[assignment]
            self._starts = dones
            self.num_timesteps += env.num_envs
            self._played += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            self._episode_num += int(dones.sum())
            if self.num_timesteps >= self._total_timesteps:
                break
        callback.on_rollout_end()
        return True

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """Make ``gradient_steps`` updates of the student from the replay.

        Raises:
            NonFiniteError: the loss is not finite; the student is as it was before that update.
        """
        assert self.replay is not None
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        if self._n_updates == 0 and self._weight_versions() == self._built_versions:  # nobody has set others
            generator = torch_stream(self.root_seed, "initial weights", self.generation)
            seen, _ = next(self.replay.batches(1, INITIAL_STATES, generator))
            initialize_from_data(self.student, seen, generator)
        before = weights_state(self)
        losses, agreed = torch.zeros((2, gradient_steps), device=self.device)
        batches = self.replay.batches(gradient_steps, batch_size, self._order)
        for i, (observations, targets) in enumerate(batches):
            losses[i], scores = self.update(observations, targets)
            agreed[i] = (scores.argmax(dim=1) == targets.argmax(dim=1)).float().mean()
        self.policy.set_training_mode(False)
        share = losses.new_zeros(())
        if self._learned_score_kind == "logits":
            share = gradient_shares(scores, targets, temperature=self.target_temperature).label_share.mean()
        numbers = torch.stack([losses.mean(), agreed.mean(), share, all_finite(self)])
        loss, agreement, label_share, finite = numbers.tolist()  # the only wait for the device
        if not (np.isfinite(loss) and finite):
            raise find_nonfinite_update(self, before, gradient_steps, batch_size)
        self._n_updates += gradient_steps
        self._record(loss, agreement)
        if self._learned_score_kind == "logits":
            self.logger.record("distill/label_share", label_share)

    @property
    def target_temperature(self) -> float:
        """T for the teacher's scores, where they are learned from or sampled: logits are taken as they are."""
        assert self.teacher is not None
        return self.temperature if self.teacher.kind == "q_values" else 1.0

    def update(self, observations: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One update from ``(batch, stack, height, width)`` uint8 and the teacher's ``(batch, n_actions)`` scores.

        Returns:
            The mean loss and the student's scores, both before the update and without a graph.
        """
        options = dict(self.objective_kwargs)
        if self._objective.tempered:
            options["temperature"] = self.target_temperature
        scores = compute_scores(self.student, observations, precision=self.precision)
        loss = self._objective(scores, targets, None, **options).mean()
        self.policy.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.policy.optimizer.step()
        return loss.detach(), scores.detach()

    def _record(self, loss: float, agreement: float) -> None:
        self.logger.record("train/loss", loss)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("distill/loss", loss)
        self.logger.record("distill/replay_agreement", agreement)

    def state(self) -> dict[str, Any]:
        """All that decides the future but the inner state of the games and the frames of the replay.

        Plain values and tensors on the CPU, which load with ``weights_only=True``. To be asked for between two rounds:
        before or after :meth:`learn`, or in a callback's ``on_rollout_start``. A
        :class:`~polydistill_agents.environments.recording.Recording` brings back the rest.
        """
        return learning_state(self)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`: ``learn(steps, reset_num_timesteps=False)`` then does what it would have done.

        The replay, and the observations of the games, must be there before; see :meth:`continue_play`.

        Raises:
            ValueError: the state is that of a student with other settings, or of another replay.
        """
        load_learning_state(self, state)

    def continue_play(self, play_again: Callable[[Take], tuple[np.ndarray, np.ndarray]]) -> None:
        """Fill an empty replay by playing again what was played, and stand where the games then stand.

        Args:
            play_again: calls the function that it is given with the observations, teacher's scores and starts of each
                step; gives the observations and starts behind the last. Usually made from
                :meth:`polydistill_agents.environments.recording.Recording.play_again`.
        """
        self.replay = self._make_replay()
        self._last_obs, self._last_episode_starts = play_again(self.replay.add)

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

    def student_scores(self, observations: torch.Tensor) -> torch.Tensor:
        """The student's scores in float32, without a graph, for evaluation; see :func:`compute_scores`."""
        with torch.no_grad():
            return compute_scores(self.student, observations)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        check_environment(env)
        return BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Play in ``env`` from now on, as in Stable-Baselines3; with another number of games, from an empty replay.

        Raises:
            ValueError: it is of another game, or no environment.
        """
        env = self._wrap_env(env, self.verbose)
        check_same_game("the student", (self.observation_space, self.action_space), env)
        if env.num_envs != self.n_envs:
            self.n_envs, self.replay, force_reset = env.num_envs, None, True
        super().set_env(env, force_reset)

    def save(self, path: Place, exclude: Any = None, include: Any = None) -> None:  # type: ignore[override]
        """Write the student as an ordinary DQN zip: a path (``.zip`` is added to a name without an ending), or a file.

        ``exclude`` and ``include`` are Stable-Baselines3's; there is nothing here that they could name.
        """
        if isinstance(path, (str, os.PathLike)):
            target_of(path).parent.mkdir(parents=True, exist_ok=True)
        counters = {"_n_updates": self._n_updates, "_episode_num": self._episode_num}
        write_dqn_zip(path, self.student, score_kind=self.score_kind, steps=self.num_timesteps, counters=counters)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        path: Place,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Open a DQN zip as a student, without unpickling; ``kwargs`` go to the constructor (``teacher=``, ...).

        The network is the file's: its size, and what ``policy_kwargs`` say of the function. ``custom_objects`` and
        ``force_reset`` are Stable-Baselines3's: nothing is unpickled here that the former could replace, and the
        games always start from the beginning.

        Raises:
            UserError: the file is missing, damaged, or no Nature-CNN.
            ValueError: it is of another game than ``env``, or another network than ``kwargs`` ask for.
        """
        if print_system_info:
            get_system_info()
        agent = read_agent(path)
        network = cut_padding(rebuild_scores(agent))
        if not begins_as_nature(network) or network.observation_space.dtype != np.uint8:
            raise UserError(f"{agent.where}: it is no Nature-CNN of frames")
        network = cast(QNetwork, network)
        model = cls("CnnPolicy", env, device=device, _init_setup_model=False, **kwargs)
        if model.env is not None:
            check_same_game(agent.where, (network.observation_space, network.action_space), model.env)
        else:
            model.observation_space, model.action_space = network.observation_space, network.action_space
            model.n_envs = 1
        model.size, model.policy_kwargs = as_in_file(network, model.size, model.policy_kwargs)
        model._setup_model()
        model.student.load_state_dict(network.state_dict())
        model._loaded_score_kind = agent.score_kind
        model.num_timesteps = agent.steps or 0
        model._n_updates, model._episode_num = (agent.counter(name) for name in ("_n_updates", "_episode_num"))
        model._loaded_updates = model._n_updates
        clear_dues(model)
        return model

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Greedy actions, or epsilon-greedy ones with a coin for each row where ``deterministic`` is False."""
        many = getattr(observation, "ndim", 0) > len(self.observation_space.shape or ())
        with few_rows(len(observation) if many else 1):
            actions, state = self.policy.predict(observation, state, episode_start, deterministic=True)
        if not deterministic:
            explore = self._explore.random(np.shape(actions)) < self.exploration_rate
            randoms = self._explore.integers(self.action_space.n, size=np.shape(actions))  # type: ignore[attr-defined]
            actions = np.where(explore, randoms, actions)
        return actions, state

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []
