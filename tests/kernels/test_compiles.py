"""The kernels compile for a GPU, which the interpreter does not show: it accepts what the compiler refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from polydistill.kernels.plan import KINDS

ROOT = Path(__file__).resolve().parent.parent.parent


def compile_in_a_process(words: list[str], cache: Path) -> list[list[str]]:
    """Kind, classes, registers and spilled bytes of each kernel."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.kernels.compiling", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = [line.split() for line in done.stdout.splitlines()]
    # an array that does not fit into the registers of its threads is kilobytes; a few numbers of a row do no harm
    assert max(int(spilled) for _, _, _, spilled in compiled) <= 128
    return compiled


@pytest.mark.parametrize("n_classes", [100, 8192, 131_072])
def test_every_kernel_compiles_for_hopper(n_classes: int, tmp_path: Path) -> None:
    compiled = compile_in_a_process([str(n_classes)], tmp_path)
    assert [name for name, *_ in compiled] == list(KINDS)


def test_masks_ensembles_one_class_and_other_types_compile_for_hopper(tmp_path: Path) -> None:
    compiled = compile_in_a_process(["variants"], tmp_path)
    kinds = [
        "kl 100",
        "jsd 100",
        "rest 100",
        "kl 32000",
        "jsd 32000",
        "permuted 32000",
        "decoupled 32000",
        "kl_label 1",
    ]
    kinds += ["mse 100", "best 100", "permuted 100", "rest 100", "decoupled 100"]
    kinds += ["kl 1000", "jsd 1000", "decoupled 1000", "jsd 8192"]
    kinds += ["kl 32000"] * 2 + ["kl_label 32000"] * 2 + ["soft_label 32000", "label 131072"]
    kinds += ["confidence 18", "confidence 18", "confidence 131072"]
    assert [f"{name} {n_classes}" for name, n_classes, *_ in compiled] == kinds
