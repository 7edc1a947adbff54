"""What a user may say of a study, and one clear line for what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from polydistill.config.parsing import parse
from polydistill.study.commands.study import SMOKE
from polydistill.study.config import StudyConfig
from tests.study.fake_world import study


def read(*words: str) -> StudyConfig:
    return parse(StudyConfig, list(words), program="study.py", description="", default_name="study").config


def test_a_flag_sets_a_key_of_an_arm_that_has_none_and_of_one_called_null(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("world: cifar\narms:\n  null:\n  ban:\n  7: {student.objective: ban}\n")
    words = [f"--arms.{name}.student.repeat={number}" for number, name in enumerate(("null", "ban", "7"), 1)]
    assert read("--config", str(file), *words).arms == {
        "null": {"student.repeat": 1},
        "ban": {"student.repeat": 2},
        "7": {"student.objective": "ban", "student.repeat": 3},
    }


def test_a_flag_of_an_arm_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--world", "cifar", "--arms", "{labels: {}, ban: {}}", "--arms.bann.student.repeat", "1")
    assert "there is no arm bann; did you mean ban?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"seeds": 1}, "seeds must be at least 2: one seed has no interval, got 1"),
        ({"first_seed": -1}, "first_seed must not be negative"),
        ({"world": "cfar"}, "unknown world 'cfar'; did you mean cifar?"),
        ({"arms": {"ban": {}}}, "arms must be at least 2, got 1"),
        ({"arms": {"ban": {}, "teacher": {}}}, "an arm cannot be called 'teacher'"),
        ({"arms": {"ban": {}, "../up": {}}}, r"an arm cannot be called '\.\./up'"),
        ({"arms": {"ban": {}, "labels": 3}}, "arm labels must be a mapping of keys to values, got 3"),
        ({"contrasts": (("bann", "labels"),)}, "unknown arm in contrasts 'bann'; did you mean ban?"),
        ({"contrasts": (("ban", "ban"),)}, "ban is compared with itself"),
        ({"contrasts": (("ban", "labels"), ("labels", "ban"))}, "are there twice"),
        ({"metric": "test_eror"}, "test_eror is better is not known; did you mean test_error[?]; give direction"),
        ({"alpha": 1.0}, "alpha is a rate between 0 and 1, got 1.0"),
        ({"margin": 0.0}, "margin must be positive"),
        ({"workers": -1}, "workers must not be negative"),
        ({"students_together": 0}, "students_together must be at least 1, got 0"),
        ({"world": "atari", "students_together": 2}, "students_together is for world cifar, got atari"),
        ({"runs": "runs/*"}, "arms would be named after the runs, leave it out"),
    ],
)
def test_what_is_wrong_is_one_line(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        study(**settings)
    assert "\n" not in str(error.value)


def test_a_file_reads_as_it_is_written_and_null_is_a_name(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        "world: cifar\nsettings: {training.epochs: 2, student: {label_weight: 1e-1}}\nseeds: 5\n"
        "arms:\n  null: {student.repeat: 1}\n  ban: {student.objective: ban}\ncontrasts: [[ban, null]]\nmargin: 0.5\n"
    )
    config = read("--config", str(file), "--seeds", "50")
    assert config.arms == {"null": {"student.repeat": 1}, "ban": {"student.objective": "ban"}}
    assert config.settings == {"training.epochs": 2, "student": {"label_weight": 0.1}}
    assert config.pairs == (("ban", "null"),)
    assert config.chosen_seeds == tuple(range(50))
    assert (config.chosen_metric, config.chosen_direction, config.margin) == ("test_error", "lower", 0.5)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--arms", "3"], "arms must be a mapping, got '3'"),
        (["--contrasts", "[[a, b, c]]"], "contrasts must be a list"),
        (["--seed", "3"], "unknown flag --seed; did you mean --seeds?"),
        ([], "unknown world ''"),
    ],
)
def test_a_wrong_flag_is_one_line(words: list[str], says: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        read(*words)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert says in line


def test_the_default_is_the_smoke_study(root: Path) -> None:
    config = read("--config", str(root / "configs" / "smoke" / "study.yaml"))
    assert config.base == "configs/smoke/cifar.yaml"
    assert read("--config", str(root / "configs" / "smoke" / "study.yaml"), "--base", "") == SMOKE


def test_a_metric_of_ones_own_has_the_direction_that_is_given() -> None:
    assert study(metric="my_loss", direction="lower").chosen_direction == "lower"
    assert study(metric="test_accuracy").chosen_direction == "higher"
