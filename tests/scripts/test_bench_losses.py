"""The benchmark of the losses: a short run on the CPU, and what it leaves behind."""

from __future__ import annotations

import csv
import importlib.util
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tests.curves_and_tables import columns, explained

COLUMNS = [
    *("objective", "shape", "type", "contender", "work", "median_us", "low_us", "high_us", "of_formula"),
    *("bytes", "of_copy", "peak_bytes", "copy_bytes_per_second", "device", "threads", "cpu", "cores", "gpu"),
]
SHORT = ("--rounds", "1", "--milliseconds", "1", "--compile", "false", "--device", "cpu", "--threads", "1")


def bench(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "scripts" / "bench_losses.py"), *SHORT, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def read(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def script(root: Path) -> ModuleType:
    """The script as a module, without running it."""
    spec = importlib.util.spec_from_file_location("bench_losses_under_test", root / "scripts" / "bench_losses.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_short_run_measures_every_objective_and_says_what_it_counted(
    script: ModuleType, root: Path, tmp_path: Path
) -> None:
    path = tmp_path / "losses.csv"
    done = bench(root, "--shapes", "[2x3, 4x5]", "--csv", str(path))
    assert done.returncode == 0, done.stderr
    rows = read(path)
    assert list(rows[0])[: len(COLUMNS)] == COLUMNS
    assert {row["objective"] for row in rows} == {"policy_kl", "hinton_kd", "jsd"}
    works = {("ours", "loss and gradient"), ("ours", "loss"), ("formula", "loss and gradient"), ("formula", "loss")}
    for objective in ("policy_kl", "hinton_kd", "jsd"):
        for shape, numbers in (("2x3", 6), ("4x5", 20)):
            for kind, size in (("float32", 4), ("bfloat16", 2)):
                cell = [r for r in rows if (r["objective"], r["shape"], r["type"]) == (objective, shape, kind)]
                assert {(r["contender"], r["work"]) for r in cell} == works | {("one pass", "loss and gradient")}
                for row in cell:
                    assert int(row["bytes"]) == numbers * size * (2 if row["work"] == "loss" else 3)
                    assert float(row["low_us"]) <= float(row["median_us"]) <= float(row["high_us"])
                    share = int(row["bytes"]) / float(row["median_us"]) * 1e6 / int(row["copy_bytes_per_second"])
                    assert float(row["of_copy"]) == pytest.approx(share, abs=1e-4, rel=1e-2)
                    same = next(r for r in cell if (r["contender"], r["work"]) == ("formula", row["work"]))
                    ratio = float(row["median_us"]) / float(same["median_us"])  # of a single round
                    assert float(row["of_formula"]) == pytest.approx(ratio, abs=1e-3, rel=1e-2)
    named = explained(root, "Tables of the benchmarks", "bench_losses.py")
    elsewhere = set(script.CONTENDERS) - {"ours", "one pass", "formula"}  # compiled, or on CUDA
    assert elsewhere <= named
    assert columns(done.stdout)[-1] == named - elsewhere


@pytest.mark.usefixtures("torch_threads_restored")
def test_rows_measured_again_replace_the_old_ones_and_others_stay(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(script, "keep_memory", lambda: None)  # it would for the rest of this process
    monkeypatch.setattr(script, "copy_bandwidth", lambda device: 1e9)
    path = tmp_path / "losses.csv"
    words = ("--objectives", "[jsd]", "--types", "[float32]", "--csv", str(path))
    old = (
        "objective,shape,type,contender,work,median_us,peer\njsd,2x3,float32,ours,loss,-1,x\nban,2x3,float32,a,b,-2,y\n"
    )
    path.write_text(old, encoding="utf-8")
    script.main([*SHORT, *words, "--shapes", "[2x3]", "--append", "true"])
    rows = read(path)
    assert [(row["median_us"], row["peer"]) for row in rows if row["objective"] == "ban"] == [("-2", "y")]
    assert len(rows) == 6
    assert all(float(row["median_us"]) > 0 for row in rows if row["objective"] == "jsd")
    script.main([*SHORT, *words, "--shapes", "[3x3]"])
    assert {row["shape"] for row in read(path)} == {"3x3"}


def test_csv_is_there_after_each_shape(script: ModuleType, monkeypatch, tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"

    def measure(config, device):
        row = {"objective": "jsd", "type": "float32", "contender": "ours", "work": "loss", "median_us": 1.0}
        yield [row | {"shape": "2x3"}]
        assert [line["shape"] for line in read(path)] == ["2x3"]
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "measure", measure)
    monkeypatch.setattr(script, "prepare", lambda kind, threads: None)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        script.main([*SHORT, "--csv", str(path)])
    assert [line["shape"] for line in read(path)] == ["2x3"]


def test_time_limit_leaves_the_rest_out_and_says_so(script: ModuleType, monkeypatch, capsys) -> None:
    clock = iter([0.0, 1.0, 61.0])
    monkeypatch.setattr(script, "copy_bandwidth", lambda device: 1.0)
    monkeypatch.setattr(script, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(script, "measure_one", lambda *what: [{"measured": what[:3]}])
    config = script.BenchConfig(objectives=("jsd",), shapes=("2x3",), seconds=60)
    found = list(script.measure(config, SimpleNamespace(type="cpu")))
    assert found == [[{"measured": ("jsd", (2, 3), "float32")}]]
    assert capsys.readouterr().out == "60 s are over: left out from jsd, 2x3, bfloat16 on\n"


def test_liger_is_never_captured_and_a_failed_capture_costs_its_cell_alone(
    script: ModuleType, monkeypatch, capsys
) -> None:
    def capture(run):
        if run() == "syncs":
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return run

    monkeypatch.setattr(script, "capture", capture)
    work = "loss and gradient"
    names = {"ours": "fine", "formula": "syncs", "liger": "fine"}
    runs = {(name, work): lambda said=said: said for name, said in names.items()} | {("ours", "loss"): lambda: "no"}
    assert list(script.captured(runs)) == [("ours", "replayed")]
    assert capsys.readouterr().out == "formula cannot be captured: operation not permitted when stream is capturing\n"


def test_ratio_to_the_formula_is_taken_round_by_round(script: ModuleType, monkeypatch) -> None:
    times = {
        ("formula", "loss"): [1.0, 10.0, 2.0],
        ("ours", "loss"): [3.0, 20.0, 2.0],
        ("liger", "replayed"): [1.0] * 3,
    }
    monkeypatch.setattr(script, "works", lambda *what: dict.fromkeys(times))
    monkeypatch.setattr(script, "time_all", lambda runs, config, device: times)
    rows = script.measure_one("jsd", (2, 3), "float32", script.BenchConfig(), script.torch.device("cpu"), 1.0)
    assert {row["contender"]: row["of_formula"] for row in rows} == {"formula": 1.0, "ours": 2.0, "liger": None}


@pytest.mark.parametrize("missing", ["ours", "formula"])
def test_a_contender_that_is_missing_leaves_its_cells_empty(script: ModuleType, missing) -> None:
    row = {"objective": "jsd", "shape": "2x3", "type": "float32", "work": "replayed", "median_us": 2.0, "of_copy": 0.5}
    rows = [row | {"contender": name, "work": "loss"} for name in ("ours", "formula")]
    rows += [row | {"contender": name} for name in ("ours", "formula") if name != missing]
    last = script.format_result(rows).splitlines()[-1].strip("| ").split("|")
    times = {"ours": ["-", "2"], "formula": ["2", "-"]}[missing]
    assert [cell.strip() for cell in last[4:]] == [*times, "-", "-" if missing == "ours" else "50%", "-"]


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own, when it loads its compiler
def test_compiled_losses_are_measured_where_asked_for(script: ModuleType) -> None:
    torch = script.torch
    scores, labels = torch.randn(2, 3), torch.tensor([0, 2])
    runs = script.works("hinton_kd", scores, scores, labels, script.BenchConfig())
    assert {name for name, _ in runs} >= {"ours", "ours compiled", "formula", "compiled", "one pass"}
    assert "ours compiled" not in dict(script.works("jsd", scores, scores, labels, script.BenchConfig(compile=False)))
    assert {name for name, _ in runs} <= set(script.CONTENDERS)


@pytest.mark.parametrize("name", ["policy_kl", "hinton_kd", "jsd"])
def test_contenders_compute_the_same(script: ModuleType, name) -> None:
    torch = script.torch
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 8, 5, generator=generator)
    labels = torch.randint(5, (8,), generator=generator)
    runs = script.works(name, student, teacher, labels, script.BenchConfig(compile=False))
    torch.testing.assert_close(runs["ours", "loss"](), runs["formula", "loss"]())
    gradients = [runs[who, "loss and gradient"]() for who in ("ours", "formula", "one pass")]
    torch.testing.assert_close(gradients[0][0], gradients[1][0])
    torch.testing.assert_close(gradients[2].gradient, gradients[1][0])
    assert statistics.fmean(gradients[1][0].abs().flatten().tolist()) > 1e-3
