"""scripts/show.py: finished runs print again, and one line for what is none."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

CIFAR = {
    "schema": 1,
    "kind": "cifar",
    "seed": 0,
    "config": {
        "data": {"name": "cifar10"},
        "teacher": {"network": "resnet-8", "path": ""},
        "student": {"network": "teacher", "objective": "ban"},
        "training": {"epochs": 3},
        "evaluation": {"selection": "last"},
    },
    "data": {"train": {"images": 400}, "test": {"images": 300}, "validation": {"images": 0}},
    "seconds": [1.0],
    "ensembles": [],
    "generations": [
        {
            "generation": 0,
            "objective": None,
            "parameters": 10,
            "metrics": {"test_accuracy": 0.25, "test_nll": 2.0, "test_ece": 0.1, "val_accuracy": None},
        }
    ],
}


def show(root: Path, *words: object) -> int:
    try:
        runpy.run_path(str(root / "scripts" / "show.py"))["main"]([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def write_run(folder: Path, **changed: object) -> Path:
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(CIFAR | changed))
    return folder


def test_one_run_or_many_are_shown_from_their_summaries_alone(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", seed=7)
    assert show(root, one) == 0
    assert "seed 0" in capsys.readouterr().out
    assert show(root, one, two, "--wide") == 0
    shown = capsys.readouterr().out
    assert shown.index(f"{one}: ") < shown.index("seed 0") < shown.index(f"{two}: ") < shown.index("seed 7")
    assert show(root, "--help") == 0
    assert "show.py RUN [RUN ...] [--wide]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a run folder"),
        (["missing"], "missing is no run folder: it does not exist"),
        (["file"], "file is no run folder: it is a file"),
        (["begun"], "begun has no summary.json: it is not finished"),
        (["damaged"], "summary.json is damaged"),
        (["foreign"], "is no summary of a run"),
        (["empty"], "is no summary of a run"),
        (["later"], "summary.json is of kind 'text', this version shows agent, atari, cifar"),
        (["run", "--wid"], "unknown flag --wid; did you mean --wide?"),
    ],
)
def test_what_is_no_finished_run_is_one_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run")
    write_run(tmp_path / "foreign", config={"theirs": 1})
    write_run(tmp_path / "empty", kind="atari", config={"game": "pong"}, generations=[], seconds=[])
    write_run(tmp_path / "later", kind="text")
    (write_run(tmp_path / "damaged") / "summary.json").write_text("{")
    (tmp_path / "file").touch()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text("seed: 0")
    assert show(root, *words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err


def test_of_many_those_that_are_no_finished_runs_are_left_out_with_a_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, begun = write_run(tmp_path / "run"), tmp_path / "begun"
    begun.mkdir()
    assert show(root, begun, run, tmp_path / "missing") == 0
    shown = capsys.readouterr()
    assert "generation 0" in shown.out
    assert shown.err.splitlines() == [
        f"left out: {begun} has no summary.json: there is no run in it",
        f"left out: {tmp_path / 'missing'} is no run folder: it does not exist",
    ]
    assert show(root, begun, tmp_path / "missing") == 2
    assert capsys.readouterr().err.endswith("error: none of these is a finished run\n")


def test_a_run_of_an_extra_that_is_not_installed_is_one_line(root: Path, tmp_path: Path) -> None:
    agents, classifiers = write_run(tmp_path / "agents", kind="atari"), write_run(tmp_path / "classifiers")
    script = root / "scripts" / "show.py"
    without = f"import runpy, sys; sys.modules['ale_py'] = None; runpy.run_path({str(script)!r}, run_name='__main__')"
    command = [sys.executable, "-c", without, str(agents), str(classifiers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "generation 0" in done.stdout
    assert done.stderr.splitlines() == [
        f"left out: {agents}: this needs the extra atari (ale_py not found): pip install 'polydistill[atari]'"
    ]


def test_help_fits_the_terminal(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert show(root, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("    python scripts/show.py runs/") for line in lines) == 2


def test_wide_shows_every_column_of_classifiers(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "a")
    assert show(root, run) == 0
    assert "generation 0, resnet-8" not in capsys.readouterr().out
    assert show(root, run, "--wide") == 0
    assert "generation 0, resnet-8" in capsys.readouterr().out
