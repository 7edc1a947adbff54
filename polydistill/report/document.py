"""A report as data: sections of blocks, which html.py and markdown.py write down. Texts are plain, not escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Paragraph:
    """A text; the answer is set large, a warning stands out, a note is small."""

    text: str
    kind: Literal["plain", "answer", "warning", "note"] = "plain"


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Every cell is text; the columns after the first ``n_names`` are numbers."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_names: int = 1

    def __post_init__(self) -> None:
        if any(len(row) != len(self.headers) for row in self.rows):
            raise ValueError(f"every row needs {len(self.headers)} cells, got {[len(row) for row in self.rows]}")


@dataclass(frozen=True)
class Picture:
    """A whole ``<svg>`` element for an HTML page, and what it shows."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    text: str


Block = Paragraph | Items | Table | Picture | Code


@dataclass(frozen=True)
class Section:
    """A heading (none: empty) and what stands below it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """The whole report."""

    title: str
    sections: Sequence[Section]
