"""The images of a run: read once, held once on the device as uint8, split once and for all.

Contract: the split into training and validation, and the choice of a few images per class, depend on the labels alone,
not on any seed, so that results of different runs are for the same images; the statistics are those of the whole
training file.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polydistill.config.fields import check_fields
from polydistill.errors import UserError, require_at_least
from polydistill.streams import numpy_stream
from polydistill.vision.images.archives import RELEASES, SIDE, Release, Rows, download, encode_rows, read_release
from polydistill.vision.images.choices import choose_per_class, choose_validation

DOWNLOADS = Path("data")
SHIFT, NOISE = 12, 24  # standard deviations in made-up images, of 255: of an image's colours, of a pixel


@dataclass(frozen=True)
class DataConfig:
    """Which images.

    Args:
        name: cifar10 or cifar100.
        root: folder of the official binary release, as files or as .tar.gz; empty: download it once into data/.
        official: whether the files in root must be the official ones; false: data of your own in the same format.
        validation_images: training images held out, always the same ones; 0: train on all, as the paper does.
        train_images: size of the slice to train on (validation included); 0: all.
        test_images: size of the slice to test on; 0: all.
        made_up: where root is empty, make that many images of moving colour patterns instead of downloading.
        classes: train and test on the images of the first so many classes alone (of cifar100: fine classes); 0: all.
        images_per_class: train on so many images of each class, beside those of validation, always the same ones; a
            smaller choice is a part of every larger one; 0: all.
    """

    name: Literal["cifar10", "cifar100"] = "cifar100"
    root: str = ""
    official: bool = True
    validation_images: int = 5_000
    train_images: int = 0
    test_images: int = 0
    made_up: int = 0
    classes: int = 0
    images_per_class: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        numbers = ("validation_images", "train_images", "test_images", "made_up", "classes", "images_per_class")
        require_at_least(0, self, *numbers)
        release = RELEASES[self.name]
        if self.classes == 1 or self.classes > release.classes:
            raise ValueError(f"classes must be 0 or from 2 to {release.classes} of {self.name}, got {self.classes:,}")
        most = min(sum(release.rows_per_file[file] for file in files) for files in (release.train, release.test))
        if 0 < self.made_up < 2 * release.classes:
            raise ValueError(f"made_up must be 0 or at least 2 images per class, got {self.made_up}")
        if self.made_up > most:
            raise ValueError(f"made_up must be at most {most:,}, got {self.made_up:,}")
        if not self.official and not self.root:
            raise ValueError("official is false, but root is empty: the official images would be downloaded")
        for part in ("train", "test"):
            wanted, there = getattr(self, f"{part}_images"), self.known_images(part)
            if there is not None and wanted > there:
                source = "made_up is" if self.made_up and not self.root else f"{self.name} has"
                raise ValueError(f"{part}_images is {wanted:,}, but {source} {there:,}")
        self._check_what_is_left()

    def _check_what_is_left(self) -> None:
        """Refuse more validation images, or more images of each class, than there are."""
        left = self._beside_validation
        if left is None:
            return
        if left < 1:
            total = left + self.validation_images
            raise ValueError(
                f"validation_images = {self.validation_images:,} leaves nothing of the {total:,} training images"
            )
        wanted = self.images_per_class * self.n_classes
        if wanted > left:
            raise ValueError(
                f"images_per_class = {self.images_per_class:,} of {self.n_classes} classes are {wanted:,} images, but "
                f"there are {left:,} beside those of validation"
            )

    def known_images(self, part: str) -> int | None:
        """How many images the ``part`` train or test has before a slice is taken; None: known only from the files."""
        all_classes = RELEASES[self.name].classes
        if self.made_up and not self.root:  # the classes take turns
            rounds, rest = divmod(self.made_up, all_classes)
            return rounds * self.n_classes + min(rest, self.n_classes)
        return self._official_images(part) if self.official else None

    def _official_images(self, part: str) -> int:
        release = RELEASES[self.name]
        files = release.train if part == "train" else release.test
        return sum(release.rows_per_file[file] for file in files) * self.n_classes // release.classes

    @property
    def _beside_validation(self) -> int | None:
        images = self.train_images or self.known_images("train")
        return None if images is None else images - self.validation_images

    @property
    def images_to_learn(self) -> int | None:
        """How many images are trained on, without the validation images; None: known only from the files."""
        return self.images_per_class * self.n_classes or self._beside_validation

    @property
    def n_classes(self) -> int:
        """How many classes are told apart."""
        return self.classes or RELEASES[self.name].classes

    @property
    def expected_images(self) -> int:
        """:attr:`images_to_learn`, or what it would be if files of one's own were as long as the official ones."""
        return self.images_to_learn or self._official_images("train") - self.validation_images


@dataclass(frozen=True)
class ImageSet:
    """Images on a device: ``images`` ``(n, 32, 32, 3)`` uint8, ``labels`` ``(n,)`` int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel, of pixels in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Images(NamedTuple):
    """The three parts of a data set, and what its pixels are normalised by. ``validation`` may be empty."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    normalization: Normalization
    classes: int


def load_images(config: DataConfig, device: torch.device | str = "cpu") -> Images:
    """The images that ``config`` asks for, on ``device``: 184 MB for a whole data set.

    Raises:
        UserError: no data and no network, damaged data, or a slice larger than the data.
    """
    read = _read(config)
    normalization = measure_normalization(read[0].images)
    train, test = (_take_classes(rows, config.classes) for rows in read)
    for part, rows, wanted in (("train", train, config.train_images), ("test", test, config.test_images)):
        if wanted > len(rows.labels):
            raise UserError(f"data.{part}_images is {wanted:,}, but there are {len(rows.labels):,}")
    n_train = config.train_images or len(train.labels)
    if config.validation_images >= n_train:
        raise UserError(f"data.validation_images = {config.validation_images:,} leaves nothing of {n_train:,} images")
    train = _take(train, slice(n_train))
    held_out = choose_validation(train.labels, config.validation_images)
    learned = _take(train, ~held_out)
    if config.images_per_class:
        learned = _take(learned, choose_per_class(learned.labels, config.images_per_class, config.n_classes))
    return Images(
        train=_to_device(learned, device),
        validation=_to_device(_take(train, held_out), device),
        test=_to_device(_take(test, slice(config.test_images or None)), device),
        normalization=normalization,
        classes=config.n_classes,
    )


def _take(rows: Rows, which: slice | NDArray[np.bool_]) -> Rows:
    return Rows(rows.images[which], rows.labels[which])


def _take_classes(rows: Rows, classes: int) -> Rows:
    """The images of the first ``classes`` classes; of all for 0."""
    if not classes:
        return rows
    chosen = rows.labels < classes
    if not chosen.any():
        raise UserError(f"data.classes is {classes}, but there is no image of the first {classes} classes")
    return _take(rows, chosen)


def measure_normalization(images: NDArray[np.uint8]) -> Normalization:
    """Mean and standard deviation of each channel of ``(n, height, width, 3)`` uint8, divided by 255; exact sums."""
    values = np.arange(256, dtype=np.float64) / 255
    means, deviations = [], []
    for channel in range(3):
        share = np.bincount(images[..., channel].reshape(-1), minlength=256) / (images.size / 3)
        mean = float(share @ values)
        means.append(mean)
        deviations.append(float(np.sqrt(share @ (values - mean) ** 2)))
    if min(deviations) == 0:
        raise UserError("all images have the same colour: there is nothing to normalise by")
    return Normalization((means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2]))


def needs_download(config: DataConfig) -> bool:
    """Whether the images must be downloaded first."""
    return not (config.root or config.made_up or (DOWNLOADS / RELEASES[config.name].archive).exists())


def _read(config: DataConfig) -> tuple[Rows, Rows]:
    if config.root:
        return read_release(config.name, Path(config.root).expanduser(), official=config.official)
    if not config.made_up:
        return read_release(config.name, download(config.name, DOWNLOADS))
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # through files, so that made-up images take the same path as real ones
        write_made_up(config.name, Path(folder), config.made_up, config.made_up)
        return read_release(config.name, Path(folder), official=False)


def _to_device(rows: Rows, device: torch.device | str) -> ImageSet:
    images = torch.from_numpy(np.ascontiguousarray(rows.images)).to(device)
    return ImageSet(images, torch.from_numpy(rows.labels.astype(np.int64)).to(device))


def write_made_up(name: str, folder: Path, n_train: int, n_test: int, *, seed: int = 0) -> None:
    """Write files in the official format whose classes a small network can learn: a colour gradient each, and noise.

    Each image shifts its two colours by :data:`SHIFT`, so that near classes overlap: every network errs on a few
    images, and a teacher's probabilities show which classes are near.
    """
    release = RELEASES[name]
    generator = numpy_stream(seed, "made-up images")
    colours = generator.uniform(32, 224, (release.classes, 2, 3))  # at the top and at the bottom of the image
    for files, total in ((release.train, n_train), (release.test, n_test)):
        for index, file in enumerate(files):
            n = total * (index + 1) // len(files) - total * index // len(files)
            content = encode_rows(release, _make_up_rows(release, colours, n, generator))
            (folder / file).write_bytes(content)


def _make_up_rows(release: Release, colours: NDArray[np.float64], n: int, generator: np.random.Generator) -> Rows:
    labels = generator.permutation(np.arange(n) % release.classes).astype(np.uint8)
    height = np.linspace(0, 1, SIDE)[None, :, None, None]
    own = colours[labels] + generator.normal(0, SHIFT, (n, 2, 3))
    top, bottom = own[:, 0, None, None, :], own[:, 1, None, None, :]
    pixels = (1 - height) * top + height * bottom + generator.normal(0, NOISE, (n, SIDE, SIDE, 3))
    return Rows(np.clip(pixels, 0, 255).astype(np.uint8), labels)
