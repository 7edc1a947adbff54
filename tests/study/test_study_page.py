"""docs/study.md: its example is a study that this version plans, and its words are those of the report."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from polydistill.study.answer import VERBS
from polydistill.study.commands import study

pytest.importorskip("scipy", reason="the extra study is not installed")


@pytest.fixture
def page(root: Path) -> str:
    return (root / "docs" / "study.md").read_text(encoding="utf-8")


def test_the_example_is_planned(page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "study.yaml").write_text(example)
    study.main(["--config", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out"), "--dry_run"])
    printed = capsys.readouterr().out
    assert "contrasts named beforehand: ban against labels, ban against joint, labels against null" in printed
    assert re.search(r"\| ban_2 +\| ban +\| student.objective ban, student.repeat 2 +\|", printed)
    assert "20 seeds, 140 runs" in printed  # 6 arms and a teacher
    assert not (tmp_path / "out").exists()


def test_the_words_of_the_answer_are_explained(page: str) -> None:
    for words in (*VERBS.values(), "equals ... within", "undecided"):
        assert words in page
