"""What a distillation of several tasks will take, from the plans of the single tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from polydistill.config.plain_yaml import dump_yaml, to_mapping
from polydistill.runs.checkpoint import Checkpoints
from polydistill.runs.lock import require_unlocked
from polydistill.runs.space import require_room
from polydistill.runs.speeds import recall, remember
from polydistill_agents.environments.recording import recorded_bytes
from polydistill_agents.lineage.course_base import RECORDINGS
from polydistill_agents.lineage.multitask.config import SeveralTasks
from polydistill_agents.lineage.multitask.opening import require_same_teachers
from polydistill_agents.lineage.plan import (
    ROUND_BYTES,
    ZIP_BYTES,
    count_scored_games,
    find_speed,
    replay_bytes,
    tell_duration,
    tell_size,
)
from polydistill_agents.networks.multitask import MultitaskNetwork, fits_stock
from polydistill_agents.networks.nature import count_parameters
from polydistill_agents.teachers import Teacher

KIND = "tasks"  # of the world, which its checkpoints carry
PRODUCTS = ("generation_*.safetensors", "generation_*.zip", RECORDINGS)  # that a run writes into its folder
MEMORY_OF_LIBRARIES = "beside about 1 GiB of libraries"
Teachers = Mapping[str, Teacher]


def count_student(config: SeveralTasks, teachers: Teachers) -> int:
    """Parameters of a student; no game is opened."""
    actions = {name: teacher.count_actions(config.of(name).task) for name, teacher in teachers.items()}
    space = config.of(config.names[0]).task.observation_space
    with torch.random.fork_rng(devices=[]):  # building draws initial weights that nobody keeps
        return count_parameters(
            MultitaskNetwork(space, actions, config.torso(), config.student.controller, config.outputs(actions))
        )


def disk_bytes(config: SeveralTasks, teachers: Teachers) -> int:
    """Bytes that the run folder takes at most, see :func:`~polydistill_agents.lineage.plan.disk_bytes`."""
    weights = 4 * count_student(config, teachers)
    zips = ZIP_BYTES * len(teachers) if fits_stock(config.torso()) else 0
    recordings = sum(
        recorded_bytes(config.play.steps, teacher.count_actions(config.of(name).task))
        for name, teacher in teachers.items()
    )
    rounds = config.play.steps // (config.play.train_freq * config.play.n_envs) + 1
    curves = len(teachers) * ROUND_BYTES * rounds
    saved = recordings if config.save_dataset is not None else 0
    return config.lineage.generations * (weights + zips + recordings + curves) + 3 * 3 * weights + saved


def require_disk(config: SeveralTasks, teachers: Teachers, out: Path) -> None:
    """Say what the run takes in its folder ``out``.

    Raises:
        UserError: there is no room for it.
    """
    require_room(out, disk_bytes(config, teachers))


def check_run(config: SeveralTasks, teachers: Teachers, out: Path) -> None:
    """Refuse what the run would refuse before its first step; writes nothing.

    Raises:
        UserError: as the run would.
    """
    require_unlocked(out)
    require_room(out, disk_bytes(config, teachers), quiet=True)
    require_same_start(config, teachers, out)


def require_same_start(config: SeveralTasks, teachers: Teachers, out: Path) -> None:
    """Look whether these are the teachers that the run in ``out`` began with, if there is one; writes nothing.

    Raises:
        UserError: one is another, or no checkpoint is good.
    """
    saved = Checkpoints(out / "checkpoints", kind=KIND).latest(tidy=False)
    if saved is not None and saved["state"]["generations"]:
        require_same_teachers(config, teachers, saved["state"]["generations"][0])


def format_plan(config: SeveralTasks, teachers: Teachers, out: Path, *, measure: bool = False) -> str:
    """The config, then what it costs. Writes nothing.

    Args:
        config: resolved.
        teachers: of generation 1.
        out: the run folder, for the text.
        measure: the speed of this machine, in a few seconds for each task; otherwise it is what is remembered, or what
            another had.
    """
    generations, steps, n_tasks = config.lineage.generations, config.play.steps, len(config.names)
    samples = int(n_tasks * steps * config.student.samples_per_step)
    speeds = {name: find_speed(config.of(name), teachers[name], measure=measure) for name in config.names}
    games = {name: count_scored_games(config.of(name), ensembles=0) for name in config.names}
    own = None if measure else recall(_learning(config))
    learning = generations * sum(samples / n_tasks / (own or speed.samples) for speed in speeds.values())
    scoring = sum(games[name] / speed.games for name, speed in speeds.items())
    whose = list(dict.fromkeys(f"{speed.whose}" for speed in speeds.values()))
    if own is not None:
        whose = [f"an earlier run of these tasks here: {own:,.0f} samples/s with their play", *whose]
    replay = sum(replay_bytes(config.of(name), teacher) for name, teacher in teachers.items())
    n_zips = generations * n_tasks if fits_stock(config.torso()) else 0
    lines = [
        dump_yaml(to_mapping(config)),
        f"would write {out}: {generations} generation{'s' * (generations > 1)} of {n_tasks} tasks, with {steps:,} "
        f"steps of play of each and {samples:,} samples of all; "
        f"student of {count_student(config, teachers):,} parameters",
        *whose,
        f"time: about {tell_duration(learning)} of learning, and {tell_duration(scoring)} of evaluation "
        f"({sum(games.values())} games{next(iter(speeds.values())).note})",
        f"memory: {tell_size(replay)} of replays on {config.device}, {MEMORY_OF_LIBRARIES}",
        f"disk: about {disk_bytes(config, teachers) / 1e6:,.0f} MB, most of it checkpoints and {n_zips} zips",
    ]
    if not n_zips:
        lines.append("its heads are not written as zips: stock DQN.load has no room for a torso of this size")
    return "\n".join(lines)


def _learning(config: SeveralTasks) -> dict[str, Any]:
    """What the speed of learning depends on."""
    machine = {name: getattr(config, name) for name in ("device", "threads", "precision")}
    student = {
        name: getattr(config.student, name, None) for name in ("size", "net_arch", "objective", "batch_size", "heads")
    }
    play = {"n_envs": config.play.n_envs, "samples_per_step": config.student.samples_per_step}
    return {"kind": KIND, "tasks": sorted(config.names), **machine, **student, **play}


def remember_speed(config: SeveralTasks, summary: Mapping[str, Any]) -> None:
    """Note the speed of a finished run, for the plans of later ones."""
    learning = summary["throughput"].get("generation_1_train_samples_per_second")
    if learning:
        remember(_learning(config), learning)
