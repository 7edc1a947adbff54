"""The kernels compile for a GPU, which the interpreter does not show: it accepts what the compiler refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from polydistill.kernels.launch import KINDS, fits

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("n_classes", [100, 131_072])
def test_every_kernel_compiles_for_hopper(n_classes: int, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "tests.kernels.compiling", str(n_classes)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, _, _ in compiled] == [kind for kind in KINDS if fits(kind, n_classes, 2)]
    assert all(int(size) > 1000 for _, _, size in compiled)
