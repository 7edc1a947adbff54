"""A look at every file before training begins: what cannot be read is found in minutes, not after hours."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from polydistill.errors import UserError
from polydistill.image_folders.folder import ImageFolder
from polydistill.image_folders.pictures import BrokenPictureError, check_header, read_picture
from polydistill.learning.processes import is_first_process
from polydistill.runs.progress import Progress

Check = Literal["headers", "whole", "none"]
Broken = Literal["refuse", "skip"]
LOOKS: dict[Check, Callable[[Path], object]] = {"headers": check_header, "whole": read_picture}


def inspect(folder: ImageFolder, name: str, check: Check, broken: Broken) -> ImageFolder:
    """The pictures that can be read, as far as ``check`` looks.

    Args:
        folder: of any size.
        name: of it, for the progress bar.
        check: headers (some kilobytes of each file), whole (each is decoded, as in an epoch), or none.
        broken: refuse what cannot be read, or skip: leave it out, and name it on standard error.

    Raises:
        UserError: one cannot be read, and is not to be skipped; or none of a class is left.
    """
    if check == "none":
        return folder
    look, good, faults = LOOKS[check], [], []
    with Progress(f"{name}: looks at {check}", len(folder), "pictures") as bar:
        for index in range(len(folder)):
            try:
                look(folder.path(index))
                good.append(index)
            except BrokenPictureError as error:
                faults.append(str(error))
            bar.advance(1, broken=len(faults))
    if not faults:
        return folder
    more = f", nor can {len(faults) - 1:,} more" if len(faults) > 1 else ""
    if broken == "refuse":
        raise UserError(f"{faults[0]}{more}; fix or remove them, or leave them out by --data.broken skip")
    for fault in faults if is_first_process() else ():
        print(f"left out: {fault}", file=sys.stderr)
    left = folder.take(good)
    if empty := set(range(len(folder.classes))) - set(left.labels):
        raise UserError(f"no picture of the class {folder.classes[min(empty)]} in {name} can be read: {faults[0]}")
    return left
