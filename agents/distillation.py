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
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import LinearSchedule, get_system_info, safe_mean
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.dqn.policies import CnnPolicy, DQNPolicy, QNetwork

from agents.corner import cut_padding
from agents.evaluation import choose_actions
from agents.learning_state import learning_state, load_learning_state, weights_state
from agents.networks import SIZES, Size, SizedNatureCNN, compute_scores, initialize_from_data, size_of
from agents.nonfinite import NonFiniteError, all_finite, find_nonfinite_update
from agents.places import Place, target_of
from agents.replay import FrameReplay, Take
from agents.sb3_zip import read_agent, rebuild_network, write_dqn_zip
from agents.teachers import Teacher, as_teacher
from polydistill.losses import get_objective, gradient_shares
from polydistill.streams import derive_seed, numpy_stream, torch_stream

Precision = Literal["float32", "bfloat16"]
INITIAL_STATES = 1024  # states of play from which the scale of the initial weights is taken


class PolicyDistillation(BaseAlgorithm):
    """Teach a student the policy of a frozen teacher.

    Args:
        policy: "CnnPolicy", the DQN policy of Stable-Baselines3 with a Nature-CNN.
        env: a ``VecEnv`` (or environment) of stacked frames ``(stack, height, width)`` uint8, newest last; usually
            :class:`agents.atari.AtariVecEnv`.
        teacher: path of a DQN zip, Stable-Baselines3 model, or callable from frames to scores. It may be missing
            as long as nothing is learned.
        learning_rate: of Adam; a number or a schedule of the remaining progress; None: from 1e-3 linearly to zero.
        buffer_size: samples kept in the replay, 7 KiB each.
        learning_starts: steps of play before the first update.
        batch_size: samples per update.
        samples_per_step: samples learned from per step of play, so that ``samples_per_step / batch_size`` updates
            follow each step.
        train_freq: steps of all games between two rounds of updates.
        objective: name in ``polydistill.losses.OBJECTIVES``.
        objective_kwargs: its further options.
        temperature: T of ``policy_kl`` for a teacher of Q-values, in their unit. A teacher of logits is taken at 1.
        exploration_rate: epsilon of the acting teacher.
        size: widths of the student, a name of ``SIZES`` or a ``Size``; None: the teacher's.
        precision: of the student's convolutions and hidden layer.
        generation: number of the student in its lineage; part of every random stream.
        seed: root of the random streams; None draws one. No global generator is touched.
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
        super().__init__(
            policy,
            env,
            learning_rate if learning_rate is not None else LinearSchedule(1e-3, 0.0, 1.0),
            policy_kwargs,
            stats_window_size,
            tensorboard_log,
            verbose,
            device,
            support_multi_env=True,
            supported_action_spaces=(spaces.Discrete,),
        )
        if min(buffer_size, batch_size, train_freq) < 1 or samples_per_step <= 0:
            raise ValueError(f"out of range: {buffer_size=}, {batch_size=}, {train_freq=}, {samples_per_step=}")
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if not 0.0 <= exploration_rate <= 1.0:
            raise ValueError(f"exploration_rate is a probability, got {exploration_rate}")
        self.teacher: Teacher | None = None if teacher is None else as_teacher(teacher)
        self.buffer_size, self.learning_starts = buffer_size, learning_starts
        self.batch_size, self.samples_per_step, self.train_freq = batch_size, samples_per_step, train_freq
        self.objective, self.objective_kwargs = objective, dict(objective_kwargs or {})
        self.temperature, self.exploration_rate = temperature, exploration_rate
        self.size, self.precision, self.generation = size, precision, generation
        self.root_seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self.replay: FrameReplay | None = None
        self._loaded_scores: str | None = None
        if _init_setup_model:
            self._setup_model()

    @property
    def student(self) -> QNetwork:
        """The network that learns."""
        return self.policy.q_net

    @property
    def scores(self) -> str:
        """Kind of the student's scores: the objective's, or for a regression the teacher's; of a file, as it says."""
        if self._n_updates == 0 and self._loaded_scores is not None:
            return self._loaded_scores
        if self._objective.scores == "logits":
            return "logits"
        return "q_values" if self.teacher is None else self.teacher.kind

    def _setup_model(self) -> None:
        self._objective = get_objective(self.objective)
        self._setup_lr_schedule()
        if not isinstance(self.observation_space, spaces.Box) or len(self.observation_space.shape) != 3:
            raise ValueError(f"observations must be frames (stack, height, width), not {self.observation_space}")
        if self.teacher is not None:
            self.teacher.to(self.device).check_fits(self.observation_space, self.action_space)
        size = self._student_size()
        kwargs: dict[str, Any] = {
            "features_extractor_class": SizedNatureCNN,
            "features_extractor_kwargs": {"features_dim": size.hidden, "channels": size.channels},
            "net_arch": [],
            "optimizer_kwargs": {"fused": True},
        }
        kwargs.update(self.policy_kwargs)
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
        self._explore = numpy_stream(self.root_seed, "exploration", self.generation)
        self._order = torch_stream(self.root_seed, "data order", self.generation)

    def _weight_versions(self) -> list[tuple[int, int]]:
        """Changes whenever a weight of the student is written or replaced."""
        return [(id(weight), weight._version) for weight in self.student.parameters()]

    def _student_size(self) -> Size:
        if isinstance(self.size, str):
            if self.size not in SIZES:
                raise ValueError(f"unknown size {self.size!r}, there are {', '.join(SIZES)}")
            return SIZES[self.size]
        if self.size is not None:
            return Size(*self.size)
        if self.teacher is None:
            return SIZES["nature"]
        if self.teacher.size is None:
            warnings.warn("the teacher's architecture is unknown: the student is a Nature-CNN", stacklevel=3)
            return SIZES["nature"]
        return self.teacher.size

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

        Args:
            total_timesteps: agent steps of all games together.
            callback: as in Stable-Baselines3; every hook is called.
            log_interval: rounds of updates between two records.
            tb_log_name: name of the run in ``tensorboard_log``.
            reset_num_timesteps: start counting from zero (and the games anew).
            progress_bar: show Stable-Baselines3's.

        Raises:
            ValueError: there is no teacher.
        """
        if self.teacher is None:
            raise ValueError("there is no teacher: pass one to PolicyDistillation(..., teacher=...) or to load")
        if reset_num_timesteps or self._last_obs is None:  # the games start anew
            self._starts, self._rounds = np.ones(self.n_envs, dtype=bool), 0
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        if self.replay is None:
            self.replay = self._make_replay()
        assert isinstance(self.env, VecEnv)
        callback.on_training_start(locals(), globals())
        while self.num_timesteps < total_timesteps:
            if not self.collect_rollouts(self.env, callback, self.replay):
                break
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            updates = self._updates_due()
            if updates:
                self.train(updates, self.batch_size)
            self._rounds += 1
            if log_interval is not None and self._rounds % log_interval == 0:
                self.dump_logs()
        callback.on_training_end()
        return self

    def _updates_due(self) -> int:
        """Updates owed for the steps played so far; those of the warm-up are made up for."""
        if self.num_timesteps < self.learning_starts:
            return 0
        owed = self.num_timesteps * self.samples_per_step / self.batch_size
        return max(int(owed) - self._n_updates, 0)

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, replay: FrameReplay) -> bool:
        """Let the teacher play ``train_freq`` steps of all games; False if a callback asks to stop."""
        assert self.teacher is not None
        callback.on_rollout_start()
        for _ in range(self.train_freq):
            observations = self._last_obs
            assert isinstance(observations, np.ndarray)
            scores = self.teacher(torch.from_numpy(observations).to(self.device))
            if not bool(scores.amax(dim=1).isfinite().all()):  # -inf masks an action, but not all of them
                where = f"generation {self.generation} at step {self.num_timesteps:,}"
                message = f"the teacher's scores are not finite: {where}"
                raise NonFiniteError(message, torch.from_numpy(observations), scores, float("nan"))
            replay.add(observations, scores, self._starts)
            actions = choose_actions(scores, self.exploration_rate, self._explore)
            self._last_obs, rewards, dones, infos = env.step(actions)  # type: ignore[assignment]
            self._starts = dones
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
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
        if not (np.isfinite(losses.mean().item()) and all_finite(self)):  # the only wait for the device
            raise find_nonfinite_update(self, before, gradient_steps, batch_size)
        self._n_updates += gradient_steps
        self._record(losses.mean().item(), agreed.mean().item())
        if self.scores == "logits":
            shares = gradient_shares(scores, targets, temperature=self._target_temperature)
            self.logger.record("distill/label_share", shares.label_share.mean().item())
            self.logger.record("distill/dark_knowledge_share", 1.0 - shares.label_share.mean().item())

    @property
    def _target_temperature(self) -> float:
        """T for the teacher's scores: logits are taken as they are."""
        assert self.teacher is not None
        return self.temperature if self.teacher.kind == "q_values" else 1.0

    def update(self, observations: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One update from ``(batch, stack, height, width)`` uint8 and the teacher's ``(batch, n_actions)`` scores.

        Returns:
            The mean loss and the student's scores, both before the update and without a graph.
        """
        options = dict(self.objective_kwargs)
        if self._objective.tempered:
            options["temperature"] = self._target_temperature
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
        self.logger.record("distill/agreement", agreement)

    def state(self) -> dict[str, Any]:
        """All that decides the future but the inner state of the games and the frames of the replay.

        Plain values and tensors on the CPU, which load with ``weights_only=True``. To be asked for between two rounds:
        before or after :meth:`learn`, or in a callback's ``on_rollout_start``. :class:`agents.recording.Recording`
        brings back the rest.
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
                :meth:`agents.recording.Recording.play_again`.
        """
        self.replay = self._make_replay()
        self._last_obs, self._last_episode_starts = play_again(self.replay.add)

    def dump_logs(self) -> None:
        """Write the records: the acting teacher's scores, rates, losses; x is steps of play."""
        seconds = max((time.time_ns() - self.start_time) / 1e9, sys.float_info.epsilon)
        fps = int((self.num_timesteps - self._num_timesteps_at_start) / seconds)
        if self.ep_info_buffer:
            self.logger.record("rollout/ep_rew_mean", safe_mean([game["r"] for game in self.ep_info_buffer]))
            self.logger.record("rollout/ep_len_mean", safe_mean([game["l"] for game in self.ep_info_buffer]))
        self.logger.record("time/fps", fps)
        self.logger.record("time/time_elapsed", int(seconds), exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)

    def student_scores(self, observations: torch.Tensor) -> torch.Tensor:
        """The student's scores in float32, without a graph, for evaluation; see :func:`compute_scores`."""
        with torch.no_grad():
            return compute_scores(self.student, observations)

    def save(self, path: Place, exclude: Any = None, include: Any = None) -> None:  # type: ignore[override]
        """Write the student as an ordinary DQN zip: a path (``.zip`` is added to a name without an ending), or a file.

        ``exclude`` and ``include`` are Stable-Baselines3's; there is nothing here that they could name.
        """
        if isinstance(path, (str, os.PathLike)):
            target_of(path).parent.mkdir(parents=True, exist_ok=True)
        write_dqn_zip(path, self.student, scores=self.scores, steps=self.num_timesteps)

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

        ``custom_objects`` and ``force_reset`` are Stable-Baselines3's: nothing is unpickled here that the former
        could replace, and the games always start anew.

        Raises:
            UserError: the file is missing, damaged, or no Nature-CNN.
        """
        if print_system_info:
            get_system_info()
        agent = read_agent(path)
        network = cast(QNetwork, cut_padding(rebuild_network(agent)))
        model = cls("CnnPolicy", env, device=device, _init_setup_model=False, **kwargs)
        if env is None:
            model.observation_space, model.action_space = network.observation_space, network.action_space
            model.n_envs = 1
        model.size = size_of(network)
        model._setup_model()
        model.student.load_state_dict(network.state_dict())
        model._loaded_scores = agent.scores
        model.num_timesteps = agent.steps or 0
        return model

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Greedy actions, or epsilon-greedy ones with a coin for each row where ``deterministic`` is False."""
        actions, state = self.policy.predict(observation, state, episode_start, deterministic=True)
        if not deterministic:
            explore = self._explore.random(np.shape(actions)) < self.exploration_rate
            randoms = self._explore.integers(self.action_space.n, size=np.shape(actions))  # type: ignore[attr-defined]
            actions = np.where(explore, randoms, actions)
        return actions, state

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []
