"""A loss as a value: which kernel it asks for, with which numbers, and that it is what a call computes."""

from __future__ import annotations

import inspect
import typing

import pytest
import torch

from polydistill.kernels.plan import KINDS
from polydistill.losses import OBJECTIVES
from polydistill.losses.description import compute
from tests.losses.reference import NAMES


@pytest.mark.parametrize("name", NAMES)
def test_kernel_of_a_loss_takes_numbers_of_the_type_that_it_is_given(make_batch, name) -> None:
    batch = make_batch(4, 6)
    described = OBJECTIVES[name].describe(*batch, **batch.options(name))
    assert type(described.numbers) is KINDS[described.kind].numbers


@pytest.mark.parametrize("name", NAMES)
def test_what_is_described_is_what_a_call_computes(make_batch, name) -> None:
    batch = make_batch(4, 6)
    options = batch.options(name)
    loss = OBJECTIVES[name](*batch, ignore_index=int(batch.labels[1]), **options)
    described = OBJECTIVES[name].describe(*batch, ignore_index=int(batch.labels[1]), **options)
    assert torch.equal(compute(described), loss)
    assert not loss[1]
    assert loss.any()


@pytest.mark.parametrize("name", NAMES)
def test_help_says_that_a_loss_gives_a_tensor(name) -> None:
    function = OBJECTIVES[name].function
    assert inspect.signature(function).return_annotation == "Tensor"
    assert typing.get_type_hints(function)["return"] is torch.Tensor
