"""What docs/teacher_scores.md shows runs, and its numbers of bytes are those on the disk."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from polydistill.modules import TeacherCache
from polydistill.modules.teacher_scores import TeacherScores

PAGE = Path(__file__).resolve().parent.parent / "docs" / "teacher_scores.md"
TEXT = PAGE.read_text(encoding="utf-8")
LINEAGE, LOSSES = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(LINEAGE, PAGE.name, "exec"), names)
    accuracies = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(accuracies) == 3
    assert min(accuracies) > 0.5
    assert len(list((tmp_path / "scores").iterdir())) == 2
    exec(compile(LOSSES, PAGE.name, "exec"), names)
    assert names["student"].grad.isfinite().all()


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ({}, 20 * 4),
        ({"dtype": "float16"}, 20 * 2),
        ({"top_k": 5}, 5 * 8 + 4),
        ({"top_k": 5, "dtype": "bfloat16"}, 5 * 6 + 2),
    ],
)
def test_a_sample_takes_as_many_bytes_as_the_page_says(tmp_path: Path, form: dict[str, Any], row: int) -> None:
    batch = torch.randn(30, 20), torch.zeros(30, dtype=torch.long)
    score = lambda module, batch: module(*batch.inputs)  # noqa: E731
    TeacherScores(nn.Linear(20, 20), TeacherCache(tmp_path, **form), score).fill([batch], lambda what: None)
    tensors = load_file(next(tmp_path.rglob("*.safetensors")))
    besides = {name: tensors.pop(name).nbytes for name in ("samples", "positions")}
    assert sum(besides.values()) == 40 * 30
    assert sum(tensor.nbytes for tensor in tensors.values()) == row * 30
