"""What docs/own_classifier.md shows runs, and says the truth about the folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from polydistill.runs.show import main

PAGE = Path(__file__).resolve().parent.parent / "docs" / "own_classifier.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_the_page_runs_and_the_folder_holds_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, how, mixed, wrapped = (text for kind, text in BLOCKS if kind == "python")
    exec(compile(code, PAGE.name, "exec"), {"__name__": "__main__"})
    first = capsys.readouterr().out
    assert [line.split()[0] for line in first.splitlines()[:3]] == ["0", "1", "2"]
    out = tmp_path / "runs" / "clouds"
    there = {re.sub(r"\d", "<k>", path.name) for path in out.iterdir() if path.name != ".lock"} | {
        "generation_<k>_failure.pt"
    }
    named = re.findall(r"^\| (`.*?) \|", TEXT[TEXT.index("## What the folder holds") :], re.MULTILINE)
    told = {name.strip("`/") for names in named for name in names.split(", ")}
    assert there - {"timing.jsonl"} == told
    lines = (out / "metrics.jsonl").read_text().splitlines()
    for tag in re.findall(r"`((?:train|distill)/\w+)`", TEXT):
        assert tag == "train/skipped_steps" or any(f'"{tag}"' in line for line in lines), tag
    exec(compile(code, PAGE.name, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == first

    for more in (how, mixed):
        exec(compile(code + more, PAGE.name, "exec"), {"__name__": "__main__"})
        assert re.fullmatch(r"\['0\.\d\d', '0\.\d\d'\]", capsys.readouterr().out.splitlines()[-1])
    exec(compile(code + wrapped, PAGE.name, "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert "doctor: ban, 50 samples of 4 classes" in printed
    assert min(map(float, re.findall(r"'(0\.\d\d)'", printed.splitlines()[-1]))) > 0.7

    (words,) = (text for kind, text in BLOCKS if kind == "sh")
    python, script, *given = shlex.split(words)
    assert (python, script) == ("python", "scripts/show.py")
    main(given)
    assert "| generation 2     | ban_l" in capsys.readouterr().out
