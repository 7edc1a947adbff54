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

from polydistill.config.parsing import parse
from polydistill.runs.lock import FolderLock
from polydistill.vision.classifier import load_classifier
from polydistill.vision.commands.distill_cifar import SMOKE
from polydistill.vision.config import CifarConfig
from polydistill.vision.images.data import write_made_up
from tests.curves_and_tables import columns, explained, written_tags

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
    told = ("learns:", "is tested:", " takes up to ", "other work is running on this machine")
    errors = [line for line in done.err.splitlines() if not any(words in line for words in told)]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert "Traceback" not in done.err
    return errors[0]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_default_is_the_smoke_config(root: Path) -> None:
    words = ["--config", str(root / "configs" / "smoke" / "cifar.yaml")]
    parsed = parse(CifarConfig, words, program="x", description="", default_name=None)
    assert parsed.config == SMOKE


def test_without_arguments_it_runs_the_smoke_config_and_prints_it_again(
    script: Script, root: Path, tmp_path: Path
) -> None:
    first = script("--threads", 1, "--device", "cpu", "--out", "run")
    assert first.code == 0, first.err
    for part in (
        "all are resnet-8",
        "| generation 0 ",
        "| generation 2 ",
        "ensemble of 1, 2",
        "saved: run/generation_<k>",
        "card: run/README.md",
    ):
        assert part in first.out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["command"] == "python scripts/distill_cifar.py --threads 1 --device cpu --out run"
    assert [generation["generation"] for generation in summary["generations"]] == [0, 1, 2]
    learned = [generation["metrics"]["test_accuracy"] for generation in summary["generations"]]
    assert min(learned) > 0.6, "of 100 classes: guessing gives 0.01"
    assert summary["config"]["data"]["made_up"] == 600
    roles = {path.name for path in (tmp_path / "run" / "tb").iterdir()}
    assert roles == {"generation_0", "generation_1", "generation_2"}
    before = tree(tmp_path / "run")
    again = script("--threads", 1, "--device", "cpu", "--out", "run")
    assert (again.code, again.out, again.err) == (0, first.out, "")
    assert max(map(len, first.out.splitlines()[:-1])) <= 80
    wide = script("--threads", 1, "--device", "cpu", "--out", "run", "--wide").out
    assert "| test ECE |" in wide
    assert "generation 2, resnet-8" in wide
    assert columns(wide) == [explained(root, "Table of distill_cifar.py")]
    of_cwtm = {"distill/largest_weight", "distill/effective_share"}
    assert written_tags(tmp_path / "run") == explained(root, "Curves of distill_cifar.py") - of_cwtm
    for generation in summary["generations"]:
        assert generation["metrics"].keys() == explained(root, "Metrics of summary.json, CIFAR")
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
    assert [summary["data"][part]["images"] for part in ("train", "validation", "test")] == [500, 100, 300]
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
    words = ["--dry_run", "--teacher.network", "wrn-28-10", "--data.made_up", 0, "--data.train_images", 0]
    done = script(*words, "--device", "cpu")
    assert done.code == 0, done.err
    for part in (
        "36,536,884 parameters",
        "million multiply-adds",
        "on two cores of an AMD EPYC (Zen 4) (measured there",
        "memory: about",
        "disk: up to",
        "a new run would begin there",
    ):
        assert part in done.out
    assert "cifar-100-binary.tar.gz" in done.out
    assert "TFLOP/s of a convolution measured here" in script("--dry_run_measure", "--device", "cpu").out
    assert list(tmp_path.iterdir()) == []


def made_up_files(folder: Path, seed: int = 0) -> Path:
    """A release in the official format, of few images."""
    folder.mkdir()
    write_made_up("cifar100", folder, 400, 300, seed=seed)
    return folder


OWN = [*FAST, "--data.official", "false", "--data.train_images", "0", "--out", "run"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.root", "nowhere"], "nowhere holds neither"),
        (["--teacher.path", "nothing.safetensors"], "there is no file nothing.safetensors"),
        (["--device", "gpu"], "must be one of auto, cpu, cuda"),
        (["--out", "thesis"], "holds no run"),
        (["--out", "file"], "file is a file"),
        (["--out", "locked"], "is working in locked"),
    ],
)
def test_a_dry_run_refuses_what_the_run_will_refuse_and_neither_leaves_a_folder(
    script: Script, tmp_path: Path, words: list[str], message: str
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "locked").mkdir()
    made_up_files(tmp_path / "other")
    with FolderLock(tmp_path / "locked"):
        before = tree(tmp_path)
        for switch in (["--dry_run"], []):
            assert message in refused(script(*OWN, "--data.root", tmp_path / "other", *words, *switch))
            assert tree(tmp_path) == before


def test_a_dry_run_tries_a_batch_of_ones_own_data(script: Script, tmp_path: Path) -> None:
    words = [*OWN, "--data.root", made_up_files(tmp_path / "own"), "--training.batch_size", 1000, "--dry_run"]
    before = tree(tmp_path)
    assert "training.batch_size is 1,000, but there are 300" in refused(script(*words))
    assert tree(tmp_path) == before


def test_a_dry_run_refuses_a_folder_of_another_config(script: Script, tmp_path: Path) -> None:
    assert script(*FAST, "--out", "run").code == 0
    before = tree(tmp_path)
    assert "seed is 0 there and 1 here" in refused(script(*FAST, "--out", "run", "--seed", 1, "--dry_run"))
    done = script(*FAST, "--out", "run", "--dry_run")
    assert "the run there is finished" in done.out
    assert "images/s of resnet-8 in an earlier run here" in done.out
    assert tree(tmp_path) == before


def test_a_typo_binds_no_folder(script: Script, tmp_path: Path) -> None:
    root = made_up_files(tmp_path / "data_here")
    refused(script(*OWN, "--data.root", tmp_path / "data_hree"))
    assert not (tmp_path / "run").exists()
    assert "the loss" in refused(script(*OWN, "--data.root", root, "--training.learning_rate", "1e30"))
    done = script(*OWN, "--data.root", root)
    assert done.code == 0, done.err
    assert "had no checkpoint: it is replaced" in done.err


def test_a_run_goes_on_with_moved_data_and_a_finished_one_prints_anywhere(script: Script, tmp_path: Path) -> None:
    root = made_up_files(tmp_path / "here")
    first = script(*OWN, "--data.root", root)
    assert first.code == 0, first.err
    moved, other = root.rename(tmp_path / "there"), made_up_files(tmp_path / "other", seed=1)
    before = tree(tmp_path / "run")
    assert script(*OWN, "--data.root", root).out == first.out, "its data is gone"
    assert script(*OWN, "--data.root", moved).out == first.out
    assert f"data.root {other} holds other images" in refused(script(*OWN, "--data.root", other))
    assert tree(tmp_path / "run") == before

    grown = [*OWN, "--lineage.generations", 2]
    assert f"data.root {other} holds other images" in refused(script(*grown, "--data.root", other))
    assert f"data.root {other} holds other images" in refused(script(*grown, "--data.root", other, "--dry_run"))
    assert tree(tmp_path / "run") == before
    done = script(*grown, "--data.root", moved)
    assert done.code == 0, done.err
    assert "| generation 2 " in done.out


def test_a_teacher_is_known_by_its_weights_wherever_it_lies(script: Script, tmp_path: Path) -> None:
    for seed in (0, 1):
        assert script(*FAST, "--out", f"teacher{seed}", "--seed", seed).code == 0
    words = [*FAST, "--out", "run"]
    first = script(*words, "--teacher.path", "teacher0/generation_0.safetensors")
    assert first.code == 0, first.err
    (tmp_path / "teacher0").rename(tmp_path / "elsewhere")
    moved, other = "elsewhere/generation_0.safetensors", "teacher1/generation_0.safetensors"
    assert script(*words, "--teacher.path", "teacher0/generation_0.safetensors").out == first.out
    assert script(*words, "--teacher.path", moved).out == first.out
    grown = [*words, "--lineage.generations", 2]
    for given in (words, grown):
        assert f"teacher.path {other} holds other weights" in refused(script(*given, "--teacher.path", other))
    assert script(*words, "--teacher.path", moved).out == first.out
    assert "teacher.path is" in refused(script(*words)), "a teacher that is trained is not one of a file"
    assert script(*grown, "--teacher.path", moved).code == 0


def test_a_run_from_a_larger_machine_goes_on_and_prints_here(script: Script, tmp_path: Path) -> None:
    words = [*FAST[FAST.index("--training.epochs") :], "--precision", "float32"]
    assert script(*words, "--device", "cpu", "--threads", 3, "--out", "run").code == 0
    done = script(*words, "--out", "run", "--lineage.generations", 2)
    assert done.code == 0, done.err
    summary = tmp_path / "run" / "summary.json"
    assert json.loads(summary.read_text())["config"]["threads"] == 3
    refusal = refused(script(*words, "--out", "run", "--threads", 2, "--lineage.generations", 2))
    assert "threads is 3 there and 2 here; leave --threads out" in refusal
    for file in (tmp_path / "run" / "config.yaml", summary):  # as if it had been made on a GPU
        file.write_text(file.read_text().replace("device: cpu", "device: cuda"))
    assert script(*words, "--out", "run", "--lineage.generations", 2).out == done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--teacher.network", "wrn281"], "unknown network 'wrn281'; did you mean wrn-28-1?"),
        (["--student.network", "resnet-9"], "resnet has depths 6n + 2, got 9; the nearest is 8"),
        (["--student.objective", "ban_ll"], "unknown objective 'ban_ll'; did you mean ban_l?"),
        (["--student.temperature", "2"], "objective ban_l has no option temperature"),
        (["--training.batch_size", "1000"], "training.batch_size is 1,000, but there are 500 training images"),
        (["--training.epoch", "3"], "unknown flag --training.epoch; did you mean --training.epochs?"),
        (["--training.milestones", "[60, 120]"], "milestones are shares of the epochs"),
        (["--training.schedule", "step"], "did you mean steps?"),
        (["--data.root", "nowhere"], "nowhere holds neither cifar-100-binary/train.bin nor cifar-100-binary.tar.gz"),
        (["--data.validation_images", "600"], "leaves nothing of the 600 training images"),
        (["--evaluation.ensembles", "[[1, 9]]"], "evaluation.ensembles names generation 9, the last is 1"),
        (["--evaluation.ensembles", "[[1]]"], "an ensemble has at least 2 members"),
        (["--evaluation.selection", "best_val", "--data.validation_images", "0"], "data.validation_images is 0"),
        (["--teacher.path", "nothing.safetensors"], "there is no file nothing.safetensors"),
        (["--training.learning_rate", "1e30"], "the loss cross_entropy of generation 0 is"),
        (["--lineage.generations", "-1"], "must be at least 0"),
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
