"""What docs/export.md shows runs: its commands, and its program, in a process without torch."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import PPO

from polydistill_agents.commands.export_agent import HEADERS

pytest.importorskip("onnxruntime", reason="needs the extra export")

PAGE = Path(__file__).resolve().parent.parent / "docs" / "export.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.usefixtures("torch_threads_restored")
def test_the_page_runs(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    run_python: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("COLUMNS", "200")
    PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0).save("ppo.zip")
    (commands,) = (text for kind, text in BLOCKS if kind == "sh")
    for command in commands.splitlines():
        _, script, *words = shlex.split(command)
        runpy.run_path(str(root / script))["main"]([*words, "--episodes", "3", "--threads", "1"])
        printed = capsys.readouterr().out
        assert printed.startswith("CartPole-v1, 3 full games each, protocol own\n")
        first = next(line for line in printed.splitlines() if line.startswith("|"))
        assert [cell.strip() for cell in first.split("|")[1:-1]] == list(HEADERS)
    rows = [line for line in printed.splitlines() if line.startswith("|")][2:]
    assert [row.split("|")[1].strip() for row in rows] == ["torch", "float32", "int8"]
    assert rows[0].split("|")[2:4] == rows[1].split("|")[2:4], "the same scores in the same games"
    assert "note: float32 without torch, " in printed
    assert "note: int8 is " in printed
    (code,) = (text for kind, text in BLOCKS if kind == "python")
    done = run_python("-c", f"import sys; sys.modules['torch'] = None\n{code}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) >= 8


def test_the_page_explains_every_column() -> None:
    table = re.search(r"^\| column \| meaning \|\n\|.*\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    assert table is not None
    named = " ".join(line.split("|")[1] for line in table[1].splitlines())
    assert [header for header in HEADERS if header not in named] == []
