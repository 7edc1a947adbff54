"""An ensemble of the networks of several runs: measured as a lineage measures its own, refused where it is none."""

from __future__ import annotations

import dataclasses
import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polydistill.learning.schedules import TrainingConfig
from polydistill.lineage import LineageConfig, run_lineage
from polydistill.runs import Run, read_summary
from polydistill.runs.correctness import read_correct
from polydistill.runs.show import format_run
from polydistill.vision.classifier import load_classifier
from polydistill.vision.config import CifarConfig, TeacherConfig
from polydistill.vision.domain import CifarDomain
from polydistill.vision.images.data import DataConfig, load_images

DATA = DataConfig(made_up=200, train_images=120, test_images=100, validation_images=20)
CONFIG = CifarConfig(
    device="cpu", threads=1, precision="float32", data=DATA, teacher=TeacherConfig("resnet-8"),
    training=TrainingConfig(epochs=1, batch_size=50, learning_rate=0.05, log_every_steps=2),
)  # fmt: skip


def train(out: Path, **settings: Any) -> None:
    config = dataclasses.replace(CONFIG, **settings)
    images = load_images(config.data)
    with Run.open(out, config, kind="cifar", command="a test") as run:
        run_lineage(CifarDomain(config, images), config, run)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one and of two students, the first of both being the same."""
    folder = tmp_path_factory.mktemp("runs")
    for students in (1, 2):
        train(folder / f"{students}_seed0", lineage=LineageConfig(students))
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy of them, which a test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "runs"))


@pytest.fixture
def measure(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command, of both members; it gives its code, output and errors."""
    main = runpy.run_path(str(root / "scripts" / "ensemble_cifar.py"))["main"]
    (tmp_path / "e.yaml").write_text(
        "members: ['../1_seed{seed}', '../2_seed{seed}']\nthreads: 1\ndevice: cpu\n"
        "data: {made_up: 200, train_images: 120, test_images: 100, validation_images: 20}\n"
    )

    def call(*words: str) -> tuple[int, str, str]:
        code, threads = 0, torch.get_num_threads()
        try:
            main(["--config", str(tmp_path / "e.yaml"), "--out", str(tmp_path / "runs" / "e"), *words])
        except SystemExit as end:
            code = int(end.code or 0)
        torch.set_num_threads(threads)
        return code, *capsys.readouterr()

    return call


def test_it_is_measured_to_the_last_bit_as_the_lineage_of_its_members_measures_it(runs: Path, measure: Any) -> None:
    code, shown, _ = measure()
    assert code == 0
    summary = read_summary(runs / "e")
    (ensemble,), (expected,) = summary["ensembles"], read_summary(runs / "2_seed0")["ensembles"]
    assert expected["members"] == [1, 2]
    own = {"agreement", "kl"}  # a lineage knows whose student its earliest member is
    assert {name: value for name, value in ensemble["metrics"].items() if name not in own} == {
        name: value for name, value in expected["metrics"].items() if name not in own
    }
    assert [member["generation"] for member in summary["members"]] == [1, 2]
    assert summary["generations"] == []
    images = load_images(DATA).test
    probabilities = [
        load_classifier(runs / name)(images.images).double().softmax(dim=1).numpy()
        for name in ("1_seed0/generation_1.safetensors", "2_seed0/generation_2.safetensors")
    ]
    right = np.mean(probabilities, axis=0).argmax(axis=1) == images.labels.numpy()
    assert read_correct(runs / "e", summary["correct"][-1]).tolist() == right.tolist()
    assert ensemble["metrics"]["test_accuracy"] == pytest.approx(right.mean())
    assert format_run(runs / "e", wide=False) == shown.strip()
    assert "../1_seed0" in shown
    before = (runs / "e" / "summary.json").read_bytes()
    assert measure() == (0, shown, "")
    assert (runs / "e" / "summary.json").read_bytes() == before


def test_a_dry_run_names_the_members_and_writes_nothing(runs: Path, measure: Any) -> None:
    code, shown, _ = measure("--dry_run")
    assert (code, "e/../2_seed0" in shown) == (0, True)
    assert not (runs / "e").exists()


def refused(done: tuple[int, str, str]) -> str:
    assert done[0] == 2
    *_, line = done[2].splitlines()
    assert line.startswith("error: "), done[2]
    assert "Traceback" not in done[2]
    return line


def test_what_is_no_member_is_one_line(runs: Path, measure: Any) -> None:
    assert "members must be at least 2 run folders, each once" in refused(measure("--members", "[../1_seed0]"))
    assert "1_seed7/summary.json" in refused(measure("--seed", "7"))
    assert "was trained and tested on other images" in refused(measure("--data.train_images", "110"))
    summary = json.loads((runs / "1_seed0" / "summary.json").read_text())
    path = runs / "1_seed0" / "generation_1.safetensors"
    weights, card = path.read_bytes(), path.with_suffix(".json").read_bytes()
    for ending in (".safetensors", ".json"):
        shutil.copy(runs / "2_seed0" / f"generation_2{ending}", path.with_suffix(ending))
    assert "holds other weights than those that its run ended with" in refused(measure())
    path.write_bytes(weights[:-1])
    path.with_suffix(".json").write_bytes(card)
    assert "is no safetensors file, or damaged" in refused(measure())
    path.write_bytes(weights)
    (runs / "1_seed0" / "summary.json").write_text(json.dumps(summary | {"generations": []}))
    assert "holds no trained network" in refused(measure())
    (runs / "1_seed0" / "summary.json").write_text(json.dumps(summary))
    assert measure()[0] == 0, "the folder that a failure left is begun again"
