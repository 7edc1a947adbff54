"""One task of a student of several: its games, its teacher, its replay, who acts. What learns is the whole student."""

from __future__ import annotations

from typing import Any, cast

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill_agents.distillation.multitask.learner import Part
from polydistill_agents.distillation.replay import Replay
from polydistill_agents.distillation.rounds import Round
from polydistill_agents.distillation.watching import Chosen
from polydistill_agents.files.compact import write_student
from polydistill_agents.files.places import Place
from polydistill_agents.networks.multitask import MultitaskNetwork
from polydistill_agents.networks.normalized import Statistics


class Seat(PolicyDistillation):
    """A :class:`PolicyDistillation` whose network shares its torso with others, and whose updates are made for all.

    To callbacks it is a student of Stable-Baselines3 as any other.

    Args:
        network: of all tasks.
        optimizer: of its parameters.
        task: the one that is played.
        policy: as of :class:`PolicyDistillation`, and the rest.
        env: its games.
        options: its others.
    """

    def __init__(
        self,
        network: MultitaskNetwork,
        optimizer: torch.optim.Optimizer,
        task: str,
        policy: str,
        env: VecEnv,
        **options: Any,
    ) -> None:
        self._network, self._optimizer, self.task = network, optimizer, task
        super().__init__(policy, env, **options)

    def _build_student(self, statistics: Statistics | None) -> None:
        """Stable-Baselines3's policy around the network that is there; the scale of its inputs is for all tasks."""
        torso = self._network.torso
        self.size = torso.size
        own = torso._replace(net_arch=(*torso.net_arch, *self._network.controller))
        self._build_policy(own, seed=0)  # other layers take the place of its own
        self.policy.q_net = self.policy.q_net_target = self._network.of(self.task)
        self.policy.optimizer = self._optimizer
        self.part = Part(self.lesson)
        self.learner = cast(Any, self.part)

    def save(self, path: Place, exclude: Any = None, include: Any = None) -> None:  # type: ignore[override]
        """Write torso and head as an ordinary DQN zip, see :meth:`PolicyDistillation.save`."""
        counters = {"_n_updates": self._n_updates, "_episode_num": self._episode_num}
        network = self._network.alone(self.task)
        write_student(path, network, score_kind=self.score_kind, steps=self.num_timesteps, counters=counters)

    # ---- a round of play, in the hands of who plays all tasks at once

    def stand_ready(self, total_timesteps: int, callback: BaseCallback | None, *, reset: bool) -> BaseCallback:
        """Games and replay for a call of ``learn`` that plays to ``total_timesteps``; the callback, told of it."""
        total_timesteps, told = self._stand_ready(total_timesteps, callback, reset, self.task)
        told.on_training_start(locals(), globals())
        return told

    @property
    def games(self) -> VecEnv:
        """That are played."""
        assert isinstance(self.env, VecEnv)
        return self.env

    @property
    def played(self) -> Replay:
        """What is learned from."""
        assert self.replay is not None
        return self.replay

    @property
    def round_steps(self) -> int:
        """Steps of all games in a round."""
        return self._round_steps

    @property
    def finished(self) -> bool:
        """Whether the steps of this call of ``learn`` are played."""
        return self.num_timesteps >= self._total_timesteps

    def begin_round(self, callback: BaseCallback) -> None:
        """Tell the callback."""
        callback.on_rollout_start()
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)

    def send(self) -> Chosen:
        """Label what the games show, choose actions, and let the games begin their step."""
        chosen = self._choose(self.games, self.played)
        self.games.step_async(chosen[-1])
        return chosen

    def receive(self, chosen: Chosen, callback: BaseCallback) -> bool:
        """Wait for the step; False if the callback asks to stop."""
        return self._note(self._take(chosen, self.games.step_wait()), callback)

    # ---- what its updates were

    def prepare_updates(self) -> None:
        """The temperature, where it must be measured, and the rate of the optimiser."""
        if self.temperature is None:
            self._measure_temperature(self.played)
        self._update_learning_rate(self.policy.optimizer)

    def count_updates(self, made: int, done: Round | None, share: float) -> None:
        """Note a round of ``made`` updates of the whole student, and how it was in this task, if it was met."""
        self._n_updates += made
        if done is not None:
            self._record(done)
        self.logger.record("distill/batch_share", share)

    def end_round(self, log_interval: int | None) -> None:
        """Write the records, where it is time."""
        self._rounds += 1
        if log_interval is not None and self._rounds % log_interval == 0:
            self.dump_logs()

    def end(self) -> None:
        """The call of ``learn`` is over."""
        self._round_steps = 0
