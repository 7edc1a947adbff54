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


def test_each_run_has_the_folder_and_the_log_of_its_command(whole: Path, tmp_path: Path) -> None:
    run_alone(whole, tmp_path / "alone")
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole / "run0", tmp_path / "alone")]
    names = [{path.name for path in folder.iterdir()} for folder in (whole / "run0", tmp_path / "alone")]
    assert names[0] == names[1]
    for key in ("config", "kind", "data"):
        assert summaries[0][key] == summaries[1][key]
    weights = [load_classifier(folder / LAST).network.state_dict() for folder in (whole / "run0", tmp_path / "alone")]
    for name, tensor in weights[1].items():  # 24 steps of float32
        torch.testing.assert_close(weights[0][name], tensor, rtol=0.02, atol=0.02)
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
        places = [log.partition("stopped ")[2].partition(",")[0] for log in logs]
        assert places[0] == places[1] != "", "all at the same step"
    code, output = run(words)
    assert code == 0, output
    for seed in range(2):
        (tmp_path / f"run{seed}" / "config.yaml").write_bytes((whole / f"run{seed}" / "config.yaml").read_bytes())
        assert_same_run(whole / f"run{seed}", tmp_path / f"run{seed}", PRODUCTS)


def test_runs_that_are_killed_go_on_and_those_behind_catch_up(made_up_cifar10: Path, tmp_path: Path) -> None:
    words = write_runs(tmp_path, made_up_cifar10, {}, {"checkpoint.every_steps": 7})
    process = start(words, {})
    end = time.monotonic() + 120
    while not list(tmp_path.glob("run1/checkpoints/*.checkpoint")) and time.monotonic() < end:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    code, output = run(words)
    assert code == 0, output
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
