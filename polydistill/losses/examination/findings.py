"""The findings of an examination."""

from __future__ import annotations

from typing import Literal, NamedTuple

Level = Literal["wrong", "suspicious", "cannot tell", "fine"]


class Finding(NamedTuple):
    """The result of one check.

    Attributes:
        level: "wrong" will spoil the result; "suspicious" may be meant; "cannot tell": this batch does not decide it,
            the text says which batch would; "fine".
        text: what is the case and, where it is not fine, what to do.
    """

    level: Level
    text: str
