"""polydistill.runs.interruption and run_script: signals end a script in order, and lines say what is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from polydistill.errors import Interrupted, run_script
from polydistill.runs.interruption import StopSignals

SCRIPT = """
import sys, time
from polydistill.errors import run_script
from polydistill.runs.interruption import StopSignals

@run_script
def main():
    with StopSignals() as stop:
        print("started", flush=True)
        for step in range(100):
            time.sleep({sleep})
            if stop.received:
                print("saved", flush=True)
                stop.raise_if_received("stopped after step 3, and saved: the same command goes on from there")
main()
"""


def start(root: Path, code: str, **options: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(root: Path, number: signal.Signals, code: int) -> None:
    process = start(root, SCRIPT.format(sleep=0.05))
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert out == "saved\n"
    assert err.splitlines() == [
        f"{number.name}: ending this step and saving; a second one stops at once",
        "stopped after step 3, and saved: the same command goes on from there",
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_is_obeyed_at_once(root: Path, number: signal.Signals, code: int) -> None:
    process = start(root, SCRIPT.format(sleep=30.0))
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("SIGTERM: ")
    began = time.monotonic()
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert time.monotonic() - began < 5
    assert (process.returncode, out) == (code, "")


IN_C = """
import hashlib
from polydistill.runs.interruption import StopSignals
with StopSignals():
    print("started", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**30)  # many minutes in which no handler of Python's runs
"""


def test_a_second_signal_is_obeyed_inside_a_long_call_too(root: Path) -> None:
    process = start(root, IN_C)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=5)
    assert process.returncode == 143


FORKED = """
import os, sys, time
from polydistill.runs.interruption import StopSignals
with StopSignals() as stop:
    child = os.fork()
    if not child:
        print("started", flush=True)
        while not stop.received:
            time.sleep(0.01)
        os._exit(0)
    while not stop.received:
        time.sleep(0.01)
    os.waitpid(child, 0)
    time.sleep(0.3)  # for a thread that has counted wrongly
    print("saved", flush=True)
"""


def test_one_signal_to_a_process_and_its_forked_child_is_one_to_each(root: Path) -> None:
    process = start(root, FORKED, start_new_session=True)
    os.killpg(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "saved\n")


def test_a_signal_that_is_ignored_stays_so(root: Path) -> None:
    process = start(
        root, SCRIPT.format(sleep=0.05), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    )  # as under nohup
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143


def test_afterwards_the_signals_mean_what_they_did_before() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with StopSignals() as stop:
        assert signal.getsignal(signal.SIGTERM) not in before.values()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received is signal.SIGTERM
        with pytest.raises(Interrupted, match="go on"):
            stop.raise_if_received("go on")
    assert {number: signal.getsignal(number) for number in before} == before
    assert signal.set_wakeup_fd(-1) == -1


def test_without_a_signal_nothing_is_raised_and_another_thread_is_left_alone() -> None:
    found: list[StopSignals] = []

    def work() -> None:
        with StopSignals() as stop:
            stop.raise_if_received("no")
            found.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].received is None


def test_other_threads_receive_a_signal_when_the_main_thread_tells_them() -> None:
    seen: list[signal.Signals | None] = []
    looks, told = threading.Barrier(2), threading.Barrier(2)

    def work() -> None:
        with StopSignals() as own:
            looks.wait()
            seen.append(own.received)
            looks.wait()
            told.wait()
            with StopSignals():  # one that ends takes nothing from the others
                pass
            seen.append(own.received)

    with StopSignals() as stop:
        thread = threading.Thread(target=work)
        thread.start()
        stop.tell_threads()  # there is nothing to tell
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received is signal.SIGTERM
        looks.wait()
        looks.wait()
        stop.tell_threads()
        told.wait()
        thread.join()
    assert seen == [None, signal.SIGTERM]
    again = threading.Thread(target=lambda: seen.append(StopSignals().received))
    again.start()
    again.join()
    assert seen[-1] is None, "that was another run"


# ---- what run_script makes of it ---------------------------------------------------------------------------------


def line_of(capsys: pytest.CaptureFixture[str], error: BaseException) -> tuple[object, str]:
    @run_script
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code, capsys.readouterr().err


def test_memory_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 56, dtype=torch.uint8)
    for refused in (error.value, MemoryError()):
        code, text = line_of(capsys, refused)
        assert code == 2
        assert text.count("\n") == 1
        assert text.startswith("error: out of memory: ")
        assert text.endswith("what was saved is kept\n")


def test_any_other_runtime_error_is_the_programmers() -> None:
    @run_script
    def main() -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        main()


def test_a_stop_without_words_prints_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert line_of(capsys, Interrupted(signal.SIGTERM, "")) == (143, "")
