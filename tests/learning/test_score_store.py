"""Scores that runs share come back bit for bit, or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from polydistill.disk import atomic_write
from polydistill.errors import UserError
from polydistill.learning import score_store
from polydistill.learning.score_store import VARIABLE, ScoreStore

SCORES = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def test_what_was_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    ScoreStore(tmp_path / "new").write("a", SCORES)
    read = ScoreStore(tmp_path / "new").read("a", rows=6)
    assert read is not None
    assert torch.equal(read, SCORES)


@pytest.mark.parametrize(
    "damage", [lambda all_: all_[:-4], lambda all_: all_[:40], lambda _: b"", lambda a: a + b"1234"]
)
def test_a_damaged_file_is_as_if_it_were_not_there(tmp_path: Path, damage) -> None:
    store = ScoreStore(tmp_path)
    store.write("a", SCORES)
    path = next(tmp_path.iterdir())
    path.write_bytes(damage(path.read_bytes()))
    assert store.read("a", rows=6) is None


def test_a_changed_bit_is_noticed(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    store.write("a", SCORES)
    path = next(tmp_path.iterdir())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert store.read("a", rows=6) is None


def test_a_disk_that_refuses_or_is_nearly_full_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *content: bytes) -> None:
        raise UserError("cannot write: no space left on device")

    monkeypatch.setattr(score_store, "atomic_write", refuse)
    ScoreStore(tmp_path / "full").write("a", SCORES)
    monkeypatch.setattr(score_store, "atomic_write", atomic_write)
    monkeypatch.setattr(score_store.shutil, "disk_usage", lambda path: SimpleNamespace(free=score_store.SPARED))
    ScoreStore(tmp_path / "nearly").write("a", SCORES)
    (tmp_path / "file").write_text("")
    ScoreStore(tmp_path / "file").write("a", SCORES)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "file"]


def test_the_environment_names_the_store_or_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert ScoreStore.of_environment() is None
    monkeypatch.setitem(os.environ, VARIABLE, str(tmp_path))
    store = ScoreStore.of_environment()
    assert store is not None
    assert store.folder == tmp_path
