"""scripts/distill_images.py as a user runs it."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from polydistill.image_folders import data
from polydistill.image_folders.folder import SIZES
from polydistill.image_folders.library import load_timm
from polydistill.image_folders.pictures import BrokenPictureError, read_picture
from polydistill.image_folders.plan import KIND
from polydistill.lineage import keeper
from polydistill.runs.checkpoint import Checkpoints
from polydistill.runs.show import format_run
from tests.image_folders.samples import CLASSES, NETWORK, Script, refused, write_pictures
from tests.stop_signals import StopAt


def summary_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def what_stays(run: Path) -> dict[str, bytes]:
    """The files of a run that do not depend on the clock."""
    names = ["metrics.jsonl", *(path.name for path in run.glob("generation_*"))]
    return {name: (run / name).read_bytes() for name in sorted(names)}


def small_teacher(path: Path, classes: int = 3) -> torch.nn.Module:
    """A network with weights in a file."""
    network: torch.nn.Module = load_timm().create_model(NETWORK.removeprefix("timm:"), num_classes=classes)
    save_file(network.state_dict(), path)
    return network


def test_a_folder_becomes_a_table_with_what_every_run_has(script: Script, words: list[str], tmp_path: Path) -> None:
    done = script(*words, "--lineage.generations", "2")
    assert done.code == 0, done.err
    run = tmp_path / "run"
    summary = summary_of(run)
    assert summary["kind"] == "images"
    assert [one["generation"] for one in summary["generations"]] == [0, 1, 2]
    assert [ensemble["members"] for ensemble in summary["ensembles"]] == [[1, 2]]
    assert tuple(summary["data"]["classes"]) == CLASSES, "2 before 10, and names of any letters"
    assert (summary["data"]["train"]["images"], summary["data"]["test"]["images"]) == (36, 18)
    assert {"timm", "torchvision", "pillow"} <= summary["versions"].keys()
    assert "| generation 2     | ban" in done.out
    assert "on pictures: 3 classes, 36 pictures" in done.out
    assert done.out.startswith(format_run(run, wide=False))
    card = (run / "README.md").read_text()
    assert "library_name: timm" in card
    assert "`müll`" in card
    assert "generation_2.safetensors" in card

    again = script(*words, "--lineage.generations", "2")
    assert (again.code, again.out) == (0, done.out), "a finished run is shown again"
    shutil.rmtree(tmp_path / "pictures")
    assert script(*words, "--lineage.generations", "2").out == done.out, "without its pictures, too"


def test_the_card_beside_a_student_is_enough_to_open_it_with_timm(
    script: Script, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert script(*words).code == 0
    card = (tmp_path / "run" / "README.md").read_text()
    program = card.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path / "run")
    shutil.copy(tmp_path / "pictures" / "val" / "müll" / "0.jpg", "picture.jpg")
    said: list[str] = []
    exec(program, {"print": said.append})
    assert said[0] in CLASSES
    assert json.loads(Path("generation_1.json").read_text())["image_size"] == 32


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_is_stopped_again_and_again_ends_as_the_unbroken_one(
    script: Script, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    words += ["--data.workers", str(workers), "--data.validation_images", "6"]
    words += ["--augmentation.auto_augment", "rand-m9-mstd0.5", "--augmentation.random_erasing", "0.5"]
    assert script(*words).code == 0
    whole = what_stays(tmp_path / "run")
    shutil.move(tmp_path / "run", tmp_path / "whole")
    stops = 0
    while not (tmp_path / "run" / "summary.json").exists():
        with monkeypatch.context() as patch:
            patch.setattr(keeper, "StopSignals", lambda: StopAt(4))
            done = script(*words)
            stops += done.code == 143
            assert done.code in (0, 143), done.err
    assert stops >= 3
    assert what_stays(tmp_path / "run") == whole


def test_what_was_left_out_is_counted_where_a_run_goes_on_and_a_checkpoint_of_before_opens(
    script: Script, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pictures" / "train" / "müll" / "3.jpg"
    whole = path.read_bytes()
    path.write_bytes(b"no".ljust(len(whole)))
    words += ["--data.broken", "skip", "--data.check", "none"]
    with monkeypatch.context() as patch:
        patch.setattr(keeper, "StopSignals", lambda: StopAt(9))
        assert script(*words).code == 143
    shutil.copytree(tmp_path / "run", tmp_path / "before")
    path.write_bytes(whole)  # so that a later process finds nothing wrong
    assert script(*words).code == 0
    assert summary_of(tmp_path / "run")["data"]["left_out"] == 1
    right = [record["sha256"] for record in summary_of(tmp_path / "run")["correct"]]
    assert len(right) == 2

    older = Checkpoints(tmp_path / "before" / "checkpoints", kind=KIND)
    saved = older.latest()
    assert saved is not None
    for key in ("left_out", "correct"):
        del saved["state"][key]
    del saved["state"]["data"]["whole"]
    for held in saved["state"]["data"].values():
        del held[SIZES]
    for file in [*older.paths(), *(tmp_path / "before").glob("*_correct.npz")]:
        file.unlink()
    older.save(saved, 9)
    assert script(*words, "--out", tmp_path / "before").code == 0
    assert [record["sha256"] for record in summary_of(tmp_path / "before")["correct"]] == right
    assert summary_of(tmp_path / "before")["data"]["left_out"] == 0


def test_a_lineage_may_grow(script: Script, words: list[str], tmp_path: Path) -> None:
    assert script(*words, "--lineage.generations", "2").code == 0
    shutil.move(tmp_path / "run", tmp_path / "whole")
    assert script(*words).code == 0
    assert script(*words, "--lineage.generations", "2").code == 0
    assert what_stays(tmp_path / "run") == what_stays(tmp_path / "whole")


@pytest.mark.parametrize("form", ["safetensors", "state dict", "timm"])
def test_a_teacher_of_a_file_is_generation_0_and_its_accuracy_is_told_first(
    script: Script, words: list[str], tmp_path: Path, form: str
) -> None:
    path = tmp_path / ("teacher.safetensors" if form == "safetensors" else "teacher.pth.tar")
    network = small_teacher(tmp_path / "teacher.safetensors")
    if form == "state dict":
        torch.save(network.state_dict(), path)
    elif form == "timm":
        other = {name: tensor + 1 for name, tensor in network.state_dict().items()}
        both = {"state_dict": other, "state_dict_ema": network.state_dict()}
        torch.save({"epoch": 3, "arch": "test_resnet", "args": argparse.Namespace(lr=0.1), **both}, path)
    done = script(*words, "--teacher.path", path, "--student.network", "resnet-8", "--student.objective", "hinton_kd")
    assert done.code == 0, done.err
    assert f"{path} is right in " in done.err
    assert "| generation 0     | (a file)" in done.out
    assert "timm:test_resnet teaches resnet-8" in done.out
    taken = load_file(tmp_path / "run" / "generation_0.safetensors")
    assert all(torch.equal(taken[name], tensor) for name, tensor in network.state_dict().items())
    assert "teacher.pth.tar" not in done.out
    path.unlink()
    grown = script(
        *(*words, "--teacher.path", path, "--student.network", "resnet-8", "--student.objective", "hinton_kd"),
        *("--lineage.generations", "2"),
    )
    assert grown.code == 0, "the run has its own copy of the teacher: " + grown.err


def test_of_a_teacher_of_more_classes_those_of_the_folder_are_picked_by_name(
    script: Script, words: list[str], tmp_path: Path
) -> None:
    path, names = tmp_path / "teacher.safetensors", ["cat", "müll", "class 10", "dog", "class 2"]
    network = small_teacher(path, 5)
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (tmp_path / "names.json").write_text(json.dumps(names), encoding="utf-8")
    for file in ("names.txt", "names.json"):
        out = tmp_path / file.replace(".", "_")
        done = script(*words, "--teacher.path", path, "--teacher.classes", tmp_path / file, "--out", out)
        assert done.code == 0, done.err
        taken = load_file(out / "generation_0.safetensors")
        assert torch.equal(taken["fc.weight"], network.state_dict()["fc.weight"][[4, 2, 1]])


def test_a_student_of_one_run_teaches_another_of_fewer_classes_by_its_card(
    script: Script, words: list[str], tmp_path: Path
) -> None:
    assert script(*words).code == 0
    for part in ("train", "val"):
        shutil.rmtree(tmp_path / "pictures" / part / "class 10")
    done = script(*words, "--teacher.path", tmp_path / "run" / "generation_1.safetensors", "--out", tmp_path / "second")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "second" / "generation_1.json").read_text())["classes"] == ["class 2", "müll"]


def test_networks_may_see_pictures_of_other_sizes_and_all_options_work_together(
    script: Script, words: list[str], tmp_path: Path
) -> None:
    options = (
        "--data.image_size 48 --teacher.network timm:test_vit --teacher.image_size 64 --student.network resnet-8 "
        "--student.image_size 32 --training.optimizer adamw --training.learning_rate 0.001 --training.parts 2 "
        "--training.clip_norm 1 --evaluation.selection best_val --data.validation_images 6 "
        "--training.warmup_epochs 0 --augmentation.color_jitter 0 --augmentation.interpolation bilinear "
        "--data.crop 1 --data.interpolation bilinear --training.ema 0.9"
    )
    done = script(*words, *options.split())
    assert done.code == 0, done.err
    assert "mean of the weights (decay 0.9)" in " ".join(done.out.split())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("val/accuracy" in line["values"] for line in lines)
    cards = [json.loads((tmp_path / "run" / f"generation_{k}.json").read_text()) for k in range(2)]
    assert [card["image_size"] for card in cards] == [64, 32]
    assert cards[0]["mean"] != cards[1]["mean"] or cards[0]["std"] != cards[1]["std"], "each its own normalisation"


@pytest.mark.parametrize("kind", ["mixed", "float16"])
def test_a_run_of_mixed_pictures_or_of_scaled_losses_goes_on(
    script: Script, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "mixed":
        words += ["--augmentation.mixup", "0.2", "--augmentation.cutmix", "1", "--student.objective", "ban_l"]
    else:
        words[words.index("--precision") + 1] = kind
    assert script(*words).code == 0
    whole = what_stays(tmp_path / "run")
    lines = [json.loads(line)["values"] for line in whole["metrics.jsonl"].decode().splitlines()]
    assert any("train/skipped_steps" in values for values in lines) == (kind == "float16")
    shutil.rmtree(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(keeper, "StopSignals", lambda: StopAt(4))
        assert script(*words).code == 143
    assert script(*words).code == 0
    assert what_stays(tmp_path / "run") == whole


def test_the_doctor_examines_each_lesson(script: Script, words: list[str]) -> None:
    done = script(*words, "--doctor")
    assert done.code == 0, done.err
    assert "doctor: ban, 8 samples of 3 classes" in done.out


def test_a_plan_says_what_a_run_costs_and_writes_nothing(
    script: Script, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where speeds are remembered
    done = script(*words, "--dry_run")
    assert done.code == 0, done.err
    assert "2 generations of 36 pictures of 32 x 32 pixels in 3 classes, 8 steps each; 18 test pictures" in done.out
    assert "generation 0: timm:test_resnet, " in done.out
    assert "time: not known before such a run has finished here" in done.out
    assert "a new run would begin there" in done.out
    assert not (tmp_path / "run").exists()
    assert "TFLOP/s of a convolution measured here" in script(*words, "--dry_run_measure").out
    assert script(*words).code == 0
    planned = script(*words, "--out", tmp_path / "other", "--dry_run").out
    assert "pictures/s of an earlier run here" in planned


def test_help_teaches(script: Script) -> None:
    done = script("--help")
    assert done.code == 0
    assert "FOLDER holds train/<class>/*.jpg to learn from" in done.out
    for flag in ("--teacher.pretrained", "--data.broken", "--augmentation.auto_augment", "--student.temperature"):
        assert flag in done.out


def test_the_loss_that_is_not_finite_is_one_line(script: Script, words: list[str], tmp_path: Path) -> None:
    error = refused(script(*words, "--training.learning_rate", "1e30"))
    assert "is not finite" in error or "not finite" in error or " is nan " in error or " is inf " in error
    assert (tmp_path / "run").exists()


def test_other_files_than_a_run_began_with_are_refused(
    script: Script, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(keeper, "StopSignals", lambda: StopAt(4))
        assert script(*words).code == 143
    path = tmp_path / "pictures" / "val" / "müll" / "3.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0")
    error = refused(script(*words))
    assert "other files to be tested on than this run began with: the names are the same, the sizes are not" in error
    path.write_bytes(whole)
    write_pictures(tmp_path / "pictures" / "train", 13)
    error = refused(script(*words))
    assert "holds other files to learn from than this run began with: 39 now, 36 then" in error


def test_a_test_picture_that_is_read_at_one_test_and_not_at_the_next_is_one_line(
    script: Script, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pictures" / "val" / "müll" / "3.jpg"
    monkeypatch.setattr(data, "read_picture", once_broken(path))
    error = refused(script(*words, "--data.broken", "skip"))
    assert f"not the same test pictures of {path.parents[1]} could be read at each test" in error
    assert f"left out at some time: {path}; " in error


def once_broken(path: Path) -> Callable[[Path], Image.Image]:
    """A reader of pictures that cannot decode one the first time."""
    seen: list[Path] = []

    def read(file: Path) -> Image.Image:
        if file == path and not seen:
            seen.append(file)
            raise BrokenPictureError(f"{file} cannot be decoded: once")
        return read_picture(file)

    return read
