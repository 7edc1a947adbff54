"""The Atari scripts as a user runs them: from a teacher's zip to a table, and one clear line for what is wrong."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image
from stable_baselines3 import DQN

from polydistill.runs import Run
from polydistill.runs.checkpoint import Checkpoints
from polydistill_agents.files.sb3_zip import write_dqn_zip
from polydistill_agents.lineage.config import AtariConfig
from polydistill_agents.networks.nature import SIZES, build_network
from tests.crashes.killing import run_killed, start
from tests.crashes.same import assert_same_run
from tests.curves_and_tables import OF_Q_VALUES, columns, explained, written_tags

Script = Callable[..., "subprocess.CompletedProcess[str]"]
SMALL = [
    *("--student.size", "net3", "--student.batch_size", "16", "--student.samples_per_step", "1"),
    *("--play.steps", "128", "--play.replay_steps", "128", "--play.warmup_steps", "32"),
    *("--play.n_envs", "4", "--play.train_freq", "4"),
    *("--evaluation.episodes", "1", "--evaluation.curve_every_steps", "0"),
    *("--threads", "1", "--device", "cpu", "--precision", "float32"),
]


def write_teacher(path: Path, n_actions: int = 6, stack: int = 4, seed: int = 0) -> Path:
    """An untrained agent that plays one move: it loses Pong in some 760 steps."""
    torch.manual_seed(seed)
    network = build_network(spaces.Box(0, 255, (stack, 84, 84), np.uint8), n_actions, SIZES["net3"])
    write_dqn_zip(path, network)
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "teacher.zip")


# as ``python SCRIPT ...``; games of the protocol "rusu" are cut after 100 steps
IN_SHORT_GAMES = """
import dataclasses, runpy, sys
from polydistill_agents.environments.protocols import PROTOCOLS
PROTOCOLS["rusu"] = dataclasses.replace(PROTOCOLS["rusu"], max_frames=400)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def script(root: Path, tmp_path: Path) -> Script:
    """Run ``python scripts/NAME ...`` in a process of its own, with short games."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", IN_SHORT_GAMES, str(root / "scripts" / name), *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    return run


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.usefixtures("short_games")
def test_a_finished_run_prints_anywhere_and_goes_on_elsewhere(inside: Script, teacher: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.zip"
    own.write_bytes(teacher.read_bytes())
    words = [*SMALL[: SMALL.index("--threads")], "--precision", "float32", "--out", "run", "--teacher.path"]
    first = inside("distill_atari.py", *words, own, "--threads", 3, "--device", "cpu")
    assert first.returncode == 0, first.stderr
    before = tree(tmp_path / "run")
    moved, other = own.rename(tmp_path / "moved.zip"), write_teacher(tmp_path / "other.zip", seed=1)

    assert inside("distill_atari.py", *words, own).stdout == first.stdout, "its teacher is gone"
    assert inside("distill_atari.py", *words, moved).stdout == first.stdout
    assert inside("show.py", "run").stdout.strip() in first.stdout
    for switch in ([], ["--lineage.generations", "2"], ["--lineage.generations", "2", "--dry_run"]):
        refused = inside("distill_atari.py", *words, other, *switch)
        assert refused.returncode == 2
        assert f"teacher.path {other} holds other weights" in refused.stderr.splitlines()[-1]
    refused = inside("distill_atari.py", *words, moved, "--threads", 1)
    assert "threads is 3 there and 1 here; leave --threads out" in refused.stderr
    planned = inside("distill_atari.py", *words, moved, "--dry_run")
    assert "an earlier run here" in planned.stdout
    assert "the run there is finished" in planned.stdout
    assert tree(tmp_path / "run") == before

    grown = inside("distill_atari.py", *words, moved, "--lineage.generations", 2)
    assert grown.returncode == 0, grown.stderr
    assert "student 2" in grown.stdout
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["config"]["threads"] == 3


def test_a_typo_binds_no_folder_of_an_agent(inside: Script, teacher: Path, tmp_path: Path) -> None:
    with Run.open(tmp_path / "run", AtariConfig(game="breakout").resolve(), kind="atari", command="killed at once"):
        pass
    refused = inside("distill_atari.py", *SMALL, "--out", "run", "--teacher.path", "typo.zip", "--dry_run")
    assert (refused.returncode, refused.stderr) == (2, "error: no such file: typo.zip\n")
    planned = inside("distill_atari.py", *SMALL, "--out", "run", "--teacher.path", teacher, "--dry_run")
    assert "which would be replaced" in planned.stdout


@pytest.mark.usefixtures("short_games")
def test_a_lineage_from_the_teachers_zip_to_the_table_and_again(
    script: Script, inside: Script, teacher: Path, root: Path, tmp_path: Path
) -> None:
    words = [*SMALL, "--teacher.path", teacher, "--out", tmp_path / "run", "--lineage.generations", 2, "--seed", 3]
    done = script("distill_atari.py", *words)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "run"
    summary = json.loads((out / "summary.json").read_text())

    assert summary["schema"] == 1
    assert summary["kind"] == "atari"
    assert summary["seed"] == 3
    assert summary["command"].startswith("python scripts/distill_atari.py ")
    first, second, third = summary["generations"]
    assert [g["generation"] for g in summary["generations"]] == [0, 1, 2]
    assert (first["teacher_sha256"], first["objective"]) == (None, None)
    assert second["teacher_sha256"] == first["sha256"]
    assert third["teacher_sha256"] == second["sha256"]
    assert len({g["sha256"] for g in summary["generations"]}) == 3
    for generation in summary["generations"]:
        metrics = generation["metrics"]
        assert metrics["score_ci95"] is None, "one game has no interval"
        assert metrics["protocol"] == "rusu"
        assert metrics["episodes"] == len(metrics["scores"]) == 1
        assert all(-21 <= score <= 21 for score in metrics["scores"])
    assert 0 <= second["metrics"]["agreement"] <= 1
    assert set(summary["throughput"]) >= {"generation_1_train_samples_per_second", "generation_2_steps_per_second"}

    for name in ("generation_1.zip", "student.zip"):
        assert DQN.load(out / name, device="cpu").action_space.n == 6
    roles = {"teacher", "random_play", "generation_1", "generation_2", "ensemble_1_2"}
    assert {path.name for path in (out / "tb").iterdir()} == roles
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert not any(tag.startswith("time/") for line in lines for tag in line["values"])
    others = {"teacher/ep_rew_mean", "teacher/ep_len_mean", "distill/teacher_action_share"}  # no game ended; beta is 1
    assert (
        written_tags(out) == explained(root, "Curves of distill_atari.py and distill_agent.py") - others - OF_Q_VALUES
    )
    for generation in summary["generations"]:
        assert generation["metrics"].keys() == explained(root, "Metrics of summary.json, Atari")
    assert columns(inside("show.py", out, "--wide").stdout) == [explained(root, "Table of distill_atari.py")]
    for word in ("random", "human", "teacher", "student 1", "student 2", "ensemble of 1, 2", "student.zip"):
        assert word in done.stdout

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = inside("distill_atari.py", *words)
    assert again.returncode == 0
    assert again.stdout == done.stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before

    other = inside("distill_atari.py", *words, "--student.temperature", "0.1")
    assert other.returncode == 2
    assert other.stderr.startswith("error: ")
    assert "student.temperature is 0.01 there and 0.1 here" in other.stderr
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.usefixtures("short_games")
def test_equal_seeds_give_equal_runs(inside: Script, teacher: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        done = inside("distill_atari.py", *SMALL, "--teacher.path", teacher, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two"))
    assert one["generations"] == two["generations"]
    assert (tmp_path / "one/metrics.jsonl").read_bytes() == (tmp_path / "two/metrics.jsonl").read_bytes()


def test_the_script_survives_a_sigterm_and_three_kills(root: Path, teacher: Path, tmp_path: Path) -> None:
    """As in `make crashes`, in small: one process, killed whenever, and the same folder in the end."""
    words = [*SMALL, "--teacher.path", str(teacher), "--play.steps", "512", "--checkpoint.every_steps", "64"]

    def command(out: Path) -> list[str]:
        return [sys.executable, str(root / "scripts" / "distill_atari.py"), *words, "--out", str(out)]

    whole = run_killed(command, tmp_path / "whole", random.Random(), kills=0, longest_seconds=0.0)
    out = tmp_path / "killed"
    process = start(command(out), {})
    while not list(out.glob("recordings/*/*.segment")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    assert re.fullmatch(
        r"stopped (in generation 1 after step \d+, and saved|while games were scored): the same command goes on .*",
        output.splitlines()[-1],
    )
    found = run_killed(command, out, random.Random(7), kills=3, longest_seconds=0.45 * whole.seconds)
    assert found.kills == 3
    assert_same_run(tmp_path / "whole", out, products=())


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(inside: Script, teacher: Path, tmp_path: Path) -> None:
    done = inside("distill_atari.py", *SMALL, "--teacher.path", teacher, "--out", tmp_path / "run", "--dry_run")
    assert done.returncode == 0, done.stderr
    for word in ("time:", "memory:", "disk:", "samples/s", "temperature: 0.01"):
        assert word in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--game", "pongg"], "did you mean pong"),
        (["--game", "breakout"], "the teacher scores 6 actions, the environment has 4"),
        (["--teacher.path", "missing.zip"], "no such file: missing.zip"),
        (["--teacher.path", "damaged.zip"], "damaged.zip is damaged"),
        (
            ["--teacher.path", "stack2.zip"],
            "the teacher sees (2, 84, 84) uint8, the environment shows (4, 84, 84) uint8: another number of frames",
        ),
        (["--teacher.pathh", "a.zip"], "did you mean --teacher.path"),
        (["--student.temperature", "-1"], "temperature must be positive"),
        (["--student.temperature", "nan"], "student.temperature must be a number"),
        (["--student.objective", "policy_lk"], "did you mean policy_kl"),
        (["--student.objective", "cwtm"], "play has no labels"),
        (["--student.size", "net4"], "did you mean net"),
        (["--evaluation.protocol", "rus"], "did you mean rusu"),
        (["--play.steps", "many"], "must be a whole number"),
        (["--play.steps", "0"], "steps must be at least n_envs"),
        (["--lineage.generations", "0"], "must be at least 1"),
        (["--config", "wrong.yaml"], "unknown key student.temprature; did you mean student.temperature"),
        (["--device", "tpu"], "must be one of auto, cpu, cuda"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    inside: Script, teacher: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    (tmp_path / "damaged.zip").write_bytes(teacher.read_bytes()[:5000])
    (tmp_path / "wrong.yaml").write_text("student:\n  temprature: 1\n")
    write_teacher(tmp_path / "stack2.zip", stack=2)
    given = [] if "--teacher.path" in words else ["--teacher.path", str(teacher)]
    done = inside("distill_atari.py", *SMALL, *given, *words, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_left_alone(inside: Script, teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    done = inside("distill_atari.py", *SMALL, "--teacher.path", teacher, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "holds no run" in done.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_an_agent_is_scored_and_shown_beside_another(script: Script, teacher: Path, root: Path, tmp_path: Path) -> None:
    other = write_teacher(tmp_path / "other.zip", n_actions=18)
    words = [teacher, "--beside", other, "--episodes", 2, "--threads", 1, "--game", "ALE/Pong-v5", "--play", "sample"]
    done = script("evaluate_agent.py", *words, "--video", tmp_path / "both.gif", "--video_steps", 20)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pong, 2 full games, protocol rusu\n")
    for note in (
        f"note: {teacher}: actions are sampled at T = 0.01",
        "note: fewer than 3 games have no interval",
        f"note: {other}: all 18 actions of the joystick, where pong uses 6",
    ):
        assert note in " ".join(done.stdout.split())
    rows = [line for line in done.stdout.splitlines() if ".zip" in line and line.startswith("|")]
    assert len(rows) == 2
    assert columns(done.stdout) == [explained(root, "Table of evaluate_agent.py") - {"invalid", "masked mean"}]
    assert all(-21 <= float(row.split("|")[2]) <= 21 for row in rows)
    with Image.open(tmp_path / "both.gif") as gif:
        assert gif.size == (160 + 8 + 160, 210)
        assert 2 <= gif.n_frames <= 10  # equal pictures are stored once


@pytest.mark.usefixtures("short_games")
def test_a_report_of_atari_shows_frames_and_buttons(inside: Script, teacher: Path, tmp_path: Path) -> None:
    other = write_teacher(tmp_path / "other.zip", seed=1)
    words = [teacher, "--beside", other, "--episodes", 3, "--threads", 1]
    done = inside("evaluate_agent.py", *words, "--report", "out.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    states = re.findall(r"<figcaption>Game \d, step (\d+): the teacher means [A-Z]+, the agent [A-Z]+\.", page)
    assert 3 <= len(states) <= 12, "of games of 100 steps"
    assert page.count("data:image/png;base64,") == 4 * len(states), "the newest frame and the three before"


def test_a_report_of_agents_with_other_buttons_is_refused(inside: Script, teacher: Path, tmp_path: Path) -> None:
    other = write_teacher(tmp_path / "other.zip", n_actions=18)
    done = inside("evaluate_agent.py", teacher, "--beside", other, "--report", "out.html")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"report compares agents of the same actions, {other} 18 and {teacher} 6" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--file is needed"),
        (["missing.zip"], "no such file: missing.zip"),
        (["missing.zip", "--out", "x"], "unknown flag --out"),
        (["TEACHER", "--game", "breakout"], "the teacher scores 6 actions, the environment has 4"),
        (["TEACHER", "--protocol", "zo"], "did you mean zoo"),
        (["TEACHER", "--video", "no/such/folder/a.gif"], "no/such/folder"),
        (["TEACHER", "--video", "a.mp4"], "must end in .gif"),
        (["TEACHER", "--env", "CartPole-v1"], "the teacher sees (4, 84, 84) uint8, the environment shows (4,) float32"),
        (["TEACHER", "--env", "CartPole-v1", "--game", "pong"], "game is for Atari: leave it out beside env"),
        (["TEACHER", "--env", "CartPole-v1", "--video", "a.gif"], "video is for Atari: leave it out beside env"),
        (["TEACHER", "--env", "CartPole-v1", "--protocol", "rusu"], "CartPole-v1 is played under the protocol 'own'"),
        (["TEACHER", "--env", "CartPool-v1"], "did you mean CartPole-v1?"),
        (["TEACHER", "--wrappers", "[VecFrameStack:4]"], "wrappers is of an environment of gymnasium: add --env ID"),
    ],
)
def test_a_wrong_word_to_evaluate_is_one_line(inside: Script, teacher: Path, words: list[str], message: str) -> None:
    done = inside("evaluate_agent.py", *[str(teacher) if word == "TEACHER" else word for word in words])
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert message in done.stderr


@pytest.mark.usefixtures("short_games")
def test_a_teacher_is_trained_and_its_training_goes_on(script: Script, inside: Script, tmp_path: Path) -> None:
    words = [
        *("--out", tmp_path / "teacher", "--game", "pong", "--n_envs", 2, "--batch_size", 4, "--threads", 1),
        *("--buffer_size", 400, "--learning_starts", 20, "--checkpoint_steps", 40, "--episodes", 1, "--device", "cpu"),
    ]
    done = script("train_teacher.py", *words, "--steps", 100)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "teacher"
    card = json.loads((out / "teacher.json").read_text())
    assert card["steps"] == 100  # no game has ended: of equal, unknown, scores the newest is taken
    assert len(card["evaluation"]["scores"]) == 1
    assert DQN.load(out / "teacher.zip", device="cpu").num_timesteps == card["steps"]
    assert (out / "teacher.zip").stat().st_size < 8_000_000
    assert "score -" in done.stderr, "no game has ended"
    assert "nan" not in done.stderr

    again = inside("train_teacher.py", *words, "--steps", 100)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert done.stdout.endswith(f"\ncard: {out / 'README.md'}\n")
    assert "plays" not in again.stderr
    asked = inside("train_teacher.py", *words, "--steps", 100, "--dry_run")
    assert asked.stdout.endswith("teacher: the teacher there is finished: its score would be printed\n")
    (out / "teacher.json").write_text("{}")  # damaged: it is scored again
    asked = inside("train_teacher.py", *words, "--steps", 100, "--dry_run")
    assert asked.stdout.endswith("teacher: the run there would go on\n")

    longer = inside("train_teacher.py", *words, "--steps", 160)
    assert longer.returncode == 0, longer.stderr
    assert Checkpoints(out / "checkpoints", kind="teacher").latest()["counters"]["num_timesteps"] == 160
    assert json.loads((out / "teacher.json").read_text())["steps"] == 160
    other = inside("train_teacher.py", *words, "--steps", 160, "--gamma", "0.9")
    assert other.returncode == 2
    assert "gamma is 0.99 there and 0.9 here" in other.stderr


def test_the_bench_of_students_that_learn_meanwhile_shows_the_limit(inside: Script, root: Path, tmp_path: Path) -> None:
    words = ["--students", "[net3, net2]", "--rounds", 1, "--steps", 64, "--warm_up_steps", 64, "--threads", 1]
    done = inside("bench_online.py", *words, "--round_steps", 32, "--json", tmp_path / "bench.json")
    assert done.returncode == 0, done.stderr
    raw = json.loads((tmp_path / "bench.json").read_text())
    assert list(raw["seconds_per_step"]) == ["without students", "net3", "net2", "all"]
    assert all(seconds > 0 for values in raw["seconds_per_step"].values() for seconds in values)
    assert columns(done.stdout) == [explained(root, "Tables of the benchmarks", "bench_online.py")]


def test_the_bench_measures_every_rate(inside: Script, teacher: Path, root: Path, tmp_path: Path) -> None:
    words = ["--teacher", teacher, "--rounds", 1, "--seconds", "0.05", "--loop_steps", 64, "--threads", 1]
    done = inside("bench_atari.py", *words, "--device", "cpu", "--json", tmp_path / "bench.json")
    assert done.returncode == 0, done.stderr
    raw = json.loads((tmp_path / "bench.json").read_text())
    rates = raw["rates_per_second"]
    parts = {"environment", "labels", "training"}
    assert set(rates) == parts | {f"loop_{part}" for part in parts} | {"loop", "by_hand", "dqn_loop"}
    assert all(rate > 0 for values in rates.values() for rate in values)
    assert raw["hardware"]["cores"] >= 1
    assert "whole loop / Stable-Baselines3's DQN.learn" in done.stdout
    assert columns(done.stdout) == [explained(root, "Tables of the benchmarks", "bench_atari.py")]
