"""The control of a distillation: a DQN of the student's architecture that learns from rewards, without a teacher.

Stable-Baselines3's own DQN plays and learns (Mnih et al. 2015): its exploration, replay, target network and Huber loss.
What makes it a fair twin of a student is set here: the same steps of play, and the same number of updates of the same
batch size, ``samples_per_step / batch_size`` for each step, made after every step of all games, those of the warm-up
once it is over.

Contract: what it computes does not depend on when, or how often, it was stopped and gone on with. Stable-Baselines3's
DQN draws from numpy's global generator, so that one is part of its state; nothing else may draw from it meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch
from stable_baselines3 import DQN
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.dqn.policies import QNetwork

from polydistill.learning.rewind import NonFiniteError
from polydistill.streams import derive_seed
from polydistill_agents.distillation.state import copied, load_records, read_attributes, read_records
from polydistill_agents.distillation.student_policy import POLICIES, make_policy_kwargs
from polydistill_agents.environments.seeded import SeededVecEnv
from polydistill_agents.environments.steps import Step
from polydistill_agents.files.compact import write_student
from polydistill_agents.files.places import Place
from polydistill_agents.networks.architecture import Architecture
from polydistill_agents.networks.nature import Size, size_of
from polydistill_agents.networks.observations import Arrays, Tensors
from polydistill_agents.networks.scaling import folded
from polydistill_agents.networks.scoring import scoring_of
from polydistill_agents.teachers.continuing import continue_play, generators_state, load_generators_state, read_step

COUNTERS = (
    "num_timesteps", "_n_updates", "_n_calls", "_episode_num", "_current_progress_remaining", "exploration_rate",
    "_played", "_updates_at_zero",
)  # fmt: skip


class QLearning(DQN):
    """Stock DQN with the dues of a student: see the module.

    Args:
        env: the games.
        architecture: of the network.
        samples_per_step: samples learned from per step of play.
        learning_starts: samples in the replay before the first update; so many steps are played at random.
        log_every: steps of all games between two records.
        seed: root of the initial weights, the exploration and the order of the data; the games keep their own.
        options: of ``DQN``: ``learning_rate``, ``buffer_size``, ``batch_size``, ``gamma``, and so on.
    """

    score_kind = "q_values"

    def __init__(
        self,
        env: SeededVecEnv,
        architecture: Architecture,
        *,
        samples_per_step: float,
        learning_starts: int,
        log_every: int,
        seed: int,
        **options: Any,
    ) -> None:
        self.samples_per_step, self.log_every = samples_per_step, log_every
        self._least_samples, self._sized = learning_starts, architecture.size is not None
        self._played = self._updates_at_zero = 0  # what is owed, and was paid, is counted from there
        super().__init__(
            POLICIES[architecture.policy],  # type: ignore[arg-type]
            env,
            learning_starts=max(learning_starts - 1, 0),  # DQN learns when it has played more steps than these
            train_freq=1,
            gradient_steps=1,
            policy_kwargs=make_policy_kwargs({}, architecture),
            seed=derive_seed(seed, "q-learning") % 2**31,
            **options,
        )
        env.seed(env.own_seed)  # the seed above is that of learning

    @property
    def student(self) -> QNetwork:
        """The network that learns."""
        return self.policy.q_net

    @property
    def widths(self) -> Size | None:
        """Those of a Nature-CNN; None of any other network."""
        return size_of(self.student) if self._sized else None

    def student_scores(self, observations: Tensors) -> torch.Tensor:
        """Q-values in float32, without a graph, for evaluation."""
        with torch.no_grad():
            return scoring_of(self.student)(self.student, observations)

    # ---- what differs from stock DQN ---------------------------------------------------------------------------------

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Make the updates that are owed for the play so far.

        Raises:
            NonFiniteError: their mean loss is not finite. Other than a student, it is then not put back to before them.
        """
        owed = self._count_owed()
        if not owed:
            return
        super().train(owed, batch_size)
        loss = self.logger.name_to_value["train/loss"]
        if not math.isfinite(loss):
            message = f"the loss of td is {loss} at step {self.num_timesteps:,}"
            raise NonFiniteError(message, {"loss": float(loss)}, left="the state behind it and the loss")

    def _count_owed(self) -> int:
        assert self.replay_buffer is not None
        held = self.replay_buffer.size() * self.n_envs
        if held < self._least_samples and not self.replay_buffer.full:
            return 0
        made = self._n_updates - self._updates_at_zero
        return max(int(self._played * self.samples_per_step / self.batch_size - made), 0)

    def _on_step(self) -> None:
        super()._on_step()
        self._played += self.n_envs
        if self._n_calls % self.log_every == 0:
            self.dump_logs()

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = None,
        tb_log_name: str = "DQN",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """As stock DQN, but records come every ``log_every`` steps of all games; ``log_interval`` adds others."""
        return super().learn(
            total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar  # type: ignore[arg-type]
        )  # fmt: skip

    # ---- stopped and gone on with ------------------------------------------------------------------------------------

    def read_step(self, told: Mapping[str, Any]) -> Step:
        """The step of play that a callback is told of, among its ``locals``; nobody scores it."""
        return read_step(self, told)

    def continue_play(self, first: Arrays, steps: Iterable[Step]) -> None:
        """Fill the empty replay with what is played again, and stand where the games then stand.

        Args:
            first: what the games show before the first step.
            steps: of :meth:`polydistill_agents.environments.recording.Recording.play_again`.
        """
        continue_play(self, first, steps)

    def state(self) -> dict[str, Any]:
        """All that decides the future but the inner state of the games and the replay, which are played again.

        Plain values and tensors on the CPU. To be asked for between two steps, in a callback's ``on_rollout_start``.
        """
        return {
            "counters": read_attributes(self, COUNTERS),
            "policy": copied(self.policy.state_dict(), "cpu"),
            "optimizer": copied(self.policy.optimizer.state_dict(), "cpu"),
            "generators": generators_state(self),
            **read_records(self),
        }

    def load_state(self, state: Mapping[str, Any], *, new_games: bool = False) -> None:
        """Go on from :meth:`state`: ``learn(steps, reset_num_timesteps=False)`` then does what it would have done.

        Args:
            state: of one with the same arguments.
            new_games: go on without the replay: it is filled again, and what was played before owes nothing.
        """
        self.policy.load_state_dict(state["policy"])
        self.policy.optimizer.load_state_dict(copied(state["optimizer"]))
        for name, value in state["counters"].items():
            setattr(self, name, value)
        load_generators_state(self, state["generators"])
        load_records(self, state)
        if new_games:
            self._played, self._updates_at_zero = 0, self._n_updates

    def save(self, path: Place, exclude: Any = None, include: Any = None) -> None:  # type: ignore[override]
        """Write an ordinary DQN zip of Q-values; ``exclude`` and ``include`` have nothing to name."""
        network = self.student if self._sized else folded(self.student)
        counters = {"_n_updates": self._n_updates, "_episode_num": self._episode_num}
        write_student(path, network, score_kind=self.score_kind, steps=self.num_timesteps, counters=counters)
