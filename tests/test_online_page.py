"""What docs/online.md shows runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from stable_baselines3 import DQN

PAGE = Path(__file__).resolve().parent.parent / "docs" / "online.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_example_leaves_students_that_stock_dqn_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = (text for kind, text in BLOCKS if kind == "python")
    assert "50_000" in code
    exec(compile(code.replace("50_000", "3_000").replace("1_000", "100"), PAGE.name, "exec"), {})
    for name in ("32x32", "8"):
        assert DQN.load(tmp_path / "runs" / "students" / name, device="cpu").num_timesteps > 0
