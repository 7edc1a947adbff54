"""CITATION.cff: valid, of this version, with the papers whose methods these are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import polydistill


@pytest.fixture
def citation(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    return found


def test_it_has_what_the_format_requires(citation: dict[str, Any]) -> None:
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["authors"] == [{"name": "The polydistill authors"}]


def test_its_version_is_the_packages(citation: dict[str, Any]) -> None:
    assert str(citation["version"]) == polydistill.__version__


def test_it_names_both_papers(citation: dict[str, Any], root: Path) -> None:
    papers = (root / "PAPERS.md").read_text(encoding="utf-8")
    named = {(paper["authors"][0]["family-names"], paper["year"]) for paper in citation["references"]}
    assert named == {("Furlanello", 2018), ("Rusu", 2016)}
    assert all(f"{name} et al. {year}" in papers for name, year in named)
    assert all(paper["url"] in papers for paper in citation["references"])
