"""Whether two run folders hold the same run, bit for bit but for times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

CLOCK = {"wall_seconds", "throughput", "seconds", "command", "hardware"}  # command: names the folder


def points(role: Path) -> dict[str, list[tuple[int, float | None]]]:
    """``(step, value)`` of every tag of a role as TensorBoard reads them; of what depends on the clock, None."""
    events = EventAccumulator(str(role), size_guidance={SCALARS: 0}).Reload()
    return {
        tag: [(point.step, None if "time/" in tag else point.value) for point in events.Scalars(tag)]
        for tag in sorted(events.Tags()["scalars"])
    }


def summary(out: Path) -> dict[str, Any]:
    """summary.json without times."""
    whole = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return {key: value for key, value in whole.items() if key not in CLOCK}


def timed(out: Path) -> list[tuple[str, int, list[str]]]:
    """timing.jsonl without its numbers."""
    lines = [json.loads(line) for line in (out / "timing.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["role"], line["step"], sorted(line["values"])) for line in lines]


def names(folder: Path) -> list[str]:
    """Every file below, but the checkpoints, the lock's, and a teacher's scores, whose files depend on the stops."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return sorted(str(path) for path in found if path.parts[0] not in ("checkpoints", "scores"))


def assert_same_run(expected: Path, found: Path, products: tuple[str, ...]) -> None:
    """Compare two finished runs of one config.

    Args:
        expected: a run folder.
        found: another.
        products: patterns of the files that must be the same byte for byte, beside config.yaml and metrics.jsonl.

    Raises:
        AssertionError: they differ, or something was left that does not belong there.
    """
    assert names(found) == names(expected)
    files = ["config.yaml", "metrics.jsonl"]
    for pattern in products:
        matching = [path.name for path in expected.glob(pattern)]
        assert matching, f"{expected} has no {pattern}"
        files += matching
    for name in files:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    assert summary(found) == summary(expected)
    assert timed(found) == timed(expected)
    for role in (expected / "tb").iterdir():
        assert points(found / "tb" / role.name) == points(role), role.name
    checkpoints = list((found / "checkpoints").iterdir())
    assert 1 <= len(checkpoints) <= 2
    assert all(path.suffix == ".checkpoint" for path in checkpoints)
