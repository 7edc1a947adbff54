"""polydistill.speeds: what a plan remembers, and that nothing fails where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from polydistill import speeds
from polydistill.speeds import recall, remember, speeds_file

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


@pytest.mark.parametrize("text", ["", "[]", '{"a": "b"}', '{"a": [1]}', "\x00"])
def test_a_damaged_file_is_as_if_nothing_were_remembered(text: str) -> None:
    speeds_file().parent.mkdir(parents=True)
    speeds_file().write_text(text)
    assert recall(WORK) is None
    remember(WORK, 5.0)
    assert recall(WORK) == 5.0


def test_where_nothing_can_be_written_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    remember(WORK, 5.0)
    assert recall(WORK) is None
