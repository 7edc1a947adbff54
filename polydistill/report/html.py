"""A report as one HTML file: pictures inside, light and dark, for a phone, a desktop and paper.

Contract: every text is escaped; the file asks for nothing else, neither scripts nor fonts nor pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import groupby

from polydistill.report.document import Block, Code, Document, Items, Paragraph, Picture, Section, Table

# the pictures name these colours, too: see pictures.py
STYLE = """
:root { color-scheme: light dark;
  --paper: #ffffff; --ink: #1b1b1b; --quiet: #5d5d5d; --rule: #d4d4d4; --panel: #f4f4f2; --warn: #8a3a00;
  --c0: #0067a3; --c1: #c04f00; --c2: #00795a; --c3: #a8437f; --c4: #7a6a00;
  --c5: #4b57c9; --c6: #7d4a2d; --c7: #5d5d5d }
@media (prefers-color-scheme: dark) { :root {
  --paper: #16181a; --ink: #e9e9e6; --quiet: #a9a9a4; --rule: #43464a; --panel: #212427; --warn: #ffb27a;
  --c0: #6cb8ec; --c1: #f59b5b; --c2: #4fc7a3; --c3: #e895c4; --c4: #d9c95a;
  --c5: #a3acff; --c6: #cfa184; --c7: #b0b0aa } }
@media print { :root { color-scheme: light;
  --paper: #ffffff; --ink: #000000; --quiet: #444444; --rule: #bbbbbb; --panel: #ffffff; --warn: #000000;
  --c0: #0067a3; --c1: #c04f00; --c2: #00795a; --c3: #a8437f; --c4: #7a6a00;
  --c5: #4b57c9; --c6: #7d4a2d; --c7: #5d5d5d } }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.2; margin: 0.5rem 0 1rem }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 2.5rem 0 0.5rem; padding-top: 0.5rem;
  border-top: 1px solid var(--rule) }
p, ul { max-width: 44rem; margin: 0.6rem 0 } ul { padding-left: 1.2rem } li { margin: 0.3rem 0 }
.answer { font-size: 1.15rem; line-height: 1.4; max-width: 48rem }
.warning { color: var(--warn); border-left: 4px solid var(--warn); padding-left: 0.7rem; font-weight: 600 }
.note { color: var(--quiet); font-size: 0.9rem }
pre { background: var(--panel); padding: 0.7rem; font-size: 0.85rem; white-space: pre-wrap; overflow-wrap: anywhere }
table { border-collapse: collapse; margin: 0.8rem 0; font-size: 0.9rem; font-variant-numeric: tabular-nums }
th, td { padding: 0.3rem 0.7rem 0.3rem 0; text-align: right; vertical-align: top; border-bottom: 1px solid var(--rule);
  overflow-wrap: normal }
th { color: var(--quiet); font-weight: 600; vertical-align: bottom }
th.name, td.name { text-align: left; overflow-wrap: anywhere; min-width: 9.5rem }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.5rem;
  margin: 1rem 0 }
figure { margin: 0; max-width: 32rem; break-inside: avoid }
figcaption { color: var(--quiet); font-size: 0.9rem }
svg { display: block; width: 100%; height: auto } svg text { font-family: inherit }
@media screen and (max-width: 44rem) {
  table, tbody, tr, td { display: block } thead { position: absolute; left: -9999px }
  tr { border-bottom: 2px solid var(--rule); padding: 0.5rem 0 }
  td, td.name { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: 0.1rem 0;
    text-align: right }
  td::before { content: attr(data-of); color: var(--quiet); text-align: left; flex: none; max-width: 55% }
  td:first-child { font-weight: 600 } }
@media print { body { max-width: none; padding: 0; font-size: 10pt }
  h2 { break-after: avoid } tr, pre { break-inside: avoid }
  table { font-size: 8pt } .pictures { grid-template-columns: 1fr 1fr } figcaption { font-size: 8pt } }
"""


def render_html(document: Document) -> str:
    """The whole file."""
    body = "\n".join(_section(section) for section in document.sections)
    title = escape(document.title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    heading = [f"<h2>{escape(section.title)}</h2>"] if section.title else []
    return "<section>\n" + "\n".join([*heading, *_blocks(section)]) + "\n</section>"


def _blocks(section: Section) -> Iterator[str]:
    """Each block; pictures that follow each other stand side by side where there is room."""
    for are_pictures, blocks in groupby(section.blocks, key=lambda block: isinstance(block, Picture)):
        written = [_block(block) for block in blocks]
        yield '<div class="pictures">\n' + "\n".join(written) + "\n</div>" if are_pictures else "\n".join(written)


def _block(block: Block) -> str:
    match block:
        case Paragraph(text, kind):
            return f'<p class="{kind}">{escape(text)}</p>'
        case Items(texts):
            return "<ul>\n" + "\n".join(f"<li>{escape(text)}</li>" for text in texts) + "\n</ul>"
        case Code(text):
            return f"<pre>{escape(text)}</pre>"
        case Picture(svg, caption):
            return f"<figure>\n{svg}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"
        case Table():
            return _table(block)


def _table(table: Table) -> str:
    names = ['class="name"' if column < table.n_names else "" for column in range(len(table.headers))]
    heads = "".join(f"<th {name}>{escape(header)}</th>" for name, header in zip(names, table.headers, strict=True))
    rows = [
        "<tr>"
        + "".join(
            f'<td {name} data-of="{escape(header)}"><span>{escape(cell)}</span></td>'
            for name, header, cell in zip(names, table.headers, row, strict=True)
        )
        + "</tr>"
        for row in table.rows
    ]
    return f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody>\n</table>"
