"""Batches of pictures: decoded and augmented by timm's transforms, as bytes, in an order that a seed decides.

Contract: a picture is ``(3, side, side)`` uint8, not normalised; that is each network's own business. What augmentation
draws comes from the global generators of torch, numpy and Python, which :mod:`polydistill.modules.feed` exchanges for
streams of its own, so that an epoch can be gone through again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from polydistill.errors import UserError
from polydistill.image_folders.config import ImagesConfig
from polydistill.image_folders.folder import ImageFolder, read_folders
from polydistill.image_folders.inspection import inspect
from polydistill.image_folders.pictures import BrokenPictureError, read_picture
from polydistill.image_folders.transforms import Mixing, Transform, make_augmenting, make_plain
from polydistill.learning.processes import is_first_process

IGNORED = -100  # label of a picture that cannot be decoded and counts for nothing


class Pictures(Dataset[tuple[Tensor, int]]):
    """The pictures of a folder with their labels.

    Args:
        folder: of the files.
        transform: from an image of Pillow to ``(3, side, side)`` uint8.
        side: pixels.
        skip: a picture that cannot be decoded is black, labelled :data:`IGNORED`, and named once on standard error;
            else it ends the run.

    Attributes:
        left_out: of each file whether that has happened to it; shared with the workers of a loader.
    """

    def __init__(self, folder: ImageFolder, transform: Transform, side: int, *, skip: bool) -> None:
        self.folder, self.transform, self.side, self.skip = folder, transform, side, skip
        self.left_out = torch.zeros(len(folder), dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            picture = read_picture(self.folder.path(index))
        except BrokenPictureError as error:
            if not self.skip:
                raise
            if not self.left_out[index] and is_first_process():
                print(f"left out: {error}", file=sys.stderr)
            self.left_out[index] = True
            return torch.zeros(3, self.side, self.side, dtype=torch.uint8), IGNORED
        return self.transform(picture), self.folder.labels[index]


class Folders(NamedTuple):
    """The pictures of a run.

    Attributes:
        train: to learn from.
        validation: held out from these; perhaps none.
        test: those of the other folder.
        whole: the first two together, which no seed decides.
        left_out: how many files of both cannot be read, and are none of these.
    """

    train: ImageFolder
    validation: ImageFolder
    test: ImageFolder
    whole: ImageFolder
    left_out: int

    def describe(self) -> dict[str, Any]:
        """What a result can be compared by."""
        return {name: getattr(self, name).describe() for name in ("train", "validation", "test", "whole")}


def read_data(config: ImagesConfig) -> Folders:
    """The pictures that ``config`` names, once all that it asks for has been looked at.

    Raises:
        UserError: see :func:`read_folders` and :func:`inspect`; or there are too few for a batch.
    """
    data = config.data
    there = read_folders(data.root, data.train, data.test)
    whole, test = (
        inspect(folder, name, data.check, data.broken)
        for folder, name in zip(there, (data.train, data.test), strict=True)
    )
    require_batch(config, len(whole))
    train, validation = whole.hold_out(data.validation_images, config.seed)
    return Folders(train, validation, test, whole, left_out=sum(map(len, there)) - len(whole) - len(test))


def require_batch(config: ImagesConfig, pictures: int) -> None:
    """Refuse a training folder whose ``pictures`` are too few for a batch.

    Raises:
        UserError: with both numbers.
    """
    data = config.data
    if config.training.batch_size > pictures - data.validation_images:
        held = f", {data.validation_images:,} of which are held out for validation" if data.validation_images else ""
        raise UserError(
            f"training.batch_size is {config.training.batch_size:,}, but {data.train} holds {pictures:,} pictures{held}"
        )


class Loaders(NamedTuple):
    """Batches of :class:`Folders`.

    Attributes:
        train: augmented and shuffled, whole batches only.
        validation: None: there are none.
        test: in the order of their names.
    """

    train: DataLoader[Any]
    validation: DataLoader[Any] | None
    test: DataLoader[Any]

    def left_out(self) -> dict[str, list[int]]:
        """Of each purpose the numbers of the pictures that could not be decoded so far, and counted for nothing."""
        return {name: pictures.left_out.nonzero().flatten().tolist() for name, pictures in self._pictures()}

    def leave_out(self, before: Mapping[str, list[int]]) -> None:
        """Note what :meth:`left_out` gave in an earlier process of the run."""
        for name, pictures in self._pictures():
            pictures.left_out[before.get(name, [])] = True

    def _pictures(self) -> Iterator[tuple[str, Pictures]]:
        for name, loader in zip(self._fields, self, strict=True):
            if loader is not None and isinstance(loader.dataset, Pictures):
                yield name, loader.dataset


def make_loaders(config: ImagesConfig, folders: Folders) -> Loaders:
    """Those that ``config`` describes. Nothing is read yet."""
    augmented = make_augmenting(config.augmentation, config.side)
    plain = make_plain(config.side, *config.test_cut)
    train, validation, test = (
        _load(config, folder, transform, learns=learns)
        for folder, transform, learns in (
            (folders.train, augmented, True),
            (folders.validation, plain, False),
            (folders.test, plain, False),
        )
    )
    return Loaders(train, validation if len(folders.validation) else None, test)


def _load(config: ImagesConfig, folder: ImageFolder, transform: Transform, *, learns: bool) -> DataLoader[Any]:
    mixes = learns and config.augmentation.mixes
    pictures = Pictures(folder, transform, config.side, skip=config.data.broken == "skip" and not mixes)
    return DataLoader(
        pictures,
        config.training.batch_size,
        shuffle=learns and len(folder) > 0,
        drop_last=learns,
        num_workers=config.data.workers,
        collate_fn=Mixing(config.augmentation, len(folder.classes)) if mixes else None,
        pin_memory=config.device == "cuda",
    )
