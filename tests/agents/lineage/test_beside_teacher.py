"""Students that learn while train_teacher.py trains their teacher: they go on with it, and are written beside it."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3 import DQN
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from polydistill.config.plain_yaml import to_mapping
from polydistill.errors import Interrupted
from polydistill.runs.checkpoint import Checkpoints
from polydistill.runs.interruption import StopSignals
from polydistill_agents.commands import train_teacher as command
from polydistill_agents.distillation.online import DistillCallback
from polydistill_agents.environments.atari import AtariVecEnv
from polydistill_agents.files.card import card_score
from polydistill_agents.lineage.beside_teacher import (
    HEADERS,
    OnlineConfig,
    TeacherAndStudentsConfig,
    format_students,
    make_callback,
)
from polydistill_agents.teachers import as_teacher
from polydistill_agents.teachers.training import train_teacher
from polydistill_agents.teachers.training_config import TeacherTrainingConfig, finished_card, open_folder
from tests.curves_and_tables import OF_Q_VALUES, columns, explained
from tests.stop_signals import StopAt

CONFIG = TeacherAndStudentsConfig(
    game="breakout", steps=96, n_envs=2, batch_size=4, threads=1, buffer_size=400, learning_starts=20,
    exploration_steps=20, checkpoint_steps=1_000, episodes=1, device="cpu", precision="float32", cooldown_steps=0,
    students=("net3", "net2"),
    student=OnlineConfig(best_games=2, batch_size=8, samples_per_step=2, curve_every_steps=0),
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def short_games(monkeypatch: pytest.MonkeyPatch) -> None:
    """Games of 8 steps, those that are scored too, and students that begin soon."""
    monkeypatch.setattr("polydistill_agents.environments.task.RULES", ("noop_max", "fire_on_reset"))
    monkeypatch.setattr("polydistill_agents.environments.task.AtariVecEnv", partial(AtariVecEnv, max_frames=32))
    monkeypatch.setattr("polydistill_agents.distillation.learner.INITIAL_STATES", 64)
    soon = partial(DistillCallback, round_steps=12, learning_starts=24)
    monkeypatch.setattr("polydistill_agents.lineage.beside_teacher.DistillCallback", soon)


def train(out: Path, stop: StopSignals | None = None) -> tuple[DQN, dict[str, Any]]:
    """The model, and the newest checkpoint."""
    with open_folder(CONFIG, out):
        model = train_teacher(CONFIG, out, stop, make_callback(CONFIG))
    return model, latest(out)


def latest(out: Path) -> dict[str, Any]:
    state = Checkpoints(out / "checkpoints", kind="teacher").latest()
    assert state is not None
    return state


def test_students_go_on_with_their_teacher_as_if_nobody_had_stopped_them(tmp_path: Path) -> None:
    _, expected = train(tmp_path / "unbroken")
    assert expected["companion"]["group"]["updates"] > 10
    for at in (21, 16):  # asked before each step of both games: at steps 40 and, after 20 that are played again, 70
        with pytest.raises(Interrupted):
            train(tmp_path / "stopped", StopAt(at))
    _, found = train(tmp_path / "stopped")
    assert found["companion"]["group"]["updates"] == expected["companion"]["group"]["updates"]
    for name in CONFIG.students or ():
        one, other = (state["companion"]["group"]["students"][name] for state in (expected, found))
        assert all(torch.equal(one["weights"][key], other["weights"][key]) for key in one["weights"])
    labels = [state["companion"]["labels"] for state in (expected, found)]
    assert labels[0]["at_step"] == labels[1]["at_step"] > 0
    assert all(torch.equal(one, labels[1]["weights"][key]) for key, one in labels[0]["weights"].items())


def test_students_are_written_beside_the_teacher_and_stand_in_its_table(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = to_mapping(CONFIG)
    group = {f"student.{name}": value for name, value in given.pop("student").items() if value is not None}
    words = [f"--{name}={json.dumps(value)}" for name, value in (given | group).items()]
    words[words.index('--game="breakout"')] = "--game=breakout"
    words = [word.replace('"cpu"', "cpu").replace('"float32"', "float32") for word in words]
    words[words.index("--student.curve_every_steps=0")] = "--student.curve_every_steps=40"
    out = tmp_path / "a"
    command.main([*words, "--student.curve_episodes=1", f"--out={out}"])
    printed = capsys.readouterr().out
    assert columns(printed)[0] <= explained(root, "Table of train_teacher.py") == set(HEADERS)
    assert [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("| ")][2:] == [
        "teacher", "student net3", "student net2"
    ]  # fmt: skip
    card = json.loads((out / "teacher.json").read_text())
    assert printed.count(format_students(card)) == 1
    for row in card["students"]:
        path = out / f"{row['student']}.zip"
        network = as_teacher(path).network
        assert network is not None
        assert sum(weight.numel() for weight in network.parameters()) == row["parameters"]
        assert DQN.load(path, device="cpu").num_timesteps == row["steps"] > 0
        assert card_score(path, row["sha256"], "rusu") == row["evaluation"]["score_mean"]
        curves = EventAccumulator(str(out / "tb" / row["student"])).Reload()
        assert set(curves.Tags()["scalars"]) == explained(root, "Curves of students of train_teacher.py") - OF_Q_VALUES
        assert [point.step for point in curves.Scalars("eval/mean_reward")] == [0, 40, 80]
    command.main([*words, "--student.curve_episodes=1", f"--out={out}"])
    assert capsys.readouterr().out == printed, "a finished training prints its table again"


def test_a_card_of_an_earlier_version_is_that_of_a_teacher_without_students(tmp_path: Path) -> None:
    alone = dataclasses.replace(CONFIG, students=None, student=OnlineConfig())
    earlier = TeacherTrainingConfig(
        **{field.name: getattr(CONFIG, field.name) for field in dataclasses.fields(TeacherTrainingConfig)}
    )
    card = {"config": to_mapping(earlier), "evaluation": {"score_mean": 1.0, "score_ci95": None, "episodes": 1}}
    (tmp_path / "teacher.json").write_text(json.dumps(card))
    (tmp_path / "teacher.zip").touch()
    assert finished_card(alone, tmp_path) == card
    assert finished_card(CONFIG, tmp_path) is None
    assert finished_card(dataclasses.replace(alone, gamma=0.5), tmp_path) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"students": ("net4",)}, "students: unknown 'net4'"),
        ({"students": ()}, "students is empty"),
        ({"students": None}, "student.best_games has no effect without students"),
        ({"student": OnlineConfig(batch_size=0)}, "batch_size must be a whole number of at least 1"),
        ({"student": OnlineConfig(objective="cwtm")}, "objective cwtm is one for classifiers"),
    ],
)
def test_what_cannot_work_is_refused_by_its_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **options)


def test_the_weight_of_q_values_reaches_the_students() -> None:
    config = TeacherAndStudentsConfig(students=("net3",), student=OnlineConfig(objective="policy_kl_q", q_weight=0.3))
    options = make_callback(config)._options
    assert (options["objective"], options["objective_kwargs"]) == ("policy_kl_q", {"q_weight": 0.3})
    with pytest.raises(ValueError, match="objective policy_kl has no option q_weight"):
        TeacherAndStudentsConfig(students=("net3",), student=OnlineConfig(q_weight=0.3))


def test_the_best_score_needs_a_curve() -> None:
    with pytest.raises(ValueError, match="labels best_score needs the games of the curve"):
        OnlineConfig(labels="best_score", curve_every_steps=0)
    assert dataclasses.replace(CONFIG, student=OnlineConfig(labels="best_score")).names == ["net3", "net2"]


def test_a_student_of_the_teachers_size_has_another_name_than_the_teacher() -> None:
    assert dataclasses.replace(CONFIG, students=("teacher", "net1", "teacher")).names == [
        "own_size", "net1", "own_size_2"
    ]  # fmt: skip
