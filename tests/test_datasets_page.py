"""What docs/datasets.md shows runs, in its order, with small agents and short games."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from stable_baselines3 import PPO

from polydistill_agents.environments.protocols import PROTOCOLS
from polydistill_agents.files.play_file import SHA256, STATISTICS, TABLES, PlayHeader

PAGE = Path(__file__).resolve().parent.parent / "docs" / "datasets.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
SMALL = [
    *("--play.steps", "128", "--play.replay_steps", "128", "--play.warmup_steps", "32", "--play.n_envs", "4"),
    *("--student.batch_size", "16", "--student.samples_per_step", "1", "--evaluation.curve_every_steps", "0"),
    *("--evaluation.episodes", "1", "--device", "cpu", "--threads", "1"),
]


def unfolded(text: str) -> str:
    """Each command in one line."""
    return text.replace("\\\n", "")


@pytest.mark.usefixtures("torch_threads_restored")
def test_the_commands_and_the_example_run(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(PROTOCOLS, "rusu", dataclasses.replace(PROTOCOLS["rusu"], max_frames=400))
    PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0).save("ppo.zip")
    commands = [line for kind, text in BLOCKS if kind == "sh" for line in unfolded(text).splitlines()]
    for command in commands:
        program, script, *words = shlex.split(command)
        assert program == "python"
        runpy.run_path(str(root / script))["main"]([*words, *SMALL])
    assert len(commands) == 6
    students = {
        path.parent.name: json.loads(path.read_text())["generations"][1]
        for path in tmp_path.glob("runs/*/summary.json")
    }
    assert students["cart"]["sha256"] == students["again"]["sha256"] == students["asked"]["sha256"]
    assert len({each["sha256"] for each in students.values()}) == 4
    capsys.readouterr()
    (code,) = (text for kind, text in BLOCKS if kind == "python")
    exec(compile(code, PAGE.name, "exec"), {})
    assert capsys.readouterr().out == "CartPole-v1 (32, 4) (32, 4, 2) logits\n"
    assert (tmp_path / "pong.safetensors").stat().st_size < 128 * 26 + 4096


def test_the_format_on_the_page_is_that_of_the_file() -> None:
    first_cells = re.findall(r"^\| (`.*?`) \|", TEXT, re.MULTILINE)
    named = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    assert named == {*TABLES, *STATISTICS, *(field.name for field in dataclasses.fields(PlayHeader)), SHA256}
