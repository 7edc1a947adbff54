"""A training of stock DQN that is saved between two steps, stopped by signals, and gone on with bit for bit.

Another callback may learn beside it, and is then saved and gone on with together with it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, cast

from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import safe_mean

from polydistill.errors import UserError
from polydistill.runs import Progress
from polydistill.runs.checkpoint import Checkpoints
from polydistill.runs.interruption import StopSignals
from polydistill_agents.environments.recording import Recording
from polydistill_agents.environments.seeded import SeededVecEnv
from polydistill_agents.environments.segments import DamagedSegment
from polydistill_agents.environments.steps import Step
from polydistill_agents.teachers.continuing import continue_play, load_training_state, read_step, training_state


class Companion(Protocol):
    """A callback that learns beside the teacher, and is saved and gone on with together with it."""

    def init_callback(self, model: Any) -> None:
        """Get ready beside the model."""

    def state(self) -> dict[str, Any]:
        """What it needs to go on, in plain values and tensors."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`, once the model begins."""


@dataclass
class KeptTraining:
    """One process's part of a training.

    Args:
        model: before its first step.
        env: its games, of ``model``'s seed.
        recording: of them.
        checkpoints: of the training, of all its processes.
        stop: signals that stop it.
        companion: who learns beside it.
        title: of the training, in a word or two.
        steps: up to which it goes.
        checkpoint_steps: between two checkpoints.
        refill_steps: of play from which the replay is filled, where the games cannot be played again.
    """

    model: DQN
    env: SeededVecEnv
    recording: Recording
    checkpoints: Checkpoints
    stop: StopSignals
    companion: Companion | None
    title: str
    steps: int
    checkpoint_steps: int
    refill_steps: int

    def learn(self) -> None:
        """From the newest good checkpoint, or the beginning, to the last step or a signal."""
        model = self.model
        state = self.checkpoints.latest()
        if state is not None:
            self._go_on(state)
        if model.num_timesteps >= self.steps:
            if self.companion is not None:
                self.companion.init_callback(model)
            return
        with Progress(self.title, self.steps, "steps", model.num_timesteps) as bar:
            watch = _Watch(self, bar)
            callbacks: list[BaseCallback] = [watch]
            if self.companion is not None:
                callbacks.insert(0, cast(BaseCallback, self.companion))  # its round comes before the checkpoint
            model.learn(self.steps - model.num_timesteps, callbacks, log_interval=16, reset_num_timesteps=False)

    def _go_on(self, state: Mapping[str, Any]) -> None:
        load_training_state(self.model, state)
        if self.companion is not None:
            self.companion.load_state(state["companion"])
        if self.model.num_timesteps >= self.steps:
            return
        if "recording" not in state:
            self._refill()
        else:
            try:
                self._play_again(state["recording"])
            except (DamagedSegment, UserError) as error:
                print(f"{error}: the replay is filled again by new games", file=sys.stderr)
                self._refill()
        load_training_state(self.model, state)

    def _play_again(self, recorded: Mapping[str, Any]) -> None:
        played = self.recording.count(recorded)
        with Progress("the games are played again", played, "steps") as bar:
            first, steps = self.recording.play_again(recorded)
            continue_play(self.model, first, self._counted(steps, bar))

    def _counted(self, steps: Iterator[Step], bar: Progress) -> Iterator[Step]:
        for step in steps:
            yield step
            bar.advance(self.env.num_envs)
            self.stop.raise_if_received(
                "stopped while the games were played again: the same command starts there again"
            )

    def _refill(self) -> None:
        """Fill the replay by the restored agent's own play in new games, without learning."""
        model, steps = self.model, self.refill_steps
        self.recording = Recording(self.recording.folder, self.env, 0)
        self.env.seed(self.model.seed)  # as a new process begins
        model._last_obs, model.gradient_steps = None, 0
        with Progress("the replay is filled again", steps, "steps") as bar:
            model.learn(steps, _Heed(self, bar), log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
        model.gradient_steps = 1
        self.stop.raise_if_received("stopped while the replay was filled again: the same command starts there again")

    def save(self) -> None:
        """Write a checkpoint."""
        state = training_state(self.model) | {"recording": self.recording.state()}
        if self.companion is not None:
            state["companion"] = self.companion.state()
        self.checkpoints.save(state, self.model.num_timesteps)


class _Heed(BaseCallback):
    """Records the play, moves the progress bar, and ends the play where a signal asks for it."""

    def __init__(self, training: KeptTraining, bar: Progress) -> None:
        super().__init__()
        self.training, self.bar = training, bar

    def _on_step(self) -> bool:
        assert isinstance(self.model, DQN)
        self.training.recording.add(read_step(self.model, self.locals))
        self.bar.advance(self.training_env.num_envs, score=self._score())
        return self._goes_on()

    def _goes_on(self) -> bool:
        return self.training.stop.received is None

    def _score(self) -> float | str:
        games = [game["r"] for game in self.model.ep_info_buffer or ()]
        return float(safe_mean(games)) if games else "-"


class _Watch(_Heed):
    """Saves checkpoints too, between two steps, and stops there: at a signal, or where a loss is not finite."""

    def __init__(self, training: KeptTraining, bar: Progress) -> None:
        super().__init__(training, bar)
        self.saved_at = 0

    def _on_training_start(self) -> None:
        self.saved_at = self.num_timesteps

    def _goes_on(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        loss = self.logger.name_to_value.get("train/loss", 0.0)
        if not math.isfinite(loss):
            self._refuse(f"the loss of DQN is {loss}")
        stopped = self.training.stop.received is not None
        if stopped or self.num_timesteps - self.saved_at >= self.training.checkpoint_steps:
            self._save()
        if stopped:
            where = f"step {self.num_timesteps:,}"
            self.training.stop.raise_if_received(f"stopped at {where}, and saved: the same command goes on from there")

    def _on_training_end(self) -> None:
        self._save()

    def _refuse(self, what: str) -> NoReturn:
        kept = f"; the checkpoint of step {self.saved_at:,} is kept" if self.training.checkpoints.paths() else ""
        raise FloatingPointError(f"{what} at step {self.num_timesteps:,}{kept}")

    def _save(self) -> None:
        if not all(bool(weight.isfinite().all()) for weight in self.model.policy.parameters()):
            self._refuse("the weights of DQN are not finite")
        self.training.save()
        self.saved_at = self.num_timesteps
