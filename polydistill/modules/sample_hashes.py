"""Samples known again by a hash of their inputs, and whether a loader gives the same inputs a second time.

Contract: a hash covers every input of a sample, with its name, type and shape, and nothing of its label.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from polydistill.errors import UserError
from polydistill.losses.checks import describe
from polydistill.modules.batches import Batch, are_texts, read_batch
from polydistill.modules.feed import Feed
from polydistill.modules.seeding import seeded

FEW = 8  # samples of a batch whose size is not known
PLAIN = (str, int, float, bool, type(None))
ADVICE = "a teacher's scores are kept only for inputs that repeat: leave teacher_cache out, or let the inputs be fixed"


def hash_samples(batch: Batch) -> list[bytes]:
    """SHA-256 of the inputs of each sample, 32 bytes each. Waits for the device where they are not on the CPU.

    Raises:
        TypeError: an input is neither a tensor, nor a text for each sample, nor a plain value.
        ValueError: an input has no entry for each sample.
    """
    samples, common, rows_of = batch.shape[0], hashlib.sha256(), []
    inputs = [found for place, one in enumerate(batch.inputs) for found in _walk(f"/{place}", one, samples)]
    for name, value in (*inputs, *_walk("", batch.keywords, samples)):
        common.update(name.encode())
        if isinstance(value, Tensor):
            if not value.dim() or len(value) != samples:
                raise ValueError(
                    f"an input of shape {tuple(value.shape)} has no entry for each of {samples} samples: {ADVICE}"
                )
            common.update(f"{value.dtype}{tuple(value.shape[1:])}".encode())
            rows_of.append(_bytes_of_rows(value))
        elif are_texts(value, samples):
            rows_of.append([hashlib.sha256(text.encode()).digest() for text in value])
        elif isinstance(value, PLAIN):
            common.update(repr(value).encode())
        else:
            raise TypeError(f"an input must be a tensor, for teacher_cache, got {describe(value)}")
    hashes = []
    for number in range(samples):
        digest = common.copy()
        for rows in rows_of:
            digest.update(rows[number])
        hashes.append(digest.digest())
    return hashes


def _bytes_of_rows(value: Tensor) -> Any:
    rows = value.detach().cpu().contiguous().view(len(value), -1)
    return rows.view(torch.uint8).numpy() if rows.numel() else [b""] * len(value)


def _walk(name: str, value: Any, samples: int) -> Iterator[tuple[str, Any]]:
    """The values in tuples, lists and mappings, with their place; texts of the samples are one value."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _walk(f"{name}/{key}", value[key], samples)
    elif isinstance(value, tuple | list) and not are_texts(value, samples):
        for place, entry in enumerate(value):
            yield from _walk(f"{name}/{place}", entry, samples)
    else:
        yield name, value


def all_samples(source: Iterable[Any], seed: int) -> Generator[Any]:
    """Batches with every sample of ``source``, in the same order whatever the source's own is.

    Of a ``DataLoader`` of a data set with a length, these are all its samples in their order, also those that a sampler
    leaves out of an epoch; of anything else, one epoch.

    Args:
        source: iterated once per epoch.
        seed: of what it draws.
    """
    with seeded(seed, source) as feed:
        if _has_samples(source):
            feed = Feed(_in_order(source), seed)
        yield from feed.epoch(0)


def count_samples(source: Iterable[Any]) -> int | None:
    """How many samples :func:`all_samples` gives; None where that is not known."""
    if isinstance(source, list | tuple):
        return sum(read_batch(batch).shape[0] for batch in source)
    if _has_samples(source) and source.batch_sampler is not None:
        return len(source.dataset)  # type: ignore[arg-type]
    return None


def require_repetition(source: Iterable[Any]) -> None:
    """Refuse a source that gives other inputs the second time, as far as its first samples show.

    Where a loader makes other batches in each epoch, a sample must be the same whichever others are in its batch.

    Raises:
        UserError: it does.
    """
    first, again = _first_batch(source, 0), _first_batch(source, 1)
    hashes = hash_samples(again)
    if _has_samples(source):
        if not _repeats_batches(source):
            hashes = _hash_in_pairs(source, first.shape[0])
    elif first.labels.shape != again.labels.shape or not torch.equal(first.labels, again.labels):
        return  # other samples, perhaps
    n_other = sum(one != other for one, other in zip(hash_samples(first), hashes, strict=True))
    if n_other:
        raise UserError(
            f"`batches` gives {n_other} of the first {first.shape[0]} samples with other inputs the second time, as "
            f"random augmentation, noise, mixup, or padding to the longest of a batch do; {ADVICE}"
        )


def _repeats_batches(loader: DataLoader[Any]) -> bool:
    """Whether each epoch has the same samples together."""
    batches = loader.batch_sampler
    plain = type(batches) is BatchSampler and isinstance(batches.sampler, SequentialSampler)
    return batches is None or plain


def _hash_in_pairs(loader: DataLoader[Any], samples: int) -> list[bytes]:
    data: Any = loader.dataset
    with seeded(1, loader):
        pairs = [[data[number] for number in range(start, min(start + 2, samples))] for start in range(0, samples, 2)]
        return [sample for pair in pairs for sample in hash_samples(read_batch(loader.collate_fn(pair)))]


def _in_order(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader of the same data set, collated in the same way, in batches of the same size, from first to last."""
    order = SequentialSampler(loader.dataset)  # type: ignore[arg-type]
    told: dict[str, Any] = {
        "collate_fn": loader.collate_fn,
        "num_workers": loader.num_workers,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
        "timeout": loader.timeout,
    }
    if loader.batch_sampler is None:
        return DataLoader(loader.dataset, batch_size=None, sampler=order, **told)
    size = loader.batch_size or len(next(iter(loader.batch_sampler)))
    return DataLoader(loader.dataset, batch_sampler=BatchSampler(order, size, drop_last=False), **told)


def _first_batch(source: Iterable[Any], seed: int) -> Batch:
    with seeded(seed, source) as feed:
        if not _has_samples(source):
            return read_batch(next(feed.epoch(0)))
        data: Any = source.dataset  # asked here and not by workers, which take long to start
        if source.batch_sampler is None:
            return read_batch(source.collate_fn(data[0]))
        size = min(source.batch_size or FEW, len(data))
        return read_batch(source.collate_fn([data[number] for number in range(size)]))


def _has_samples(source: object) -> TypeGuard[DataLoader[Any]]:
    return isinstance(source, DataLoader) and not isinstance(source.dataset, IterableDataset)
