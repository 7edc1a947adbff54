"""Train a DQN teacher with Stable-Baselines3's own algorithm on our environment.

Mnih et al. (2015) with three changes that make it several times faster on few cores: several games at once,
n-step returns (Hessel et al. 2018), and fewer updates of larger batches for the same samples per step.

A run folder holds the last two checkpoints (:mod:`polydistill.runs.checkpoint`) and, at the end, ``teacher.zip`` with
its card ``teacher.json``. That is the last state: one chosen by its training score would be chosen by luck, above all
after a restart, when the first games to end are the short ones.

The same command again continues from the newest good checkpoint, bit for bit: its games are played again. Where that
cannot be (another emulator, a damaged recording, a run that an earlier version began without one) the replay is filled
by the restored agent's own play.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import DQN
from stable_baselines3.common.logger import configure
from stable_baselines3.common.type_aliases import Schedule

from polydistill.config.plain_yaml import to_mapping
from polydistill.device import prepare
from polydistill.disk import atomic_write
from polydistill.provenance import git_state, versions, weights_sha256
from polydistill.runs import Progress
from polydistill.runs.checkpoint import Checkpoints
from polydistill.runs.interruption import StopSignals
from polydistill.streams import derive_seed
from polydistill_agents.environments.atari import PACKAGES
from polydistill_agents.environments.evaluation import Evaluation, evaluate
from polydistill_agents.environments.recording import Recording
from polydistill_agents.environments.seeded import SeededVecEnv
from polydistill_agents.files.sb3_zip import write_dqn_zip
from polydistill_agents.networks.nature import compute_scores
from polydistill_agents.teachers import Teacher, as_teacher
from polydistill_agents.teachers.kept_training import Companion, KeptTraining
from polydistill_agents.teachers.training_config import TeacherTrainingConfig

PROTOCOL = "rusu"  # under which the finished teacher is scored
RECORDING = "recording"  # folder of the play, within that of the run


def train_teacher(
    config: TeacherTrainingConfig, out: Path, stop: StopSignals | None = None, companion: Companion | None = None
) -> DQN:
    """Train, or continue, the teacher of ``config``, resolved, in the folder of :func:`open_folder`; the model.

    Args:
        config: of the teacher.
        out: the folder.
        stop: signals that stop it.
        companion: a callback of Stable-Baselines3 that learns beside it; in the end it stands beside the model.

    Raises:
        Interrupted: ``stop`` received a signal; what was learned is saved.
        FloatingPointError: a loss or a weight is not finite; the last checkpoint is from before that.
        UserError: no checkpoint is good, or the disk refused.
    """
    stop = StopSignals() if stop is None else stop
    checkpoints = Checkpoints(out / "checkpoints", kind="teacher")
    prepare(config.device, config.threads)
    model, env = make_teacher(config)
    model.set_logger(configure(str(out / "tb"), ["tensorboard"]))
    try:
        KeptTraining(
            model,
            env,
            Recording(out / RECORDING, env, 0),
            checkpoints,
            stop,
            companion,
            title=f"{config.game} teacher",
            steps=config.steps,
            checkpoint_steps=config.checkpoint_steps,
            refill_steps=config.learning_starts,
        ).learn()
    finally:
        model.logger.close()
        env.close()
    return model


def make_teacher(config: TeacherTrainingConfig) -> tuple[DQN, SeededVecEnv]:
    """The DQN of ``config``, resolved, before its first step, and its games."""
    seed = derive_seed(config.seed, "environments of training") % 2**31
    env = config.task.make_env(config.n_envs, seed=seed, n_threads=config.threads)
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
    return model, env


def _falling_at_the_end(learning_rate: float, share: float) -> Schedule:
    """A schedule that is constant, but falls linearly to zero over the last ``share`` of the steps."""
    return lambda remaining: learning_rate * (min(remaining / share, 1.0) if share > 0 else 1.0)


def finish_teacher(
    model: DQN,
    config: TeacherTrainingConfig,
    out: Path,
    command: str,
    stop: StopSignals | None = None,
    finish_others: Callable[[Evaluation], Mapping[str, Any]] = lambda _: {},
) -> dict[str, Any]:
    """Score the trained ``model`` with fresh games, write ``teacher.zip`` and its card ``teacher.json``; the card.

    Args:
        model: trained.
        config: of it.
        out: the folder.
        command: that trained it, for the card.
        stop: signals that stop the games.
        finish_others: called with the teacher's games before the card is written: what belongs there, too.

    Raises:
        Interrupted: ``stop`` received a signal.
        UserError: the disk refused.
    """
    network = copy.deepcopy(model.q_net).cpu()
    del network.forward  # the faster one of training, see make_teacher
    result = score_finished("the teacher", as_teacher(network), config, stop)
    write_dqn_zip(out / "teacher.zip", network, score_kind="q_values", steps=model.num_timesteps)
    card = {
        "game": config.game,
        "command": command,
        "config": to_mapping(config),
        "selection": "last",
        "steps": model.num_timesteps,
        "sha256": weights_sha256(network.state_dict()),
        "evaluation": describe_games(result),
        **finish_others(result),
        "versions": versions(*PACKAGES),
        "git": git_state(),
    }
    atomic_write(out / "teacher.json", (json.dumps(card, indent=2) + "\n").encode())
    return card


def score_finished(
    who: str,
    agent: Teacher,
    config: TeacherTrainingConfig,
    stop: StopSignals | None = None,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """The games of one that has learned: the same fresh ones for all of a training.

    Args:
        who: it is, for the progress bar.
        agent: that plays.
        config: of the training.
        stop: signals that stop the games.
        device: where it computes.

    Raises:
        Interrupted: ``stop`` received a signal.
    """
    stop = StopSignals() if stop is None else stop

    def on_step(games: int) -> None:
        stop.raise_if_received("stopped while games were scored: the same command goes on before them")
        bar.advance(games - bar.done)

    with Progress(f"{who} plays", config.episodes, "games") as bar:
        return evaluate(
            agent,
            config.task,
            protocol=PROTOCOL,
            episodes=config.episodes,
            seed=derive_seed(config.seed, "evaluation"),
            n_threads=config.threads,
            device=device,
            on_step=on_step,
        )


def describe_games(played: Evaluation) -> dict[str, Any]:
    """What a card says of them."""
    return {
        "protocol": PROTOCOL,
        "episodes": len(played.scores),
        "score_mean": played.mean,
        "score_ci95": played.interval(),
        "scores": played.scores.tolist(),
    }
