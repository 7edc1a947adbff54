"""A script's docstring fitted to the width of the terminal, with commands that can be copied.

Contract: the words and their order stay; only spaces and line breaks change.
"""

from __future__ import annotations

import re
import textwrap


def as_called(text: str, script: str, called: str) -> str:
    """The description of a script with its examples as a user calls it; torchrun takes a console command, too.

    Args:
        text: names ``script``, and after torchrun its path alone.
        script: like ``python scripts/demo.py``.
        called: the same, or the name of a console command.

    Example:
        >>> as_called("python scripts/a.py; torchrun scripts/a.py", "python scripts/a.py", "polydistill-a")
        'polydistill-a; torchrun --no-python polydistill-a'
    """
    if called == script:
        return text
    return text.replace(script, called).replace(script.removeprefix("python "), f"--no-python {called}")


def fold_description(text: str, columns: int) -> str:
    """Paragraphs filled to ``columns``; indented lines as they are where they fit.

    Where an indented line is too long, the comments of its paragraph, behind two or more spaces, go above their
    commands, and commands are continued on a further line, as a shell understands it.

    Example:
        >>> print(fold_description("Two\\nlines.\\n\\n    python a.py      # does it", 24))
        Two lines.
        <BLANKLINE>
            # does it
            python a.py
    """
    return "\n\n".join(_fold_paragraph(paragraph, columns) for paragraph in re.split(r"\n\s*\n", text.strip("\n")))


def _fold_paragraph(paragraph: str, columns: int) -> str:
    lines = paragraph.splitlines()
    if not any(line.startswith(" ") for line in lines):
        return textwrap.fill(" ".join(lines), max(columns, 20), break_long_words=False, break_on_hyphens=False)
    if all(len(line) <= columns for line in lines):
        return paragraph
    return "\n".join(part for line in lines for part in _fold_line(line, columns))


def _fold_line(line: str, columns: int) -> list[str]:
    indent, command, comment = re.fullmatch(r"( *)(.*?)(?: {2,}(\S.*))?", line).groups()  # type: ignore[union-attr]
    above = [f"{indent}# {comment.removeprefix('# ')}"] if comment else []
    folded = [f"{indent}{command}"]
    while len(folded[-1]) > columns:
        cut = folded[-1].rfind(" --", len(indent) + 5, columns - 2)
        if cut < 0:
            break
        folded[-1:] = [f"{folded[-1][:cut]} \\", f"{indent}    {folded[-1][cut + 1 :]}"]
    return [*above, *folded]
