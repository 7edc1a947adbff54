"""A folder of pictures with a folder for each class: its classes and files, in an order that follows from names alone.

Classes are in timm's order, in which numbers count as numbers: class 2 comes before class 10.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polydistill.disk import disk_errors
from polydistill.errors import UserError, list_first, printable
from polydistill.image_folders.pictures import ENDINGS
from polydistill.streams import numpy_stream


@dataclass(frozen=True)
class ImageFolder:
    """Some pictures of one folder.

    Args:
        root: of the files.
        classes: their names; labels count them.
        files: paths from ``root`` on.
        labels: of the files.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.files)

    def path(self, index: int) -> Path:
        """Of a file."""
        return self.root / self.files[index]

    def take(self, indices: Iterable[int]) -> ImageFolder:
        """Some of the files, in this order."""
        chosen = list(indices)
        files = tuple(self.files[index] for index in chosen)
        return ImageFolder(self.root, self.classes, files, tuple(self.labels[index] for index in chosen))

    def hold_out(self, n: int, seed: int) -> tuple[ImageFolder, ImageFolder]:
        """Two folders: all but ``n`` files, and these, drawn by ``seed``; both keep the order."""
        chosen = numpy_stream(seed, "validation pictures").permutation(len(self))[:n]
        held = np.zeros(len(self), dtype=bool)
        held[chosen] = True
        return self.take(np.flatnonzero(~held)), self.take(np.flatnonzero(held))

    def describe(self) -> dict[str, object]:
        """How many files, and a hash of their names and classes: by which they are known again when a run goes on."""
        digest = hashlib.sha256()
        for file, label in zip(self.files, self.labels, strict=True):
            digest.update(os.fsencode(file) + f"\0{self.classes[label]}\0".encode(errors="surrogateescape"))
        return {"images": len(self), "sha256": digest.hexdigest() if len(self) else None}


def read_folders(root: str, train: str, test: str) -> tuple[ImageFolder, ImageFolder]:
    """The pictures to learn from, and those to be tested on.

    Args:
        root: holds both.
        train: name of the one folder.
        test: name of the other.

    Raises:
        UserError: a folder is missing, cannot be read, has fewer than two classes or a class without pictures; or the
            classes of the two differ.
    """
    root = os.path.expanduser(root)
    if not Path(root).is_dir():
        what = "is a file" if Path(root).exists() else "does not exist"
        raise UserError(f"data.root {printable(root)} {what}: name the folder that holds {train}/ and {test}/")
    for name in (train, test):
        if not (Path(root) / name).is_dir():
            there = sorted(entry.name for entry in Path(root).iterdir() if entry.is_dir() and entry.name[0] != ".")
            raise UserError(
                f"data.root {printable(root)} holds no folder {name}{f' but {list_names(there)}' if there else ''}: "
                f"pictures are expected as {train}/<class>/*.jpg and {test}/<class>/*.jpg (other names: --data.train, "
                "--data.test)"
            )
    learned, tested = (_class_names(Path(root) / name) for name in (train, test))
    if learned != tested:
        only = [(name, [c for c in own if c not in other]) for name, own, other in _both(train, learned, test, tested)]
        told = "; ".join(f"only {name} has {list_names(names)}" for name, names in only if names)
        raise UserError(f"the class folders of {train} and {test} differ: {told}")
    first, second = (_read(Path(root) / name, learned) for name in (train, test))
    return first, second


def list_names(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    return list_first(map(printable, names))


def _both(
    train: str, learned: list[str], test: str, tested: list[str]
) -> tuple[tuple[str, list[str], list[str]], tuple[str, list[str], list[str]]]:
    return (train, learned, tested), (test, tested, learned)


def _class_names(folder: Path) -> list[str]:
    with disk_errors(folder, "read"):
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    names = sorted((entry.name for entry in entries if entry.is_dir()), key=_natural)
    if len(names) < 2:
        found = f"the one class {printable(names[0])}" if names else "no class folders"
        raise UserError(f"{printable(str(folder))} holds {found}: a folder for each of two classes or more is needed")
    return names


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorts numbers in names as numbers; names that differ by their case alone have an order too."""
    parts = re.split(r"([0-9]+)", name.lower())
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in parts], name


def _read(folder: Path, classes: list[str]) -> ImageFolder:
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(str(path.relative_to(folder)) for path in _pictures(folder / name, ()))
        if not found:
            raise UserError(
                f"the class folder {printable(str(folder / name))} holds no pictures "
                f"({', '.join(sorted(ENDINGS))}): fill it, or remove it here and there"
            )
        files += found
        labels += [label] * len(found)
    return ImageFolder(folder, tuple(classes), tuple(files), tuple(labels))


def _pictures(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """Files that end like pictures, at whatever depth; links are followed, but not in a circle."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with disk_errors(folder, "read"):
        entries = list(os.scandir(folder))
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _pictures(Path(entry.path), (*above, real))
        elif Path(entry.name).suffix.lower() in ENDINGS:
            yield Path(entry.path)
