"""A benchmark of scripts/ in the test's own process."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from pathlib import Path

import torch


def run_benchmark(root: Path, name: str, words: Sequence[str]) -> None:
    """Run ``scripts/<name>`` of the clone with these flags; torch's threads are then as before."""
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(root / "scripts" / name))["main"](list(words))
    finally:
        torch.set_num_threads(threads)
