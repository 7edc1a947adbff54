"""polydistill.help_text: a script's --help on a narrow terminal, and on a wide one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from polydistill.config.help_text import fold_description

ROOT = Path(__file__).resolve().parents[2]
DESCRIPTION = """What it does, in words
that go on.

    python a.py                          the default
    python a.py --some.flag 1 --out b    another
    python c.py

The end."""


def test_paragraphs_are_filled_and_comments_of_long_commands_stand_above_them() -> None:
    assert fold_description(DESCRIPTION, 44).splitlines() == [
        "What it does, in words that go on.",
        "",
        "    # the default",
        "    python a.py",
        "    # another",
        "    python a.py --some.flag 1 --out b",
        "    python c.py",
        "",
        "The end.",
    ]


def test_where_there_is_room_commands_stay_in_columns() -> None:
    folded = fold_description(DESCRIPTION, 100)
    assert folded.startswith(
        "What it does, in words that go on.\n\n    python a.py                          the default\n"
    )


PLACES = ("scripts/*.py", "agents/commands/*.py", "polydistill/**/commands/*.py", "polydistill/runs/show.py")
PROGRAMS = [path for place in PLACES for path in sorted(ROOT.glob(place))]


@pytest.mark.parametrize("script", PROGRAMS, ids=lambda path: path.name)
def test_help_of_every_script_fits_80_columns_and_loses_no_word(script: Path) -> None:
    description = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")), clean=False)
    folded = fold_description(description, 78)  # as argparse has it at 80
    assert [line for line in folded.splitlines() if len(line) > 80] == []
    assert words(folded) == words(description)


def words(text: str) -> list[str]:
    return sorted(re.sub(r"[#\\]", " ", text).split())
