"""An agent of Stable-Baselines3 with a Q-network of its own: it plays, is saved, opened, and set on other games.

Contract: its file is an ordinary DQN zip, with the kind of its scores beside; nothing is unpickled to open one.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import Any, ClassVar, Self

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import get_system_info
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork

from polydistill.device import few_rows
from polydistill_agents.distillation.replay import Replay
from polydistill_agents.distillation.settings import check_environment, check_not_normalized, check_same_game
from polydistill_agents.distillation.student_policy import POLICIES, as_in_file, make_policy_kwargs, open_student
from polydistill_agents.files.compact import write_student
from polydistill_agents.files.places import Place, target_of
from polydistill_agents.networks.architecture import Architecture, architecture_of
from polydistill_agents.networks.nature import Size, size_of
from polydistill_agents.networks.observations import Tensors
from polydistill_agents.networks.scaling import folded, load_stock
from polydistill_agents.networks.scoring import scoring_of


class StudentAgent(BaseAlgorithm):
    """What an agent does when it does not learn; a subclass teaches it.

    Attributes:
        size: widths of a Nature-CNN, a name of ``SIZES`` or a ``Size``; None for any other network.
        exploration_rate: epsilon of :meth:`predict`.
        explore: random stream of :meth:`predict`.
        replay: of the games that it plays; None where there is none.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = POLICIES
    policy: DQNPolicy
    size: str | Size | None
    exploration_rate: float
    explore: np.random.Generator
    replay: Replay | None = None
    _in_file: tuple[str, int] | None = None  # kind of the scores in the file that was opened, and its updates

    @property
    def student(self) -> QNetwork:
        """The network that learns."""
        return self.policy.q_net

    @property
    def widths(self) -> Size | None:
        """Those of a Nature-CNN; None of any other network."""
        return size_of(self.student) if self.size is not None else None

    @property
    def score_kind(self) -> str:
        """Kind of the student's scores: of what it learns; of a file, as that says, until it learns."""
        if self._in_file is not None and self._n_updates == self._in_file[1]:
            return self._in_file[0]
        return self._learned_kind

    @property
    @abstractmethod
    def _learned_kind(self) -> str:
        """Kind of the scores after an update."""

    def _build_policy(self, architecture: Architecture, seed: int) -> None:
        """A network of ``architecture`` in channels-last memory, and its optimiser."""
        kwargs = make_policy_kwargs(self.policy_kwargs, architecture)
        # layers draw from the global generator of the CPU, given back after; learning begins with better weights
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.policy = self.policy_class(self.observation_space, self.action_space, self.lr_schedule, **kwargs)  # type: ignore[assignment]
        self.policy = self.policy.to(self.device)
        self.policy.q_net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for target, online in zip(self.policy.q_net_target.parameters(), self.student.parameters(), strict=True):
            target.data = online.data  # nothing bootstraps here: no second copy

    def student_scores(self, observations: Tensors) -> torch.Tensor:
        """The student's scores in float32, without a graph, for evaluation."""
        with torch.no_grad():
            return scoring_of(self.student)(self.student, observations)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Greedy actions, or epsilon-greedy ones with a coin for each row where ``deterministic`` is False."""
        with few_rows(self._count(observation)):
            actions, state = self.policy.predict(observation, state, episode_start, deterministic=True)
        if not deterministic:
            explore = self.explore.random(np.shape(actions)) < self.exploration_rate
            randoms = self.explore.integers(self.action_space.n, size=np.shape(actions))  # type: ignore[attr-defined]
            actions = np.where(explore, randoms, actions)
        return actions, state

    def _count(self, observation: Any) -> int:
        """How many observations these are."""
        space = self.observation_space
        part = next(iter(space.values())) if isinstance(space, spaces.Dict) else space
        first = np.asarray(next(iter(observation.values())) if isinstance(observation, dict) else observation)
        return len(first) if first.ndim > len(part.shape or ()) else 1

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        check_environment(env)
        wrapped = BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        check_not_normalized(wrapped)
        return wrapped

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

        A name that ends in ``.safetensors`` gets a compact file, which holds a student of any widths as it is
        (:mod:`polydistill_agents.files.compact`); stock Stable-Baselines3 does not open it.

        ``exclude`` and ``include`` are Stable-Baselines3's; there is nothing here that they could name.
        """
        if isinstance(path, (str, os.PathLike)):
            target_of(path).parent.mkdir(parents=True, exist_ok=True)
        counters = {"_n_updates": self._n_updates, "_episode_num": self._episode_num}
        network = folded(self.student)
        write_student(path, network, score_kind=self.score_kind, steps=self.num_timesteps, counters=counters)

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
        """Open a DQN zip, or a compact file, as a student, without unpickling.

        ``kwargs`` go to the constructor (``teacher=``, ...).
        The network is the file's: its size, and what ``policy_kwargs`` say of the function. ``custom_objects`` and
        ``force_reset`` are Stable-Baselines3's: nothing is unpickled here that the former could replace, and the
        games always start from the beginning.

        Raises:
            UserError: the file is missing, damaged, or of a form that no student has.
            ValueError: it is of another game than ``env``, or another network than ``kwargs`` ask for.
        """
        if print_system_info:
            get_system_info()
        agent, network = open_student(path)
        own = architecture_of(network)
        policy = "CnnPolicy" if own is None else own.policy
        model = cls(policy, env, device=device, _init_setup_model=False, **kwargs)  # type: ignore[call-arg]
        if model.env is not None:
            check_same_game(agent.where, (network.observation_space, network.action_space), model.env)
        else:
            model.observation_space, model.action_space = network.observation_space, network.action_space
            model.n_envs = 1
        in_file, model.policy_kwargs = as_in_file(network, model.size, model.policy_kwargs)
        model.size = in_file.size
        model._n_updates, model._episode_num = (agent.counter(name) for name in ("_n_updates", "_episode_num"))
        model._setup_model()
        load_stock(model.student, network)
        model.num_timesteps = agent.steps or 0
        model._in_file = agent.score_kind, model._n_updates
        return model

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []
