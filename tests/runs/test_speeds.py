"""polydistill.runs.speeds: what a plan remembers, and that nothing fails where it cannot."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from polydistill.runs import speeds
from polydistill.runs.speeds import recall, remember, speeds_folder

WORK = {"kind": "cifar", "network": "resnet-8", "device": "cpu", "threads": 1}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_last_speed_of_the_same_work_is_recalled() -> None:
    assert recall(WORK) is None
    remember(WORK, 10.0)
    remember({**WORK, "threads": 2}, 30.0)
    remember(WORK, 20.0)
    assert recall(dict(reversed(WORK.items()))) == 20.0
    assert recall({**WORK, "threads": 2}) == 30.0
    assert recall({**WORK, "network": "resnet-20"}) is None


def test_another_machine_has_speeds_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    remember(WORK, 10.0)
    monkeypatch.setattr(speeds, "hardware", lambda: {"cpu": "another", "gpu": None})
    assert recall(WORK) is None


def test_runs_that_finish_at_once_keep_each_others_speeds() -> None:
    works = [{**WORK, "threads": threads} for threads in range(1, 9)]
    begin = threading.Barrier(len(works))

    def finish(work: dict[str, Any]) -> None:
        begin.wait()
        remember(work, float(work["threads"]))

    runs = [threading.Thread(target=finish, args=(work,)) for work in works]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [recall(work) for work in works] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]


DAMAGED = ["", "[]", "5", "null", '{"a": "b"}', '{"per_second": 7.0}', '{"per_second": [1]}', "\x00"]


@pytest.mark.parametrize("text", [*DAMAGED, *(f'"per_second": {n}' for n in ("-1", "0", "NaN", "Infinity", "null"))])
def test_a_damaged_file_is_as_if_nothing_were_remembered(text: str) -> None:
    remember(WORK, 7.0)
    (file,) = speeds_folder().iterdir()
    file.write_text(file.read_text().replace('"per_second": 7.0', text) if text.startswith('"per') else text)
    assert recall(WORK) is None
    remember(WORK, 5.0)
    assert recall(WORK) == 5.0


def test_where_nothing_can_be_written_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    remember(WORK, 5.0)
    assert recall(WORK) is None
