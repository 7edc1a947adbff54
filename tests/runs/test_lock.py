"""polydistill.runs.lock: one process per run folder, and a dead one blocks nobody."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polydistill.errors import UserError
from polydistill.runs.lock import FolderLock

HOLD = """
import sys, time
from pathlib import Path
from polydistill.runs.lock import FolderLock
held = FolderLock(Path(sys.argv[1]))
{more}
print("held", flush=True)
time.sleep(60)
"""


def holder(root: Path, folder: Path, more: str = "") -> subprocess.Popen[str]:
    """A process that holds the lock of ``folder``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(more=more), str(folder)],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.stdout.close()
    return process


def test_a_second_process_is_refused_with_one_line_until_the_first_is_killed(root: Path, tmp_path: Path) -> None:
    first = holder(root, tmp_path)
    with pytest.raises(UserError) as error:
        FolderLock(tmp_path)
    told = rf"another process \({first.pid} on .+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\) is working in "
    assert re.match(told, str(error.value))
    assert f"is working in {tmp_path}" in str(error.value)
    assert "\n" not in str(error.value)
    first.kill()
    first.wait()
    assert (tmp_path / ".lock").read_text()[1:].startswith(f"{first.pid} on "), "the crash left the file behind"
    FolderLock(tmp_path).release()


def test_a_second_lock_in_the_same_process_is_refused_too_and_a_released_one_is_free(tmp_path: Path) -> None:
    first = FolderLock(tmp_path)
    with pytest.raises(UserError, match="another process"):
        FolderLock(tmp_path)
    first.release()
    first.release()
    again = FolderLock(tmp_path)
    del again  # collected: given back
    FolderLock(tmp_path).release()


def test_a_child_does_not_keep_its_parents_lock(root: Path, tmp_path: Path) -> None:
    more = "import os, subprocess\nif os.fork() == 0: time.sleep(60)\nsubprocess.Popen(['sleep', '60'])"
    first = holder(root, tmp_path, more)
    try:
        with pytest.raises(UserError, match="another process"):
            FolderLock(tmp_path)
        os.kill(first.pid, signal.SIGKILL)  # the fork and the program live on
        first.wait()
        deadline = time.monotonic() + 5
        while True:
            try:
                FolderLock(tmp_path).release()
                break
            except UserError:
                assert time.monotonic() < deadline, "the children hold the lock of their dead parent"
                time.sleep(0.05)
    finally:
        os.killpg(first.pid, signal.SIGKILL)


def test_a_child_that_ends_takes_no_lock_away(tmp_path: Path) -> None:
    held = FolderLock(tmp_path)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(UserError, match="another process"):
        FolderLock(tmp_path)
    held.release()


def test_a_file_system_without_locks_is_one_line_and_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    FolderLock(tmp_path).release()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{tmp_path} is on a file system without locks: start no second process on it"
    (folder := tmp_path / "scores").mkdir()
    for _ in range(2):
        FolderLock(folder, waits=True).release()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{folder} is on a file system without locks")


def test_a_system_without_any_lock_is_one_line_and_no_end(root: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['fcntl'] = None; import polydistill.vision; from pathlib import Path; "
        "from polydistill.runs.lock import FolderLock, require_unlocked; here = Path('.'); "
        "FolderLock(here).release(); require_unlocked(here)"
    )
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ". is on a file system without locks: start no second process on it\n"


@pytest.mark.parametrize("content", [b"", b"\xff\x00\n", b"x" * 1000])
def test_whatever_the_lock_file_holds_a_free_lock_is_free(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".lock").write_bytes(content)
    with FolderLock(tmp_path):
        assert (tmp_path / ".lock").read_bytes().startswith(f"\n{os.getpid()} on ".encode())


def test_a_folder_that_refuses_the_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*\.lock: Is a directory"):
        FolderLock(tmp_path)
