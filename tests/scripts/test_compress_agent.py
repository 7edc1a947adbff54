"""compress_agent.py as a user runs it: from a zip to an answer and again, and one clear line for what is wrong."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import pytest
from stable_baselines3 import DQN

from polydistill_agents.commands import compress_agent
from polydistill_agents.lineage.compression import loaders, weighing
from polydistill_agents.teachers import as_teacher
from tests.study.test_study_script import InThisProcess

pytest.importorskip("matplotlib", reason="the extra study is not installed")
Script = Callable[..., "subprocess.CompletedProcess[str]"]
SHORT = (
    "{student: {batch_size: 16, temperature: 1.0}, evaluation: {episodes: 3, curve_every_steps: 0}, "
    "play: {steps: 320, replay_steps: 320, warmup_steps: 64, n_envs: 4, train_freq: 8}}"
)
WORDS = ["--teacher.path", "dqn.zip", "--env", "CartPole-v1", "--settings", SHORT, "--out", "sweep"]


@pytest.fixture
def compress(inside: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """The command, with its runs in this process, in a folder with an untrained agent."""
    monkeypatch.setattr(compress_agent, "LocalExecutor", InThisProcess)
    monkeypatch.setattr(loaders, "ROUNDS", 1)
    monkeypatch.setattr(weighing, "tell_absent", lambda _: {"onnxruntime": "not here"})  # a graph takes seconds to make
    DQN("MlpPolicy", gym.make("CartPole-v1"), policy_kwargs={"net_arch": [8]}, seed=3, device="cpu").save(
        tmp_path / "dqn.zip"
    )
    return lambda *words: inside("compress_agent.py", *words)


def test_from_a_zip_to_an_answer_and_again(compress: Script, tmp_path: Path) -> None:
    words = [*WORDS, "--sizes", "[1/2, 12]"]
    dry = compress(*words, "--dry_run")
    assert dry.returncode == 0, dry.stderr
    assert "| 12      |         86 |         148% |" in dry.stdout
    assert "CartPole-v1: 2 runs in sweep, 0 finished" in dry.stdout
    assert "time: about " in dry.stdout
    assert not (tmp_path / "sweep").exists()

    done = compress(*words)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "sweep"
    assert {path.name for path in out.glob("[a-z]*.*")} == {
        "plan.json", "results.csv", "report.html", "sizes.csv", "sizes.json", "sizes.png", "sizes.svg",
    }  # fmt: skip
    rows = {row["size"]: row for row in csv.DictReader((out / "sizes.csv").read_text().splitlines())}
    assert {name: row["parameters"] for name, row in rows.items()} == {"teacher": "58", "12": "86", "4": "30"}
    assert all(float(row["DQN.load_ms_of_64"]) > 0 for row in rows.values())
    assert "note: Larger than the teacher: 12." in done.stdout
    assert done.stdout.count("note: No times of onnxruntime: not here.") == 1
    assert {row["onnxruntime_ms_of_64"] for row in rows.values()} == {""}
    for ending in ("zip", "safetensors"):
        assert as_teacher(out / "runs" / "4" / "seed0" / f"student.{ending}").network.net_arch == [4]

    runs = [path.stat().st_mtime_ns for path in out.glob("runs/*/*/summary.json")]
    before = (out / "report.html").read_bytes()
    again = compress(*words)
    assert again.returncode == 0, again.stderr
    assert done.stdout.endswith(again.stdout), "nothing is run or measured a second time"
    assert (out / "report.html").read_bytes() == before
    assert [path.stat().st_mtime_ns for path in out.glob("runs/*/*/summary.json")] == runs

    other = compress(*WORDS, "--sizes", "[1/2]")
    assert other.returncode == 2
    assert "sweep/plan.json is another plan: arms.12" in other.stderr
    assert "give --out another folder" in other.stderr


def test_a_size_that_fails_is_named_and_the_others_have_their_page(compress: Script, tmp_path: Path) -> None:
    words = [*WORDS, "--sizes", "[4, 2]"]
    assert compress(*words).returncode == 0
    (tmp_path / "sweep" / "runs" / "4" / "seed0" / "summary.json").write_text("cut")
    done = compress(*words)
    assert done.returncode == 2
    assert "1 of 2 runs failed, the first 4/seed0: sweep/runs/4/seed0/summary.json is damaged" in done.stderr
    assert "note: 4, seed 0, is not in: sweep/runs/4/seed0/summary.json is damaged" in done.stdout
    assert "of 1 size" in done.stdout or "no student can keep a share" in done.stdout


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([*WORDS, "--sizes", "[net3]"], "sizes: 'net3' is of frames, and CartPole-v1 shows (4,) float32"),
        ([*WORDS, "--env", "Acrobot-v1"], "the teacher sees (4,) float32, the environment shows (6,) float32"),
        ([*WORDS, "--teacher.path", "none.zip"], "no such file: none.zip"),
        ([*WORDS, "--settings", "{play.stepz: 3}"], "play.stepz"),
        ([*WORDS, "--keep", "2"], "keep is a share of the teacher's score"),
        ([*WORDS, "--out", "dqn.zip"], "dqn.zip is a file; --out takes a folder"),
        (["--env", "CartPole-v1"], "teacher.path is needed"),
        ([*WORDS, "--game", "pong"], "game pong and env CartPole-v1 are both there"),
    ],
)
def test_what_is_wrong_is_one_line(compress: Script, tmp_path: Path, words: list[str], line: str) -> None:
    done = compress(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "sweep").exists()


def test_without_matplotlib_it_names_the_extra(compress: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polydistill._environment._missing", lambda names: [*{"matplotlib"} & {*names}])
    done = compress(*WORDS)
    assert done.returncode == 2
    assert done.stderr.startswith("error: this needs the extra study (matplotlib not found): pip install")
