"""The options of every objective: listed with what a command line needs, and refused before anything is trained."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from polydistill.losses import OBJECTIVES, check_options, current_backend, use_backend
from tests.losses.reference import CASES, NAMES, case_id

NOT_NUMBERS = {"mask", "group", "check_values", "permutation", "ignore_index", "rows"}
NUMBERS = [(name, option) for name in NAMES for option in OBJECTIVES[name].options]


@pytest.mark.parametrize("name", NAMES)
def test_every_number_in_the_signature_is_listed_with_its_default(name) -> None:
    parameters = inspect.signature(OBJECTIVES[name].function).parameters.values()
    keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in NOT_NUMBERS}
    assert {option: listed.default for option, listed in OBJECTIVES[name].options.items()} == keywords
    assert all(listed.meaning and listed.allowed for listed in OBJECTIVES[name].options.values())


def test_beta_means_what_its_loss_means_by_it() -> None:
    assert OBJECTIVES["dkd"].options["beta"].allowed == "at least 0"
    assert OBJECTIVES["jsd"].options["beta"].allowed == "between 0 and 1"


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_what_a_loss_takes_passes(case) -> None:
    name, options = case
    check_options(name, **options)


@pytest.mark.parametrize(("name", "option"), NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
def test_a_number_out_of_range_is_refused_for_every_option(name, option, value) -> None:
    with pytest.raises(ValueError, match=f"objective {name}: {option} must be .*got {value}"):
        check_options(name, **{option: value})


@pytest.mark.parametrize("value", ["0.1", None, True, [1.0], torch.tensor(1.0)], ids=str)
def test_what_is_no_number_is_refused(value) -> None:
    with pytest.raises(TypeError, match="objective dkd: alpha must be a number, got"):
        check_options("dkd", alpha=value)


def test_a_weight_that_makes_the_loss_infinite_is_refused() -> None:
    with pytest.raises(ValueError, match=r"objective ban_l with label_weight=1e\+300 gives a loss that is not finite"):
        check_options("ban_l", label_weight=1e300)


@pytest.mark.parametrize(
    ("name", "option", "text"),
    [
        ("dkd", "aplha", "objective dkd has no option aplha; it has .*; did you mean alpha"),
        ("policy_huber", "deltas", "it has delta; did you mean delta"),
        ("ban", "temperature", "objective ban has no option temperature; it has none"),
        ("policy_kl", "mask", "has no option mask; it has temperature"),
        ("bann", "x", "unknown objective 'bann'.*did you mean 'ban'"),
    ],
)
def test_an_option_that_is_not_there_is_answered_with_the_nearest(name, option, text) -> None:
    with pytest.raises(ValueError, match=text):
        check_options(name, **{option: 1.0})


def test_a_check_draws_nothing_and_leaves_the_backend_and_default_device_alone() -> None:
    before = torch.random.get_rng_state()
    with use_backend("auto"), torch.device("meta"):
        check_options("dkpp")
        check_options("uniform_confidence")
        assert current_backend() == "auto"
    assert torch.equal(torch.random.get_rng_state(), before)
