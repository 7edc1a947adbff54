"""scripts/study.py as a user calls it."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from polydistill._environment import EXTRAS
from polydistill.runs.lock import FolderLock
from polydistill.runs.shared_store import SharedStore
from polydistill.study.commands import study
from polydistill.study.executors import choice
from tests.study.fake_world import FAKE
from tests.study.in_this_process import InThisProcess
from tests.study.test_found import write_run

pytest.importorskip("matplotlib", reason="the extra study is not installed")
STUDY = "world: cifar\nseeds: 2\narms:\n  labels: {student.objective: cross_entropy}\n  ban: {student.bonus: 0.125}\n"


class Done(NamedTuple):
    code: int
    out: str
    err: str


Script = Callable[..., Done]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """Run the command in this process, in a folder with ``study.yaml``, on the fake world."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "open_world", lambda name, installed: FAKE)
    Path("study.yaml").write_text(STUDY)

    def run(*words: object) -> Done:
        capsys.readouterr()
        try:
            study.main([str(word) for word in words])
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        return Done(code, *capsys.readouterr())

    return run


def refused(done: Done) -> str:
    assert done.code == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.err
    return line


def test_a_gpu_takes_one_run_at_a_time_and_one_that_is_left_idle_is_told(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--config", "study.yaml", "--dry_run"]
    warning = "warning: runs are on the CPU; --settings.device cuda takes the GPU, one run at a time"
    monkeypatch.setattr(study, "usable_cores", lambda: 5)
    workers: list[int] = []
    monkeypatch.setattr(study, "format_forecast", lambda *given: workers.append(given[-1]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert warning not in script(*words).err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert warning in script(*words).err
    assert warning not in script(*words, "--settings.device", "cpu").err, "somebody has said so"
    assert warning not in script(*words, "--settings.device", "cuda").err
    script(*words, "--settings.device", "cuda", "--workers", 3)
    assert workers == [5, 5, 5, 1, 3]


def test_a_study_leaves_its_plan_its_results_and_its_runs_and_says_what_came_out(script: Script) -> None:
    done = script("--config", "study.yaml", "--workers", 2)
    assert done.code == 0, done.err
    out = Path("runs/study")
    assert "6/6 runs (100%)" in done.err
    sha256 = json.loads((out / "plan.json").read_text())["sha256"]
    assert f"plan {sha256[:12]}" in done.out
    # by hand: labels 0.5 and 0.52, ban 0.125 more
    assert re.search(r"\| labels +\| +49 \| +1.41 \| +2/2 \|", done.out), done.out
    assert re.search(r"\| ban +\| +36.5 \| +1.41 \| +2/2 \|", done.out), done.out
    with open(out / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"], row["status"]) for row in rows][:3] == [
        ("teacher", "0", "done"), ("labels", "0", "done"), ("ban", "0", "done"),
    ]  # fmt: skip
    assert (out / "arms" / "ban.yaml").exists()
    assert "python scripts/study.py --config study.yaml --workers 2" in (out / "report.md").read_text()
    again = script("--config", "study.yaml")
    assert (again.code, again.out) == (0, done.out)


def test_an_edited_study_is_refused_and_seeds_are_added_on_the_record(script: Script) -> None:
    script("--config", "study.yaml")
    before = Path("runs/study/results.csv").read_bytes()
    line = refused(script("--config", "study.yaml", "--alpha", "0.1"))
    assert "runs/study/plan.json is another plan: alpha is 0.05 there and 0.1 here" in line
    Path("study.yaml").write_text(STUDY.replace("0.125", "0.25"))
    assert "arms.ban.overrides.student.bonus is 0.125 there and 0.25 here" in refused(script("--config", "study.yaml"))
    Path("study.yaml").write_text(STUDY)
    assert Path("runs/study/results.csv").read_bytes() == before
    more = script("--config", "study.yaml", "--seeds", 3)
    assert more.code == 0
    assert re.search(r"seeds 2 were added on \S+, with 6 runs finished", more.err)
    assert "add --seeds 3" in refused(script("--config", "study.yaml"))


def test_a_study_goes_on_elsewhere_from_what_its_guide_says_to_keep(script: Script, root: Path) -> None:
    script("--config", "study.yaml", "--out", "s", "--settings", "{data.root: there}")
    keep = re.search(r"```sh\n(tar -c.*?)```", (root / "docs" / "study.md").read_text(), re.DOTALL)
    assert keep is not None
    packed = keep[1].replace("runs/study", "s").replace("study.tar.xz", "kept.tar.xz")
    packed = packed.replace("--exclude tb", "--exclude 'product_*'")  # what this world's runs have in place of weights
    subprocess.run(["bash", "-ec", packed], check=True, timeout=60)
    Path("elsewhere").mkdir()
    subprocess.run(["tar", "-xf", "../kept.tar.xz"], cwd="elsewhere", check=True, timeout=60)
    assert not list(Path("elsewhere").rglob("product_*"))
    again = script("--config", "study.yaml", "--out", "elsewhere/s", "--settings", "{data.root: here}", "--seeds", 3)
    assert again.code == 0, again.err
    added = Path("elsewhere/s/runs/ban/seed2/config.yaml").read_text()
    assert "root: here" in added
    assert "root: there" in Path("elsewhere/s/runs/ban/seed1/config.yaml").read_text()
    assert "seeds 2 were added" in again.err
    assert Path("elsewhere/s/results.csv").read_text().count(",done,") == 9
    assert "runs are not in" not in Path("elsewhere/s/report.md").read_text()


def test_parts_of_a_study_that_were_made_elsewhere_are_finished_where_its_plan_is(script: Script) -> None:
    """As docs/scale.md says."""
    words = ("--config", "study.yaml", "--workers", 2)
    script(*words, "--seeds", 4, "--out", "whole")
    for first, out in ((0, "a"), (2, "b")):
        script(*words, "--first_seed", first, "--out", out)
        shutil.copytree(Path(out) / "runs", "all/runs", dirs_exist_ok=True)
    shutil.copy("whole/plan.json", "all")
    done = script(*words, "--seeds", 4, "--out", "all")
    assert done.code == 0, done.err
    assert "runs/s" not in done.err, "nothing is run again"
    rows = [Path(out, "results.csv").read_text().splitlines() for out in ("whole", "all")]
    assert len(rows[0]) == 1 + 4 * 3
    seconds = rows[0][0].split(",").index("seconds")
    without = [[[*row.split(",")[:seconds], *row.split(",")[seconds + 1 :]] for row in table] for table in rows]
    assert without[0] == without[1]


def test_a_failed_run_is_told_at_the_end(script: Script) -> None:
    done = script("--config", "study.yaml", "--settings", "{student.does: fail, student.seed: 1}")
    assert "2 of 6 runs failed, the first labels/seed1: the loss is not finite" in refused(done)
    assert re.search(r"\| ban +\| .* \| +1/2, 1 failed \|", done.out), done.out


def test_a_dry_run_says_the_cost_from_what_such_runs_took_and_writes_nothing(script: Script) -> None:
    words = ["--config", "study.yaml", "--workers", 2, "--dry_run", "--settings", "{data.made_up: 12345}"]
    first = script(*words)
    assert "time: not known, no such run has finished here yet" in first.out
    assert "6 runs in runs/study, 0 finished" in first.out
    assert not Path("runs").exists()
    script("--config", "study.yaml", *words[-2:])
    assert "time: none, all runs are finished" in script(*words).out
    more = script(*words, "--seeds", 50)
    assert re.search(r"time: about [\d.]+ (s|min|h) on 2 cores, by what such runs took here", more.out), more.out
    assert "50 seeds, 150 runs in runs/study, 6 finished" in more.out
    assert len(json.loads(Path("runs/study/plan.json").read_text())["seeds"]) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seeds", "1"], "seeds must be at least 2"),
        (["--out", "study.yaml"], "study.yaml is a file; --out takes a folder"),
        (["--out", "other"], "other is not empty and holds no study (no plan.json)"),
        (
            ["--settings", "{device: tpu}"],
            "settings: device must be one of auto, cpu, cuda, got 'tpu'; did you mean cpu?",
        ),
        (["--contrasts", "[[ban, label]]"], "unknown arm in contrasts 'label'; did you mean labels?"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(script: Script, words: list[str], says: str) -> None:
    Path("other").mkdir()
    Path("other/notes.txt").touch()
    line = refused(script("--config", "study.yaml", *words))
    assert says.partition("; did")[0] in line
    assert not Path("runs").exists()


def test_a_second_process_on_a_study_is_refused(script: Script) -> None:
    script("--config", "study.yaml")
    lock = FolderLock(Path("runs/study"))
    try:
        assert "another process" in refused(script("--config", "study.yaml"))
    finally:
        lock.release()


def test_runs_that_are_there_make_a_study_whose_comparisons_are_exploratory(script: Script) -> None:
    for seed in (0, 1):
        write_run(Path("mine") / f"a{seed}", seed, 0.5)
        write_run(Path("mine") / f"b{seed}", seed, 0.75, student__objective="dkd")
    done = script("--runs", "mine/*", "--out", "found")
    assert done.code == 0, done.err
    assert re.search(r"\| objective=dkd +\| +25 \| +0 \| +2/2 \|", done.out), done.out
    assert json.loads(Path("found/plan.json").read_text())["found"] is True
    assert script("--runs", "mine/*", "--out", "found").out == done.out
    script("--config", "study.yaml")
    assert "holds a study that was planned" in refused(script("--runs", "mine/*", "--out", "runs/study"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_study_that_is_stopped_or_killed_goes_on(number: int, root: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from polydistill.study.commands import study\n"
        "from tests.study.fake_world import FAKE\n"
        "study.open_world = lambda name, installed: FAKE\n"
        "study.write_report = lambda *given, **named: None\n"  # and no matplotlib, which takes seconds
        "study.main(sys.argv[2:])"
    )
    (tmp_path / "study.yaml").write_text(STUDY.replace("{student.bonus: 0.125}", "{student.does: learn slowly}"))
    command = [sys.executable, "-c", code, str(root), "--config", "study.yaml", "--workers", "2"]
    steps = tmp_path / "runs" / "study" / "runs" / "ban" / "seed0" / "steps.txt"
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 60
    while not steps.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.2)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number
        assert re.search(r"^stopped: \d of 6 runs are finished; the same command goes on$", err, re.MULTILINE), err
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2/2") == 3
    assert steps.read_text() == "40"
    if number != signal.SIGKILL or sys.platform == "linux":
        assert len((steps.parent / "starts.txt").read_text().splitlines()) == 2


@pytest.mark.parametrize("share", ["true", "false"])
def test_what_an_earlier_start_has_shared_is_not_taken_over(script: Script, share: str) -> None:
    assert script("--config", "study.yaml", "--workers", 2).code == 0
    left = Path("runs/study/scores/seed0")
    left.mkdir(parents=True)
    (left / "a.shared").write_bytes(b"of other code")
    assert script("--config", "study.yaml", "--workers", 2, "--share_scores", share).code == 0
    assert not left.parent.exists()


def test_a_real_lineage_is_a_study(root: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(choice, "LocalExecutor", InThisProcess)
    settings = (
        "{lineage.generations: 1, training.epochs: 1, data: {made_up: 200, train_images: 200, test_images: 200, "
        "validation_images: 100}}"
    )
    threads = torch.get_num_threads()
    arms = "{labels: {student.objective: cross_entropy}, ban_l: {student.objective: ban_l}, "
    arms += "both: {ensemble: [labels, ban_l]}}"
    words = ["--arms", arms, "--contrasts", "[[ban_l, labels], [both, labels]]"]
    read, asked = SharedStore.read, []
    monkeypatch.setattr(SharedStore, "read", lambda *key: asked.append(read(*key)) or asked[-1])
    study.main(["--seeds", "3", "--workers", "1", "--settings", settings, *words, "--out", "s"])
    torch.set_num_threads(threads)
    assert [known is not None for known in asked] == [False, True] * 3, "the second arm of a seed reads the scores"
    assert not Path("s/scores").exists()
    assert "12/12 runs (100%)" in capsys.readouterr().err
    heads = {}
    for arm in ("labels", "ban_l"):
        for seed in (0, 1):
            summary = json.loads(Path("s", "runs", arm, f"seed{seed}", "summary.json").read_text())
            config = summary["config"]
            assert (config["threads"], config["device"], config["seed"]) == (1, "cpu", seed)
            heads[arm, seed] = summary["generations"][0]["sha256"]
    report = Path("s/report.md").read_text()
    assert "new seeds and new images" in report
    both = re.escape("| both against labels |")
    assert len(re.findall(rf"^{both}", report, re.MULTILINE)) >= 2, "stored answers give the second interval, too"
    # labels has no use for the teacher; one epoch each
    assert re.search(r"\| both +\| labels \+ ban\\_l +\| +2 +\| teacher, labels, ban\\_l +\| +3 +\|", report), report
    assert heads["labels", 0] == heads["ban_l", 0] != heads["labels", 1] == heads["ban_l", 1]


def test_another_place_is_refused_in_one_line_where_it_cannot_be_reached(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        words = ("--config", "study.yaml", "--out", "s", "--executor", "ray", "--ray.address", address)
        assert f"no Ray cluster at {address}: Connection refused" in refused(script(*words))
    monkeypatch.setitem(EXTRAS, "ray", ("no_such_module",))
    said = refused(script("--config", "study.yaml", "--out", "t", "--executor", "ray"))
    assert "this needs the extra ray (no_such_module not found): pip install 'polydistill[ray]'" in said
    assert not Path("t").exists()
    assert "ray: address is auto, local" in refused(script(*words[:-1], "head"))


def test_the_same_study_goes_on_through_a_queue(script: Script) -> None:
    assert script("--config", "study.yaml", "--out", "s", "--seeds", 2).code == 0
    words = ("--config", "study.yaml", "--out", "s", "--seeds", 3, "--executor", "slurm", "--slurm.cluster", "local")
    done = script(*words, "--slurm.minutes", 5)
    assert done.code == 0, done.err
    assert "seeds 2 were added" in done.err
    assert Path("s/results.csv").read_text().count(",done,") == 9
