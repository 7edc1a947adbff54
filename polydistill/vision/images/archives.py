"""CIFAR-10 and CIFAR-100 as their authors publish them in binary: found on the disk or downloaded, checked, decoded.

A row of CIFAR-10 is 1 byte label, one of CIFAR-100 is 1 byte coarse and 1 byte fine label; 3,072 bytes of pixels
follow: 32 x 32 of red, then green, then blue, row by row. Contract: nothing is unpickled, nothing is unpacked to the
disk, and data that claims to be the official release is the official release, byte for byte where its checksum is
known. Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from polydistill._environment import require_extra
from polydistill.disk import disk_errors
from polydistill.errors import UserError

SIDE = 32
PIXEL_BYTES = 3 * SIDE * SIDE
URL = "https://www.cs.toronto.edu/~kriz/"


class Release(NamedTuple):
    """A published data set. ``md5`` holds the checksums of single files, where they are known."""

    classes: int
    label_bytes: int
    archive: str
    archive_md5: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    rows_per_file: dict[str, int]
    md5: dict[str, str]

    @property
    def row_bytes(self) -> int:
        """Bytes of an image with its labels."""
        return self.label_bytes + PIXEL_BYTES


TEN = tuple(f"data_batch_{index}.bin" for index in range(1, 6))
RELEASES = {
    "cifar10": Release(
        classes=10,
        label_bytes=1,
        archive="cifar-10-binary.tar.gz",
        archive_md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        train=TEN,
        test=("test_batch.bin",),
        rows_per_file=dict.fromkeys((*TEN, "test_batch.bin"), 10_000),
        md5={},
    ),
    "cifar100": Release(
        classes=100,
        label_bytes=2,
        archive="cifar-100-binary.tar.gz",
        archive_md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        train=("train.bin",),
        test=("test.bin",),
        rows_per_file={"train.bin": 50_000, "test.bin": 10_000},
        md5={"train.bin": "6172c7755cfe09b2fe270c85cebc1b15", "test.bin": "4499cfba6c016c1be1438163640a0898"},
    ),
}


class Rows(NamedTuple):
    """Decoded rows: ``images`` ``(n, 32, 32, 3)`` uint8, red green blue; ``labels`` ``(n,)`` uint8, the fine ones."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def read_release(name: str, root: Path, *, official: bool = True) -> tuple[Rows, Rows]:
    """Training and test rows of the data set ``name`` in ``root``.

    Args:
        name: cifar10 or cifar100.
        root: the .tar.gz, a folder that holds it, the folder of the .bin files, or the folder above that.
        official: whether rows per file, images per class and (where known) checksums must be those of the release.

    Raises:
        UserError: nothing there, or it is truncated, damaged, or not what it should be.
    """
    release = RELEASES[name]
    with disk_errors(root, "read"):  # a folder that may not be searched
        files = _read_files(release, root, official)
    try:
        train, test = (
            decode_rows(release, [(file, files[file]) for file in names], official=official)
            for names in (release.train, release.test)
        )
    except UserError as error:
        raise UserError(f"in {root} (data.root): {error}") from None
    return train, test


def decode_rows(release: Release, files: list[tuple[str, bytes]], *, official: bool = True) -> Rows:
    """The rows of ``files``, given as ``(name, content)``, one after another.

    Raises:
        UserError: an incomplete row, a label out of range, no rows, or with ``official`` another number of rows.
    """
    table = np.concatenate([_decode_file(release, name, content, official) for name, content in files])
    labels = table[:, release.label_bytes - 1].copy()
    if official and len(set(np.bincount(labels, minlength=release.classes).tolist())) != 1:
        raise UserError(f"{files[0][0]}: classes differ in their number of images, which they must not; it is damaged")
    planes = table[:, release.label_bytes :].reshape(-1, 3, SIDE, SIDE)
    return Rows(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels)


def _decode_file(release: Release, name: str, content: bytes, official: bool) -> NDArray[np.uint8]:
    width = release.row_bytes
    n_rows, rest = divmod(len(content), width)
    if rest:
        raise UserError(f"{name} is truncated: {len(content):,} bytes are no multiple of {width:,}, the bytes of a row")
    if not n_rows:
        raise UserError(f"{name} holds no images")
    if official and n_rows != release.rows_per_file[name]:
        raise UserError(
            f"{name} holds {n_rows:,} images, the official one {release.rows_per_file[name]:,}; "
            "for data of your own in this format choose --data.official false"
        )
    table = np.frombuffer(content, dtype=np.uint8).reshape(n_rows, width)
    wrong = table[:, release.label_bytes - 1] >= release.classes
    if wrong.any():
        row = int(np.argmax(wrong))
        label = table[row, release.label_bytes - 1]
        raise UserError(f"{name}: image {row:,} has label {label}, but there are {release.classes} classes")
    return table


def encode_rows(release: Release, rows: Rows) -> bytes:
    """The rows in the format of the release (coarse label: a fifth of the fine one). For made-up data and tests."""
    table = np.zeros((len(rows.labels), release.row_bytes), dtype=np.uint8)
    table[:, 0] = rows.labels if release.label_bytes == 1 else rows.labels // 5
    table[:, release.label_bytes - 1] = rows.labels
    table[:, release.label_bytes :] = rows.images.transpose(0, 3, 1, 2).reshape(len(rows.labels), -1)
    return table.tobytes()


def download(name: str, folder: Path) -> Path:
    """The official archive in ``folder``, downloaded with a progress bar where it is not there yet.

    Raises:
        UserError: no network, or a file with another checksum; it says where to put which file by hand.
    """
    release = RELEASES[name]
    require_extra("vision")
    import pooch  # type: ignore[import-untyped]

    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING")  # its lines about caching repeat what the bar shows
    try:
        path = pooch.retrieve(
            URL + release.archive,
            known_hash=f"md5:{release.archive_md5}",
            fname=release.archive,
            path=folder,
            progressbar=True,
        )
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError: another checksum
        raise UserError(
            f"cannot get {release.archive} ({_first_line(error)}); download {URL + release.archive} "
            f"(md5 {release.archive_md5}) by hand into {folder}, or give --data.root FOLDER"
        ) from error
    finally:
        logger.setLevel(level)
    return Path(path)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:160]


def _read_files(release: Release, root: Path, official: bool) -> dict[str, bytes]:
    names = (*release.train, *release.test)
    for folder in (root, root / release.folder):
        if (folder / names[0]).is_file():
            return {name: _read_file(folder / name, release, official) for name in names}
    for archive in (root, root / release.archive):
        if archive.is_file():
            return _read_archive(archive, release, official)
    raise UserError(
        f"{root} holds neither {release.folder}/{names[0]} nor {release.archive}; put one of them there "
        f"(the archive is at {URL + release.archive}), or leave --data.root out to download it"
    )


def _read_file(path: Path, release: Release, official: bool) -> bytes:
    limit = max(release.rows_per_file.values()) * release.row_bytes
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if len(content) > limit:
        raise UserError(f"{path} is larger than any file of this data set")
    whole = len(content) == release.rows_per_file[path.name] * release.row_bytes  # else decoding tells what is wrong
    if official and whole and path.name in release.md5:
        _check_md5(path, hashlib.md5(content, usedforsecurity=False).hexdigest(), release.md5[path.name])
    return content


def _check_md5(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise UserError(f"{path} is damaged: its md5 is {found}, the official one is {expected}; download it again")


def _read_archive(path: Path, release: Release, official: bool) -> dict[str, bytes]:
    """The wanted members of the .tar.gz, read in memory: no name or link in it can reach the disk."""
    wanted = {f"{release.folder}/{name}": name for name in (*release.train, *release.test)}
    limit = max(release.rows_per_file.values()) * release.row_bytes
    found: dict[str, bytes] = {}
    try:
        if official:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            _check_md5(path, digest, release.archive_md5)
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = wanted.get(member.name.removeprefix("./"))
                if name is None or not member.isreg() or member.size > limit:
                    continue
                content = archive.extractfile(member)
                assert content is not None  # it is a regular file
                found[name] = content.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is truncated or damaged ({_first_line(error)}); download it again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    missing = [name for name in wanted.values() if name not in found]
    if missing:
        raise UserError(f"{path} holds no {release.folder}/{missing[0]}; is it {release.archive}?")
    return found
