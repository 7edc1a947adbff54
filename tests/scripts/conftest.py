"""A script run in this process, sooner than in a process of its own, and games that are cut short."""

from __future__ import annotations

import dataclasses
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from polydistill_agents.environments.protocols import PROTOCOLS

Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def inside(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Script]:
    """Run ``scripts/NAME ...`` in this process, in an empty folder, on a terminal of 200 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "path", [*sys.path])  # each script puts the clone in front
    threads = torch.get_num_threads()

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in arguments]
        capsys.readouterr()
        try:
            runpy.run_path(str(root / "scripts" / name))["main"](words)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        return subprocess.CompletedProcess([name, *words], code, *capsys.readouterr())

    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def short_games(monkeypatch: pytest.MonkeyPatch) -> None:
    """Games of the protocol "rusu" are cut after 100 steps, in this process."""
    monkeypatch.setitem(PROTOCOLS, "rusu", dataclasses.replace(PROTOCOLS["rusu"], max_frames=400))
