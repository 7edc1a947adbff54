"""A run of one's own modules is killed at random moments, and ends as the one that nobody disturbed."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from tests.crashes.killing import run_killed
from tests.crashes.same import assert_same_run


def test_a_run_with_a_teachers_scores_on_disk_survives_two_kills(root: Path, tmp_path: Path) -> None:
    """Many more, and other runs: make crashes."""

    def command(out: Path) -> list[str]:
        return [sys.executable, str(root / "tests" / "crashes" / "own_modules.py"), str(out), "3", "cached"]

    whole = run_killed(command, tmp_path / "whole", random.Random(), kills=0, longest_seconds=0.0)
    found = run_killed(command, tmp_path / "killed", random.Random(3), kills=2, longest_seconds=0.7 * whole.seconds)
    assert found.kills == 2
    assert_same_run(tmp_path / "whole", tmp_path / "killed", ("generation_*.safetensors",))
