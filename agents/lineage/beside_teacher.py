"""Students that learn while train_teacher.py trains their teacher: config, callback, files, cards, and the table.

The teacher of a training is what it is without them. They lie beside its zip as ``<name>.zip``, each with a card.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch

from polydistill.config.fields import check_fields
from polydistill.disk import atomic_write
from polydistill.errors import require_at_least
from polydistill.provenance import weights_sha256
from polydistill.runs import format_interval, format_narrow_table
from polydistill.runs.interruption import StopSignals
from polydistill.streams import derive_seed
from polydistill_agents.distillation.online import DistillCallback
from polydistill_agents.distillation.online.students import OWN_SIZE, name_students
from polydistill_agents.environments.evaluation import Evaluation, evaluate
from polydistill_agents.lineage.baseline import Baseline
from polydistill_agents.lineage.report import (
    GamesPlayed,
    format_notes,
    format_points,
    format_points_interval,
    notes,
)
from polydistill_agents.networks.nature import count_parameters
from polydistill_agents.teachers import Teacher, as_teacher
from polydistill_agents.teachers.training import PROTOCOL, describe_games, score_finished
from polydistill_agents.teachers.training_config import TeacherTrainingConfig

HEADERS = ("who", "parameters", "score", "95% over games", "of teacher", "of teacher, 95% over games")
IMPORTANCE = ("who", "score", "of teacher", "95% over games", "parameters", "of teacher, 95% over games")
CURVE_EVERY_STEPS, CURVE_EPISODES = 50_000, 4


@dataclass(frozen=True)
class OnlineConfig:
    """How students learn while their teacher does; null: the default that is named.

    Args:
        labels: best: the teacher when the mean return of its last games of training was best labels; best_score: when
            its games for the curve were; current: as it is. null: best.
        best_games: over which the mean return is taken; null: 20.
        objective: policy_kl, policy_kl_q, policy_nll, policy_mse, policy_huber; reverse_kl, jsd or ban; null:
            policy_kl.
        temperature: of the teacher's Q-values, for policy_kl and policy_kl_q; null: 0.01.
        q_weight: of policy_kl_q: weight of the squared distance of the Q-values, in units of the temperature; null: its
            default.
        learning_rate: of Adam; null: 0.001.
        batch_size: samples per update; null: 128.
        samples_per_step: samples that each student learns from per step of the teacher; null: 2.
        averaging: share of the updates over which the weights are averaged; null: 0.05.
        curve_every_steps: steps of the teacher between two points of the curves; 0: no curves; null: 50,000.
        curve_episodes: games per point; null: 4.
    """

    left_out = True  # of the config of a teacher without students, see ``to_mapping``

    labels: Literal["best", "best_score", "current"] | None = None
    best_games: int | None = None
    objective: str | None = None
    temperature: float | None = None
    q_weight: float | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    samples_per_step: float | None = None
    averaging: float | None = None
    curve_every_steps: int | None = None
    curve_episodes: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name, least in (("curve_every_steps", 0), ("curve_episodes", 1)):
            if getattr(self, name) is not None:
                require_at_least(least, self, name)
        if self.labels == "best_score" and self.curve_every_steps == 0:
            raise ValueError("labels best_score needs the games of the curve: curve_every_steps must be positive")

    @property
    def given(self) -> dict[str, Any]:
        """What is not null."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(frozen=True)
class TeacherAndStudentsConfig(TeacherTrainingConfig):
    """A teacher's training, and who learns from it meanwhile.

    Args:
        students: nature, net1, net2, net3 (Rusu et al. 2016), or teacher: its own size; null: there are none.
        student: how they learn.
    """

    students: tuple[str, ...] | None = None
    student: OnlineConfig = field(default_factory=OnlineConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.students is None:
            for name in self.student.given:
                raise ValueError(f"student.{name} has no effect without students: name them, as --students [net1]")
            return
        make_callback(self)

    @property
    def names(self) -> list[str]:
        """Of the students; the teacher's own size is called as it is, since the teacher's zip has its name."""
        named = name_students(list(self.students or ()))
        return [name.replace(OWN_SIZE, "own_size") for name in named]


def make_callback(config: TeacherAndStudentsConfig) -> DistillCallback:
    """The callback that teaches the students of ``config``.

    Raises:
        ValueError: a setting that cannot work, by its name.
    """
    given = config.student.given
    every = given.pop("curve_every_steps", CURVE_EVERY_STEPS)
    episodes = given.pop("curve_episodes", CURVE_EPISODES)
    options = {name: given.pop(name) for name in ("q_weight",) if name in given}

    def score(agent: Teacher) -> float:
        played = evaluate(
            agent,
            config.task,
            protocol=PROTOCOL,
            episodes=episodes,
            seed=derive_seed(config.seed, "curve of students that learn online"),
            n_threads=config.threads,
            device=config.device,
        )
        return played.mean

    return DistillCallback(
        dict(zip(config.names, config.students or (), strict=True)),
        score=score if every else None,
        score_every=every or CURVE_EVERY_STEPS,
        precision="bfloat16" if config.precision == "bfloat16" else "float32",
        seed=config.seed,
        objective_kwargs=options,
        **given,
    )


def finish_students(
    callback: DistillCallback,
    config: TeacherAndStudentsConfig,
    out: Path,
    teacher: Evaluation,
    stop: StopSignals | None = None,
) -> dict[str, Any]:
    """Score the students, write each with its card beside the teacher's zip; what the teacher's card says of them.

    Args:
        callback: that taught them.
        config: of the training.
        out: its folder.
        teacher: its games.
        stop: signals that stop the games.

    Raises:
        Interrupted: ``stop`` received a signal.
        UserError: the disk refused.
    """
    baseline = Baseline.of_task(cast(Any, config), teacher.scores)
    rows = []
    for name, student in callback.students.items():
        agent = Teacher(student.student_scores, kind=student.score_kind)
        played = score_finished(f"student {name}", agent, config, stop, torch.device(config.device))
        path = out / f"{name}.zip"
        student.save(path)
        share, interval = baseline.normalize(config.task, played.scores, config.seed)
        network = as_teacher(path).network
        assert network is not None
        card = {
            "game": config.game,
            "student": name,
            "scores": student.score_kind,
            "parameters": count_parameters(student.student),
            "steps": student.num_timesteps,
            "updates": student._n_updates,
            "sha256": weights_sha256(network.state_dict()),
            "evaluation": describe_games(played) | {"truncated": played.truncated},
            "teacher_normalized": share,
            "teacher_normalized_ci95": interval,
            "stopped": name in callback.group.stopped,
        }
        atomic_write(path.with_suffix(".json"), (json.dumps(card, indent=2) + "\n").encode())
        rows.append(card)
    return {"parameters": count_parameters(cast(Any, callback.model).q_net), "students": rows}


def format_students(card: Mapping[str, Any]) -> str:
    """Teacher and students as a table, from the teacher's card."""
    rows = [_row("teacher", card)] + [_row(f"student {one['student']}", one) for one in card["students"]]
    played = [
        GamesPlayed(f"student {one['student']}", one["evaluation"]["episodes"], one["evaluation"]["truncated"], 0, 0)
        for one in card["students"]
    ]
    found = [
        f"student {one['student']} stopped learning: its loss was not finite"
        for one in card["students"]
        if one["stopped"]
    ]
    table = format_narrow_table(HEADERS, rows, IMPORTANCE)
    return "\n".join([table, *format_notes([*notes(card["game"], PROTOCOL, played), *found])])


def _row(who: str, card: Mapping[str, Any]) -> list[str | float | None]:
    score, share = card["evaluation"], card.get("teacher_normalized")
    return [
        who,
        card["parameters"],
        format_points(score["score_mean"]),
        format_points_interval(score["score_ci95"]),
        None if share is None else f"{share:z.3f}",
        format_interval(card.get("teacher_normalized_ci95"), 3),
    ]
