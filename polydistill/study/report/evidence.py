"""What the run folders of a study tell beside its records: commands, environments, data, gradient shares.

Contract: a folder that cannot be read tells nothing, and is no error: the runs' numbers are in the records.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polydistill.errors import UserError
from polydistill.runs import read_summary
from polydistill.study.records import RunRecord

LABEL_SHARE = "distill/label_share"
MOST_SETS = 3  # of one part that are named


@dataclass(frozen=True)
class Evidence:
    """Of the finished runs."""

    commands: Mapping[str, str]  # arm -> the command of its first seed
    environments: Sequence[str]  # each different one in words, with the number of its runs
    data: Sequence[str]  # each different set in words: part, number of inputs, sha256
    shares: Mapping[str, Sequence[tuple[float, float]]]  # arm -> (step, mean over its seeds of the label's share)


def gather(out: Path, records: Sequence[RunRecord]) -> Evidence:
    """Read summary.json and metrics.jsonl of every finished run."""
    done = sorted(
        (record for record in records if record.status == "done"), key=lambda record: (record.seed, record.arm)
    )
    commands: dict[str, str] = {}
    environments: dict[str, int] = defaultdict(int)
    data: dict[str, dict[str, None]] = defaultdict(dict)  # part -> each different set in words
    shares: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in done:
        summary: Mapping[str, Any] = {}
        with contextlib.suppress(UserError, OSError):
            summary = read_summary(out / record.folder)
        if summary.get("command"):
            commands.setdefault(record.arm, str(summary["command"]))
        if summary:
            environments[_environment(summary)] += 1
            for part, words in _data(summary):
                data[part][words] = None
        for step, share in _label_shares(out / record.folder / "metrics.jsonl"):
            shares[record.arm][step].append(share)
    return Evidence(
        commands=commands,
        environments=[f"{words} ({n} run{'s' if n > 1 else ''})" for words, n in sorted(environments.items())],
        data=[words for part in sorted(data) for words in _sets(part, list(data[part]))],
        shares={arm: [(step, float(np.mean(seen[step]))) for step in sorted(seen)] for arm, seen in shares.items()},
    )


def _environment(summary: Mapping[str, Any]) -> str:
    hardware, git = summary.get("hardware") or {}, summary.get("git")
    made = f"commit {git['commit']}{' with changes' if git['dirty'] else ''}" if git else "no clone"
    versions = ", ".join(f"{name} {version}" for name, version in (summary.get("versions") or {}).items())
    machine = f"{hardware.get('cpu', 'unknown processor')}, {hardware.get('cores', '?')} cores"
    return f"{machine}, {hardware.get('gpu') or 'no GPU'}; {made}; {versions}"


def _sets(part: str, found: Sequence[str]) -> Iterator[str]:
    """The different sets of a part; of many, as where validation inputs are drawn by the seed, how many there are."""
    if len(found) > MOST_SETS:
        yield f"{part}: {len(found)} different sets, as summary.json of each run names them; the first: {found[0]}"
        return
    yield from (f"{part}: {words}" for words in sorted(found))


def _data(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for part, held in (summary.get("data") or {}).items():
        if isinstance(held, Mapping) and held.get("sha256"):
            sizes = f", of their sizes {held['sizes_sha256']}" if held.get("sizes_sha256") else ""
            yield part, f"{held.get('images', '?')} inputs, sha256 {held['sha256']}{sizes}"


def _label_shares(path: Path) -> Iterator[tuple[float, float]]:
    """``(step, share)`` of the last role that has any: the student's."""
    found: dict[str, list[tuple[float, float]]] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        for line in path.read_text(encoding="utf-8").splitlines():
            if LABEL_SHARE in line:
                entry = json.loads(line)
                share = entry["values"].get(LABEL_SHARE)
                if share is not None:
                    found.setdefault(entry["role"], []).append((float(entry["step"]), float(share)))
    yield from list(found.values())[-1] if found else []
