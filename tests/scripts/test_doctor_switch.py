"""--doctor: each lesson is examined before it begins, and a wrong one does not begin."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from polydistill.config.parsing import parse
from polydistill.lineage import Generation
from polydistill.losses import Finding, Report
from polydistill.vision.checkup import examine as examine_classifiers
from polydistill.vision.config import CifarConfig
from polydistill.vision.images.data import load_images
from polydistill.vision.workshop import Workshop
from polydistill_agents.environments.references import reference
from polydistill_agents.lineage.checkup import examine as examine_agents
from polydistill_agents.lineage.checkup import judge_play
from polydistill_agents.lineage.config import AtariConfig
from polydistill_agents.lineage.opening import open_teacher


def smoke_cifar(root: Path) -> CifarConfig:
    words = ["--config", str(root / "configs" / "smoke" / "cifar.yaml"), "--threads", "1"]
    return parse(CifarConfig, words, program="x", description="", default_name="x").config.resolve()


@pytest.mark.usefixtures("short_games")
def test_both_scripts_print_a_report_that_says_how_good_the_teacher_is(inside, root: Path) -> None:
    few = {"cifar": ["--training.epochs", "3"], "atari": []}
    said = {"cifar": r"fine +the teacher is right in .* of 256 labels", "atari": "the teacher scores .* in 2 games"}
    for world, line in said.items():
        script, config = f"distill_{world}.py", f"{world}.yaml"
        words = ["--config", str(root / "configs" / "smoke" / config), "--threads", "1", "--doctor"]
        words += ["--lineage.generations", "1", *few[world]]
        done = inside(script, *words, "--out", world)
        assert done.returncode == 0, done.stderr
        assert len(re.findall(r"^doctor: \w+, \d+ samples of", done.stdout, flags=re.MULTILINE)) == 1
        assert re.search(line, done.stdout), done.stdout
        assert "WRONG" not in done.stdout


def as_generation_0(member: Any, metrics: dict[str, Any] | None = None) -> Generation[Any]:
    return Generation(0, member, None, None, None, None, metrics or {})


@pytest.mark.parametrize("objective", ["dkpp", "reverse_kl", "cwtm"])
def test_every_objective_of_classifiers_can_be_examined(root: Path, objective: str) -> None:
    config = smoke_cifar(root)
    config = dataclasses.replace(config, student=dataclasses.replace(config.student, objective=objective))
    workshop = Workshop(config, load_images(config.data, config.device))
    teacher = workshop.make_student(config.teacher.network, 0).eval().requires_grad_(False)
    report = examine_classifiers(workshop, as_generation_0(teacher))
    assert [text[:24] for text in report.wrong] == ["the teacher is right in "]  # it is untrained
    assert report.findings[-1].text.startswith("loss "), str(report)


def test_images_of_all_classes_are_examined_where_they_are_sorted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, seen = smoke_cifar(root), []
    workshop = Workshop(config, load_images(config.data, config.device))
    images, order = workshop.images.train, workshop.images.train.labels.sort().indices
    images = dataclasses.replace(images, images=images.images[order], labels=images.labels[order])
    workshop.images = workshop.images._replace(train=images)
    monkeypatch.setattr("polydistill.vision.checkup.doctor", lambda *_, **__: seen.append(_[4]))
    examine_classifiers(workshop, as_generation_0(workshop.make_student(config.teacher.network, 0)))
    assert seen[0].unique().tolist() == images.labels.unique().tolist()


def test_the_report_on_agents_begins_with_how_well_the_teacher_plays(monkeypatch: pytest.MonkeyPatch) -> None:
    config = AtariConfig(threads=1).resolve()
    told = Report("policy_kl", (Finding("fine", "it is day"),), {})
    monkeypatch.setattr("polydistill_agents.lineage.checkup.doctor", lambda *_, **__: told)
    teacher = as_generation_0(open_teacher(config), {"scores": [-21.0] * 5})
    assert [finding.level for finding in examine_agents(config, teacher).findings] == ["wrong", "fine"]


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
