"""--doctor: each lesson is examined before it begins, and a wrong one does not begin."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from polydistill.config.parsing import parse
from polydistill.errors import UserError
from polydistill.losses import Finding, Report
from polydistill.runs import Run
from polydistill.vision.checkup import ExaminedCifarDomain, examine
from polydistill.vision.config import CifarConfig
from polydistill.vision.domain import CifarDomain
from polydistill.vision.images.data import load_images
from polydistill_agents.environments.references import reference
from polydistill_agents.lineage.checkup import ExaminedAtariDomain, judge_play
from polydistill_agents.lineage.config import AtariConfig
from polydistill_agents.lineage.domain import AtariDomain, open_teacher


def smoke_cifar(root: Path) -> CifarConfig:
    words = ["--config", str(root / "configs" / "smoke" / "cifar.yaml"), "--threads", "1"]
    return parse(CifarConfig, words, program="x", description="", default_name="x").config.resolve()


def test_both_scripts_print_a_report_that_says_how_good_the_teacher_is(run_python, root: Path, tmp_path: Path) -> None:
    said = {"cifar": r"fine +the teacher is right in .* of 256 labels", "atari": "the teacher scores .* in 2 games"}
    for world, line in said.items():
        script, config = f"distill_{world}.py", f"{world}.yaml"
        words = ["--config", str(root / "configs" / "smoke" / config), "--threads", "1", "--doctor"]
        words += ["--lineage.generations", "1"]
        done = run_python(str(root / "scripts" / script), *words, "--out", str(tmp_path / script))
        assert done.returncode == 0, done.stderr
        assert len(re.findall(r"^doctor: \w+, \d+ samples of", done.stdout, flags=re.MULTILINE)) == 1
        assert re.search(line, done.stdout), done.stdout
        assert "WRONG" not in done.stdout


@pytest.mark.parametrize("objective", ["dkpp", "reverse_kl", "cwtm"])
def test_every_objective_of_classifiers_can_be_examined(root: Path, objective: str) -> None:
    config = smoke_cifar(root)
    config = dataclasses.replace(config, student=dataclasses.replace(config.student, objective=objective))
    domain = CifarDomain(config, load_images(config.data, config.device), None)
    report = examine(domain, domain.make_student(config.teacher.network, 0).eval().requires_grad_(False), 1)
    assert [text[:24] for text in report.wrong] == ["the teacher is right in "]  # it is untrained
    assert report.findings[-1].text.startswith("loss "), str(report)


def test_images_of_all_classes_are_examined_where_they_are_sorted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, seen = smoke_cifar(root), []
    domain = CifarDomain(config, load_images(config.data, config.device), None)
    images, order = domain.images.train, domain.images.train.labels.sort().indices
    images = dataclasses.replace(images, images=images.images[order], labels=images.labels[order])
    domain.images = domain.images._replace(train=images)
    monkeypatch.setattr("polydistill.vision.checkup.doctor", lambda *_, **__: seen.append(_[4]))
    examine(domain, domain.make_student(config.teacher.network, 0), 1)
    assert seen[0].unique().tolist() == images.labels.unique().tolist()


def test_wrong_lesson_of_classifiers_does_not_begin(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = smoke_cifar(root)
    domain = ExaminedCifarDomain(config, load_images(config.data, config.device), None)
    teacher = domain.make_student(config.teacher.network, 0)
    with pytest.raises(UserError, match="the doctor finds the lesson of generation 1 wrong"):
        domain.teach(teacher, 1)
    assert "WRONG       the teacher is right in" in capsys.readouterr().out


def test_wrong_lesson_of_agents_does_not_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = AtariConfig(threads=1).resolve()
    teacher = open_teacher(config)
    wrong = Report("policy_kl", (Finding("fine", "it is day"), Finding("wrong", "the teacher is asleep")), {})
    monkeypatch.setattr(
        "polydistill_agents.lineage.checkup.doctor", lambda *_, **__: wrong
    )  # a teacher of ours defends itself too well
    monkeypatch.setattr(AtariDomain, "teach", lambda *_: pytest.fail("the lesson began"))
    with Run.open(tmp_path / "run", config, kind="atari", command="") as run:
        domain = ExaminedAtariDomain(config, teacher, run)
        with pytest.raises(
            UserError, match=r"^the doctor finds the lesson of generation 1 wrong: the teacher is asleep$"
        ):
            domain.teach(teacher, 1)
    assert "WRONG       the teacher is asleep" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("game", "scores", "level", "text"),
    [
        ("pong", [14.0, 15.0], "fine", r"scores 14.5 in 2 games \(random play -20.7, a human 14.6\)"),
        ("pong", [-21.0] * 5, "wrong", "it plays at random"),
        ("pong", [-21.0, -20.0, -21.0, -21.0, -20.0, -20.0], "wrong", "it plays at random"),
        ("pong", [-21.0, -21.0], "cannot tell", "so few do not tell"),
        ("pong", [-21.0, 10.0, -21.0, -21.0, -21.0], "cannot tell", "so few do not tell"),
        ("qbert", [3000.0, 0.0, 4000.0, 3500.0], "fine", "scores 2625 in 4 games"),
    ],
)
def test_teacher_that_plays_at_random_is_wrong(game: str, scores: list[float], level: str, text: str) -> None:
    (found,) = judge_play(scores, reference(game))
    assert found.level == level
    assert re.search(text, found.text)


def test_play_is_not_judged_where_nothing_is_known() -> None:
    assert list(judge_play([], reference("pong"))) == []
    assert list(judge_play([1.0, 2.0], None)) == []
