"""What docs/compress.md shows runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from gymnasium import make
from stable_baselines3 import DQN

pytest.importorskip("matplotlib", reason="the extra study is not installed")

from polydistill_agents.commands.compress_agent import main

PAGE = Path(__file__).resolve().parent.parent / "docs" / "compress.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the page's agent lies."""
    monkeypatch.chdir(tmp_path)
    DQN("MlpPolicy", make("CartPole-v1"), policy_kwargs={"net_arch": [32, 32]}, device="cpu").save("dqn.zip")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_can_be_tried_dry(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("polydistill_agents.lineage.compression.opening.forecast_time", lambda *_: "not asked here")
    python, script, *words = shlex.split(command)
    assert (python, script) == ("python", "scripts/compress_agent.py")
    main([*words, *["--dry_run"] * ("--dry_run" not in words)])
    assert "time: not asked here" in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == ["dqn.zip"]


def test_the_example_plays_a_compact_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from polydistill_agents.files.compact import write_student
    from polydistill_agents.teachers import as_teacher

    (code,) = (text for kind, text in BLOCKS if kind == "python")
    (name,) = re.findall(r'"(runs/.*?)"', code)
    (folder / name).parent.mkdir(parents=True)
    network = as_teacher("dqn.zip").network
    assert network is not None
    write_student(folder / name, network)  # type: ignore[arg-type]
    exec(compile(code, PAGE.name, "exec"), {})
    expected = as_teacher("dqn.zip")(torch.zeros(1, 4)).argmax(dim=1)
    assert capsys.readouterr().out == f"{expected}\n"
