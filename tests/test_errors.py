"""polydistill.errors and device: a machine that lacks something is one line, and is shared fairly."""

from __future__ import annotations

import os

import pytest
import torch

from polydistill.device import resolve_threads
from polydistill.errors import run_script

# as torch 2.13 words it
GPU_FULL = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 12.38 GiB is "
    "free. Process 12 has 66.72 GiB memory in use. Of the allocated memory 60.10 GiB is allocated by PyTorch, and "
    "5.50 GiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation for Memory Management"
)


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (
            torch.OutOfMemoryError(GPU_FULL),
            "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which "
            "12.38 GiB is free",
        ),
        (
            RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
            "CUDA error: out of memory",
        ),
    ],
)
def test_a_gpu_whose_memory_is_full_is_one_line(
    capsys: pytest.CaptureFixture[str], error: RuntimeError, shown: str
) -> None:
    @run_script
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: out of memory: {shown}; what was saved is kept\n"


def test_another_error_of_a_gpu_is_a_traceback() -> None:
    @run_script
    def main() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert"):
        main()


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    for processes, threads in ((None, 6), ("2", 3), ("4", 1), ("8", 1)):
        if processes is None:
            monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        else:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert resolve_threads(0) == threads
        assert resolve_threads(5) == 5, "a number that was given is meant"
