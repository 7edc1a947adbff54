"""polydistill.runs.correctness: right and wrong answers come back as they were, or one line says why not."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polydistill.errors import UserError
from polydistill.runs.correctness import read_correct, write_correct


@pytest.mark.parametrize("samples", [0, 1, 7, 8, 9, 10_000])
def test_answers_come_back_in_their_order(tmp_path: Path, samples: int) -> None:
    correct = np.random.default_rng(samples).random(samples) < 0.7
    record = write_correct(tmp_path / "a.npz", correct)
    assert np.array_equal(read_correct(tmp_path, record), correct)
    assert (record["file"], record["samples"]) == ("a.npz", samples)
    assert (tmp_path / "a.npz").stat().st_size < samples / 8 + 700
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_equal_answers_are_equal_bytes_whenever_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_correct(tmp_path / "a.npz", np.array([True, False]))
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("time.localtime", lambda *_: (2033, 5, 18, 3, 33, 20, 2, 138, 0))
    second = write_correct(tmp_path / "b.npz", np.array([True, False]))
    assert first["sha256"] == second["sha256"]
    assert first["sha256"] == hashlib.sha256((tmp_path / "a.npz").read_bytes()).hexdigest()


def test_a_changed_bit_a_missing_file_and_a_pipe_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    record = write_correct(path, np.ones(20, dtype=bool))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz is not the file that the run wrote \(its sha256 differs\)"):
        read_correct(tmp_path, record)
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*a\.npz: No such file"):
        read_correct(tmp_path, record)
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"a\.npz is no file of at most"):
        read_correct(tmp_path, record)


@pytest.mark.parametrize(
    "change", [{"file": "../a.npz"}, {"file": "/etc/passwd"}, {"file": None}, {"samples": "20"}, {"samples": None}]
)
def test_a_record_that_is_none_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    record = write_correct(tmp_path / "a.npz", np.ones(20, dtype=bool))
    with pytest.raises(UserError, match="no record of a file of right and wrong answers"):
        read_correct(tmp_path, record | change)


def record_of(path: Path, samples: int) -> dict[str, Any]:
    return {"file": path.name, "samples": samples, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def archive(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive",
        archive(other=np.zeros(1)),
        archive(bits=np.array([{}], dtype=object), samples=np.int64(8)),
        archive(bits=np.zeros(2, np.uint8), samples=np.int64(8)),
        archive(bits=np.zeros(1, np.float64), samples=np.int64(8)),
        archive(bits=np.zeros(1, np.uint8), samples=np.int64(7)),
        archive(bits=np.zeros(1, np.uint8), samples=np.array("eight")),
        zipped("bits.npy", b"\x93NUMPY\x01\x00"),
        archive(bits=np.zeros(1, np.uint8), samples=np.int64(8))[:-30],
    ],
    ids=[
        "empty",
        "text",
        "other",
        "pickled",
        "too long",
        "no bits",
        "another number",
        "a word",
        "cut array",
        "cut archive",
    ],
)
def test_what_holds_no_answers_is_one_line_and_is_never_unpickled(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz holds") as caught:
        read_correct(tmp_path, record_of(path, 8))
    assert "\n" not in str(caught.value)
