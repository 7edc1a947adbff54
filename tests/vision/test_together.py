"""Runs in one process: each ends as its command would alone, whatever happens to the others."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from polydistill.vision import load_classifier
from tests.crashes.killing import start
from tests.crashes.same import assert_same_run

PRODUCTS = ("generation_*.safetensors", "generation_*.json", "generation_*_correct.npz")
LAST = "generation_1.safetensors"
CONFIG = {
    "device": "cpu",
    "threads": 1,
    "precision": "float32",
    "data": {"name": "cifar10", "official": False, "validation_images": 40, "train_images": 130, "test_images": 30},
    "teacher": {"network": "resnet-8"},
    "student": {"objective": "cwtm"},
    "training": {"epochs": 3, "batch_size": 25, "learning_rate": 0.05, "schedule": "one_cycle", "log_every_steps": 3},
    "lineage": {"generations": 1},
    "checkpoint": {"every_steps": 4},
}
Together = Callable[..., subprocess.CompletedProcess[str]]


def write_runs(folder: Path, data: Path, *changes: dict[str, Any]) -> list[str]:
    """A run of seed 0, 1, ... for each of the changes, told in a file; the words of the command that makes them."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    runs = {}
    for seed, change in enumerate(changes):
        words: list[Any] = ["--config", str(folder / "config.yaml"), "--data.root", str(data), "--seed", seed]
        words += ["--out", str(folder / f"run{seed}")]
        for key, value in change.items():
            words += [f"--{key}", value]
        runs[str(folder / f"run{seed}.txt")] = words
    (folder / "runs.yaml").write_text(yaml.safe_dump(runs))
    return [sys.executable, "scripts/together_cifar.py", str(folder / "runs.yaml")]


def latest(folder: Path) -> int:
    """The number of a run's latest checkpoint; 0: it has none."""
    return max((int(path.stem) for path in (folder / "checkpoints").glob("*.checkpoint")), default=0)


def run(words: list[str]) -> tuple[int, str]:
    process = start(words, {})
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def run_alone(folder: Path, out: Path) -> None:
    """The command of the first of the runs in ``folder``, by itself."""
    words = [str(word) for word in next(iter(yaml.safe_load((folder / "runs.yaml").read_text()).values()))]
    words[words.index("--out") + 1] = str(out)
    subprocess.run([sys.executable, "scripts/distill_cifar.py", *words], check=True, capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def whole(made_up_cifar10: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs that were made together, which nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    code, output = run(write_runs(folder, made_up_cifar10, {}, {}))
    assert code == 0, output
    assert "52 steps were made together, 0 alone" in output, "two generations of 3 epochs of 4 steps, and a trial of 2"
    return folder


def losses_of(folder: Path, role: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["values"]["train/loss"] for line in lines if line["role"] == role and "train/loss" in line["values"]]


def test_each_run_has_the_folder_and_the_log_of_its_command(whole: Path, tmp_path: Path) -> None:
    run_alone(whole, tmp_path / "alone")
    folders = whole / "run0", tmp_path / "alone"
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    names = [{path.name for path in folder.iterdir()} for folder in folders]
    assert names[0] == names[1]
    for key in ("config", "kind", "data"):
        assert summaries[0][key] == summaries[1][key]
    assert [summary.get("runs_together") for summary in summaries] == [2, None]
    together, alone = (losses_of(folder, "generation_0") for folder in folders)
    assert together[:2] == pytest.approx(alone[:2], rel=1e-3)  # four steps of float32
    assert together == pytest.approx(alone, rel=0.05)
    first = load_classifier(folders[0] / LAST).network.state_dict()
    other = load_classifier(whole / "run1" / LAST).network.state_dict()
    assert not torch.equal(first["stem.weight"], other["stem.weight"]), "each has a seed of its own"
    logs = (whole / "run0.txt").read_text(), (whole / "run1.txt").read_text()
    assert "| generation 1 " in logs[0]
    assert str(whole / "run0") in logs[0]
    assert str(whole / "run1") not in logs[0]
    assert str(whole / "run1") in logs[1]


def test_runs_that_are_stopped_go_on_bit_for_bit(whole: Path, made_up_cifar10: Path, tmp_path: Path) -> None:
    words = write_runs(tmp_path, made_up_cifar10, {}, {})
    for _ in range(2):
        process = start(words, {})
        saved = len(list(tmp_path.glob("run*/checkpoints/*")))
        end = time.monotonic() + 120
        while len(list(tmp_path.glob("run*/checkpoints/*"))) <= saved and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
        if process.returncode == 0:  # it was at its end
            break
        assert process.returncode == 143, output
        assert "stopped: the same command goes on" in output
        logs = [(tmp_path / f"run{seed}.txt").read_text() for seed in range(2)]
        places = [re.search(r"stopped (in generation \d+ after step \d+)", log) for log in logs]
        assert len({place[1] for place in places if place}) == 1, "all at the same step"
        for log, place in zip(logs, places, strict=True):
            assert place or "| generation 1 " in log, "stopped, or at its end before"
    code, output = run(words)
    assert code == 0, output
    for seed in range(2):
        (tmp_path / f"run{seed}" / "config.yaml").write_bytes((whole / f"run{seed}" / "config.yaml").read_bytes())
        assert_same_run(whole / f"run{seed}", tmp_path / f"run{seed}", PRODUCTS)


def test_runs_that_are_killed_go_on_and_those_behind_catch_up(made_up_cifar10: Path, tmp_path: Path) -> None:
    # of the first no checkpoint is left but that of its generation 0, so it is some steps behind the other
    words = write_runs(tmp_path, made_up_cifar10, {"checkpoint.every_steps": 1000}, {"checkpoint.every_steps": 1})
    process = start(words, {})
    end = time.monotonic() + 120
    generation = tmp_path / "run1" / "generation_0.safetensors"
    first: int | None = None  # its latest checkpoint then; after it come that of the end, and those of the next steps
    while (first is None or latest(tmp_path / "run1") < first + 3) and time.monotonic() < end:
        if first is None and generation.exists():
            first = latest(tmp_path / "run1")
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    code, output = run(words)
    assert code == 0, output
    steps = re.search(r"(\d+) steps were made together, (\d+) alone", output)
    assert steps is not None
    assert int(steps[2]) > 0, "one was behind"
    assert int(steps[1]) > 0
    again, output = run(words)
    assert again == 0, "finished runs are shown again"
    assert "0 steps were made together, 0 alone" in output


def test_one_that_fails_says_why_and_the_others_end_well(made_up_cifar10: Path, tmp_path: Path) -> None:
    failing = {"training.learning_rate": 1e30}
    code, output = run(write_runs(tmp_path, made_up_cifar10, {}, failing, {"student.objektive": "ban"}))
    assert code == 1
    assert f"{tmp_path / 'run0.txt'}: ended well" in output
    assert f"{tmp_path / 'run1.txt'}: ended with code 2" in output
    logs = [(tmp_path / f"run{seed}.txt").read_text() for seed in range(3)]
    assert logs[1].splitlines()[-1].startswith("error: the loss cross_entropy of generation ")
    assert "objektive" in logs[2].splitlines()[-1]
    assert (tmp_path / "run0" / "summary.json").exists()


def test_a_signal_when_all_is_learned_lets_the_runs_end(made_up_cifar10: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n"
        "from polydistill.vision.domain import CifarDomain\n"
        "finish = CifarDomain.finish\n"
        "def stop_then_finish(*given):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return finish(*given)\n"
        "CifarDomain.finish = stop_then_finish\n"
    )
    words = write_runs(tmp_path, made_up_cifar10, {"training.epochs": 1, "lineage.generations": 0})
    process = start(words, {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])})
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "ending this step and saving" in output
    assert "run0.txt: ended well" in output


def test_torchrun_is_refused(made_up_cifar10: Path, tmp_path: Path) -> None:
    process = start(write_runs(tmp_path, made_up_cifar10, {}), {"WORLD_SIZE": "2"})
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert output.startswith("error: torchrun shares one run among processes")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "names no run"),
        ("a.txt: --seed 0", r"a.txt must be a list of words, like \[--seed, 0, --out, runs/a\], got '--seed 0'"),
        ("a.txt: [[1]]", "a.txt must be a list of words"),
        ("[a, b]", "runs.yaml"),
    ],
)
def test_a_file_that_names_no_runs_is_one_line(
    root: Path, tmp_path: Path, text: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(root / "scripts" / "together_cifar.py"))["main"]
    (tmp_path / "runs.yaml").write_text(text)
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / "runs.yaml")])
    assert end.value.code == 2
    written = capsys.readouterr().err
    assert written.count("\n") == 1
    assert re.search(line, written)
