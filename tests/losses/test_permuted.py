"""Permutations: each row one, all equally likely, fresh from a generator or fixed for a sample."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from polydistill.losses import draw_permutation, fix_permutation, permuted


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


MAKERS = {
    "fresh": lambda n_samples, n_classes: draw_permutation(n_samples, n_classes, generator=generator()),
    "fixed": lambda n_samples, n_classes: fix_permutation(torch.arange(n_samples), n_classes, seed=5),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("shape", [(0, 5), (3, 1), (3, 2), (4, 100), (1, 131_072)], ids=str)
def test_each_row_is_a_permutation(make, shape) -> None:
    n_samples, n_classes = shape
    permutation = make(n_samples, n_classes)
    assert permutation.dtype == torch.int64
    expected = torch.arange(n_classes - 1).expand(n_samples, n_classes - 1)
    assert torch.equal(permutation.sort(dim=1).values, expected)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_all_permutations_are_equally_likely(make) -> None:
    """Chi-square of 24 orders in 24,000 rows: below 49.7 with probability 0.999 (23 degrees of freedom)."""
    rows = make(24_000, 5)
    codes = (rows * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = codes.unique(return_counts=True)[1].double()
    assert len(counts) == 24
    assert ((counts - 1000) ** 2 / 1000).sum() < 49.7


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_neighbouring_rows_are_independent(make) -> None:
    """Where class 0 goes in one row says nothing of the next: 16 pairs, 15 degrees of freedom, 0.999 below 37.7."""
    places = make(16_001, 5).argsort(dim=1)[:, 0]
    counts = torch.bincount(places[:-1] * 4 + places[1:], minlength=16).double()
    assert ((counts - 1000) ** 2 / 1000).sum() < 37.7


def test_fresh_permutations_follow_their_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = draw_permutation(8, 10, generator=generator(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draw_permutation(8, 10, generator=generator(1)), first)
    assert not torch.equal(draw_permutation(8, 10, generator=generator(2)), first)
    same = generator(1)
    draw_permutation(8, 10, generator=same)
    assert not torch.equal(draw_permutation(8, 10, generator=same), first)


def test_fixed_permutation_belongs_to_the_sample_whatever_its_batch() -> None:
    all_rows = fix_permutation(torch.arange(50), 10, seed=3)
    ids = torch.tensor([49, 7, 7, 0])
    assert torch.equal(fix_permutation(ids, 10, seed=3), all_rows[ids])
    assert torch.equal(fix_permutation(ids.int(), 10, seed=3), all_rows[ids])
    assert not torch.equal(fix_permutation(torch.arange(50), 10, seed=4), all_rows)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, 2**63, 2**64 - 1])
def test_fixed_permutation_takes_any_seed_of_64_bits(seed) -> None:
    rows = fix_permutation(torch.arange(100), 6, seed=seed)
    assert len(rows.unique(dim=0)) > 40


def test_mixing_is_the_published_splitmix64() -> None:
    """The first outputs for seed 1234567 that Rosetta Code and others list."""
    state, outputs = 1234567, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        outputs.append(permuted._mix(torch.tensor(permuted._wrap(state))).item() % 2**64)
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_fixed_permutation_reads_nothing_back_from_the_device() -> None:
    ids = torch.arange(4, device="meta")
    assert fix_permutation(ids, 5, seed=0).device.type == "meta"


def test_permutations_are_made_without_a_loop_over_rows() -> None:
    for function in (draw_permutation, fix_permutation, permuted._permute_others, permuted.dkpp):
        body = inspect.getsource(function).split('"""')[-1]
        assert "for " not in body
        assert "while " not in body


@pytest.mark.parametrize(
    ("ids", "error", "text"),
    [
        (torch.zeros(2), TypeError, "sample_ids must be a tensor of integers, got .*float32"),
        (torch.zeros(2, dtype=torch.bool), TypeError, "sample_ids must be a tensor of integers, got .*bool"),
        (torch.zeros(2, dtype=torch.complex64), TypeError, "sample_ids must be a tensor of integers, got .*complex64"),
        ([1, 2], TypeError, r"sample_ids must be a tensor of integers, got \[1, 2\] of type list"),
        (None, TypeError, "sample_ids must be a tensor of integers, got None of type NoneType"),
        (torch.zeros(2, 1, dtype=torch.int64), ValueError, r"sample_ids must be of shape \(batch,\), got \(2, 1\)"),
    ],
    ids=["float", "bool", "complex", "list", "None", "shape"],
)
def test_wrong_ids_are_refused(ids, error, text) -> None:
    with pytest.raises(error, match=text):
        fix_permutation(ids, 5, seed=0)


IDS = torch.tensor([1, 2])


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: fix_permutation(IDS, 0, seed=0), ValueError, "n_classes must be at least 1, got 0"),
        (lambda: fix_permutation(IDS, 5.0, seed=0), TypeError, "n_classes must be an integer, got 5.0 of type float"),
        (lambda: fix_permutation(IDS, 5, seed=0.5), TypeError, "seed must be an integer, got 0.5 of type float"),
        (lambda: fix_permutation(IDS, 5, seed=True), TypeError, "seed must be an integer, got True of type bool"),
        (lambda: fix_permutation(IDS, 5, seed=2**64), ValueError, f"seed must be from {-(2**63)} to {2**64 - 1}, got"),
        (
            lambda: fix_permutation(IDS, 5, seed=-(2**63) - 1),
            ValueError,
            "seed must be from .*, got -9223372036854775809",
        ),
        (lambda: draw_permutation(2, 0, generator=generator()), ValueError, "n_classes must be at least 1, got 0"),
        (lambda: draw_permutation(2, "3", generator=generator()), TypeError, "n_classes must be an integer, got '3'"),
        (lambda: draw_permutation(-1, 3, generator=generator()), ValueError, "n_samples must be at least 0, got -1"),
        (lambda: draw_permutation(2.0, 3, generator=generator()), TypeError, "n_samples must be an integer, got 2.0"),
        (lambda: draw_permutation(2, 3, generator=None), TypeError, "generator must be a torch.Generator, got None"),
    ],
)
def test_wrong_numbers_and_generators_are_refused(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()


def test_numpys_integers_are_integers() -> None:
    two, five, seed = np.int64(2), np.int32(5), np.int64(7)
    assert torch.equal(fix_permutation(IDS, five, seed=seed), fix_permutation(IDS, 5, seed=7))
    assert torch.equal(
        draw_permutation(two, five, generator=generator()), draw_permutation(2, 5, generator=generator())
    )
