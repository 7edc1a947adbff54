"""audit.py: what a database says becomes an exit code; where there is none, that is said and is no error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FLAW = {"id": "PYSEC-2026-1", "fix_versions": ["2.0"]}


def package(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "version": "1.0", **more}


@pytest.mark.parametrize(
    ("answer", "code", "line"),
    [
        ([package("a", vulns=[]), package("b", vulns=[])], 0, "2 of 2 packages audited, 0 known vulnerabilities"),
        ([package("a", vulns=[FLAW])], 1, "a 1.0: PYSEC-2026-1, fixed in 2.0"),
        ([package("a", vulns=[]), package("b", skip_reason="x")], 0, "1 of 2 packages audited"),
        ([package("a", skip_reason="x")], 0, "not audited: the database that is reached knows none of the 1 packages"),
        (None, 0, "not audited: no database of vulnerabilities can be reached (ConnectionError: no route)"),
    ],
)
def test_the_answer_decides(root: Path, tmp_path: Path, answer: Any, code: int, line: str) -> None:
    program = tmp_path / "pip-audit"
    text = "raise SystemExit('ConnectionError: no route')"
    if answer is not None:
        text = f"print({json.dumps({'dependencies': answer})!r})"
    program.write_text(f"#!{sys.executable}\n{text}\n")
    program.chmod(0o755)
    done = run(root, program)
    assert done.returncode == code, done.stderr
    assert line in done.stdout


def test_a_program_that_is_not_there_is_said(root: Path, tmp_path: Path) -> None:
    done = run(root, tmp_path / "none")
    assert done.returncode == 0
    assert done.stdout.startswith("not audited: ")


def run(root: Path, program: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "scripts" / "audit.py"), "--pip_audit", str(program)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)
