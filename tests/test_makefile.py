"""The Makefile where it decides something: what an audit that could not look comes to."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

FOUND = """
while [ "$1" != --output ]; do shift; done
echo 'torch 1.0 PYSEC-1' > "$2"
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("program", "code", "line"),
    [
        ("echo 'No known vulnerabilities found' >&2", 0, "No known vulnerabilities found"),
        (FOUND + "exit 1", 2, "torch 1.0 PYSEC-1"),
        (FOUND, 0, "torch 1.0 PYSEC-1"),  # pip-audit lists what its database does not know, too
        ("echo 'ConnectionError: no route' >&2; exit 1", 0, "not audited: no database of vulnerabilities answers"),
        ("echo 'unrecognized arguments' >&2; exit 2", 2, "unrecognized arguments"),
        (None, 0, "not audited: pip-audit cannot be installed"),
    ],
    ids=["clean", "vulnerable", "unknown packages", "no network", "a wrong argument", "not installed"],
)
def test_an_audit_that_cannot_look_says_so_and_is_no_error(
    root: Path, tmp_path: Path, program: str | None, code: int, line: str
) -> None:
    if program is not None:
        path = tmp_path / "audit" / "bin" / "pip-audit"
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\n{program}\n")
        path.chmod(0o755)
    command = ["make", "audit", f"VENV={tmp_path}", "PYTHON=false"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert line in done.stdout + done.stderr
    assert ("not audited" in done.stdout) == line.startswith("not audited")
