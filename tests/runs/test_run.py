"""polydistill.runs and provenance: a run folder is whole, comparable, valid JSON, and never someone else's."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polydistill import disk, provenance
from polydistill import runs as tracking
from polydistill.config.plain_yaml import load_yaml, to_mapping
from polydistill.disk import atomic_write
from polydistill.errors import UserError
from polydistill.provenance import weights_sha256
from polydistill.runs import Run, format_interval, format_narrow_table, format_table


@dataclass(frozen=True)
class Teacher:
    path: str = "1e5"  # text that YAML would read as a number


@dataclass(frozen=True)
class Demo:
    teacher: Teacher = field(default_factory=Teacher)
    seed: int = 3
    device: str = "cpu"
    rate: float = 1e-9
    widths: tuple[int, ...] = (1, 2)


PRODUCTS = ("weights_*.bin", "weights_*.json")


def open_run(out: Path, config: Demo | None = None) -> Run:
    return Run.open(out, config or Demo(), kind="demo", command="python scripts/demo.py", products=PRODUCTS)


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def lines(path: Path) -> list[Any]:
    return [strict_json(line) for line in path.read_text().splitlines()]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file but the lock's, which holds nothing but who has it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ---- the folder ------------------------------------------------------------------------------------------------


def test_a_new_run_writes_its_config_once(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "demo"
    with open_run(out) as run:
        assert run.summary is None
    expected = {"teacher": {"path": "1e5"}, "seed": 3, "device": "cpu", "rate": 1e-9, "widths": [1, 2]}
    assert load_yaml(out / "config.yaml") == expected
    before = (out / "config.yaml").stat()
    open_run(out)
    assert (out / "config.yaml").stat().st_mtime_ns == before.st_mtime_ns


def test_a_finished_run_is_recognised_and_nothing_in_it_changes(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.log("teacher", 1, {"test/accuracy": 0.5})
        written = run.finish({"throughput": {"train_samples_per_second": 10.0}})
    before = tree(tmp_path)
    with open_run(tmp_path) as again:
        assert again.summary == written == strict_json((tmp_path / "summary.json").read_text())
        with pytest.raises(RuntimeError, match="finished"):
            again.log("teacher", 2, {"test/accuracy": 0.6})
    assert tree(tmp_path) == before


def test_an_unfinished_run_is_started_over_and_foreign_files_stay(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.log("teacher", 1, {"a": 1.0})
        run.log_timing("teacher", 1, {"a": 1.0})
    config = (tmp_path / "config.yaml").read_bytes()
    foreign = ["notes.txt", "checkpoints/step.zip", "my_weights_1.json", "generation_1.zip", "sub/metrics.jsonl"]
    for name in [*foreign, "weights_0.bin", "weights_0.json", "generation_0_failure.pt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    open_run(tmp_path)
    assert set(tree(tmp_path)) == {"config.yaml", *foreign}
    assert (tmp_path / "config.yaml").read_bytes() == config


def test_a_linked_folder_is_unlinked_and_what_it_names_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "data").write_text("x")
    open_run(tmp_path / "run")
    (tmp_path / "run" / "tb").symlink_to(tmp_path / "elsewhere")
    open_run(tmp_path / "run")
    assert not (tmp_path / "run" / "tb").exists()
    assert (tmp_path / "elsewhere" / "data").read_text() == "x"


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Demo(seed=4, rate=2.0), "seed is 3 there and 4 here"),
        (Demo(teacher=Teacher("b")), "teacher.path is '1e5' there and 'b' here"),
        (Demo(widths=(1,)), "widths is [1, 2] there and [1] here"),
    ],
)
def test_another_config_is_refused_and_every_byte_stays(
    tmp_path: Path, finished: bool, other: Demo, message: str
) -> None:
    with open_run(tmp_path) as run:
        run.log("teacher", 1, {"a": 1.0})
        if finished:
            run.finish({})
        else:
            run.save({}, 1)
    before = tree(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        open_run(tmp_path, other)
    assert tree(tmp_path) == before


def test_a_run_without_a_checkpoint_binds_nothing_but_what_is_not_ours_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_run(tmp_path) as run:
        run.log("teacher", 1, {"a": 1.0})
    (tmp_path / "notes.txt").write_text("mine")
    other = Demo(teacher=Teacher("corrected.zip"))
    with open_run(tmp_path, other) as run:
        assert run.summary is None
    assert load_yaml(tmp_path / "config.yaml")["teacher"]["path"] == "corrected.zip"
    assert set(tree(tmp_path)) == {"config.yaml", "notes.txt"}
    assert (
        capsys.readouterr().err == f"{tmp_path} held a run of another config that had no checkpoint: it is replaced\n"
    )
    open_run(tmp_path, other)
    assert capsys.readouterr().err == "", "the same config"


def test_another_tools_config_is_no_run_of_ours(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 3\nmodel: mine\n")
    (tmp_path / "metrics.jsonl").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(UserError, match="another config"):
        open_run(tmp_path)
    assert tree(tmp_path) == before


def test_a_place_may_differ_and_the_caller_hears_of_it(tmp_path: Path) -> None:
    def reopen(path: str, seed: int = 3) -> Run:
        config, may_move = Demo(teacher=Teacher(path), seed=seed), ("teacher.path",)
        return Run.open(tmp_path, config, kind="demo", command="python scripts/demo.py", may_move=may_move)

    with open_run(tmp_path) as run:
        run.save({}, 1)
    for path, moved in (("1e5", []), ("moved.zip", ["teacher.path"])):
        with reopen(path) as run:
            assert list(run.moved) == moved
    with pytest.raises(UserError, match="seed is 3 there"):
        reopen("moved.zip", seed=4)
    with reopen("1e5") as run:
        run.finish({})
    assert list(reopen("moved.zip").moved) == ["teacher.path"]


def test_a_machines_word_that_differs_is_best_left_out(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.save({}, 1)
    with pytest.raises(UserError, match="device is 'cpu' there and 'cuda' here; leave --device out to go on with"):
        open_run(tmp_path, Demo(device="cuda"))


def test_looking_at_a_folder_writes_nothing(tmp_path: Path) -> None:
    assert tracking.examine_folder(tmp_path / "none", to_mapping(Demo())).state == "new"
    assert not (tmp_path / "none").exists()
    assert tracking.stored_config(tmp_path) is None
    out = tmp_path / "run"
    with open_run(out) as run:
        assert tracking.examine_folder(out, to_mapping(Demo())).state == "begun"
        assert tracking.stored_config(out) is None, "nothing is bound to it yet"
        run.save({}, 1)
        assert tracking.examine_folder(out, to_mapping(Demo())).state == "unfinished"
        assert tracking.stored_config(out) == to_mapping(Demo())
        run.finish({})
    before = tree(out)
    assert tracking.examine_folder(out, to_mapping(Demo())).state == "finished"
    grown = tracking.examine_folder(out, to_mapping(Demo(seed=4)), may_grow=("seed",))
    assert (grown.state, grown.grown) == ("unfinished", ["seed"])
    assert tree(out) == before


def test_a_key_that_only_one_side_has_is_a_difference(tmp_path: Path) -> None:
    open_run(tmp_path)
    with open(tmp_path / "config.yaml", "a") as file:
        file.write("old_key: 1\n")
    with pytest.raises(UserError, match="old_key is 1 there and not set here"):
        open_run(tmp_path)


def test_a_key_that_only_one_side_has_and_that_is_off_there_is_none(tmp_path: Path) -> None:
    open_run(tmp_path)
    mapping = to_mapping(Demo())
    tracking.require_same_config(tmp_path, mapping | {"newer": None})
    tracking.require_same_config(tmp_path, mapping | {"newer": []})
    with open(tmp_path / "config.yaml", "a") as file:
        file.write("newer: 0\n")
    tracking.require_same_config(tmp_path, mapping)


def test_a_folder_that_is_no_run_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"not empty and holds no run"):
        open_run(tmp_path)
    assert tree(tmp_path) == before


def test_a_config_that_cannot_be_read_proves_no_run(tmp_path: Path) -> None:
    for text in ("[", "- 1", ""):
        (tmp_path / "config.yaml").write_text(text)
        (tmp_path / "metrics.jsonl").write_text("mine")
        with pytest.raises(UserError):
            open_run(tmp_path)
        assert tree(tmp_path) == {"config.yaml": text.encode(), "metrics.jsonl": b"mine"}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    for out in (tmp_path / "out", tmp_path / "out" / "below"):
        with pytest.raises(UserError, match="out"):
            open_run(out)


def test_what_a_crash_left_of_the_first_write_does_not_block_the_folder(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.123.tmp").write_text("seed: ")
    open_run(tmp_path)
    assert load_yaml(tmp_path / "config.yaml")["seed"] == 3


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 99}'])
def test_a_summary_that_cannot_be_read_is_said_and_kept(tmp_path: Path, text: str) -> None:
    open_run(tmp_path)
    (tmp_path / "summary.json").write_text(text)
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"summary\.json (is damaged|has schema)"):
        open_run(tmp_path)
    assert tree(tmp_path) == before


# ---- metrics ---------------------------------------------------------------------------------------------------


def test_metrics_are_lines_without_a_clock(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with open_run(tmp_path / name) as run:
            run.log("teacher", 5, {"test/accuracy": 0.5, "n": 2}, generation=0)
            run.log("generation_1", 6, {"test/accuracy": np.float32(0.25)})
            run.log_timing("teacher", 5, {"seconds": 1.5})
    assert lines(tmp_path / "a" / "metrics.jsonl") == [
        {"role": "teacher", "step": 5, "generation": 0, "values": {"test/accuracy": 0.5, "n": 2}},
        {"role": "generation_1", "step": 6, "values": {"test/accuracy": 0.25}},
    ]
    assert lines(tmp_path / "a" / "timing.jsonl") == [{"role": "teacher", "step": 5, "values": {"seconds": 1.5}}]
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()


def test_a_line_is_on_the_disk_when_log_returns(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.log("teacher", 1, {"a": 1.0})
        assert len(lines(tmp_path / "metrics.jsonl")) == 1


def test_values_that_are_not_finite_are_null(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.log("a", 1, {"x": math.nan, "y": math.inf, "z": torch.tensor(-math.inf)}, more=[np.float64("nan")])
        run.log_timing("a", 1, {"x": math.nan})
        run.finish({"generations": [{"metrics": {"score_ci95": (math.nan, 1.0), "episodes": np.int64(3)}}]})
    assert lines(tmp_path / "metrics.jsonl")[0] == {
        "role": "a",
        "step": 1,
        "more": [None],
        "values": {"x": None, "y": None, "z": None},
    }
    assert lines(tmp_path / "timing.jsonl")[0]["values"] == {"x": None}
    (generation,) = strict_json((tmp_path / "summary.json").read_text())["generations"]
    assert generation == {"metrics": {"score_ci95": [None, 1.0], "episodes": 3}}


def test_tensorboard_reads_the_same_tag_of_every_role_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_run(tmp_path) as run:
        for step in (10, 20):
            run.log("teacher", step, {"test/accuracy": step / 100, "train/loss": 1.0})
            run.log("generation_1", step, {"test/accuracy": step / 50})
    assert sorted(path.name for path in (tmp_path / "tb").iterdir()) == ["generation_1", "teacher"]
    for role, scale, tags in [
        ("teacher", 100, {"test/accuracy", "train/loss"}),
        ("generation_1", 50, {"test/accuracy"}),
    ]:
        assert len(list((tmp_path / "tb" / role).iterdir())) == 1
        events = EventAccumulator(str(tmp_path / "tb" / role)).Reload()
        assert set(events.Tags()["scalars"]) == tags
        points = [(point.step, point.value) for point in events.Scalars("test/accuracy")]
        assert points == [(10, pytest.approx(10 / scale)), (20, pytest.approx(20 / scale))]


def test_after_an_exception_all_events_are_on_the_disk_and_no_writer_is_left(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def train() -> None:
        with open_run(tmp_path) as run:
            for step in range(50):
                run.log("teacher", step, {"a": 1.0})
            raise ZeroDivisionError

    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError):
        train()
    assert set(threading.enumerate()) <= before  # TensorBoard writes from a thread of its own
    assert len(EventAccumulator(str(tmp_path / "tb" / "teacher")).Reload().Scalars("a")) == 50


@pytest.mark.parametrize("role", ["", "..", "a/b", "/tmp/x"])
def test_a_role_cannot_leave_the_folder(tmp_path: Path, role: str) -> None:
    with open_run(tmp_path) as run, pytest.raises(ValueError, match="role"):
        run.log(role, 1, {"a": 1.0})
    assert set(tree(tmp_path)) == {"config.yaml"}


def test_opening_a_run_loads_neither_torch_nor_tensorboard_nor_rich(run_python) -> None:
    code = "import sys, polydistill.runs; print(sorted({'torch', 'tensorboard', 'rich', 'numpy'} & set(sys.modules)))"
    assert run_python("-c", code).stdout == "[]\n"


def test_tracking_hands_out_no_other_room_s_names() -> None:
    homes = {name: getattr(getattr(tracking, name), "__module__", tracking.__name__) for name in tracking.__all__}
    assert {name for name, home in homes.items() if not home.startswith(tracking.__name__)} == set()


# ---- going on --------------------------------------------------------------------------------------------------


def scalars(out: Path, role: str) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tb" / role)).Reload()
    return {tag: [(p.step, p.value) for p in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def log_steps(run: Run, *steps: int) -> None:
    for step in steps:
        run.log("teacher", step, {"a": step / 4, "b": 1.0})
        run.log_timing("teacher", step, {"time/rate": 1.0})


def test_a_run_that_is_cut_back_and_goes_on_has_neither_gaps_nor_doubles(tmp_path: Path) -> None:
    with open_run(tmp_path / "whole") as run:
        log_steps(run, 0, 10, 20, 30, 40)
    with open_run(tmp_path / "cut") as run:
        log_steps(run, 0, 10, 20)
        run.save({"step": 20}, 20)
        log_steps(run, 30, 35)
        run.log("student", 1, {"a": 1.0})
    for _ in range(3):  # as often as it must
        with open_run(tmp_path / "cut") as run:
            assert run.resume() == {"step": 20}
            assert not list((tmp_path / "cut" / "tb" / "student").iterdir())
            log_steps(run, 30, 40)
    assert scalars(tmp_path / "cut", "teacher") == scalars(tmp_path / "whole", "teacher")
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("cut", "whole")]
    assert metrics[0] == metrics[1]
    assert [line["step"] for line in lines(tmp_path / "cut" / "timing.jsonl")] == [0, 10, 20, 30, 40]


def test_a_line_and_a_record_that_a_crash_tore_are_cut_off(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        log_steps(run, 10)
        position = run.position()
        log_steps(run, 20)
    events = tmp_path / "tb" / "teacher" / "events.out.tfevents.teacher"
    for path in (tmp_path / "metrics.jsonl", events):
        path.write_bytes(path.read_bytes()[:-5])
    run.rewind(position)
    log_steps(run, 30)
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [10, 30]
    assert scalars(tmp_path, "teacher")["a"] == [(10, 2.5), (30, 7.5)]
    run.close()


def test_a_tensorboard_that_is_open_meanwhile_sees_each_point_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_run(tmp_path) as run:
        log_steps(run, 10, 20)
        run.save({}, 20)
        log_steps(run, 30)
        board = EventAccumulator(str(tmp_path / "tb" / "teacher")).Reload()
    with open_run(tmp_path) as run:
        run.resume()
        log_steps(run, 30, 40)
        board.Reload()
    assert [point.step for point in board.Scalars("a")] == [10, 20, 30, 40]


@pytest.mark.parametrize("name", ["metrics.jsonl", "tb/teacher/events.out.tfevents.teacher"])
def test_a_file_that_lost_something_is_one_line_and_nothing_is_cut(tmp_path: Path, name: str) -> None:
    with open_run(tmp_path) as run:
        log_steps(run, 10)
        run.save({}, 10)
        log_steps(run, 20)
    for change in (lambda path: path.write_bytes(path.read_bytes()[:9]), Path.unlink):
        change(tmp_path / name)
        before = tree(tmp_path)
        with (
            open_run(tmp_path) as run,
            pytest.raises(UserError, match=rf"{name} has lost .* remove .*checkpoints, and the same command"),
        ):
            run.resume()
        assert tree(tmp_path) == before


def test_a_position_names_no_file_outside(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with open_run(tmp_path / "run") as run, pytest.raises(UserError, match="has lost"):
        run.rewind({"sizes": {"../mine": 0}, "seconds": 0.0, "versions": {}})
    assert (tmp_path / "mine").read_text() == "mine"


def test_what_a_position_counts_on_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync = [], os.fsync

    def spy(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    with open_run(tmp_path) as run:
        log_steps(run, 10)
        monkeypatch.setattr(disk.os, "fsync", spy)
        sizes = run.position()["sizes"]
        files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jsonl")}
        assert set(sizes) == files | {"tb/teacher/events.out.tfevents.teacher"}
        folders = [tmp_path / "tb" / "teacher", tmp_path / "tb", tmp_path]
        assert set(synced) >= {*(str(tmp_path / name) for name in sizes), *map(str, folders)}


def test_another_torch_than_at_the_beginning_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_run(tmp_path) as run:
        position = run.position()
        run.rewind(position)
        assert capsys.readouterr().err == ""
        run.rewind({**position, "versions": {"torch": "1.0"}})
    assert capsys.readouterr().err.startswith("the run began with torch 1.0 and goes on with ")


def test_an_unfinished_run_with_a_checkpoint_stays_and_one_without_starts_over(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        log_steps(run, 10)
        run.save({}, 10)
        log_steps(run, 20)
        (tmp_path / "weights_0.bin").write_bytes(b"x")
    before = tree(tmp_path)
    open_run(tmp_path).close()
    assert tree(tmp_path) == before
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    with open_run(tmp_path) as run:
        assert run.resume() is None
    assert set(tree(tmp_path)) == {"config.yaml"}


def test_two_processes_on_one_folder_the_second_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        log_steps(run, 10)
        before = tree(tmp_path)
        with pytest.raises(UserError, match="another process"):
            open_run(tmp_path)
        assert tree(tmp_path) == before
        log_steps(run, 20)
    assert len(lines(tmp_path / "metrics.jsonl")) == 2
    open_run(tmp_path).close()


def test_a_refused_run_gives_the_folder_back(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.save({}, 1)
    with pytest.raises(UserError, match="another config"):
        open_run(tmp_path, Demo(seed=4))
    open_run(tmp_path).close()


def test_temporary_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    open_run(tmp_path).close()
    (tmp_path / ".weights_0.bin.123.tmp").write_bytes(b"x")
    (tmp_path / "mine.tmp").write_bytes(b"x")
    open_run(tmp_path).close()
    assert set(tree(tmp_path)) == {"config.yaml", "mine.tmp"}


def grow(out: Path, seed: int) -> Run:
    return Run.open(out, Demo(seed=seed), kind="demo", command="test", may_grow=("seed",))


def test_a_finished_run_may_grow_from_its_checkpoint(tmp_path: Path) -> None:
    with grow(tmp_path, 3) as run:
        log_steps(run, 10)
        run.save({"step": 10}, 10)
        run.finish({})
    with grow(tmp_path, 3) as run:
        assert run.summary is not None, "not grown: finished"
    with grow(tmp_path, 5) as run:
        assert run.summary is None
        assert not (tmp_path / "summary.json").exists()
        assert run.resume() == {"step": 10}
    assert load_yaml(tmp_path / "config.yaml")["seed"] == 5
    with pytest.raises(UserError, match="seed is 5 there and 4 here"):
        grow(tmp_path, 4)


def test_a_finished_run_without_a_checkpoint_cannot_grow_and_stays(tmp_path: Path) -> None:
    with grow(tmp_path, 3) as run:
        run.finish({})
    before = tree(tmp_path)
    with pytest.raises(UserError, match="has no checkpoint from which seed could grow"):
        grow(tmp_path, 4)
    assert tree(tmp_path) == before


# ---- summary ---------------------------------------------------------------------------------------------------


def test_summary_says_what_the_run_knows_and_what_it_is_given(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        summary = run.finish({"ensembles": [], "generations": [], "throughput": {}, "device": "cpu, 2 cores"})
    assert summary == run.summary == strict_json((tmp_path / "summary.json").read_text())
    assert list(summary)[:2] == ["schema", "kind"]
    assert set(summary) == {
        *("schema", "kind", "command", "config", "seed", "device", "hardware", "versions", "git", "wall_seconds"),
        *("throughput", "ensembles", "generations"),
    }
    assert (summary["schema"], summary["kind"], summary["seed"]) == (1, "demo", 3)
    assert summary["command"] == "python scripts/demo.py"
    assert summary["config"] == load_yaml(tmp_path / "config.yaml")
    assert summary["device"] == "cpu, 2 cores"
    assert 0 <= summary["wall_seconds"] < 60


def test_hardware_names_the_processor_and_only_a_gpu_that_is_there() -> None:
    found = provenance.hardware()
    assert found["cpu"]
    assert 1 <= found["cores"] <= 4096
    assert (found["gpu"] is not None) == torch.cuda.is_available()
    json.dumps(found)


def test_versions_name_what_is_installed_and_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no_such_package"))
    assert set(provenance.versions()) == {"python", "polydistill", "torch"}
    found = provenance.versions("numpy", "nor_this_one")
    assert set(found) == {"python", "polydistill", "torch", "numpy"}
    assert found["numpy"] == np.__version__
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_git_names_the_commit_of_a_clone_and_whether_it_is_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert provenance.git_state(tmp_path) is None
    (tmp_path / "below").mkdir()
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.hooksPath=/dev/null"]
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert provenance.git_state(tmp_path) is None  # no commit yet
    (tmp_path / "file").write_text("a")
    subprocess.run(["git", "-C", str(tmp_path), "add", "."], check=True)
    subprocess.run(["git", "-C", str(tmp_path), *identity, "commit", "-q", "-m", "a"], check=True)
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as inside a hook of another clone
    state = provenance.git_state(tmp_path)
    assert state is not None
    assert re.fullmatch("[0-9a-f]{40}", state["commit"])
    assert state["dirty"] is False
    (tmp_path / "file").write_text("b")
    assert provenance.git_state(tmp_path) == state | {"dirty": True}
    assert provenance.git_state(tmp_path / "below") is None


def test_git_is_null_where_there_is_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_state() is None


# ---- the disk --------------------------------------------------------------------------------------------------


def refuse_with(code: int) -> Callable[..., Any]:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    path = tmp_path / "summary.json"
    atomic_write(path, b"old")
    assert path.read_bytes() == b"old"
    monkeypatch.setattr(disk.os, function, refuse_with(errno.ENOSPC))
    with pytest.raises(UserError) as error:
        atomic_write(path, b"new")
    assert str(error.value) == f"cannot write {path}: No space left on device"
    assert tree(tmp_path) == {"summary.json": b"old"}


def test_a_crash_between_write_and_rename_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    atomic_write(path, b"old")
    seen = []

    def crash(source: Path, target: Path) -> None:
        seen.append((Path(source).read_bytes(), Path(target).read_bytes()))
        raise KeyboardInterrupt

    monkeypatch.setattr(disk.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, b"new")
    assert seen == [(b"new", b"old")]  # complete before it gets the name
    assert tree(tmp_path) == {"summary.json": b"old"}


def test_content_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(disk.os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(disk.os, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    atomic_write(tmp_path / "a", b"x")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_run_whose_summary_cannot_be_written_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_run(tmp_path) as run:
        monkeypatch.setattr(disk.os, "replace", refuse_with(errno.EDQUOT))
        with pytest.raises(UserError, match=r"summary\.json"):
            run.finish({})
        assert run.summary is None
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "timing.jsonl", "tb"])
def test_a_log_that_the_disk_refuses_is_one_line_with_the_path(tmp_path: Path, name: str) -> None:
    with open_run(tmp_path) as run:
        if name == "tb":
            (tmp_path / name).write_text("in the way")
        else:
            (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=rf"cannot write .*{name}.*") as error:
            (run.log_timing if name == "timing.jsonl" else run.log)("teacher", 1, {"a": 1.0})
        assert "\n" not in str(error.value)


# ---- weights ---------------------------------------------------------------------------------------------------


def test_weights_sha256_is_the_documented_sum() -> None:
    import hashlib

    weights = {"b": torch.tensor([1, 2], dtype=torch.int16), "a": torch.tensor(1.0)}
    content = b"a\0float32\0()\x004\0" + b"\x00\x00\x80\x3f" + b"b\0int16\0(2,)\x004\0" + b"\x01\x00\x02\x00"
    assert weights_sha256(weights) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bfloat16, torch.uint8, torch.bool])
def test_weights_sha256_takes_empty_tensors_of_any_type_and_stride(dtype: torch.dtype) -> None:
    empty = [torch.zeros(0, dtype=dtype), torch.zeros(4, dtype=dtype)[:0:2]]
    assert len({weights_sha256({"w": value}) for value in empty}) == 1
    assert weights_sha256({"w": empty[1]}) != weights_sha256({"w": torch.zeros((0, 3), dtype=dtype)})


def test_weights_sha256_depends_on_name_dtype_shape_and_values_only() -> None:
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0), "c": torch.ones(2, dtype=torch.bfloat16)}
    base = weights_sha256(weights)
    transposed = weights["a"].t().contiguous().t().requires_grad_()  # other strides, in a graph
    assert weights_sha256({"c": weights["c"], "b": weights["b"], "a": transposed}) == base
    others = [
        {**weights, "a": weights["a"].reshape(3, 2)},
        {**weights, "a": weights["a"].double()},
        {**weights, "a": weights["a"] + 1},
        {**weights, "b": torch.zeros(0, 1)},
        {"x" if name == "c" else name: tensor for name, tensor in weights.items()},
        {name: tensor for name, tensor in weights.items() if name != "b"},
    ]
    assert len({base, *map(weights_sha256, others)}) == len(others) + 1


# ---- progress --------------------------------------------------------------------------------------------------


class Clock:
    """A clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(tracking.progress.time, "monotonic", lambda: self.now)


def test_without_a_terminal_progress_is_a_line_every_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, run = Clock(monkeypatch), open_run(tmp_path)
    with run.progress("generation [1]", 3000, "steps") as bar:
        for _ in range(25):
            clock.now += 1.0
            bar.advance(100, loss=0.12345)
    assert capsys.readouterr().err.splitlines() == [
        "generation [1]: 1,000/3,000 steps (33%), 100 steps/s, eta 0:00:20, loss 0.1235",
        "generation [1]: 2,000/3,000 steps (66%), 100 steps/s, eta 0:00:10, loss 0.1235",
        "generation [1]: 2,500/3,000 steps (83%), 100 steps/s, eta 0:00:05, loss 0.1235",
    ]


def test_the_rate_of_a_continued_loop_counts_what_it_did_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with tracking.Progress("teacher", 3000, "steps", 1000) as bar:
        clock.now += 5.0
        bar.advance(500)
    assert capsys.readouterr().err == "teacher: 1,500/3,000 steps (50%), 100 steps/s, eta 0:00:15\n"


@pytest.mark.parametrize("total", [0, 5])
def test_progress_of_nothing_done_is_shown_without_a_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], total: int
) -> None:
    Clock(monkeypatch)
    with open_run(tmp_path).progress("play", total, "games"):
        pass
    assert capsys.readouterr().err == f"play: 0/{total} games (0%)\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_progress_is_a_bar_redrawn_at_most_ten_times_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "stderr", Terminal())
    clock, run, shown = Clock(monkeypatch), open_run(tmp_path), []
    show = tracking.Progress._show
    monkeypatch.setattr(tracking.Progress, "_show", lambda bar: (shown.append(bar.done), show(bar)))
    with run.progress("generation [1]", 2000, "steps") as bar:
        for _ in range(2000):
            clock.now += 0.001  # two seconds in all
            bar.advance(1, loss=0.5)
    assert 2 <= len(shown) <= 21
    written = sys.stderr.getvalue()
    assert "generation [1]" in written
    assert "2,000/2,000 steps (100%), 1,000 steps/s, eta 0:00:00, loss 0.5" in written


def drawn(written: str) -> list[str]:
    """The lines that a bar has drawn, without the terminal's codes."""
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written)
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def resize(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda descriptor=1: os.terminal_size((columns, 24)))


def open_terminal(monkeypatch: pytest.MonkeyPatch, term: str = "xterm") -> Terminal:
    """Standard error becomes a terminal of 80 columns."""
    terminal = Terminal()
    monkeypatch.setenv("TERM", term)
    monkeypatch.delenv("COLUMNS", raising=False)
    resize(monkeypatch, 80)
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def test_a_loop_that_does_more_than_its_total_ends_at_100_percent(capsys: pytest.CaptureFixture[str]) -> None:
    with tracking.Progress("learns", 1000, "steps") as bar:
        bar.advance(999)
        assert bar.state().startswith("999/1,000 steps (99%)"), "rounded down: 100% is all of it"
        bar.advance(121)
        assert bar.state().startswith("1,120/1,120 steps (100%)")
    assert tracking.Progress("learns", 5, "steps", 6).state() == "6/6 steps (100%)"


def test_text_beside_the_bar_is_shown_as_it_is() -> None:
    bar = tracking.Progress("learns", 1000, "images")
    bar.advance(0, epoch="3/10", loss=1.23456)
    assert bar.state().endswith(", epoch 3/10, loss 1.235")


def test_a_word_stands_in_place_of_the_numbers_until_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    Clock(monkeypatch)  # stands still: nothing is drawn because of the time
    with tracking.Progress("generation 1 learns", 1000, "steps") as bar:
        bar.advance(500, loss=0.5)
        bar.say("plays 8 games for its curve")
        assert drawn(terminal.getvalue())[-1].endswith(" 500/1,000 steps (50%), plays 8 games for its curve")
        bar.advance(1)
        assert drawn(terminal.getvalue())[-1].endswith(" 501/1,000 steps (50%), loss 0.5")
        bar.say("saves")
    assert drawn(terminal.getvalue())[-1].endswith(" 501/1,000 steps (50%), loss 0.5")


def test_without_a_terminal_a_word_is_said_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with tracking.Progress("learns", 100, "steps") as bar:
        for _ in range(3):
            clock.now += 5.0
            bar.advance(0)
            bar.say("plays")
        assert capsys.readouterr().err == "learns: 0/100 steps (0%)\n"
        clock.now += 5.0
        bar.say("plays")
        assert capsys.readouterr().err == "learns: 0/100 steps (0%), plays\n"


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 160])
def test_a_bar_has_one_line_and_keeps_its_numbers(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, clock = open_terminal(monkeypatch), Clock(monkeypatch)
    with tracking.Progress("generation 1 of runs/born_again learns", 64_000, "steps") as bar:
        resize(monkeypatch, columns)
        clock.now += 100.0
        bar.advance(32_000, epoch="5/10", loss=0.012345)
        lines = drawn(terminal.getvalue())
    assert len(lines) == 2, "one at the beginning, one for the step: nothing is wrapped"
    assert len(lines[-1]) <= columns
    assert lines[-1].endswith("epoch 5/10, loss 0.01235")
    assert ("eta 0:01:40" in lines[-1]) == (columns > 40)
    assert ("32,000/64,000 steps (50%), 320 steps/s" in lines[-1]) == (columns > 80)
    assert lines[-1].startswith("generation 1" if columns > 40 else "g")
    assert lines[-1].startswith("generation 1 of runs/born_again learns \u2501") == (columns > 100)


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_without_rich_or_on_a_dumb_terminal_there_are_lines(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, clock = open_terminal(monkeypatch, term), Clock(monkeypatch)
    if term == "xterm":
        monkeypatch.setitem(sys.modules, "rich.live", None)
    with tracking.Progress("learns", 100, "steps") as bar:
        clock.now += 10.0
        bar.advance(100)
    assert terminal.getvalue().splitlines() == ["learns: 100/100 steps (100%), 10 steps/s, eta 0:00:00"] * 2


# ---- tables ----------------------------------------------------------------------------------------------------


def test_a_table_aligns_numbers_right_and_text_left() -> None:
    table = format_table(
        ["generation", "accuracy", "games", "interval"],
        [["teacher", 0.72129, 12345, "1.5 ± 0.2"], ["student | 1", None, 7, "-0.5 to 1"]],
    )
    assert table.splitlines() == [
        r"| generation   | accuracy |  games |  interval |",
        r"| ------------ | -------: | -----: | --------: |",
        r"| teacher      |   0.7213 | 12,345 | 1.5 ± 0.2 |",
        r"| student \| 1 |        - |      7 | -0.5 to 1 |",
    ]


def test_a_table_without_rows_has_its_headers_and_a_short_row_is_refused() -> None:
    assert format_table(["a", "long name"], []).splitlines() == ["| a   | long name |", "| --- | --------- |"]
    with pytest.raises(ValueError, match="2 cells"):
        format_table(["a", "b"], [["x"]])


@pytest.mark.parametrize(
    ("ends", "digits", "text"),
    [
        ((18.0, 20.456), 2, "18.00 to 20.46"),
        ([-1.25, 0.5], 3, "-1.250 to 0.500"),
        (None, 2, "-"),
        ([None, 1.5], 2, "-inf to 1.50"),  # as summary.json holds it
        ([-0.5, None], 3, "-0.500 to inf"),
        ([None, None], 2, "-inf to inf"),
        ((-math.inf, math.inf), 2, "-inf to inf"),
        ((0.25, math.inf), 2, "0.25 to inf"),
    ],
)
def test_an_interval_is_printed_whatever_its_ends_are(ends, digits, text):
    assert format_interval(ends, digits) == text


def test_an_infinite_end_keeps_its_side_in_summary_json(tmp_path):
    with open_run(tmp_path / "run") as run:
        run.finish({"above": (-math.inf, 2.0), "below": (1.0, math.inf)})
    read = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert format_interval(read["above"]) == "-inf to 2.00"
    assert format_interval(read["below"]) == "1.00 to inf"


def test_a_narrow_table_keeps_the_columns_that_matter_most_in_their_order():
    headers, rows = ["a", "wide", "b", "c"], [["1", "x" * 50, "3", "4"]]
    narrow = format_narrow_table(headers, rows, ["b", "wide", "c", "a"], width=20)
    assert narrow.splitlines()[0].split() == ["|", "a", "|", "b", "|", "c", "|"]
    whole = format_narrow_table(headers, rows, ["b", "wide", "c", "a"])
    assert whole == format_table(headers, rows)
    assert format_narrow_table(headers, rows, ["wide", "b"], width=20).splitlines()[0].split() == ["|", "wide", "|"]


def plugin_values(out: Path) -> list[tuple[str, str, str, bytes]]:
    """``(role, tag, plugin, value)`` of everything in the event files that is no scalar."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = []
    for role in sorted(path.name for path in (out / "tb").iterdir()):
        for event in EventFileLoader(str(out / "tb" / role / f"events.out.tfevents.{role}")).Load():
            for value in event.summary.value:
                plugin = value.metadata.plugin_data.plugin_name
                if plugin != "scalars":
                    found.append((role, value.tag, plugin, value.tensor.string_val[0]))
    return found


def test_the_config_is_a_text_and_what_matters_first_a_layout_once(tmp_path: Path) -> None:
    from tensorboard.plugins.custom_scalar import layout_pb2

    with open_run(tmp_path / "run") as run:
        run.show_first({"score": ["eval/mean_reward"], "loss": ["distill/loss", "train/loss"]})
        run.log("teacher", 0, {"eval/mean_reward": 1.0})
        run.log("generation_1", 0, {"eval/mean_reward": 1.0})
    (text, layout) = plugin_values(tmp_path / "run")
    assert text[:3] == ("teacher", "config/text_summary", "text")
    assert text[3].decode() == f"```yaml\n{(tmp_path / 'run' / 'config.yaml').read_text()}```"
    assert layout[:3] == ("teacher", "custom_scalars__config__", "custom_scalars")
    charts = layout_pb2.Layout.FromString(layout[3]).category[0].chart
    assert [(chart.title, list(chart.multiline.tag)) for chart in charts] == [
        ("score", ["^eval/mean_reward$"]),
        ("loss", ["^distill/loss$", "^train/loss$"]),
    ]


def test_the_text_is_there_once_whenever_a_run_is_cut_back(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        before = run.position()
        run.log("teacher", 0, {"a": 1.0})
        after = run.position()
        run.log("generation_1", 0, {"a": 1.0})
        for position in (after, before):
            run.rewind(position)
            run.log("teacher", 1, {"a": 2.0})
            run.log("generation_1", 1, {"a": 2.0})
            assert [value[:2] for value in plugin_values(tmp_path / "run")] == [("teacher", "config/text_summary")]
