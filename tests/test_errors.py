"""polydistill.errors and device: a machine that lacks something is one line, and is shared fairly."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

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


def test_a_warning_of_a_script_is_one_line() -> None:
    script = """
import warnings
from polydistill.errors import run_script

@run_script
def main():
    warnings.warn("these are taken\\nas Q-values", stacklevel=1)

main()
warnings.warn("outside", stacklevel=1)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, second, *_ = ended.stderr.splitlines()
    assert first == "warning: these are taken as Q-values"
    assert second.startswith("<string>:10: UserWarning: outside"), "elsewhere warnings look as before"
