"""What every test may ask for: the root of the clone and a subprocess that sees only this clone's packages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # in the background of a shell Ctrl-C is ignored, and the programs that tests start would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)

# nothing to remember: the speeds of tiny runs, and the empty folders that SB3 makes where it learns without a log
_cache = tempfile.TemporaryDirectory()
os.environ["XDG_CACHE_HOME"] = _cache.name
os.environ["SB3_LOGDIR"] = os.path.join(_cache.name, "sb3")

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Names of tests are those of every process; without a CUDA device GPU tests are skipped, visibly.

    GPU tests asked for alone (`make test-gpu`) are an error without one.
    """
    unstable = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if unstable:
        raise pytest.UsageError(f"an address in the name of a test: give ids to {unstable[0]}")
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_tests:
        return
    import torch  # here, so that the layer test of `make check` does not wait for it

    if torch.cuda.is_available():
        return
    if config.option.markexpr == "gpu":
        raise pytest.UsageError("the GPU tests need a CUDA device, and torch sees none")
    for item in gpu_tests:
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the clone."""
    return ROOT


@pytest.fixture
def torch_threads_restored() -> Iterator[None]:
    """A script sets the thread count of its own process; here that process is pytest's."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """Run ``python ARGUMENTS`` in an empty folder, with the clone behind ``path`` on PYTHONPATH."""

    def run(*arguments: str, path: tuple[Path, ...] = (), cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT))), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
        )

    return run
