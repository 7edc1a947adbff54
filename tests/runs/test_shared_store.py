"""Scores that runs share come back bit for bit, or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from polydistill.disk import atomic_write
from polydistill.errors import UserError
from polydistill.runs import shared_store
from polydistill.runs.shared_store import VARIABLE, SharedStore

CONTENT = bytes(range(96))


def test_what_was_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    SharedStore(tmp_path / "new").write("a", CONTENT)
    read = SharedStore(tmp_path / "new").read("a")
    assert read is not None
    assert bytes(read) == CONTENT


@pytest.mark.parametrize(
    "damage", [lambda all_: all_[:-4], lambda all_: all_[:40], lambda _: b"", lambda a: a + b"1234"]
)
def test_a_damaged_file_is_as_if_it_were_not_there(tmp_path: Path, damage) -> None:
    store = SharedStore(tmp_path)
    store.write("a", CONTENT)
    path = next(tmp_path.iterdir())
    path.write_bytes(damage(path.read_bytes()))
    assert store.read("a") is None


def test_a_changed_bit_is_noticed(tmp_path: Path) -> None:
    store = SharedStore(tmp_path)
    store.write("a", CONTENT)
    path = next(tmp_path.iterdir())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert store.read("a") is None


def test_a_disk_that_refuses_or_is_nearly_full_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *content: bytes) -> None:
        raise UserError("cannot write: no space left on device")

    monkeypatch.setattr(shared_store, "atomic_write", refuse)
    SharedStore(tmp_path / "full").write("a", CONTENT)
    monkeypatch.setattr(shared_store, "atomic_write", atomic_write)
    monkeypatch.setattr(shared_store.shutil, "disk_usage", lambda path: SimpleNamespace(free=shared_store.SPARED))
    SharedStore(tmp_path / "nearly").write("a", CONTENT)
    (tmp_path / "file").write_text("")
    SharedStore(tmp_path / "file").write("a", CONTENT)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "file"]


def test_the_environment_names_the_store_or_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert SharedStore.of_environment() is None
    monkeypatch.setitem(os.environ, VARIABLE, str(tmp_path))
    store = SharedStore.of_environment()
    assert store is not None
    assert store.folder == tmp_path
