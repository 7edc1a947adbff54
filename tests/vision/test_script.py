"""scripts/distill_cifar.py as a user runs it, and one clear line for what is wrong."""

from __future__ import annotations

import json
import runpy
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

from polydistill.vision.classifier import load_classifier

FAST = ["--device", "cpu", "--threads", "1", "--training.epochs", "1", "--lineage.generations", "1"]


class Done(NamedTuple):
    code: int
    out: str
    err: str


Script = Callable[..., Done]


@pytest.fixture
def script(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Script]:
    """Run the script in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()

    def run(*words: object) -> Done:
        capsys.readouterr()
        try:
            runpy.run_path(str(root / "scripts" / "distill_cifar.py"))["main"]([str(word) for word in words])
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        return Done(code, *capsys.readouterr())

    yield run
    torch.set_num_threads(threads)


def refused(done: Done) -> str:
    """The one line of an error."""
    assert done.code == 2
    errors = [line for line in done.err.splitlines() if "learns:" not in line and " takes up to " not in line]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert "Traceback" not in done.err
    return errors[0]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_without_arguments_it_runs_the_smoke_config_and_prints_it_again(script: Script, tmp_path: Path) -> None:
    first = script("--threads", 1, "--device", "cpu", "--out", "run")
    assert first.code == 0, first.err
    for part in ("generation 0, resnet-8", "generation 2, resnet-8", "ensemble of 1, 2", "saved: run/generation_<k>"):
        assert part in first.out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["command"] == "python scripts/distill_cifar.py --threads 1 --device cpu --out run"
    assert [generation["generation"] for generation in summary["generations"]] == [0, 1, 2]
    assert summary["config"]["data"]["made_up"] == 500
    roles = {path.name for path in (tmp_path / "run" / "tb").iterdir()}
    assert roles == {"generation_0", "generation_1", "generation_2"}
    before = tree(tmp_path / "run")
    again = script("--threads", 1, "--device", "cpu", "--out", "run")
    assert (again.code, again.out, again.err) == (0, first.out, "")
    assert tree(tmp_path / "run") == before
    other = refused(script("--threads", 1, "--device", "cpu", "--out", "run", "--seed", 1))
    assert "seed is 0 there and 1 here" in other
    assert tree(tmp_path / "run") == before


def test_the_smoke_config_runs_on_a_slice_of_the_real_images(
    script: Script, tmp_path: Path, real_cifar100: Path
) -> None:
    done = script(*FAST, "--data.root", real_cifar100, "--out", "run")
    assert done.code == 0, done.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [summary["data"][part]["images"] for part in ("train", "validation", "test")] == [400, 100, 300]
    card = load_classifier(tmp_path / "run" / "generation_1.safetensors").card
    assert card["mean"] == pytest.approx([0.50708, 0.48655, 0.44092], abs=1e-5)


def test_a_published_row_has_the_papers_recipe(script: Script, root: Path) -> None:
    done = script("--config", root / "configs" / "cifar" / "wrn28_1_ban.yaml", "--print_config")
    assert done.code == 0
    config = yaml.safe_load(done.out)
    assert config["data"]["validation_images"] == 0, "trains on all 50,000"
    recipe = {
        **{"epochs": 200, "batch_size": 128, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        **{"schedule": "steps", "milestones": [0.3, 0.6, 0.8], "decay": 0.2, "augment": True},
    }
    assert {name: config["training"][name] for name in recipe} == recipe
    assert config["student"]["temperature"] is None
    assert config["evaluation"]["selection"] == "last"


def test_a_dry_run_says_what_it_takes_and_writes_nothing(script: Script, tmp_path: Path) -> None:
    done = script("--dry_run", "--teacher.network", "wrn-28-10", "--data.made_up", 0, "--data.train_images", 0)
    assert done.code == 0, done.err
    for part in (
        "36,536,884 parameters",
        "million multiply-adds",
        "time: about",
        "memory: about",
        "disk: up to",
    ):
        assert part in done.out
    assert "cifar-100-binary.tar.gz" in done.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--teacher.network", "wrn281"], "unknown network 'wrn281'; did you mean wrn-28-1?"),
        (["--student.network", "resnet-9"], "resnet has depths 6n + 2, got 9; the nearest is 8"),
        (["--student.objective", "ban_ll"], "unknown objective 'ban_ll'; did you mean ban_l?"),
        (["--student.temperature", "2"], "objective ban has no option temperature"),
        (["--training.batch_size", "1000"], "training.batch_size is 1,000, but there are 400 training images"),
        (["--training.epoch", "3"], "unknown flag --training.epoch; did you mean --training.epochs?"),
        (["--training.milestones", "[60, 120]"], "milestones are shares of the epochs"),
        (["--training.schedule", "step"], "did you mean steps?"),
        (["--data.root", "nowhere"], "nowhere holds neither cifar-100-binary/train.bin nor cifar-100-binary.tar.gz"),
        (["--data.validation_images", "500"], "leaves nothing of the 500 training images"),
        (["--evaluation.ensembles", "[[1, 9]]"], "evaluation.ensembles names generation 9, the last is 1"),
        (["--evaluation.ensembles", "[[1]]"], "an ensemble has at least 2 members"),
        (["--evaluation.selection", "best_val", "--data.validation_images", "0"], "data.validation_images is 0"),
        (["--teacher.path", "nothing.safetensors"], "cannot read nothing.json"),
        (["--training.learning_rate", "1e30"], "the loss cross_entropy of generation 0 is"),
        (["--lineage.generations", "0"], "must be at least 1"),
    ],
)
def test_what_is_wrong_is_one_line_and_code_2(script: Script, words: list[str], message: str) -> None:
    assert message in refused(script(*FAST, "--out", "run", *words))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_one_line(script: Script, tmp_path: Path) -> None:
    assert "torch sees no GPU" in refused(script("--device", "cuda"))
    assert list(tmp_path.iterdir()) == []


def test_no_data_and_no_network_is_one_line(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*arguments: object, **options: object) -> None:
        raise OSError("the network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    line = refused(script(*FAST, "--data.made_up", 0, "--out", "run"))
    assert "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz" in line
    assert "--data.root" in line


def test_ensembles_of_any_generations_can_be_asked_for(script: Script, tmp_path: Path) -> None:
    done = script(*FAST, "--out", "run", "--evaluation.ensembles", "[[0, 1]]", "--student.network", "wrn-10-1")
    assert done.code == 0, done.err
    assert "ensemble of 0, 1" in done.out
    ensemble = json.loads((tmp_path / "run" / "summary.json").read_text())["ensembles"][0]
    assert ensemble["members"] == [0, 1]
    assert set(ensemble["metrics"]) == {"test_accuracy", "test_nll", "test_ece", "val_accuracy", "agreement", "kl"}
