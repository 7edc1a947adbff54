"""A run of one's own modules is killed at random moments, and ends as the one that nobody disturbed."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from tests.crashes.killing import kill_after, run_killed, start
from tests.crashes.same import assert_same_run


def test_a_run_with_a_teachers_scores_on_disk_survives_two_kills(root: Path, tmp_path: Path) -> None:
    """Once it has saved generation 0, and once it has written scores. Many more, and other runs: make crashes."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def command(out: Path) -> list[str]:
        return [sys.executable, str(root / "tests" / "crashes" / "own_modules.py"), str(out), "3", "cached"]

    for pattern in ("checkpoints/*.checkpoint", "scores/*/*.safetensors"):
        process = start(command(killed), {})
        while not list(killed.glob(pattern)) and process.poll() is None:
            time.sleep(0.005)
        assert kill_after(process, killed, 0.0, at_a_write=False), process.communicate()[0]
        process.communicate()
    for out in (killed, whole):
        run_killed(command, out, random.Random(), kills=0, longest_seconds=0.0)
    assert_same_run(whole, killed, ("generation_*.safetensors",))
