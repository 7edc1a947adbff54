"""export_agent.py: what it refuses, in one line and before it has worked for nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sb3_contrib
from stable_baselines3 import PPO

from polydistill_agents.commands import export_agent

Script = Callable[..., "subprocess.CompletedProcess[str]"]
CARTPOLE = ["--env", "CartPole-v1", "--out", "a.onnx", "--episodes", "1", "--threads", "1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With agents and files of every kind that is named below."""
    PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0).save(tmp_path / "ppo.zip")
    content = (tmp_path / "ppo.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    (tmp_path / "foreign.zip").write_bytes(b"GIF89a of a stranger")
    (tmp_path / "other.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch")
    (tmp_path / "folder.onnx").mkdir()
    return tmp_path


REFUSED = {
    "a cut file": (["cut.zip", *CARTPOLE], "cut.zip"),
    "a foreign file": (["foreign.zip", *CARTPOLE], "foreign.zip"),
    "an ONNX file": (["other.onnx", *CARTPOLE], "other.onnx"),
    "no such file": (["none.zip", *CARTPOLE], "no such file: none.zip"),
    "another environment": (
        ["ppo.zip", "--env", "Acrobot-v1", "--out", "a.onnx"],
        "the teacher sees (4,) float32, the environment shows (6,) float32",
    ),
    "a game": (["ppo.zip", "--game", "pong", "--out", "a.onnx"], "the environment shows (4, 84, 84) uint8"),
    "continuous actions": (["ppo.zip", "--env", "Pendulum-v1", "--out", "a.onnx"], "a DQN takes Discrete actions"),
    "nothing to play": (["ppo.zip", "--out", "a.onnx"], "what the agent plays is needed: --game pong, or --env ID"),
    "two things to play": (["ppo.zip", *CARTPOLE, "--game", "pong"], "--env ID, and not both"),
    "no --out": (["ppo.zip", "--env", "CartPole-v1"], "--out is needed"),
    "another ending": (
        ["ppo.zip", "--env", "CartPole-v1", "--out", "a.zip"],
        "--out must be a file that ends in .onnx",
    ),
    "a folder": (["ppo.zip", "--env", "CartPole-v1", "--out", "folder.onnx"], "folder.onnx is there already"),
    "a file that is there": (["ppo.zip", "--env", "CartPole-v1", "--out", "other.onnx"], "other.onnx is there already"),
    "no such folder": (["ppo.zip", "--env", "CartPole-v1", "--out", "none/a.onnx"], "there is no folder none"),
    "no games": (["ppo.zip", *CARTPOLE[:4], "--episodes", "0"], "episodes must be at least 1"),
    "no tolerance": (["ppo.zip", *CARTPOLE, "--tolerance", "0"], "tolerance must be positive"),
    "another protocol": (["ppo.zip", *CARTPOLE, "--protocol", "rusu"], "is played under the protocol 'own' alone"),
}


def test_what_cannot_be_exported_is_one_line_and_nothing_is_written(inside: Script, folder: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    before = sorted(folder.iterdir())
    for words, says in REFUSED.values():
        done = inside("export_agent.py", *words)
        assert (done.returncode, done.stdout) == (2, ""), (words, done)
        *_, line = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert says in line, (says, line)
        assert "Traceback" not in done.stderr
    assert sorted(folder.iterdir()) == before


def test_an_agent_with_a_memory_is_one_line(inside: Script, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    sb3_contrib.RecurrentPPO("MlpLstmPolicy", "CartPole-v1", device="cpu").save(tmp_path / "a.zip")
    done = inside("export_agent.py", "a.zip", *CARTPOLE)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: an agent with a memory (RecurrentPPO) cannot be exported")


def test_a_missing_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SystemExit) as end:
        export_agent.main(["ppo.zip", *CARTPOLE])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "error: this needs the extra export (onnxruntime not found): pip install 'polydistill[export]'\n"
    )
