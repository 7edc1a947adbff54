"""The notebooks under docs/ run from their first cell to their last, on fewer steps and shorter games."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from polydistill_agents.environments.protocols import PROTOCOLS

DOCS = Path(__file__).resolve().parent.parent / "docs"
NOTEBOOKS = sorted(DOCS.glob("*.ipynb"))
FEWER = {"own_agent": {"STEPS": 640, "GAMES": 2}, "own_classifier": {}}


def source(notebook: Path) -> str:
    """The code of a notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def with_fewer(code: str, numbers: dict[str, int]) -> str:
    """The code with other numbers in the lines that say ``NAME = number``."""
    for name, number in numbers.items():
        code, found = re.subn(rf"^{name} = [\d_]+$", f"{name} = {number}", code, flags=re.MULTILINE)
        assert found == 1, f"{name} is not written once"
    return code


def test_there_is_one_for_agents_and_one_for_classifiers() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["own_agent", "own_classifier"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PROTOCOLS, "rusu", dataclasses.replace(PROTOCOLS["rusu"], max_frames=400))
    code = compile(with_fewer(source(notebook), FEWER[notebook.stem]), notebook.name, "exec")
    with torch.random.fork_rng():
        exec(code, {"__name__": "__main__"})
    assert capsys.readouterr().out


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_its_outputs(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert all(cell.get("outputs", []) == [] and cell.get("execution_count") is None for cell in cells)
