"""What docs/online.md shows runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from stable_baselines3 import DQN

from polydistill_agents.commands.train_teacher import main

PAGE = Path(__file__).resolve().parent.parent / "docs" / "online.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_example_leaves_students_that_stock_dqn_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = (text for kind, text in BLOCKS if kind == "python")
    assert "50_000" in code
    exec(compile(code.replace("50_000", "3_000").replace("1_000", "100"), PAGE.name, "exec"), {})
    for name in ("32x32", "8"):
        assert DQN.load(tmp_path / "runs" / "students" / name, device="cpu").num_timesteps > 0


def test_the_command_names_students_and_can_be_tried_dry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (words,) = (text for kind, text in BLOCKS if kind == "sh")
    python, script, *given = shlex.split(words)
    assert (python, script) == ("python", "scripts/train_teacher.py")
    given[given.index("--out") + 1] = str(tmp_path / "run")
    main([*given, "--dry_run"])
    assert "students that would learn meanwhile: net1, net2, net3" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
