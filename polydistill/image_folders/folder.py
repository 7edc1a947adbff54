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

SIZES = "sizes_sha256"  # of the sizes of files: in results of :meth:`ImageFolder.describe`, not in those of older runs


@dataclass(frozen=True)
class ImageFolder:
    """Some pictures of one folder.

    Args:
        root: of the files.
        classes: their names; labels count them.
        files: paths from ``root`` on.
        labels: of the files.
        sizes: of the files in bytes.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[int, ...]
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.files)

    def path(self, index: int) -> Path:
        """Of a file."""
        return self.root / self.files[index]

    def take(self, indices: Iterable[int]) -> ImageFolder:
        """Some of the files, in this order."""
        chosen = list(indices)
        files, labels = tuple(self.files[index] for index in chosen), tuple(self.labels[index] for index in chosen)
        return ImageFolder(self.root, self.classes, files, labels, tuple(self.sizes[index] for index in chosen))

    def hold_out(self, n: int, seed: int) -> tuple[ImageFolder, ImageFolder]:
        """Two folders: all but ``n`` files, and these, drawn by ``seed``; both keep the order."""
        chosen = numpy_stream(seed, "validation pictures").permutation(len(self))[:n]
        held = np.zeros(len(self), dtype=bool)
        held[chosen] = True
        return self.take(np.flatnonzero(~held)), self.take(np.flatnonzero(held))

    def describe(self) -> dict[str, object]:
        """How many files, a hash of their names and classes, and one of their sizes in this order: by these they are
        known again when a run goes on. What pictures show is not read."""
        names, sizes = hashlib.sha256(), hashlib.sha256()
        for file, label, size in zip(self.files, self.labels, self.sizes, strict=True):
            names.update(os.fsencode(file) + f"\0{self.classes[label]}\0".encode(errors="surrogateescape"))
            sizes.update(f"{size}\0".encode())
        sums = {"sha256": names.hexdigest(), SIZES: sizes.hexdigest()}
        return {"images": len(self), **(sums if self.files else dict.fromkeys(sums))}


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
    sizes: list[int] = []
    for label, name in enumerate(classes):
        found = sorted((str(path.relative_to(folder)), size) for path, size in _pictures(folder / name, ()))
        if not found:
            raise UserError(
                f"the class folder {printable(str(folder / name))} holds no pictures "
                f"({', '.join(sorted(ENDINGS))}): fill it, or remove it here and there"
            )
        files += [file for file, _ in found]
        labels += [label] * len(found)
        sizes += [size for _, size in found]
    return ImageFolder(folder, tuple(classes), tuple(files), tuple(labels), tuple(sizes))


def _pictures(folder: Path, above: tuple[str, ...]) -> Iterator[tuple[Path, int]]:
    """Files that end like pictures, at whatever depth, and their bytes; links are followed, but not in a circle."""
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
            path = Path(entry.path)
            with disk_errors(path, "read"):
                size = entry.stat().st_size
            yield path, size
