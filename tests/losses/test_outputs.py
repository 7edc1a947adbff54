"""The scores are found in every container in which networks put them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from polydistill.losses.outputs import logits_of

SCORES = torch.zeros(2, 3)


class Inception(NamedTuple):
    scores: torch.Tensor
    aux: torch.Tensor


@pytest.mark.parametrize(
    "output",
    [
        SCORES,
        SimpleNamespace(logits=SCORES, loss=None),
        {"loss": None, "logits": SCORES},
        (SCORES, torch.ones(2)),
        [SCORES],
        Inception(SCORES, torch.ones(2)),
        ({"logits": SCORES}, None),
    ],
    ids=["tensor", "attribute", "mapping", "tuple", "list", "named tuple", "nested"],
)
def test_scores_are_found(output) -> None:
    assert logits_of(output) is SCORES


@pytest.mark.parametrize("output", [None, (), {"scores": SCORES}, "logits", (None, SCORES), SimpleNamespace(logits=3)])
def test_output_without_scores_is_refused(output) -> None:
    with pytest.raises(TypeError, match="a network must give a tensor of scores"):
        logits_of(output)
