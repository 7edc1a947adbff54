"""An ensemble of students from several run folders: the mean of their policies, scored as they were.

Contract: the members played the same task, and were scored under the same protocol in as many games, and are what their
runs finished with. The ensemble plays the games that the last student of the longest lineage among them was scored in,
of its own seed. Shares of the teacher's score are of the first member's teacher, for all members. Nothing is trained.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polydistill.config.parsing import read_config
from polydistill.config.plain_yaml import flatten
from polydistill.errors import UserError
from polydistill.lineage.members import MembersConfig
from polydistill.provenance import weights_sha256
from polydistill.runs import Run, read_summary
from polydistill.streams import derive_seed
from polydistill_agents.environments.evaluation import Evaluation, evaluate
from polydistill_agents.environments.gym_config import EnvironmentConfig
from polydistill_agents.lineage.agent_config import AgentConfig
from polydistill_agents.lineage.baseline import Baseline
from polydistill_agents.lineage.config import AtariConfig
from polydistill_agents.lineage.control import TD
from polydistill_agents.lineage.metrics import measured
from polydistill_agents.lineage.opening import choose_play, open_teachers, temperature_of
from polydistill_agents.lineage.student_file import find_student, read_student
from polydistill_agents.lineage.students import AnyConfig
from polydistill_agents.teachers import Teacher, as_teacher
from polydistill_agents.teachers.several import MeanTeacher

CONFIGS: Mapping[str, type[Any]] = {"agent": AgentConfig, "atari": AtariConfig}


@dataclass(frozen=True)
class EnsembleConfig(MembersConfig):
    """Score the mean of the policies of the students of several runs."""


class MemberRun(NamedTuple):
    """A finished run.

    Attributes:
        folder: of it.
        config: of it, on the device of the ensemble.
        summary: what summary.json holds.
    """

    folder: Path
    config: AnyConfig
    summary: Mapping[str, Any]

    @property
    def last(self) -> Mapping[str, Any]:
        """Its last generation, as its summary has it."""
        return self.summary["generations"][-1]  # type: ignore[no-any-return]

    @property
    def teacher(self) -> Mapping[str, Any]:
        """The metrics of its first teacher."""
        return self.summary["generations"][0]["metrics"]  # type: ignore[no-any-return]

    @property
    def scoring(self) -> dict[str, Any]:
        """What decides how its student was scored, by the keys of its config."""
        settings = self.config.evaluation
        rules = {f"evaluation.{name}": getattr(settings, name) for name in ("protocol", "episodes", "play")}
        return {"kind": self.summary["kind"], **_played(self.config), **rules}


def open_runs(config: EnsembleConfig, out: Path) -> list[MemberRun]:
    """The runs of the members, without their networks.

    Args:
        config: resolved.
        out: folder of the ensemble's run.

    Raises:
        UserError: one is missing, unfinished or of another world, or was not scored as the first.
    """
    folders = config.folders(out)
    if not out.exists():  # nor does its ".."
        folders = [Path(os.path.normpath(folder)) for folder in folders]
    runs = [_open_run(folder, config) for folder in folders]
    first = runs[0]
    for run in runs[1:]:
        for key, value in first.scoring.items():
            other = run.scoring.get(key)
            if other != value:
                raise UserError(
                    f"{first.folder} and {run.folder} make no ensemble: {key} is {value!r} in the first and {other!r} "
                    "in the other"
                )
    return runs


def _open_run(folder: Path, config: EnsembleConfig) -> MemberRun:
    summary = read_summary(folder)
    try:
        kind, generations = summary["kind"], summary["generations"]
        if kind not in CONFIGS:
            raise UserError(
                f"{folder} is a run of {kind}: a member is one of distill_atari.py or distill_agent.py, of one task"
            )
        if len(generations) < 2:
            raise UserError(f"{folder} holds no student: nothing was trained in that run")
        machine = {"device": config.device, "threads": config.threads}
        given = read_config(CONFIGS[kind], None, dict(flatten(summary["config"])) | machine)
    except (LookupError, TypeError) as error:
        raise UserError(f"{folder} holds no student: {error!r}") from error
    if isinstance(given, AgentConfig):
        given = dataclasses.replace(given, teacher_wrappers=())  # of another view than the student's
    return MemberRun(folder, given, summary)


def _played(config: AnyConfig) -> dict[str, Any]:
    if isinstance(config, AtariConfig):
        return {"game": config.game}
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(EnvironmentConfig)}


def measure_ensemble(config: EnsembleConfig, members: Sequence[MemberRun], run: Run) -> dict[str, Any]:
    """Score the ensemble, and finish its run.

    Args:
        config: resolved.
        members: of :func:`open_runs`.
        run: its folder, not finished.

    Returns:
        what summary.json holds. It has no ``generations``, since nothing was trained.

    Raises:
        UserError: a student's file is missing, damaged or another, or its students do not fit one another.
        NonFiniteError: scores are not finite.
    """
    started = time.perf_counter()
    first = members[0]
    students = [_open_student(member) for member in members]
    temperatures = [temperature_of(member.config, student) for member, student in zip(members, students, strict=True)]
    mean = MeanTeacher(students, temperatures)
    scored: AnyConfig = dataclasses.replace(first.config, seed=config.seed)
    baseline = Baseline.of_metrics(scored, first.teacher)
    result, masked = _score(mean, scored, members, run)
    told = [
        {"folder": name, **member.last, "metrics": _beside(member, scored, baseline)}
        for name, member in zip(config.names, members, strict=True)
    ]
    metrics = measured(scored, result, masked, baseline)
    return run.finish(
        {
            "generations": [],
            "members": told,
            "ensembles": [{"members": [*range(len(members))], "reference": None, "metrics": metrics}],
            "played": _played(scored),
            "teacher": {"metrics": first.teacher},
            "throughput": {},
            "seconds": [round(time.perf_counter() - started, 1)],
        }
    )


def _open_student(member: MemberRun) -> Teacher:
    """The student of a run, as it was when it was scored."""
    path = find_student(member.folder / "student")
    student = as_teacher(path)
    if student.size is not None:
        student = read_student(path, student.size)
    assert student.network is not None  # of a file
    if weights_sha256(student.network.state_dict()) != member.last["sha256"]:
        raise UserError(f"{path} holds other weights than those that its run ended with")
    return student.to(member.config.device)


def _score(
    mean: MeanTeacher, config: AnyConfig, members: Sequence[MemberRun], run: Run
) -> tuple[Evaluation, Evaluation | None]:
    """The games of the table, and those without invalid actions where the environment tells them."""
    episodes, generation = config.evaluation.episodes, max(member.last["generation"] for member in members)
    options: Any = {
        "protocol": config.evaluation.protocol,
        "episodes": episodes,
        "n_threads": config.threads,
        "device": config.device,
        "play": how_they_act(config),
    }
    with run.progress(f"the ensemble of the {len(members)} plays", episodes, "games") as bar:
        seed = derive_seed(config.seed, "evaluation", generation)
        result = evaluate(mean, config.task, seed=seed, on_step=lambda games: bar.advance(games - bar.done), **options)
    if result.invalid_share is None:
        return result, None
    return result, evaluate(
        mean, config.task, seed=derive_seed(config.seed, "evaluation, masked", generation), masked=True, **options
    )


def how_they_act(config: AnyConfig) -> str:
    """How the students of a run acted while they were scored, "greedy" or "sample".

    Raises:
        UserError: that hangs on its teacher, whose file is missing.
    """
    if config.student.objective == TD:
        return "greedy"
    settings = config.evaluation
    if settings.play != "protocol":
        return settings.play
    if not config.task.protocol(settings.protocol).samples_logits:
        return "greedy"
    return choose_play(config, open_teachers(config))


def _beside(member: MemberRun, config: AnyConfig, baseline: Baseline) -> dict[str, Any]:
    """The metrics of a member, whose teacher may be another member, between random play and the first one's teacher."""
    scores = np.array(member.last["metrics"]["scores"])
    normalized, interval = baseline.normalize(config.task, scores, config.seed)
    return {**member.last["metrics"], "teacher_normalized": normalized, "teacher_normalized_ci95": interval}


# ---- what a study asks of its arms -----------------------------------------------------------------------------------

COMMAND = ("ensemble_agents", "polydistill-agents-ensemble")
TRAINING = "steps of play"
SECONDS = None  # how long a game lasts is not known beforehand


def training_of(config: Mapping[str, Any]) -> int:
    """The steps of play of a run, all its generations together; its given teacher has none.

    Args:
        config: of a lineage, as plain values.
    """
    return int(config["lineage"]["generations"] * config["play"]["steps"])


def is_taught(config: Mapping[str, Any]) -> bool:
    """Whether the students of a lineage learn from a teacher, and not from rewards alone."""
    return bool(config["student"]["objective"] != TD)
