"""Play as a file: written at the end of the course that learned from it, and learned from again by other students.

What was played decides the settings of play of a run that learns from it: its config must say the same, so that it
stands in its run folder. How a student learns, and how many steps of the play it gets, is free.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polydistill.errors import UserError
from polydistill.lineage import Generation
from polydistill.provenance import versions
from polydistill.streams import derive_seed
from polydistill_agents.environments.atari import PACKAGES
from polydistill_agents.environments.checksums import EVERY
from polydistill_agents.environments.recording import Recording, first_difference
from polydistill_agents.environments.seeded import SeededVecEnv
from polydistill_agents.environments.segments import DamagedSegment
from polydistill_agents.files.play_file import FORMAT, PlayData, PlayHeader, write_play
from polydistill_agents.lineage.students import AnyConfig
from polydistill_agents.teachers import Teacher
from polydistill_agents.teachers.recorded import RecordedTeacher


def settings_of_play(config: AnyConfig) -> dict[str, Any]:
    """What decides how a run plays for generation 1, by the keys of its config, but for the games themselves."""
    return {
        "play.n_envs": config.play.n_envs,
        "play.beta": config.play.beta,
        "play.beta_end": config.play.beta_end,
        "teacher.epsilon": config.teacher.epsilon,
        "teacher.play": config.teacher.play,
    }


def settings_of_data(data: PlayData) -> dict[str, Any]:
    """Likewise of a data set."""
    header = data.header
    return {
        "play.n_envs": data.actions.shape[1],
        "play.beta": header.beta,
        "play.beta_end": header.beta_end,
        "teacher.epsilon": header.epsilon,
        "teacher.play": header.play,
    }


def require_fits(config: AnyConfig, data: PlayData) -> None:
    """Compare a data set with the config of a run that is to learn from it.

    Raises:
        UserError: it is of another environment, or of other play, or too short.
    """
    if data.name != config.task.name:
        raise UserError(f"{config.dataset} holds play of {data.name}, not of {config.task.name}")
    if data.scores.shape[2] not in config.task.action_counts:
        counts = " or ".join(map(str, config.task.action_counts))
        raise UserError(
            f"{config.dataset} holds scores of {data.scores.shape[2]} actions, {config.task.name} has {counts}"
        )
    here, told = settings_of_play(config), settings_of_data(data)
    if here != told:
        words = [f"--{key} {'null' if told[key] is None else told[key]}" for key in told if told[key] != here[key]]
        raise UserError(f"{config.dataset} was played with other settings: give {' '.join(words)}")
    if config.play.steps > data.steps:
        raise UserError(
            f"{config.dataset} holds {data.steps:,} steps, and play.steps = {config.play.steps:,}: give --play.steps "
            f"{data.steps}"
        )


def require_same_original(recorded: RecordedTeacher, sha256: str | None) -> None:
    """Compare the weights of a teacher that was given beside a data set, with ``sha256``, with those that it tells of.

    Raises:
        UserError: they are others.
    """
    if recorded.data.header.sha256 != sha256:
        raise UserError(f"the teacher of {recorded.path} is another one than teacher.path names: leave that out")


def require_told_games(config: AnyConfig, recorded: RecordedTeacher) -> str:
    """How the teacher acted in the games that a data set tells of, "greedy" or "sample"; its students act so too.

    Raises:
        UserError: these games were played under another protocol, or in another manner, than is asked for.
    """
    header, asked = recorded.data.header, config.evaluation
    told = {"evaluation.protocol": header.protocol, "evaluation.play": header.acts}
    acts = header.acts if asked.play == "protocol" else asked.play
    here = {"evaluation.protocol": asked.protocol, "evaluation.play": acts}
    if here != told:
        words = " ".join(f"--{key} {value}" for key, value in told.items() if here[key] != value)
        raise UserError(
            f"{recorded.path} tells how its teacher scores under {header.protocol}, {header.acts}: give {words}, or "
            "--teacher.path FILE, and it is scored as you ask"
        )
    return header.acts


def require_can_be_saved(config: AnyConfig) -> None:
    """Refuse to save play that could not be played again.

    Raises:
        UserError: the environment does not repeat itself.
    """
    step = first_difference(config.task, seed=derive_seed(config.seed, "repeats"))
    if step is not None:
        raise UserError(
            f"{config.task.name} does not repeat itself from a seed (step {step}): its play cannot be played again, "
            "leave save_dataset out"
        )


def require_place(config: Any) -> None:
    """Look, before a run begins, whether its data set can be written where it is to be.

    Raises:
        UserError: there is such a file already, or the folder cannot be written.
    """
    if config.save_dataset is None:
        return
    path = Path(config.save_dataset)
    if path.exists():
        raise UserError(f"{path} is there already: remove it, or give --save_dataset another file")
    ground = next(each for each in path.absolute().parents if each.exists())
    if not ground.is_dir() or not os.access(ground, os.W_OK | os.X_OK):
        reason = errno.EACCES if ground.is_dir() else errno.ENOTDIR
        raise UserError(f"cannot write {path}: {os.strerror(reason)}")


class Played(NamedTuple):
    """The games of a finished course of generation 1, recorded with checksums where they are to be saved."""

    recording: Recording
    env: SeededVecEnv


def save_play(config: AnyConfig, played: Played, teacher: Teacher, first: Generation[Any], acts: str) -> Path:
    """Write the play from which generation 1 has learned.

    Args:
        config: resolved, with the temperature that was found.
        played: that play.
        teacher: who taught.
        first: generation 0, that teacher, with its games.
        acts: how it acted in these, "greedy" or "sample".

    Raises:
        UserError: the disk refused; the recording is still there, and the same command tries again.
    """
    assert config.save_dataset is not None
    assert played.recording.checksums is not None
    checksums, env, metrics = played.recording.checksums, played.env, first.metrics
    try:
        actions, scores = played.recording.whole()
    except DamagedSegment as error:
        raise UserError(f"{error}: the same command plays generation 1 again") from error
    statistics = teacher.input_statistics
    header = PlayHeader(
        format=FORMAT,
        environment=env.settings(),
        versions={**versions(*PACKAGES), **env.versions()},
        checked_every=EVERY,
        epsilon=config.teacher.epsilon,
        play=config.teacher.play,
        beta=config.play.beta,
        beta_end=config.play.beta_end,
        kind=teacher.kind,  # type: ignore[arg-type]
        temperature=config.student.temperature or 1.0,
        sha256=first.sha256,
        parameters=first.parameters,
        has_memory=teacher.has_memory,
        network=PlayHeader.of_architecture(teacher.architecture),
        clip=None if statistics is None else float(statistics.clip),
        scale_epsilon=None if statistics is None else float(statistics.epsilon),
        protocol=metrics["protocol"],
        acts=acts,  # type: ignore[arg-type]
        truncated=metrics["truncated"],
        n_actions=metrics["n_actions"],
        game_actions=metrics["game_actions"],
        invalid_share=metrics.get("invalid_share"),
        masked_mean=metrics.get("masked_score_mean"),
    )
    data = PlayData(
        header,
        actions,
        scores,
        checksums.starts(),
        env.reset_seeds,
        np.stack([np.frombuffer(digest, np.uint8) for digest in checksums.digests()]),
        np.array(metrics["scores"], dtype=np.float64),
        statistics,
    )
    path = Path(config.save_dataset)
    write_play(path, data)
    return path
