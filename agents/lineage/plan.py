"""What a distillation will take: time from speeds that were seen, memory, disk; and what it would be refused for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gymnasium import spaces

from polydistill.config.plain_yaml import dump_yaml, to_mapping
from polydistill.errors import UserError
from polydistill.lineage.ensembles import growing_ensembles
from polydistill.lineage.keeper import in_todays_form
from polydistill.runs.checkpoint import Checkpoints
from polydistill.runs.lock import require_unlocked
from polydistill.runs.shared_store import SharedStore
from polydistill.runs.space import require_room
from polydistill.runs.speeds import recall, remember
from polydistill_agents.distillation.frame_replay import open_replay
from polydistill_agents.distillation.student_policy import count_weights
from polydistill_agents.environments.recording import recorded_bytes
from polydistill_agents.lineage.agent_config import AgentConfig
from polydistill_agents.lineage.config import AtariConfig
from polydistill_agents.lineage.control import TDConfig
from polydistill_agents.lineage.course_base import RECORDINGS
from polydistill_agents.lineage.learning_on import PRODUCT, cost_after
from polydistill_agents.lineage.opening import architecture_of_student, open_teachers, require_same_teacher
from polydistill_agents.lineage.rates import Rates, measure_rates
from polydistill_agents.lineage.students import AnyConfig, make_env, make_student
from polydistill_agents.teachers import Teacher

PRODUCTS = (
    "student.zip",
    "generation_*.zip",
    "student.safetensors",
    "generation_*.safetensors",
    PRODUCT,
    RECORDINGS,
)  # that a run writes into its folder
ZIP_BYTES = 8_000_000  # a student's; stock Stable-Baselines3's NatureCNN in float32, and some JSON
ROUND_BYTES = 1_000  # of metrics, timing and events that a round of play and updates leaves
# of the largest network in batches of 128, bfloat16 and two threads, from docs/speed.md
ZEN = (Rates(environment=4_880, labels=4_957, training=3_815), "two cores of an AMD EPYC (Zen 4)")
STEPS_PER_GAME = 2_000  # an assumption, stated in the plan: how long a game lasts is not known beforehand


def count_student(config: AnyConfig, teacher: Teacher) -> int:
    """Parameters of a student of ``teacher``; no game is opened, and no memory taken."""
    space, architecture = config.task.observation_space, architecture_of_student(config, teacher)
    return count_weights(space, teacher.count_actions(config.task), architecture)


def kind_of(config: AnyConfig) -> str:
    """The name of its world, which its checkpoints carry."""
    return "agent" if isinstance(config, AgentConfig) else "atari"


def disk_bytes(config: AnyConfig, teacher: Teacher) -> int:
    """Bytes that the run takes at most: zips, recordings of the play, checkpoints (two and the one being written, each
    of weights and two moments of Adam; of a DQN the target network too), curves, a data set.
    """
    recording = recorded_bytes(config.play.steps, teacher.count_actions(config.task))
    saved = recording if config.save_dataset is not None else 0
    checkpoint = (3 if config.student.has_teacher else 4) * 4 * count_student(config, teacher)
    curves = ROUND_BYTES * (config.play.steps // (config.play.train_freq * config.play.n_envs) + 1)
    student = 4 * count_student(config, teacher)
    after = ZIP_BYTES if cost_after(config).samples else 0
    return config.lineage.generations * (ZIP_BYTES + student + recording + curves) + 3 * checkpoint + saved + after


def require_disk(config: AnyConfig, teacher: Teacher, out: Path) -> None:
    """Say what the run takes in its folder ``out``.

    Raises:
        UserError: there is no room for it.
    """
    require_room(out, disk_bytes(config, teacher))


def check_run(config: AnyConfig, teacher: Teacher, out: Path) -> None:
    """Refuse what the run would refuse before its first step; writes nothing.

    Args:
        config: resolved.
        teacher: of generation 1.
        out: the run folder, not of a finished run.

    Raises:
        UserError: as the run would.
    """
    require_unlocked(out)
    require_room(out, disk_bytes(config, teacher), quiet=True)
    require_same_start(config, teacher, out)


def require_same_start(config: AnyConfig, teacher: Teacher, out: Path) -> None:
    """Look whether ``teacher`` is the one that the run in ``out`` began with, if there is one; writes nothing.

    Raises:
        UserError: it is another one, or no checkpoint is good.
    """
    saved = Checkpoints(out / "checkpoints", kind=kind_of(config)).latest(tidy=False)
    done = [] if saved is None else in_todays_form(saved["state"])["generations"]
    if done:
        require_same_teacher(config, teacher, done[0])


def format_plan(config: AnyConfig, teacher: Teacher, out: Path, *, measure: bool = False) -> str:
    """The config, then what it costs. Writes nothing.

    Args:
        config: resolved.
        teacher: of generation 1.
        out: the run folder, for the text.
        measure: the speed of this machine, in a few seconds; otherwise it is what is remembered, or what another had.
    """
    generations, steps = config.lineage.generations, config.play.steps
    samples, games = int(steps * config.student.samples_per_step), _scored_games(config)
    speed = find_speed(config, teacher, measure=measure)
    lines = [
        dump_yaml(to_mapping(config)),
        f"would write {out}: {generations} generation{'s' * (generations > 1)} of {steps:,} steps of play and "
        f"{samples:,} samples each; student of {count_student(config, teacher):,} parameters",
        speed.whose,
        f"time: about {tell_duration(_all_samples(config) / speed.samples)} of learning, and "
        f"{tell_duration(games / speed.games)} of evaluation ({games} games{speed.note})",
        _memory(config, teacher),
        f"disk: about {disk_bytes(config, teacher) / 1e6:,.0f} MB, most of it checkpoints and {generations} zip"
        f"{'s' * (generations > 1)}",
    ]
    return "\n".join(lines)


def expected_seconds(config: AnyConfig) -> float | None:
    """Of a run, roughly, by the speed of earlier ones or by how fast this machine is now.

    Args:
        config: resolved.

    Returns:
        None where the teacher's file is not there, or cannot be read: the run itself will say so.
    """
    try:
        teacher = open_teachers(config)
        speed = find_speed(config, teacher, measure=False)
    except UserError:
        return None
    return _all_samples(config) / speed.samples + _scored_games(config) / speed.games


def _all_samples(config: AnyConfig) -> float:
    """Of all students, and of the last one while it learns on."""
    taught = config.lineage.generations * config.play.steps * config.student.samples_per_step
    return taught + cost_after(config).samples


def _scored_games(config: AnyConfig) -> int:
    ensembles = len(growing_ensembles(config.lineage.generations))
    return count_scored_games(config, ensembles) + cost_after(config).games


def count_scored_games(config: AnyConfig, ensembles: int) -> int:
    """Games for the table, of teacher, students and ``ensembles``, and for the curves of all generations."""
    generations, every = config.lineage.generations, config.evaluation.curve_every_steps
    points = -(-config.play.steps // every) if every else 0
    tables = 1 + generations + ensembles
    return tables * config.evaluation.episodes + generations * points * config.evaluation.curve_episodes


def find_speed(config: AnyConfig, teacher: Teacher, *, measure: bool) -> Speed:
    """How fast a run will be: as it is measured, or remembered, or as another machine was."""
    return (None if measure else _remembered(config)) or _measured(config, teacher)


def replay_bytes(config: AnyConfig, teacher: Teacher) -> float:
    """Memory of the replay of play that ``teacher`` labels."""
    capacity = max(config.play.replay_steps // config.play.n_envs, 1) * config.play.n_envs
    space, n_actions = config.task.observation_space, teacher.count_actions(config.task)
    return open_replay(space, capacity, config.play.n_envs, n_actions, "meta").n_bytes


def _memory(config: AnyConfig, teacher: Teacher) -> str:
    capacity = max(config.play.replay_steps // config.play.n_envs, 1) * config.play.n_envs
    space, where = config.task.observation_space, config.device
    parts = space.values() if isinstance(space, spaces.Dict) else [space]
    per_step = 2 * sum(part.sample().nbytes for part in parts)  # Stable-Baselines3 holds the next observation too
    if config.student.has_teacher:
        n_bytes = replay_bytes(config, teacher)
    else:
        n_bytes, where = capacity * per_step, "cpu"
    n_bytes = max(n_bytes, cost_after(config).replay_steps * per_step)  # the first replay is gone then
    return f"memory: {tell_size(n_bytes)} of replay on {where}, beside about 1 GiB of libraries"


class Speed(NamedTuple):
    """Samples and games per second, whose they are, and what the games assume."""

    samples: float
    games: float
    whose: str
    note: str = ""


def _from_rates(config: AnyConfig, rates: Rates, where: str) -> Speed:
    per_step = 1 / rates.environment + 2 / rates.labels
    steps = min(config.task.longest, STEPS_PER_GAME) if isinstance(config, AgentConfig) else STEPS_PER_GAME
    return Speed(
        samples=rates.loop_bound(1 / config.student.samples_per_step),
        games=1 / (steps * per_step),
        whose=f"{where}: {rates.environment:,.0f} steps/s of the games, {rates.labels:,.0f} labels/s, "
        f"{rates.training:,.0f} samples/s of training",
        note=f", if one lasts {steps:,} steps",
    )


def _measured(config: AnyConfig, teacher: Teacher) -> Speed:
    if not config.student.has_teacher:  # its updates cost about as much as those of a student who asks its teacher
        lesson: Any = dataclasses.replace(config.student, objective="policy_kl", td=TDConfig())
        config = dataclasses.replace(config, student=lesson)
    env = make_env(config, teacher, generation=1)
    rates = measure_rates(
        make_student(config, teacher, env, generation=1), env, seconds=1.0 if isinstance(config, AgentConfig) else 2.0
    )
    env.close()
    return _from_rates(config, rates, "measured here")


def _remembered(config: AnyConfig) -> Speed | None:
    """That of the last such run here; of one elsewhere, where that is known."""
    samples, games = recall(_learning(config)), recall(_games(config))
    if samples is not None and games is not None:
        whose = f"an earlier run here: {samples:,.0f} samples/s with their play, {games * 60:.1f} games per minute"
        return Speed(samples, games, whose)
    if isinstance(config, AgentConfig):  # measured in a second or two: environments are nothing alike
        return None
    rates, machine = ZEN
    return _from_rates(config, rates, f"on {machine}, the largest network (--dry_run_measure measures this machine)")


def _learning(config: AnyConfig) -> dict[str, Any]:
    """What the speed of learning depends on."""
    machine = {name: getattr(config, name) for name in ("device", "threads", "precision")}
    own = ["net_arch"] if isinstance(config, AgentConfig) else ["size"]
    own += ["size"] if isinstance(config, AgentConfig) and config.student.size is not None else []
    student = {name: getattr(config.student, name) for name in (*own, "objective", "batch_size", "samples_per_step")}
    return {**_played(config), "n_envs": config.play.n_envs, **machine, **student}


def _games(config: AnyConfig) -> dict[str, Any]:
    """What the length of games that are scored depends on."""
    machine = {name: getattr(config, name) for name in ("device", "threads")}
    played = _played(config) if isinstance(config, AgentConfig) else {"game": config.game}
    return {**played, "kind": f"{kind_of(config)} games", "protocol": config.evaluation.protocol, **machine}


def _played(config: AnyConfig) -> dict[str, Any]:
    """What is played, as far as speed depends on it: games of Atari are much alike."""
    if isinstance(config, AtariConfig):
        return {"kind": "atari"}
    return {"kind": "agent", "env": config.env, "wrappers": list(config.wrappers)}


def remember_speed(config: AnyConfig, summary: Mapping[str, Any]) -> None:
    """Note the speed of a finished run, for the plans of later ones."""
    learning = summary["throughput"].get("generation_1_train_samples_per_second")
    scoring = summary["seconds"][0]  # the teacher does nothing but play its games
    if learning and scoring:
        remember(_learning(config), learning)
        played = config.dataset is None or bool(config.teacher.paths)  # else a file tells of the teacher's games
        if SharedStore.of_environment() is None and played:  # else another run may have played them
            remember(_games(config), config.evaluation.episodes / scoring)


def tell_size(n_bytes: float) -> str:
    """In words."""
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**28 else f"{n_bytes / 2**20:.1f} MiB"


def tell_duration(seconds: float) -> str:
    """In words."""
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )
