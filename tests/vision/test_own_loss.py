"""--student.objective my_package:my_loss: trained, written down with its source, examined; refused when it changed."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from polydistill.config.plain_yaml import load_yaml
from polydistill.errors import Interrupted, UserError
from polydistill.learning.schedules import TrainingConfig
from polydistill.lineage import Generation, LineageConfig, run_lineage
from polydistill.runs import Run
from polydistill.runs.interruption import StopSignals
from polydistill.vision.checkup import examine
from polydistill.vision.config import CifarConfig, StudentConfig, TeacherConfig
from polydistill.vision.domain import CifarDomain
from polydistill.vision.ensemble import is_taught
from polydistill.vision.images.data import DataConfig, load_images
from polydistill.vision.report import format_summary
from polydistill.vision.workshop import Workshop
from tests.stop_signals import StopAt

SOURCE = """
from torch.nn import functional as F

def squares(student, teacher, labels, *, alpha=1.0):
    return alpha * (student - teacher).square().sum(dim=1)

def soft(student, teacher, labels):
    own = F.cross_entropy(student, labels, reduction="none")
    return own + F.kl_div((student / 4).log_softmax(1), (teacher / 4).softmax(1), reduction="none").sum(1)
"""
SQUARES = "losses_of_mine:squares"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module in the folder of the command."""
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("losses_of_mine", None)
    path = tmp_path / "losses_of_mine.py"
    path.write_text(SOURCE)
    yield path
    sys.modules.pop("losses_of_mine", None)


def make_config(folder: Path, objective: str = SQUARES, **options: Any) -> CifarConfig:
    return CifarConfig(
        device="cpu",
        threads=1,
        precision="float32",
        data=DataConfig("cifar10", str(folder), official=False, validation_images=40),
        teacher=TeacherConfig("resnet-8"),
        student=StudentConfig(objective=objective, **options),
        training=TrainingConfig(epochs=1, batch_size=40, learning_rate=0.01, schedule="cosine", log_every_steps=2),
        lineage=LineageConfig(1),
    )


def go_on(config: CifarConfig, out: Path, stop: StopSignals | None = None) -> dict[str, Any]:
    with Run.open(out, config, kind="cifar", command="test") as run:
        return run_lineage(CifarDomain(config, load_images(config.data)), config, run, stop=stop or StopSignals())


def test_a_student_of_ones_own_loss_learns_what_the_same_loss_of_ours_teaches(
    made_up_cifar10: Path, source: Path, tmp_path: Path
) -> None:
    own = go_on(make_config(made_up_cifar10), tmp_path / "own")
    ours = go_on(make_config(made_up_cifar10, "policy_mse"), tmp_path / "ours")
    mine, theirs = (summary["generations"][1] for summary in (own, ours))
    assert mine["objective"] == SQUARES
    assert mine["metrics"]["test_nll"] == pytest.approx(theirs["metrics"]["test_nll"], rel=1e-3)
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    assert own["config"]["student"]["objective_sha256"] == sha256
    assert load_yaml(tmp_path / "own" / "config.yaml")["student"]["objective_sha256"] == sha256
    assert ours["config"]["student"]["objective_sha256"] is None
    assert " squares " in format_summary(own)
    source.unlink()  # what is said of a finished run needs no loss
    sys.modules.pop("losses_of_mine")
    assert is_taught(own["config"])
    assert " squares " in format_summary(own, wide=True)


def test_a_run_goes_on_with_the_same_source_and_not_with_another(
    made_up_cifar10: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        go_on(make_config(made_up_cifar10), out, StopAt(2))
    source.write_text(SOURCE + "\n# a change\n")
    with pytest.raises(UserError, match=r"student\.objective_sha256 is .* give --out another folder") as caught:
        go_on(make_config(made_up_cifar10), out)
    assert "\n" not in str(caught.value)
    source.write_text(SOURCE)
    assert go_on(make_config(made_up_cifar10), out)["generations"][1]["objective"] == SQUARES


def test_options_are_checked_by_its_own_signature_and_the_hash_is_of_its_source(
    made_up_cifar10: Path, source: Path
) -> None:
    assert make_config(made_up_cifar10, alpha=0.5).student.options() == {"alpha": 0.5}
    with pytest.raises(ValueError, match=r"must take \(student, teacher, labels, beta=\.\.\.\)"):
        make_config(made_up_cifar10, beta=0.5)
    with pytest.raises(ValueError, match="not finite on made-up scores"):
        make_config(made_up_cifar10, alpha=1e39)
    with pytest.raises(ValueError, match="has another source file than the one that objective_sha256 is of"):
        make_config(made_up_cifar10, objective_sha256="0" * 64)
    with pytest.raises(ValueError, match="objective_sha256 is for a loss of one's own, and objective is ban"):
        make_config(made_up_cifar10, "ban", objective_sha256="0" * 64)


@pytest.mark.parametrize(
    ("name", "said"),
    [("squares", "squared distance of scores"), ("soft", "cross-entropy + ")],
)
def test_the_doctor_says_what_a_loss_of_ones_own_is_and_stops_no_run_for_it(
    made_up_cifar10: Path, source: Path, name: str, said: str
) -> None:
    config = make_config(made_up_cifar10, f"losses_of_mine:{name}")
    workshop = Workshop(config, load_images(config.data))
    teacher = workshop.make_student("resnet-8", 0).eval().requires_grad_(False)
    report = examine(workshop, Generation(0, teacher, None, None, None, None, {}))
    assert report.title.startswith(f"losses_of_mine:{name} beside ban, ")
    told = [finding for finding in report.findings if finding.text.startswith("your loss is ")]
    assert [finding.level for finding in told] == ["suspicious"]
    assert said in told[0].text
    assert all(text.startswith("the teacher is right in ") for text in report.wrong)  # it is untrained


def test_the_command_line_takes_it(made_up_cifar10: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from polydistill.vision.commands.distill_cifar import main

    threads = torch.get_num_threads()
    words = ["--data.name", "cifar10", "--data.made_up", "60", "--data.validation_images", "20", "--threads", "1"]
    words += ["--data.train_images", "0", "--data.test_images", "0", "--training.epochs", "1", "--out", "run"]
    main([*words, "--student.objective", SQUARES, "--lineage.generations", "1"])
    assert " squares " in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main([*words, "--student.objective", "losses_of_mine:sqares", "--out", "other"])
    torch.set_num_threads(threads)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "losses_of_mine has no sqares; did you mean squares?" in line
    assert not Path("other").exists()
