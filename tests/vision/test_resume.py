"""A lineage of classifiers that is stopped, killed, or loses its power ends as the one that nobody disturbed."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from polydistill.errors import Interrupted, UserError
from polydistill.learning.schedules import TrainingConfig
from polydistill.lineage import LineageConfig, run_lineage
from polydistill.runs import Run
from polydistill.runs.checkpoint import CheckpointConfig, Checkpoints
from polydistill.runs.interruption import StopSignals
from polydistill.vision import evaluation, examiner
from polydistill.vision.config import CifarConfig, EvaluationConfig, StudentConfig, TeacherConfig
from polydistill.vision.domain import CifarDomain
from polydistill.vision.images.data import DataConfig, load_images
from polydistill.vision.training import Trainer
from tests.crashes.disks import as_nobody, fill, remount, small_file_system
from tests.crashes.killing import run_killed, start
from tests.crashes.power import Power, PowerLossError
from tests.crashes.same import assert_same_run
from tests.stop_signals import StopAt

PRODUCTS = ("generation_*.safetensors", "generation_*.json", "generation_*_correct.npz")
VARIANTS = ("last", "best_val")
Straight = Callable[[str], tuple[CifarConfig, Path]]


def make_config(root: Path, variant: str) -> CifarConfig:
    """Two generations of 3 epochs of 4 steps, saved after each step; the reports do not fall on the epochs' ends."""
    best = variant == "best_val"
    return CifarConfig(
        device="cpu",
        threads=1,
        precision="float32",
        data=DataConfig("cifar10", str(root), official=False, validation_images=40, train_images=130, test_images=30),
        teacher=TeacherConfig("resnet-8"),
        student=StudentConfig(objective="dkpp") if best else StudentConfig(objective="cwtm"),
        training=TrainingConfig(epochs=3, batch_size=25, learning_rate=0.05, schedule="one_cycle", log_every_steps=3),
        evaluation=EvaluationConfig(selection=variant),  # type: ignore[arg-type]
        lineage=LineageConfig(1),
        checkpoint=CheckpointConfig(every_steps=1),
    )


def go_on(config: CifarConfig, out: Path, stop: StopSignals | None = None) -> dict[str, Any]:
    """What scripts/distill_cifar.py does."""
    with Run.open(
        out, config, kind="cifar", command="test", may_grow=("lineage.generations",), may_move=("data.root",)
    ) as run:
        return run_lineage(CifarDomain(config, load_images(config.data)), config, run, stop=stop or StopSignals())


@pytest.fixture(scope="module")
def straight(made_up_cifar10: Path, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """The config of a variant, and the folder of its run that nobody disturbed."""
    done: dict[str, tuple[CifarConfig, Path]] = {}

    def get(variant: str) -> tuple[CifarConfig, Path]:
        if variant not in done:
            config, out = make_config(made_up_cifar10, variant), tmp_path_factory.mktemp(variant) / "run"
            go_on(config, out)
            done[variant] = config, out
        return done[variant]

    return get


# ---- older runs --------------------------------------------------------------------------------------------------


def test_a_run_from_before_an_option_was_there_goes_on_without_it_and_not_with_it(
    tmp_path: Path, straight: Straight
) -> None:
    config, expected = straight("last")
    with pytest.raises(Interrupted):
        go_on(config, tmp_path / "run", StopAt(3))
    path = tmp_path / "run" / "config.yaml"
    text = path.read_text()
    for name in ("alpha", "beta", "delta"):
        assert f"  {name}: null\n" in text
        text = text.replace(f"  {name}: null\n", "")
    path.write_text(text)
    with_it = dataclasses.replace(config, student=StudentConfig(objective="dkd", alpha=1.0))
    with pytest.raises(UserError, match=r"student\.(objective|alpha) is"):
        go_on(with_it, tmp_path / "run")
    go_on(config, tmp_path / "run")
    shutil.copy(expected / "config.yaml", path)
    assert_same_run(expected, tmp_path / "run", PRODUCTS)


def test_a_student_with_epochs_and_a_number_of_its_own_goes_on_bit_for_bit(tmp_path: Path, straight: Straight) -> None:
    config = dataclasses.replace(straight("last")[0], student=StudentConfig(objective="ban", epochs=4, repeat=2))
    go_on(config, tmp_path / "whole")
    with pytest.raises(Interrupted, match="in generation 1 after step 14,"):  # of 16; 12 without its own epochs
        go_on(config, tmp_path / "run", StopAt(52))
    go_on(config, tmp_path / "run")
    assert_same_run(tmp_path / "whole", tmp_path / "run", PRODUCTS)


def test_answers_are_kept_by_a_run_from_before_they_were_and_must_be_there_after(
    tmp_path: Path, straight: Straight
) -> None:
    config, expected = straight("last")
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match="in generation 1 after step 2,"):
        go_on(config, out, StopAt(28))
    before = tmp_path / "before"
    shutil.copytree(out, before)
    path = Checkpoints(before / "checkpoints", kind="cifar").paths()[-1]
    saved = Checkpoints(before / "checkpoints", kind="cifar").latest()
    assert saved is not None
    assert saved["state"].pop("correct")
    path.unlink()
    Checkpoints(before / "checkpoints", kind="cifar").save(saved, 2)
    (before / "generation_0_correct.npz").unlink()
    go_on(config, before)
    assert_same_run(expected, before, PRODUCTS)

    (out / "generation_0_correct.npz").unlink()
    with pytest.raises(UserError, match=r"cannot read .*generation_0_correct\.npz"):
        go_on(config, out)


# ---- stopping ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_twenty_continuations_in_a_row_end_as_one_run(tmp_path: Path, straight: Straight, variant: str) -> None:
    config, expected = straight(variant)
    places = []
    while True:
        try:
            go_on(config, tmp_path / "run", StopAt(1))  # one step, and out
            break
        except Interrupted as stopped:
            places.append(str(stopped))
    assert len(places) >= 20
    assert places[0] == "stopped in generation 0 after step 1, and saved: the same command goes on from there"
    assert len(set(places)) == len(places), "each time it came further"
    assert_same_run(expected, tmp_path / "run", PRODUCTS)


@pytest.mark.parametrize("changes", [{"threads": 2}, {"precision": "bfloat16"}])
def test_on_two_threads_and_in_bfloat16_a_stop_changes_nothing_either(
    tmp_path: Path, straight: Straight, changes: dict[str, Any]
) -> None:
    config = dataclasses.replace(straight("best_val")[0], **changes)
    go_on(config, tmp_path / "whole")
    for questions in (3, 2, 9):
        with pytest.raises(Interrupted):
            go_on(config, tmp_path / "run", StopAt(questions + 1))
    go_on(config, tmp_path / "run")
    assert_same_run(tmp_path / "whole", tmp_path / "run", PRODUCTS)


def test_the_moment_of_saving_changes_nothing(tmp_path: Path, straight: Straight) -> None:
    config, expected = straight("last")
    for every in (0, 5):
        rare = dataclasses.replace(config, checkpoint=CheckpointConfig(every_steps=every))
        go_on(rare, tmp_path / str(every))
        assert (tmp_path / str(every) / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()


def test_seconds_add_up_over_continuations(tmp_path: Path, straight: Straight) -> None:
    config, _ = straight("last")
    with pytest.raises(Interrupted):
        go_on(config, tmp_path / "run", StopAt(13))
    saved = Checkpoints(tmp_path / "run" / "checkpoints", kind="cifar").latest()
    assert saved is not None
    before = saved["position"]["seconds"]
    assert before > 0
    assert saved["state"]["begun"]["seconds"] > 0
    assert go_on(config, tmp_path / "run")["wall_seconds"] > before


# ---- losing power ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_loss_of_power_at_any_touch_of_the_disk_is_survived(
    tmp_path: Path, straight: Straight, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, expected = straight(variant)
    out, rng, losses = tmp_path / "run", random.Random(f"power {variant}"), 0
    while True:
        with monkeypatch.context() as patch:
            Power(out, rng.randrange(40), rng).connect(patch)
            try:
                go_on(config, out)
                break
            except PowerLossError:
                losses += 1
    assert losses >= 8
    assert_same_run(expected, out, PRODUCTS)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_from_a_damaged_checkpoint_it_goes_back_one_and_ends_the_same(
    tmp_path: Path, straight: Straight, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config, expected = straight("last")
    with pytest.raises(Interrupted):
        go_on(config, tmp_path / "run", StopAt(26))
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes({"flipped": bytes(content), "cut": bytes(content[:-1]), "empty": b""}[damage])
    capsys.readouterr()
    go_on(config, tmp_path / "run")
    assert capsys.readouterr().err.count(f"a checkpoint is damaged: {newest.name} ") == 1
    assert_same_run(expected, tmp_path / "run", PRODUCTS)


# ---- growing -----------------------------------------------------------------------------------------------------


def test_a_finished_run_that_grows_is_the_one_that_was_longer_from_the_start(
    tmp_path: Path, straight: Straight
) -> None:
    config, finished = straight("last")
    longer = dataclasses.replace(config, lineage=LineageConfig(2))
    shutil.copytree(finished, tmp_path / "grown")
    summary = go_on(longer, tmp_path / "grown")
    assert len(summary["generations"]) == 3
    go_on(longer, tmp_path / "straight")
    assert_same_run(tmp_path / "straight", tmp_path / "grown", PRODUCTS)
    with pytest.raises(UserError, match=r"lineage\.generations is 2 there and 1 here"):
        go_on(config, tmp_path / "grown")


# ---- what is not what it was -------------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path: Path, straight: Straight) -> tuple[CifarConfig, Path]:
    """A run that was stopped in generation 1."""
    config, _ = straight("last")
    with pytest.raises(Interrupted, match="in generation 1"):
        go_on(config, tmp_path / "run", StopAt(31))
    return config, tmp_path / "run"


def test_a_finished_generation_that_changed_is_one_line(stopped: tuple[CifarConfig, Path], straight: Straight) -> None:
    config, out = stopped
    for ending in (".safetensors", ".json"):
        shutil.copy(straight("last")[1] / f"generation_1{ending}", out / f"generation_0{ending}")
    with pytest.raises(UserError, match="generation 0 is not what it was when it was finished"):
        go_on(config, out)
    (out / "generation_0.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot read .*generation_0\.safetensors"):
        go_on(config, out)


def test_other_images_are_one_line(stopped: tuple[CifarConfig, Path], made_up_cifar10: Path, tmp_path: Path) -> None:
    config, out = stopped
    shutil.copytree(made_up_cifar10, tmp_path / "data")
    for path in (tmp_path / "data").rglob("*.bin"):
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(tmp_path / "data")))
    with pytest.raises(UserError, match="holds other images than those that this run began with"):
        go_on(moved, out)


# ---- the disk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "code", "says"),
    [
        ("metrics.jsonl", errno.ENOSPC, "No space left on device"),
        ("metrics.jsonl", errno.EFBIG, "File too large"),
        ("events.out.tfevents.generation_0", errno.ENOSPC, "No space left on device"),
        ("events.out.tfevents.generation_0", errno.EDQUOT, "Disk quota exceeded"),
        ("generation_0.safetensors", errno.ENOSPC, "No space left on device"),
        ("generation_0.safetensors", errno.EIO, "Input/output error"),
    ],
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(
    tmp_path: Path, straight: Straight, monkeypatch: pytest.MonkeyPatch, where: str, code: int, says: str
) -> None:
    config, expected = straight("last")
    with monkeypatch.context() as patch:
        fill(patch, where, 0 if where.endswith(".safetensors") else 4, code)
        with pytest.raises(UserError, match=rf"cannot write .*: {says}$"):
            go_on(config, tmp_path / "run")
    go_on(config, tmp_path / "run")
    assert_same_run(expected, tmp_path / "run", PRODUCTS)


def test_a_small_file_system_that_fills_up_is_one_line_each_time(tmp_path: Path, straight: Straight) -> None:
    config, expected = straight("last")
    with small_file_system(tmp_path / "disk", "4m") as disk:
        rng, filling, lines = random.Random(2), disk / "filling", []
        for _ in range(6):
            free = shutil.disk_usage(disk).free
            filling.write_bytes(bytes(max(0, free - rng.randrange(1_500_000))))
            try:
                go_on(config, disk / "run")
            except UserError as error:
                lines.append(str(error))
            filling.unlink()
        assert len(lines) >= 2
        assert all(re.fullmatch(r"cannot \w+ .*: No space left on device", line) for line in lines)
        go_on(config, disk / "run")
        assert_same_run(expected, disk / "run", PRODUCTS)


def test_a_disk_that_turns_read_only_is_one_line_and_the_run_goes_on_afterwards(
    tmp_path: Path, straight: Straight, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, expected = straight("last")
    with small_file_system(tmp_path / "disk", "64m") as disk:
        with pytest.raises(Interrupted):
            go_on(config, disk / "run", StopAt(11))
        remount(disk, "ro")
        for out in (disk / "run", disk / "other"):
            with pytest.raises(UserError, match=r"^cannot write .*: Read-only file system$"):
                go_on(config, out)
        remount(disk, "rw")
        go_on(config, disk / "run")
        assert_same_run(expected, disk / "run", PRODUCTS)
        remount(disk, "ro")
        go_on(config, disk / "run")  # finished: it only reads


def test_a_folder_without_permission_is_one_line_and_the_run_goes_on_with_it(
    tmp_path: Path, straight: Straight, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, expected = straight("last")
    out, images = tmp_path / "run", load_images(config.data)
    with pytest.raises(Interrupted):
        go_on(config, out, StopAt(11))
    (out / "checkpoints").chmod(0o500)
    with monkeypatch.context() as patch, as_nobody(out):
        patch.setitem(globals(), "load_images", lambda data: images)
        with pytest.raises(UserError, match=r"^cannot write .*checkpoint: Permission denied$"):
            go_on(config, out)
    (out / "checkpoints").chmod(0o700)
    go_on(config, out)
    assert_same_run(expected, out, PRODUCTS)


def test_data_without_permission_is_one_line(tmp_path: Path, straight: Straight, made_up_cifar10: Path) -> None:
    config, _ = straight("last")
    shutil.copytree(made_up_cifar10, tmp_path / "data")
    (tmp_path / "data").chmod(0)
    locked = dataclasses.replace(config.data, root=str(tmp_path / "data"))
    with as_nobody(tmp_path / "data"), pytest.raises(UserError, match=r"^cannot read .*data: Permission denied$"):
        load_images(locked)


# ---- a loss that is not finite -----------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_keeps_its_batch_and_the_checkpoints(
    tmp_path: Path, straight: Straight, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, expected = straight("last")
    make_step = Trainer._make_step

    def fail_once(trainer: Trainer, diagnose: bool, *parts: torch.Tensor) -> None:
        make_step(trainer, diagnose, *parts)
        if trainer.generation == 1 and trainer.steps == 5:
            trainer._losses[trainer._cursor - 1] = torch.nan

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_make_step", fail_once)
        lines = []
        for _ in range(2):  # the same command meets the same loss
            with pytest.raises(FloatingPointError) as error:
                go_on(config, tmp_path / "run")
            lines.append(str(error.value))
    assert lines[0] == lines[1]
    assert lines[0].startswith("the loss cwtm of generation 1 is nan at step 6 of 12 ")
    path = tmp_path / "run" / "generation_1_failure.pt"
    assert lines[0].endswith(f"; the state before it and the batch are in {path}")
    failure = torch.load(path, weights_only=True)
    assert failure["state"]["steps"] == 5
    assert failure["batch"]["step"] == 6
    assert len(failure["batch"]["labels"]) == len(failure["batch"]["images"]) == 25
    assert all(tensor.isfinite().all() for tensor in failure["state"]["student"].values())
    path.unlink()
    go_on(config, tmp_path / "run")
    assert_same_run(expected, tmp_path / "run", PRODUCTS)


@pytest.mark.parametrize("step", [2, 6, 12])  # in the midst of a report, at its end, and the last of all
def test_weights_that_are_not_finite_are_never_kept(
    tmp_path: Path, straight: Straight, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The loss that led to them is a number; only the next one would not be."""
    config, expected = straight("last")
    make_step = Trainer._make_step

    def poison(trainer: Trainer, diagnose: bool, *parts: torch.Tensor) -> None:
        make_step(trainer, diagnose, *parts)
        if trainer.generation == 1 and trainer.total_steps == 12 and trainer.steps == step - 1:  # no rehearsal
            next(trainer.student.parameters()).data[0] = torch.inf

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_make_step", poison)
        with pytest.raises(FloatingPointError) as error:
            go_on(config, tmp_path / "run")
    words = f"the loss cwtm of generation 1 leads to weights that are not finite at step {step} of 12 "
    assert str(error.value).startswith(words)
    failure = torch.load(tmp_path / "run" / "generation_1_failure.pt", weights_only=True)
    assert failure["state"]["steps"] == step - 1
    assert failure["batch"]["step"] == step
    saved = Checkpoints(tmp_path / "run" / "checkpoints", kind="cifar").latest()
    assert saved is not None
    for student in (failure["state"]["student"], saved["state"]["begun"]["trainer"]["student"] if step > 1 else {}):
        assert all(tensor.isfinite().all() for tensor in student.values())
    (tmp_path / "run" / "generation_1_failure.pt").unlink()
    go_on(config, tmp_path / "run")
    assert_same_run(expected, tmp_path / "run", PRODUCTS)


@pytest.mark.parametrize(
    ("module", "where", "images"),
    [(examiner, "test images", 30), (evaluation, "validation images after epoch 1", 40)],
)
def test_a_score_that_is_not_finite_stops_the_run_and_leaves_what_gave_it(
    tmp_path: Path, straight: Straight, monkeypatch: pytest.MonkeyPatch, module: Any, where: str, images: int
) -> None:
    config, _ = straight("last")
    predict = evaluation.predict

    def spoil(*arguments: Any) -> torch.Tensor:
        logits = predict(*arguments)
        logits[7, 3] = torch.nan
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(module, "predict", spoil)
        with pytest.raises(
            FloatingPointError,
            match=rf"the scores of generation 0 \(.*\) on the {where} are not finite for 1 of {images};",
        ):
            go_on(config, tmp_path / "run")
    failure = torch.load(tmp_path / "run" / "generation_0_failure.pt", weights_only=True)
    assert failure["batch"]["rows"].tolist() == [7]
    assert failure["batch"]["images"].shape == (1, 32, 32, 3)
    assert failure["state"]


# ---- the script --------------------------------------------------------------------------------------------------


def script(root: Path, *words: str) -> Callable[[Path], list[str]]:
    fixed = ["--device", "cpu", "--threads", "1", "--lineage.generations", "1", "--training.epochs", "2"]
    path = str(root / "scripts" / "distill_cifar.py")
    return lambda out: [sys.executable, path, *fixed, "--checkpoint.every_steps", "2", "--out", str(out), *words]


def test_the_script_survives_a_ctrl_c_and_three_kills(root: Path, tmp_path: Path) -> None:
    command, out = script(root), tmp_path / "killed"
    whole = run_killed(command, tmp_path / "whole", random.Random(), kills=0, longest_seconds=0.0)
    process = start(command(out), {})
    while not list(out.glob("checkpoints/*.checkpoint")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert re.fullmatch(r"stopped .*, and saved: the same command goes on from there", output.splitlines()[-1])
    found = run_killed(command, out, random.Random(7), kills=3, longest_seconds=0.45 * whole.seconds)
    assert found.kills == 3
    assert_same_run(tmp_path / "whole", out, PRODUCTS)


def two_processes(root: Path, out: Path, objective: str) -> list[subprocess.Popen[str]]:
    """The script as torchrun starts it, on two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    command = script(root, "--student.objective", objective)(out)
    return [
        start(command, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, errors_apart=True) for rank in range(2)
    ]


def test_of_two_processes_one_is_killed_the_other_says_so_and_both_go_on(root: Path, tmp_path: Path) -> None:
    """First process 0 is killed, then in what goes on process 1. cwtm sums over processes within the loss, too."""
    out = tmp_path / "killed"
    for dies in range(2):
        before = set(out.glob("checkpoints/*.checkpoint"))
        processes = two_processes(root, out, "cwtm")
        while len(set(out.glob("checkpoints/*.checkpoint")) - before) < 2:
            time.sleep(0.01)
            assert all(process.poll() is None for process in processes)
        processes[dies].kill()
        processes[dies].communicate(timeout=60)
        survivor = processes[1 - dies]
        _, errors = survivor.communicate(timeout=60)
        assert survivor.returncode == 2
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert f"process {1 - dies} of 2 has lost another" in lines[0]
        assert "Traceback" not in errors
    for folder in (out, tmp_path / "whole"):
        for process in two_processes(root, folder, "cwtm"):
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    assert_same_run(tmp_path / "whole", out, PRODUCTS)


def test_a_second_script_on_the_same_folder_is_refused(root: Path, tmp_path: Path, run_python: Any) -> None:
    command = script(root)(tmp_path / "run")
    config = json.loads(json.dumps(command[2:]))
    with Run.open(tmp_path / "run", make_config(tmp_path, "last"), kind="cifar", command="first"):
        (tmp_path / "run" / "config.yaml").unlink()  # whoever comes second sees an empty folder
        done = run_python(command[1], *config)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: another process ({os.getpid()} on ")
    assert done.stderr.count("\n") == 1
