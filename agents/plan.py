"""What a distillation will take: time from rates measured on the spot and memory, for ``--dry_run``; disk, always."""

from __future__ import annotations

from pathlib import Path

from agents.config import AtariConfig
from agents.distillation import PolicyDistillation
from agents.lesson import make_env, make_student
from agents.networks import count_parameters
from agents.rates import measure_rates
from agents.recording import recorded_bytes
from agents.replay import FrameReplay
from agents.teachers import Teacher
from polydistill.disk import require_room
from polydistill.plain_yaml import dump_yaml, to_mapping

ZIP_BYTES = 8_000_000  # a student's; stock Stable-Baselines3's NatureCNN in float32, and some JSON
ROUND_BYTES = 1_000  # of metrics, timing and events that a round of play and updates leaves
STEPS_PER_GAME = 2_000  # an assumption, stated in the plan: how long a game lasts is not known beforehand


def disk_bytes(config: AtariConfig, student: PolicyDistillation) -> int:
    """Bytes that the run folder takes at most: zips, recordings of the play, checkpoints (two and the one being
    written, each of weights and two moments of Adam), curves.
    """
    n_actions = int(student.action_space.n)  # type: ignore[attr-defined]
    recording = recorded_bytes(config.play.steps, n_actions)
    checkpoint = 3 * 4 * count_parameters(student.student)
    curves = ROUND_BYTES * (config.play.steps // (config.play.train_freq * config.play.n_envs) + 1)
    return config.lineage.generations * (ZIP_BYTES + recording + curves) + 3 * checkpoint


def require_disk(config: AtariConfig, teacher: Teacher, out: Path) -> None:
    """Say what the run takes in its folder ``out``.

    Raises:
        UserError: there is no room for it.
    """
    env = make_env(config, teacher, generation=1)
    require_room(out, disk_bytes(config, make_student(config, teacher, env, generation=1)))


def format_plan(config: AtariConfig, teacher: Teacher, out: Path) -> str:
    """The config, then what it costs on this machine. Takes a few seconds to measure; writes nothing.

    Args:
        config: resolved.
        teacher: of generation 1.
        out: the run folder, for the text.
    """
    env = make_env(config, teacher, generation=1)
    student = make_student(config, teacher, env, generation=1)
    rates = measure_rates(student, env, seconds=2.0)
    env.close()
    generations, steps = config.lineage.generations, config.play.steps
    samples = int(steps * config.student.samples_per_step)
    learning = steps * (1 / rates.environment + 1 / rates.labels) + samples / rates.training
    per_step = 1 / rates.environment + 2 / rates.labels
    curve_points = 0 if not config.evaluation.curve_every_steps else steps // config.evaluation.curve_every_steps + 1
    games = (
        generations + 1
    ) * config.evaluation.episodes + generations * curve_points * config.evaluation.curve_episodes
    evaluating = games * STEPS_PER_GAME * per_step
    stack, height, width = student.observation_space.shape  # type: ignore[misc]
    n_actions = int(student.action_space.n)  # type: ignore[attr-defined]
    capacity = max(config.play.replay_steps // config.play.n_envs, 1) * config.play.n_envs
    replay = FrameReplay(capacity, config.play.n_envs, stack, (height, width), n_actions, "meta")
    lines = [
        dump_yaml(to_mapping(config)),
        f"would write {out}: {generations} generation{'s' * (generations > 1)} of {steps:,} steps of play and "
        f"{samples:,} samples each; student of {count_parameters(student.student):,} parameters",
        f"measured here: {rates.environment:,.0f} steps/s of the emulator, {rates.labels:,.0f} labels/s, "
        f"{rates.training:,.0f} samples/s of training",
        f"time: about {_duration(generations * learning)} of learning, and {_duration(evaluating)} of evaluation "
        f"({games} games, if one lasts {STEPS_PER_GAME:,} steps)",
        f"memory: {replay.n_bytes / 2**30:.2f} GiB of replay on {config.device}, beside about 1 GiB of libraries",
        f"disk: about {disk_bytes(config, student) / 1e6:,.0f} MB, most of it checkpoints and {generations} zip"
        f"{'s' * (generations > 1)}",
    ]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )
