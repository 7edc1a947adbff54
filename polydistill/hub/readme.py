"""The card of a run as its ``README.md``: written, and never over what a person has written.

The last line of a card is a comment with the checksum of what stands above it. A file without it, or with another
checksum, has been written or changed by hand: it is left alone.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

from polydistill.disk import atomic_write, disk_errors
from polydistill.errors import UserError

README = "README.md"
LARGEST = 1 << 20  # bytes; a larger file is not ours
MARK = "<!-- written by polydistill: {} -->\n"


def sealed(text: str) -> str:
    """The text with the line by which it is known again."""
    return text + MARK.format(_checksum(text))


def is_ours(text: str) -> bool:
    """Whether the text is as :func:`sealed` made it; line ends of Windows do not count.

    Example:
        >>> is_ours(sealed("# A card\\n")), is_ours(sealed("# A card\\n").replace("card", "cat")), is_ours("")
        (True, False, False)
    """
    text = text.replace("\r\n", "\n")
    above, newline, last = text.rstrip("\n").rpartition("\n")
    return f"{last}\n" == MARK.format(_checksum(above + newline))


def read_readme(out: Path) -> str | None:
    """The text of the README in a run folder; None: there is none.

    Raises:
        UserError: it cannot be read.
    """
    path = out / README
    with disk_errors(path, "read"):
        if not path.is_file():
            return None
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} has more than {LARGEST:,} bytes")
        return path.read_bytes().decode("utf-8", errors="replace")


def stated_license(text: str | None) -> str:
    """The licence in the metadata of a card of ours; empty: it states none."""
    if text is None or not is_ours(text):
        return ""
    found = re.match(r"---\nlicense: ([^\s'\"]+)\n", text)
    return found[1] if found else ""


def write_readme(out: Path, text: str) -> None:
    """Write the card, unless a README is there that a person has written; then one line says so.

    Raises:
        UserError: the disk refused.
    """
    there = read_readme(out)
    if there is not None and not is_ours(there):
        print(
            f"{out / README} was written by hand, and stays; rename it, and the same command writes a card",
            file=sys.stderr,
        )
    elif there != sealed(text):
        atomic_write(out / README, sealed(text).encode())


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
