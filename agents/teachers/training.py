"""Train a DQN teacher with Stable-Baselines3's own algorithm on our environment.

Mnih et al. (2015) with three changes that make it several times faster on few cores: several games at once,
n-step returns (Hessel et al. 2018), and fewer updates of larger batches for the same samples per step.

A run folder holds the last two checkpoints (:mod:`polydistill.runs.checkpoint`) and, at the end, ``teacher.zip`` with
its card ``teacher.json``. That is the last state: one chosen by its training score would be chosen by luck, above all
after a restart, when the first games to end are the short ones.

The same command again continues from the newest good checkpoint: weights, optimiser, counters, and the random states
that Stable-Baselines3 uses. The replay is not stored (it is gigabytes) but refilled by the restored agent's own play
before learning goes on, so a continued run is not bit for bit an unbroken one.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import safe_mean

from polydistill.config.fields import check_fields
from polydistill.config.plain_yaml import dump_yaml, to_mapping
from polydistill.device import MOST_THREADS, Device, Precision, prepare, resolve_machine
from polydistill.disk import atomic_write, disk_errors
from polydistill.errors import UserError, require_at_least, require_at_most
from polydistill.provenance import git_state, versions, weights_sha256
from polydistill.runs import Progress, Standing, examine_folder
from polydistill.runs.checkpoint import Checkpoints
from polydistill.runs.interruption import StopSignals
from polydistill.runs.lock import FolderLock
from polydistill.runs.space import require_room
from polydistill.streams import derive_seed
from polydistill_agents.environments.atari import PACKAGES, AtariVecEnv
from polydistill_agents.environments.evaluation import evaluate
from polydistill_agents.environments.task import AtariTask, open_task
from polydistill_agents.files.sb3_zip import write_dqn_zip
from polydistill_agents.networks.nature import SIZES, compute_scores, multiply_adds
from polydistill_agents.teachers import as_teacher

COUNTERS = ("num_timesteps", "_n_updates", "_n_calls", "_episode_num")
DISK_BYTES = 150_000_000  # three checkpoints of two networks and two moments of Adam, the zip, the curves


@dataclass(frozen=True)
class TeacherTrainingConfig:
    """What decides a teacher's training; the defaults are for Pong on two cores.

    Args:
        game: ROM id of ale-py.
        steps: agent steps to train for (1 step = 4 frames); may grow when a run is continued.
        seed: root of every random stream.
        device: auto, cpu or cuda.
        threads: processor threads of torch and of the emulator; 0: as many as it may use and its work is worth.
        precision: of the convolutions and the hidden layer, float32 or bfloat16; auto: bfloat16 where the processor
            computes in it. The last layer and the weights stay in float32: the gaps between Q-values are smaller than
            bfloat16's three digits.
        n_envs: games played at once; one update follows each step of all of them.
        learning_rate: of Adam.
        cooldown_steps: steps at the end over which the learning rate falls linearly to zero.
        batch_size: transitions per update; batch_size / n_envs samples are learned from per step.
        buffer_size: transitions kept; each takes 56 KiB.
        learning_starts: steps of random play before the first update (also the refill when continuing).
        n_steps: rewards summed before bootstrapping.
        gamma: discount per step.
        target_update_steps: agent steps between copies to the target network.
        exploration_steps: steps over which epsilon falls from 1 to exploration_final.
        exploration_final: epsilon afterwards.
        checkpoint_steps: steps between checkpoints.
        episodes: games for the score of the finished teacher, under the protocol rusu.
    """

    game: str = "pong"
    steps: int = 1_200_000
    seed: int = 0
    device: Device = "auto"
    threads: int = 0
    precision: Precision = "auto"
    n_envs: int = 8
    learning_rate: float = 2e-4
    cooldown_steps: int = 80_000
    batch_size: int = 64
    buffer_size: int = 100_000
    learning_starts: int = 10_000
    n_steps: int = 3
    gamma: float = 0.99
    target_update_steps: int = 2_000
    exploration_steps: int = 80_000
    exploration_final: float = 0.05  # as in the protocol rusu, so that the agent learns to live with it
    checkpoint_steps: int = 25_000
    episodes: int = 30

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "game", open_task(self.game).name)
        counts = ("steps", "n_envs", "batch_size", "buffer_size", "n_steps", "target_update_steps", "checkpoint_steps")
        require_at_least(1, self, *counts, "exploration_steps", "episodes")
        require_at_least(0, self, "seed", "threads", "learning_starts", "cooldown_steps")
        require_at_most(MOST_THREADS, self, "threads")
        require_at_most(2**32 - 1, self, "seed")  # NumPy's, which Stable-Baselines3 seeds too
        for name in ("exploration_final", "gamma"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.learning_starts >= self.steps:
            raise ValueError(
                f"learning_starts = {self.learning_starts:,} steps of random play leave none of steps = {self.steps:,} "
                "to learn in: lower learning_starts, or raise steps"
            )

    @property
    def task(self) -> AtariTask:
        """What the teacher learns."""
        return open_task(self.game)

    def resolve(self, stored: Mapping[str, Any] | None = None) -> TeacherTrainingConfig:
        """The config with device, threads and precision of this machine in the place of auto and 0.

        Args:
            stored: the config of the training that is continued, whose words are kept.

        Raises:
            UserError: the device is not there.
        """
        step = 4 * self.batch_size * multiply_adds(SIZES["nature"])  # there, back, and once more for the target
        machine = resolve_machine(self.device, self.threads, self.precision, stored=stored, step=step)
        return dataclasses.replace(self, **machine)


def open_folder(config: TeacherTrainingConfig, out: Path) -> FolderLock:
    """Make the run folder, or check that the one that is there belongs to ``config``; the lock on it.

    Raises:
        UserError: it holds another run, or something that is none, or cannot be written, or has no room, or another
            process works in it.
    """
    check_folder(config, out)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(out)
    check_folder(config, out)  # another process may just have begun in it
    require_room(out, DISK_BYTES)
    atomic_write(out / "config.yaml", dump_yaml(to_mapping(config)).encode())
    return lock


def check_folder(config: TeacherTrainingConfig, out: Path) -> Standing:
    """What the folder is to ``config``; writes nothing.

    Raises:
        UserError: it holds another run, or something that is none.
    """
    if any((out / "checkpoints").glob("step_*.zip")):
        raise UserError(f"{out} was begun by an older version, whose checkpoints are not read; give --out another")
    return examine_folder(out, to_mapping(config), may_grow=("steps",))


def finished_card(config: TeacherTrainingConfig, out: Path) -> dict[str, Any] | None:
    """The card of the teacher in ``out``, if it is there and was trained as ``config`` says; else None.

    Args:
        config: device, threads and precision may be those of the folder's own config, whatever this machine has.
        out: a folder of :func:`open_folder`, or none.
    """
    try:
        card: dict[str, Any] = json.loads((out / "teacher.json").read_text(encoding="utf-8"))
        score = card["evaluation"]
        whole = all(name in score for name in ("score_mean", "score_ci95", "episodes"))
        same = card["config"] == to_mapping(config)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return card if whole and same and (out / "teacher.zip").is_file() else None


def train_teacher(config: TeacherTrainingConfig, out: Path, stop: StopSignals | None = None) -> DQN:
    """Train, or continue, the teacher of ``config``, resolved, in the folder of :func:`open_folder`; the model.

    Raises:
        Interrupted: ``stop`` received a signal; what was learned is saved.
        FloatingPointError: a loss or a weight is not finite; the last checkpoint is from before that.
        UserError: no checkpoint is good, or the disk refused.
    """
    stop = StopSignals() if stop is None else stop
    checkpoints = Checkpoints(out / "checkpoints", kind="teacher")
    prepare(config.device, config.threads)
    seed = derive_seed(config.seed, "environments of training") % 2**31
    env = config.task.make_env(config.n_envs, seed=seed, n_threads=config.threads)
    model = _make_dqn(config, env)
    model.set_logger(configure(str(out / "tb"), ["tensorboard"]))
    try:
        _learn(model, config, checkpoints, stop)
    finally:
        model.logger.close()
        env.close()
    where = f"step {model.num_timesteps:,}"
    stop.raise_if_received(f"stopped at {where}, and saved: the same command goes on from there")
    return model


def _learn(model: DQN, config: TeacherTrainingConfig, checkpoints: Checkpoints, stop: StopSignals) -> None:
    """From the newest good checkpoint, or the beginning, to the last step or a signal."""
    state = checkpoints.latest()
    if state is not None:
        _load_state(model, state)
        if model.num_timesteps < config.steps:
            _refill(model, config.learning_starts, stop)
            _load_state(model, state)
    with Progress(f"{config.game} teacher", config.steps, "steps", model.num_timesteps) as bar:
        if model.num_timesteps < config.steps:
            watch = _Watch(checkpoints, config.checkpoint_steps, bar, stop)
            model.learn(config.steps - model.num_timesteps, watch, log_interval=16, reset_num_timesteps=False)


def _make_dqn(config: TeacherTrainingConfig, env: AtariVecEnv) -> DQN:
    model = DQN(
        "CnnPolicy",
        env,
        learning_rate=_falling_at_the_end(config.learning_rate, config.cooldown_steps / config.steps),
        buffer_size=config.buffer_size,
        learning_starts=config.learning_starts,
        batch_size=config.batch_size,
        gamma=config.gamma,
        train_freq=1,
        gradient_steps=1,
        n_steps=config.n_steps,
        target_update_interval=config.target_update_steps,
        exploration_fraction=min(config.exploration_steps / config.steps, 1.0),
        exploration_final_eps=config.exploration_final,
        policy_kwargs={"optimizer_kwargs": {"fused": True}},
        seed=config.seed,
        device=config.device,
    )
    model.policy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster convolutions
    for network in (model.q_net, model.q_net_target):  # the same numbers from the same weights, twice as fast
        network.forward = partial(compute_scores, network, precision=config.precision)  # type: ignore[method-assign]
    return model


def _falling_at_the_end(learning_rate: float, share: float) -> Schedule:
    """A schedule that is constant, but falls linearly to zero over the last ``share`` of the steps."""
    return lambda remaining: learning_rate * (min(remaining / share, 1.0) if share > 0 else 1.0)


def _state(model: DQN) -> dict[str, Any]:
    """What :func:`_load_state` needs. The generators are those that Stable-Baselines3 draws from."""
    generators = {"numpy": np.random.get_state(legacy=False), "actions": _actions_generator(model).state}
    return {
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "counters": {name: getattr(model, name) for name in COUNTERS},
        "generators": json.dumps(generators, default=lambda array: array.tolist()),
        "torch": torch.get_rng_state(),
    }


def _load_state(model: DQN, state: Mapping[str, Any]) -> None:
    model.policy.load_state_dict(state["policy"])
    model.policy.optimizer.load_state_dict(state["optimizer"])
    for name in COUNTERS:
        setattr(model, name, state["counters"][name])
    generators = json.loads(state["generators"])
    np.random.set_state(generators["numpy"])
    _actions_generator(model).state = generators["actions"]
    torch.set_rng_state(state["torch"])


def _actions_generator(model: DQN) -> Any:
    return model.action_space.np_random.bit_generator


def _refill(model: DQN, steps: int, stop: StopSignals) -> None:
    """Fill the replay by ``steps`` steps of the restored agent's own play, without learning."""
    model.gradient_steps = 0
    with Progress("the replay is filled again", steps, "steps") as bar:
        model.learn(steps, _Heed(bar, stop), log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
    model.gradient_steps = 1
    stop.raise_if_received("stopped while the replay was filled again: the same command starts there again")


class _Heed(BaseCallback):
    """Moves the progress bar, and ends the play where a signal asks for it."""

    def __init__(self, bar: Progress, stop: StopSignals) -> None:
        super().__init__()
        self.bar, self.stop = bar, stop

    def _on_step(self) -> bool:
        self.bar.advance(self.training_env.num_envs, score=self._score())
        return self.stop.received is None

    def _score(self) -> float | str:
        games = [game["r"] for game in self.model.ep_info_buffer or ()]
        return float(safe_mean(games)) if games else "-"


class _Watch(_Heed):
    """Saves checkpoints too, and stops where a loss is not finite."""

    def __init__(self, checkpoints: Checkpoints, every_steps: int, bar: Progress, stop: StopSignals) -> None:
        super().__init__(bar, stop)
        self.checkpoints, self.every_steps, self.saved_at = checkpoints, every_steps, 0

    def _on_training_start(self) -> None:
        self.saved_at = self.num_timesteps

    def _on_step(self) -> bool:
        loss = self.logger.name_to_value.get("train/loss", 0.0)
        if not math.isfinite(loss):
            self._refuse(f"the loss of DQN is {loss}")
        if self.num_timesteps - self.saved_at >= self.every_steps:
            self._save()
        return super()._on_step()

    def _on_training_end(self) -> None:
        self._save()

    def _refuse(self, what: str) -> NoReturn:
        kept = f"; the checkpoint of step {self.saved_at:,} is kept" if self.checkpoints.paths() else ""
        raise FloatingPointError(f"{what} at step {self.num_timesteps:,}{kept}")

    def _save(self) -> None:
        assert isinstance(self.model, DQN)
        if not all(bool(weight.isfinite().all()) for weight in self.model.policy.parameters()):
            self._refuse("the weights of DQN are not finite")
        self.checkpoints.save(_state(self.model), self.num_timesteps)
        self.saved_at = self.num_timesteps


def finish_teacher(
    model: DQN, config: TeacherTrainingConfig, out: Path, command: str, stop: StopSignals | None = None
) -> dict[str, Any]:
    """Score the trained ``model`` with fresh games, write ``teacher.zip`` and its card ``teacher.json``; the card.

    Raises:
        Interrupted: ``stop`` received a signal.
        UserError: the disk refused.
    """
    network = copy.deepcopy(model.q_net).cpu()
    del network.forward  # the faster one of training, see _make_dqn
    stop = StopSignals() if stop is None else stop

    def on_step(games: int) -> None:
        stop.raise_if_received("stopped while games were scored: the same command goes on before them")
        bar.advance(games - bar.done)

    with Progress("the teacher plays", config.episodes, "games") as bar:
        result = evaluate(
            as_teacher(network),
            config.task,
            protocol="rusu",
            episodes=config.episodes,
            seed=derive_seed(config.seed, "evaluation"),
            n_threads=config.threads,
            on_step=on_step,
        )
    write_dqn_zip(out / "teacher.zip", network, score_kind="q_values", steps=model.num_timesteps)
    card = {
        "game": config.game,
        "command": command,
        "config": to_mapping(config),
        "selection": "last",
        "steps": model.num_timesteps,
        "sha256": weights_sha256(network.state_dict()),
        "evaluation": {
            "protocol": "rusu",
            "episodes": len(result.scores),
            "score_mean": result.mean,
            "score_ci95": result.interval(),
            "scores": result.scores.tolist(),
        },
        "versions": versions(*PACKAGES),
        "git": git_state(),
    }
    atomic_write(out / "teacher.json", (json.dumps(card, indent=2) + "\n").encode())
    return card
