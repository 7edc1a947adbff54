"""Train a DQN teacher with Stable-Baselines3's own algorithm on our environment.

Mnih et al. (2015) with three changes that make it several times faster on few cores: many games at once,
n-step returns (Hessel et al. 2018), and fewer updates of larger batches for the same samples per step.

A run folder holds ``checkpoints/step_<n>.zip`` (Stable-Baselines3 zips with their optimiser). The same
command again continues from the newest: the replay is not stored (it is gigabytes), but refilled by the
restored agent's own play before learning goes on, so a continued run is not bit for bit an unbroken one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import safe_mean

from agents.atari import AtariVecEnv


@dataclass(frozen=True)
class TeacherConfig:
    """What decides a teacher's training; defaults are for Pong on two cores.

    Args:
        game: ROM id of ale-py.
        steps: agent steps to train for (1 step = 4 frames).
        seed: root of every random stream.
        device: "auto", "cpu" or "cuda".
        threads: processor threads of torch; 0: torch's own choice.
        n_envs: games played at once; one update follows each step of all of them.
        learning_rate: of Adam (epsilon 1.5e-4).
        batch_size: transitions per update; ``batch_size / n_envs`` is the samples per step.
        buffer_size: transitions kept; each takes 56 KiB.
        learning_starts: steps of random play before the first update (also the refill when continuing).
        n_steps: rewards summed before bootstrapping.
        gamma: discount per step.
        target_update_steps: agent steps between copies to the target network.
        exploration_steps: steps over which epsilon falls from 1 to ``exploration_final``.
        exploration_final: epsilon afterwards.
        checkpoint_steps: steps between checkpoints.
    """

    game: str = "pong"
    steps: int = 1_000_000
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    n_envs: int = 16
    learning_rate: float = 2.5e-4
    batch_size: int = 128
    buffer_size: int = 150_000
    learning_starts: int = 10_000
    n_steps: int = 3
    gamma: float = 0.99
    target_update_steps: int = 4_000
    exploration_steps: int = 100_000
    exploration_final: float = 0.02
    checkpoint_steps: int = 25_000

    def __post_init__(self) -> None:
        positive = ("steps", "n_envs", "batch_size", "buffer_size", "n_steps", "target_update_steps", "checkpoint_steps")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0.0 <= self.exploration_final <= 1.0:
            raise ValueError(f"exploration_final is a probability, got {self.exploration_final}")
        if self.learning_rate <= 0.0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")


class _Checkpoints(BaseCallback):
    """Save a zip every so many steps, and the recent mean score beside it in the file's name order."""

    def __init__(self, folder: Path, every_steps: int) -> None:
        super().__init__()
        self.folder, self.every_steps, self.saved_at = folder, every_steps, 0

    def _on_training_start(self) -> None:
        self.saved_at = self.num_timesteps

    def _on_step(self) -> bool:
        if self.num_timesteps - self.saved_at >= self.every_steps:
            self.saved_at = self.num_timesteps
            self.save()
        return True

    def _on_training_end(self) -> None:
        self.save()

    def save(self) -> None:
        temporary = self.folder / "writing.zip"
        self.model.save(temporary)
        temporary.rename(self.folder / f"step_{self.num_timesteps:09d}.zip")
        buffer = self.model.ep_info_buffer
        score = safe_mean([game["r"] for game in buffer]) if buffer else float("nan")
        with open(self.folder / "scores.csv", "a") as table:
            table.write(f"{self.num_timesteps},{score:.2f},{len(buffer or [])}\n")


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps in a run's ``checkpoints`` folder; None if there is none."""
    return max(folder.glob("step_*.zip"), default=None)


def train_teacher(config: TeacherConfig, out: Path, *, progress_bar: bool = True) -> DQN:
    """Train, or continue, the teacher of ``config`` in the run folder ``out``; return the trained model."""
    if config.threads:
        torch.set_num_threads(config.threads)
    checkpoints = out / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    env = AtariVecEnv(config.game, config.n_envs, seed=config.seed, n_threads=config.threads)
    newest = newest_checkpoint(checkpoints)
    if newest is None:
        model = DQN(
            "CnnPolicy",
            env,
            learning_rate=config.learning_rate,
            buffer_size=config.buffer_size,
            learning_starts=config.learning_starts,
            batch_size=config.batch_size,
            gamma=config.gamma,
            train_freq=1,
            gradient_steps=1,
            n_steps=config.n_steps,
            target_update_interval=config.target_update_steps,
            exploration_fraction=config.exploration_steps / config.steps,
            exploration_final_eps=config.exploration_final,
            policy_kwargs={"optimizer_kwargs": {"eps": 1.5e-4}},
            seed=config.seed,
            device=config.device,
        )
    else:
        model = DQN.load(newest, env=env, device=config.device)
    model.policy.to(memory_format=torch.channels_last)  # the convolutions are faster so
    model.set_logger(configure(str(out / "tb"), ["tensorboard", "csv"]))
    callbacks: list[BaseCallback] = [_Checkpoints(checkpoints, config.checkpoint_steps)]
    if progress_bar:
        callbacks.append(ProgressBarCallback())
    if newest is not None and model.num_timesteps < config.steps:
        # with gradient_steps=0 Stable-Baselines3 only plays; its random warm-up lies behind num_timesteps
        model.gradient_steps = 0
        model.learn(config.learning_starts, log_interval=50, reset_num_timesteps=False)
        model.gradient_steps = 1
    remaining = config.steps - model.num_timesteps
    if remaining > 0:
        model.learn(remaining, CallbackList(callbacks), log_interval=16, reset_num_timesteps=False)
    return model
