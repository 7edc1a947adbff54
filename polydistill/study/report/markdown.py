"""A report as Markdown, without its pictures. Texts are escaped, so that a name stays a name."""

from __future__ import annotations

import re
from collections.abc import Iterator

from polydistill.report.document import Block, Code, Document, Items, Paragraph, Picture, Table


def render_markdown(document: Document) -> str:
    """The whole file. Pictures are left out: their numbers are in results.csv."""
    parts = [f"# {escape(document.title)}"]
    for section in document.sections:
        written = [text for block in section.blocks if (text := _block(block))]
        if written:
            parts += [f"## {escape(section.title)}"] if section.title else []
            parts += written
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """The text on one line, with a backslash before what Markdown or its HTML would read as a sign."""
    return re.sub(r"([\\`*_{}\[\]<>|#~&$])", r"\\\1", " ".join(text.split()))


def _block(block: Block) -> str:
    match block:
        case Paragraph(text, kind):
            return f"**{escape(text)}**" if kind == "warning" else escape(text)
        case Items(texts):
            return "\n".join(f"- {escape(text)}" for text in texts)
        case Code(text):
            fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
            return f"{fence}\n{text}\n{fence}"
        case Picture():
            return ""
        case Table():
            return "\n".join(_table(block))


def _table(table: Table) -> Iterator[str]:
    rule = ["---" if column < table.n_names else "---:" for column in range(len(table.headers))]
    for row in (tuple(map(escape, table.headers)), rule, *(tuple(map(escape, row)) for row in table.rows)):
        yield "| " + " | ".join(row) + " |"
