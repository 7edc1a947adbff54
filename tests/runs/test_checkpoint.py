"""runs.checkpoint: what was saved comes back, what is damaged is never used, the last two good ones stay."""

from __future__ import annotations

import errno
import os
import random
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polydistill import disk
from polydistill.errors import UserError
from polydistill.runs import checkpoint
from polydistill.runs.checkpoint import CheckpointConfig, Checkpoints, Pace, to_plain
from tests.crashes.disks import small_file_system

STATE = {"weights": torch.arange(6.0).reshape(2, 3), "step": 7, "names": ["a", None, True], "nested": {"x": {1: 0.5}}}


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and first == second


def saved(folder: Path, n: int) -> Checkpoints:
    """Checkpoints of steps 10, 20, ...; the state names its step."""
    checkpoints = Checkpoints(folder)
    for index in range(1, n + 1):
        checkpoints.save({"step": 10 * index}, 10 * index)
    return checkpoints


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- what is saved -----------------------------------------------------------------------------------------------


def test_what_was_saved_comes_back_with_its_types(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "new").latest() is None
    Checkpoints(tmp_path / "new").save(STATE, 7)
    found = Checkpoints(tmp_path / "new").latest()
    assert same(found, STATE)


def test_numpys_numbers_and_arrays_come_back_as_pythons_and_tensors(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    state = {
        "n": np.int64(3),
        "x": np.float64(0.5),
        "flag": np.bool_(True),
        "t": (1, 2),
        "rng": generator.bit_generator,
    }
    state["rng"], state["legacy"] = generator.bit_generator.state, np.random.RandomState(1).get_state()[1]
    Checkpoints(tmp_path).save(state, 1)
    found = Checkpoints(tmp_path).latest()
    assert found is not None
    assert same({key: found[key] for key in "nx"}, {"n": 3, "x": 0.5})
    assert (found["flag"], found["t"]) == (True, [1, 2])
    other = np.random.default_rng(0)
    other.bit_generator.state = found["rng"]
    assert other.random() == generator.random()
    assert np.array_equal(found["legacy"].numpy(), state["legacy"])


@pytest.mark.parametrize("value", [{1, 2}, object(), np.array(["a"]), np.array([object()]), {(1, 2): 3}])
def test_what_would_not_come_back_is_refused_with_its_place(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match=r"state\.a\[1\] is a (set|object|ndarray|dict)"):
        Checkpoints(tmp_path).save({"a": [0, value]}, 1)
    assert files(tmp_path) == []


def test_a_part_of_a_tensor_takes_the_place_of_a_part_only() -> None:
    whole = torch.zeros(1_000_000)
    part = to_plain({"part": whole[:3]})["part"]
    assert part.untyped_storage().nbytes() == 12
    assert to_plain({"whole": whole})["whole"].data_ptr() == whole.data_ptr(), "a whole one is not copied"


def test_only_the_last_two_stay(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5)
    assert files(tmp_path) == ["000004.checkpoint", "000005.checkpoint"]
    assert checkpoints.latest() == {"step": 50}


def test_steps_may_start_over_in_the_next_generation(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 3)
    checkpoints.save({"step": "0 of the next"}, 0)
    assert Checkpoints(tmp_path).latest() == {"step": "0 of the next"}


def test_foreign_files_are_neither_read_nor_removed(tmp_path: Path) -> None:
    for name in ("best.checkpoint", "step.zip", "notes.tmp"):
        (tmp_path / name).write_text("mine")
    saved(tmp_path, 4)
    assert Checkpoints(tmp_path).latest() == {"step": 40}
    assert set(files(tmp_path)) == {
        *("best.checkpoint", "step.zip", "notes.tmp", "000003.checkpoint", "000004.checkpoint")
    }


def test_reading_runs_no_code_of_the_files(tmp_path: Path) -> None:
    import hashlib
    import io

    class Marker:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "marker"), "w")

    buffer = io.BytesIO()
    torch.save({"step": Marker()}, buffer)
    described = f"polydistill checkpoint 1 run step 1 bytes {len(buffer.getvalue())} sha256".encode()
    digest = hashlib.sha256(described + buffer.getvalue()).hexdigest()  # anyone can make the sum fit
    (tmp_path / "000001.checkpoint").write_bytes(described + f" {digest}\n".encode() + buffer.getvalue())
    with pytest.raises(UserError, match="cannot be opened by torch"):
        Checkpoints(tmp_path).latest()
    assert not (tmp_path / "marker").exists()


# ---- damage ------------------------------------------------------------------------------------------------------


def positions(length: int, header: int) -> list[int]:
    """A few of every kind of place: in each field of the header, the ends and the middle of the body."""
    rng = random.Random(0)
    ends = [header, header + 1, length - 2, length - 1]
    return [*range(header), *ends, *(rng.randrange(header, length) for _ in range(100))]


def test_a_flipped_bit_anywhere_is_found_and_the_one_before_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"step": 1}, 1)
    path = checkpoints.save(STATE, 2)
    good = path.read_bytes()
    header = good.index(b"\n") + 1
    rng = random.Random(1)
    for position in positions(len(good), header):
        broken = bytearray(good)
        broken[position] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        assert Checkpoints(tmp_path).latest() == {"step": 1}, position
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("a checkpoint is damaged: 000002.checkpoint ")
        assert line.endswith("; going on from 000001.checkpoint")
    path.write_bytes(good)
    assert same(Checkpoints(tmp_path).latest(), STATE)


def test_a_file_cut_anywhere_or_grown_is_found(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"step": 1}, 1)
    path = checkpoints.save(STATE, 2)
    good = path.read_bytes()
    lengths = [0, *positions(len(good), good.index(b"\n") + 1)]
    zeros = [good[:length] + bytes(len(good) - length) for length in lengths]  # as a loss of power leaves a file
    for broken in [*(good[:length] for length in lengths), *zeros[:-1], good + b"x", good + good]:
        if broken != good:
            path.write_bytes(broken)
            assert Checkpoints(tmp_path).latest() == {"step": 1}


def test_none_good_is_one_line_that_says_what_to_do_and_changes_nothing(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError) as error:
        Checkpoints(tmp_path).latest()
    text = str(error.value)
    assert "\n" not in text
    assert re.search(r"no checkpoint in .* is good: 000002\.checkpoint has [\d,]+ bytes instead of [\d,]+; 0000", text)
    assert text.endswith("Remove that folder, and the same command starts the run over")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_damaged_one_never_counts_as_one_of_the_two_good_ones(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    (tmp_path / "000002.checkpoint").write_bytes(b"")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() == {"step": 10}
    checkpoints.save({"step": 15}, 15)
    assert files(tmp_path) == ["000001.checkpoint", "000003.checkpoint"]
    (tmp_path / "000003.checkpoint").write_bytes(b"")
    assert Checkpoints(tmp_path).latest() == {"step": 10}


def test_one_that_may_not_be_read_is_not_passed_over_and_a_bad_sector_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 2)
    read_bytes, code = Path.read_bytes, errno.EACCES

    def refuse(path: Path) -> bytes:
        if path.name == "000002.checkpoint":
            raise OSError(code, os.strerror(code))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"cannot read .*000002\.checkpoint: Permission denied"):
        Checkpoints(tmp_path).latest()
    code = errno.EIO
    assert Checkpoints(tmp_path).latest() == {"step": 10}


def test_another_version_or_kind_is_one_line_and_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Checkpoints(tmp_path, kind="atari").save({}, 1)
    with pytest.raises(UserError, match="is of a run of kind atari, this one is of kind cifar"):
        Checkpoints(tmp_path, kind="cifar").latest()
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    with pytest.raises(UserError, match="has format 1, this version of polydistill reads 2"):
        Checkpoints(tmp_path, kind="atari").latest()


# ---- crashes and the disk ----------------------------------------------------------------------------------------


def test_what_a_killed_process_left_is_removed_and_not_read(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    whole = (tmp_path / "000002.checkpoint").read_bytes()
    for name, content in [(".000003.checkpoint.77.tmp", whole[:99]), (".000003.checkpoint.78.tmp", whole)]:
        (tmp_path / name).write_bytes(content)
    assert Checkpoints(tmp_path).latest() == {"step": 20}
    assert files(tmp_path) == ["000001.checkpoint", "000002.checkpoint"]


def test_what_a_process_could_not_remove_any_more_goes_when_the_run_goes_on(tmp_path: Path) -> None:
    Checkpoints(tmp_path, keep=4).save({"step": 1}, 1)
    for step in (2, 3, 4):
        Checkpoints(tmp_path, keep=4).save({"step": step}, step)
    assert Checkpoints(tmp_path).latest() == {"step": 4}
    assert files(tmp_path) == ["000003.checkpoint", "000004.checkpoint"]


def test_the_body_is_on_the_disk_before_the_name_and_the_name_before_an_older_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, calls = saved(tmp_path, 2), []
    for owner, name in [(os, "fsync"), (os, "replace"), (Path, "unlink")]:
        original = getattr(owner, name)

        def spy(*arguments: Any, name: str = name, original: Any = original, **options: Any) -> Any:
            calls.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, spy)
    checkpoints.save({}, 3)
    assert calls == ["fsync", "replace", "fsync", "unlink"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.EACCES])
def test_a_disk_that_refuses_leaves_the_good_ones_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    checkpoints = saved(tmp_path, 3)

    def refuse(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(disk.os, call, refuse)
        with pytest.raises(UserError, match=rf"cannot write .*000004\.checkpoint: {os.strerror(code)}$"):
            checkpoints.save(STATE, 40)
    assert files(tmp_path) == ["000002.checkpoint", "000003.checkpoint"]
    assert checkpoints.latest() == {"step": 30}
    checkpoints.save({"step": 41}, 41)  # once there is room
    assert Checkpoints(tmp_path).latest() == {"step": 41}


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from polydistill.runs.checkpoint import Checkpoints
from polydistill.errors import UserError

folder = Path(sys.argv[1])
checkpoints = Checkpoints(folder)
for step in (10, 20):
    checkpoints.save({"step": step}, step)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    checkpoints.save({"weights": torch.zeros(20_000)}, 30)
except UserError as error:
    print(error)
print(sorted(path.name for path in folder.iterdir()), checkpoints.latest())
"""


def test_a_limit_on_the_size_of_files_is_one_line(
    tmp_path: Path, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The kernel says so with SIGXFSZ. In a process of its own: the limit holds for the tests' own log, too."""
    done = run_python("-c", LIMITED, str(tmp_path / "checkpoints"))
    assert done.returncode == 0, done.stderr
    refused, left = done.stdout.splitlines()
    assert re.fullmatch(r"cannot write .*000003\.checkpoint: File too large", refused)
    assert left == "['000001.checkpoint', '000002.checkpoint'] {'step': 20}"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with small_file_system(tmp_path / "disk", "1m") as folder:
        yield folder


def test_a_full_disk_is_one_line_and_going_on_needs_only_room(small_disk: Path) -> None:
    checkpoints = saved(small_disk / "checkpoints", 2)
    (small_disk / "filling").write_bytes(bytes(700_000))
    with pytest.raises(UserError, match=r"cannot write .*000003\.checkpoint: No space left on device$"):
        checkpoints.save({"weights": torch.zeros(100_000)}, 30)
    assert files(small_disk / "checkpoints") == ["000001.checkpoint", "000002.checkpoint"]
    assert Checkpoints(small_disk / "checkpoints").latest() == {"step": 20}
    (small_disk / "filling").unlink()
    checkpoints.save({"weights": torch.zeros(100_000)}, 30)
    assert len(files(small_disk / "checkpoints")) == 2


# ---- pace --------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_due_by_the_clock_or_by_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now)
    by_clock, by_steps = Pace(CheckpointConfig(60.0)), Pace(CheckpointConfig(60.0, every_steps=4))
    assert [step for step in range(1, 10) if by_steps.due(step)] == [4, 8]
    by_steps.saved(8, 0.0)
    assert not by_steps.due(8)
    now = 159.0
    assert not by_clock.due(5)
    now = 160.0
    assert by_clock.due(5)
    by_clock.saved(5, 0.1)
    assert not by_clock.due(6)


def test_saving_takes_at_most_two_percent_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, saving = 0.0, 0.0
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now)
    pace = Pace(CheckpointConfig(1.0))
    for step in range(100_000):
        now += 0.1
        if pace.due(step):
            now, saving = now + 5.0, saving + 5.0
            pace.saved(step, 5.0)
    assert 0.01 < saving / now <= 0.021


@pytest.mark.parametrize("arguments", [{"every_seconds": -1.0}, {"every_steps": -1}])
def test_a_negative_pace_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        CheckpointConfig(**arguments)
