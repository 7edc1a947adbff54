"""What decides a distillation of an Atari agent: frozen dataclasses, their ranges, and how "auto" is resolved.

A published run is one file in ``configs/atari``; the defaults here are the run that ``make distill`` makes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from polydistill.config.fields import check_fields
from polydistill.device import MOST_THREADS, Device, Precision, resolve_machine
from polydistill.errors import require_at_least, require_at_most, require_choice
from polydistill.lineage import LineageConfig
from polydistill.losses import OBJECTIVES, check_options, get_objective
from polydistill.runs.checkpoint import CheckpointConfig
from polydistill_agents.environments.protocols import Play, get_protocol
from polydistill_agents.environments.task import AtariTask, open_task
from polydistill_agents.lineage.control import TD, TDConfig
from polydistill_agents.networks.nature import SIZES, multiply_adds, read_size

SAME_SIZE = "teacher"  # as a student's size: the same as its teacher's
EMULATOR_STEP = 1e7  # multiply-adds that take about as long as a step of the emulator
MAY_MOVE = ("teacher.path", "teacher.more", "dataset")  # what is in the files counts, not where they lie


@dataclass(frozen=True)
class TeacherConfig:
    """Who teaches generation 1.

    Args:
        path: a zip of Stable-Baselines3 (.zip may be left out), or a table of weights; a path, hf:// or https://;
            empty: the project's own teacher of the game.
        epsilon: probability of a random action while the teacher plays, or the student in its place.
        play: the other actions: greedy, or sample: drawn from the policy of whoever acts, logits at T = 1, Q-values at
            student.temperature.
        expected_score: mean score that the teacher is known for; the run stops before it trains where the teacher's
            games say otherwise. null: that of the card beside its file, if there is one.
        more: further teachers, as several generations of students; what is taught is the mean of all policies.
    """

    path: str = ""
    epsilon: float = 0.05
    play: Literal["greedy", "sample"] = "greedy"
    expected_score: float | None = None
    more: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon is a probability, got {self.epsilon}")
        for name in self.paths:
            if self.paths.count(name) > 1:
                raise ValueError(f"path and more name the teacher {name} twice")
        if "" in self.more:
            raise ValueError("more names files, one of them is empty")

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that are named."""
        return (self.path, *self.more) if self.path else self.more


@dataclass(frozen=True)
class LessonConfig:
    """How a student learns.

    Args:
        objective: policy_kl, policy_nll, policy_mse or policy_huber; policy_kl_q, which keeps a teacher's Q-values, so
            that a DQN may learn on from the student; or reverse_kl, jsd, ban, which need no labels; or td: the control
            without a teacher, a DQN of the same architecture that learns from rewards, with the same steps of play and
            number of updates. To it do not apply: temperature, averaging, precision, teacher.epsilon, teacher.play,
            play.beta, play.beta_end; it updates after each step of all games (play.train_freq: between two records),
            and is scored greedily.
        temperature: of the teacher's Q-values, for policy_kl, policy_kl_q and for whoever samples from them; in their
            unit. null: half of the median gap between its best two actions.
        q_weight: of policy_kl_q: weight of the squared distance of the Q-values, in units of the temperature; null: its
            default.
        beta: of jsd: the teacher's share of the mixture; null: its default.
        delta: of policy_huber: distance of the scores from which the loss is linear; null: its default.
        learning_rate: of Adam, from start to end: the average of the weights does what a falling rate would.
        batch_size: samples per update.
        samples_per_step: samples learned from per step of play.
        averaging: share of the updates so far over which the weights are averaged; the mean is what is scored and
            saved. 0: the weights of the last update.
        repeat: number of the student among those of one teacher. Another number gives other initial weights, games of
            play and data order, so that a study can have a second student; the games that are scored stay.
        td: of the objective td alone.
    """

    objective: str = "policy_kl"
    temperature: float | None = 0.01
    q_weight: float | None = None
    beta: float | None = None
    delta: float | None = None
    learning_rate: float = 1e-3
    batch_size: int = 128
    samples_per_step: float = 6.5
    averaging: float = 0.05
    repeat: int = 0
    td: TDConfig = field(default_factory=TDConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        require_at_least(0, self, "repeat")
        require_choice("objective", self.objective, [*OBJECTIVES, TD])
        for name in ("temperature", "learning_rate", "samples_per_step"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        require_at_least(1, self, "batch_size")
        if not 0 <= self.averaging < 1:
            raise ValueError(f"averaging is a share of the updates, from 0 to below 1, got {self.averaging}")
        self._check_objective()

    @property
    def has_teacher(self) -> bool:
        """Whether the student learns from its teacher: not from rewards alone."""
        return self.objective != TD

    def _check_objective(self) -> None:
        if self.has_teacher and self.td.given:
            raise ValueError(f"td.{next(iter(self.td.given))} is of the objective td, not of {self.objective}")
        if not self.has_teacher:
            for name in self.options():
                raise ValueError(f"{TD} has no option {name}")
            return
        objective = get_objective(self.objective)
        if objective.needs_labels or objective.needs_permutation:
            raise ValueError(f"objective {self.objective} is one for classifiers: play has no labels")
        check_options(self.objective, **self.options())
        if objective.sharpens and self.temperature is not None:
            check_options(self.objective, temperature=self.temperature)

    def options(self) -> dict[str, float]:
        """The objective's options that are set, but its temperature, which depends on the teacher's kind of scores."""
        values = {"q_weight": self.q_weight, "beta": self.beta, "delta": self.delta}
        return {name: value for name, value in values.items() if value is not None}


Student = TypeVar("Student", bound=LessonConfig)


@dataclass(frozen=True)
class StudentConfig(LessonConfig):
    """Who learns, and how.

    Args:
        size: widths of the network: nature, net1, net2, net3 (Rusu et al. 2016); three channels and the hidden units,
            like 8x16x16x64; or teacher: the same as its own.
    """

    size: str = SAME_SIZE

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self.size)


def check_size(size: str) -> None:
    """Refuse what is no size of a student of frames.

    Raises:
        ValueError: it is no text of :func:`~polydistill_agents.networks.nature.read_size`, and not that of its teacher.
    """
    if size != SAME_SIZE:
        read_size(size)


@dataclass(frozen=True)
class PlayConfig:
    """The play from which a student learns; its teacher says in each state what to do.

    Args:
        steps: agent steps per generation (1 step = 4 frames of Atari).
        replay_steps: steps that the replay holds (of Atari 7 KiB each).
        warmup_steps: steps before the first update.
        n_envs: games at once.
        train_freq: steps of all games between two rounds of updates.
        beta: probability that the teacher acts, for each game and step; else the student does, once it has begun to
            learn.
        beta_end: beta at the end, to which it moves linearly; null: it is constant.
    """

    steps: int = 40_000
    replay_steps: int = 40_000
    warmup_steps: int = 4_000
    n_envs: int = 16
    train_freq: int = 64
    beta: float = 1.0
    beta_end: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require_at_least(1, self, "n_envs", "train_freq")
        for name, beta in (("beta", self.beta), ("beta_end", self.beta_end)):
            if beta is not None and not 0 <= beta <= 1:
                raise ValueError(f"{name} is a probability, got {beta}")
        for name in ("steps", "replay_steps"):
            if getattr(self, name) < self.n_envs:
                raise ValueError(f"{name} must be at least n_envs = {self.n_envs}, got {getattr(self, name)}")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"warmup_steps must lie between 0 and steps = {self.steps}, got {self.warmup_steps}")
        held = self.replay_steps // self.n_envs * self.n_envs  # whole steps of all games
        if self.warmup_steps > held:
            raise ValueError(f"warmup_steps = {self.warmup_steps} do not fit into a replay of {held} steps")


def check_enough_play(student: LessonConfig, play: PlayConfig) -> None:
    """Refuse a replay without room for a batch, and play that owes no update.

    Raises:
        ValueError: naming the settings of both.
    """
    if student.batch_size > play.replay_steps:
        samples, room = student.batch_size, play.replay_steps
        raise ValueError(f"student.batch_size = {samples} samples do not fit into play.replay_steps = {room}")
    if play.steps * student.samples_per_step < student.batch_size:
        raise ValueError(
            f"play.steps = {play.steps} at student.samples_per_step = {student.samples_per_step:g} never "
            f"make one update of student.batch_size = {student.batch_size}"
        )


def check_generations(student: LessonConfig, lineage: LineageConfig) -> None:
    """Refuse a run without students, and a second generation that learns nothing from the first.

    Raises:
        ValueError: naming the settings of both.
    """
    lineage.require_students()
    if not student.has_teacher and lineage.generations > 1:
        raise ValueError("student.objective td learns from no teacher: lineage.generations must be 1")


def check_datasets(dataset: str | None, save_dataset: str | None, student: LessonConfig) -> None:
    """Refuse files of play where they cannot be.

    Raises:
        ValueError: naming the setting.
    """
    given = {name: path for name, path in (("dataset", dataset), ("save_dataset", save_dataset)) if path is not None}
    for name, path in given.items():
        if not path:
            raise ValueError(f"{name} must name a file")
        if not student.has_teacher:
            raise ValueError(f"student.objective td plays for itself, and asks no teacher: leave {name} out")
    if len(given) == 2:
        raise ValueError("what is learned from dataset is in that file already: leave save_dataset out")


def fill_defaults(student: Student, *, target_update_interval: int) -> Student:
    """The student with DQN's settings written out where it is a DQN."""
    if student.has_teacher:
        return student
    return dataclasses.replace(student, td=student.td.filled(target_update_interval=target_update_interval))


@dataclass(frozen=True)
class EvaluationConfig:
    """How teacher and students are scored.

    Args:
        protocol: rusu, machado or zoo.
        episodes: full games for the table.
        curve_every_steps: steps between two points of the student's curve; 0: no curve.
        curve_episodes: games per point of the curve; its last point is the table's.
        play: how all act: greedy (except for the protocol's epsilon), sample (from their policies), or protocol: zoo
            samples where the teacher is an actor-critic, as its students do then, rusu and machado never.
    """

    protocol: str = "rusu"
    episodes: int = 30
    curve_every_steps: int = 20_000
    curve_episodes: int = 4
    play: Play = "protocol"

    def __post_init__(self) -> None:
        check_fields(self)
        get_protocol(self.protocol)
        require_at_least(1, self, "episodes", "curve_episodes")
        require_at_least(0, self, "curve_every_steps")


@dataclass(frozen=True)
class AtariConfig:
    """Distil an agent of an Atari game into generations of students.

    Args:
        game: ROM id of ale-py, like pong; PongNoFrameskip-v4 and ALE/Pong-v5 are understood too.
        seed: root of every random stream.
        device: auto, cpu or cuda.
        threads: processor threads of torch and of the emulator; 0: as many as it may use and its work is worth.
        precision: of the student's convolutions while it learns; auto: bfloat16 where the processor computes in it.
        dataset: a file that save_dataset has written, from which generation 1 learns: its games are played again, and
            nobody else plays. teacher.path may then be left out; where it is given, that teacher is scored.
        save_dataset: a file for the play from which generation 1 learns, written at the end of its course.
        teacher: who teaches.
        student: who learns.
        play: the teacher's play.
        evaluation: how all are scored.
        lineage: how many generations.
        checkpoint: how often the run is saved.
    """

    game: str = "pong"
    seed: int = 0
    device: Device = "auto"
    threads: int = 0
    precision: Precision = "auto"
    dataset: str | None = None
    save_dataset: str | None = None
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    play: PlayConfig = field(default_factory=PlayConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    lineage: LineageConfig = field(default_factory=LineageConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "game", open_task(self.game).name)
        require_at_least(0, self, "seed", "threads")
        require_at_most(MOST_THREADS, self, "threads")
        check_enough_play(self.student, self.play)
        check_generations(self.student, self.lineage)
        check_datasets(self.dataset, self.save_dataset, self.student)
        object.__setattr__(self, "student", fill_defaults(self.student, target_update_interval=1000))

    @property
    def task(self) -> AtariTask:
        """What teacher and students play."""
        return open_task(self.game)

    def resolve(self, stored: Mapping[str, Any] | None = None) -> AtariConfig:
        """The config with device, threads and precision of this machine in the place of auto and 0.

        Args:
            stored: the config of the run that is continued, whose words are kept.

        Raises:
            UserError: the device is not there.
        """
        work = {"step": self.update_work(), "run": self.update_work() * self._updates()}
        machine = resolve_machine(self.device, self.threads, self.precision, stored=stored, **work)
        return dataclasses.replace(self, **machine)

    def _updates(self) -> float:
        return self.play.steps * self.student.samples_per_step / self.student.batch_size

    def update_work(self) -> float:
        """Multiply-adds of an update and of the play that it needs; a teacher counts as the largest size."""
        largest = multiply_adds(SIZES["nature"])
        student = largest if self.student.size == SAME_SIZE else multiply_adds(read_size(self.student.size))
        steps = self.student.batch_size / self.student.samples_per_step
        return self.student.batch_size * 3 * student + steps * (largest + EMULATOR_STEP)
