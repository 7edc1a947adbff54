"""polydistill.vision.networks: the sizes that the papers state, and names that say everything."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

from polydistill.vision.networks import EXAMPLES, build_network, check_name
from polydistill.vision.networks.sharing import hidden_shapes


def count(name: str, classes: int) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_network(name, classes).parameters())


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("wrn-28-1", 100, 375_348),
        ("wrn-28-2", 100, 1_479_220),
        ("wrn-28-5", 100, 9_161_524),
        ("wrn-28-10", 100, 36_536_884),
        # what other implementations of the same papers count
        ("resnet-20", 10, 269_722),
        ("resnet-32", 10, 464_154),
        ("resnet-56", 10, 853_018),
        ("resnet-110", 10, 1_727_962),
        ("resnet-20-projection", 10, 272_474),
        ("resnet-8x4", 100, 1_233_540),
        ("resnet-32x4", 100, 7_433_860),
        ("imagenet-resnet-18", 10, 11_173_962),
        ("imagenet-resnet-34", 10, 21_282_122),
        ("imagenet-resnet-50", 10, 23_520_842),
        ("imagenet-resnet-101", 10, 42_512_970),
        ("imagenet-resnet-152", 10, 58_156_618),
        ("preact-20", 10, 272_282),
        ("preact-110", 10, 1_730_522),
        ("preact-bottleneck-164", 10, 1_703_258),
        ("preact-bottleneck-1001", 10, 10_327_706),
        ("densenet-100-12", 10, 769_162),
    ],
)
def test_parameters_are_as_many_as_published(name: str, classes: int, expected: int) -> None:
    assert count(name, classes) == expected


@pytest.mark.parametrize(
    ("name", "millions"),
    [("densenet-112-33", 6.3), ("densenet-90-60", 16.1), ("densenet-80-80", 22.4), ("densenet-80-120", 50.4)],
)
def test_the_born_again_densenets_have_the_papers_sizes(name: str, millions: float) -> None:
    assert count(name, 10) == pytest.approx(millions * 1e6, rel=0.006)


# ---- tables 4 and 5 of the born-again paper: the sizes by sums of their own ------------------------------------------

HIDDEN = (480, 660, 750)  # DenseNet-90-60 at the end of each stage: 120 + 14 x 60 = 960, of which a half stays, ...
TAKEN = (120, 480, 660)


def dense_numbers(layers: int, grown: tuple[int, int, int]) -> int:
    """Of a DenseNet with the hidden states of DenseNet-90-60, for 100 classes."""
    total = 3 * 9 * 120 + 2 * 750 + 750 * 100 + 100
    for taken, whole, left in zip(TAKEN, grown, HIDDEN, strict=True):
        borders = [taken + (whole - taken) * layer // layers for layer in range(layers + 1)]
        for before, after in itertools.pairwise(borders):
            added = after - before
            total += 2 * before + before * 4 * added + 2 * 4 * added + 9 * 4 * added * added
        total += 2 * whole + whole * left
    return total


def wide_numbers(units: int, ratio: float) -> int:
    """Of two 3 x 3 convolutions in each unit; first and last layer left out, as the paper's sizes do."""
    total = 2 * 750
    for taken, left in zip(TAKEN, HIDDEN, strict=True):
        inside = int(ratio * left)
        total += 2 * taken + 9 * taken * inside + 2 * inside + 9 * inside**2 + taken * inside
        total += (units - 1) * (4 * inside + 18 * inside**2) + 2 * inside + inside * left
    return total


def bottleneck_numbers(units: int, inside: tuple[int, int, int]) -> int:
    total = 2 * 750
    for taken, left, narrow in zip(TAKEN, HIDDEN, inside, strict=True):
        for inputs in [taken] + [left] * (units - 1):
            total += 2 * inputs + inputs * narrow + 4 * narrow + 9 * narrow**2 + narrow * left
        total += taken * left
    return total


def learning(name: str) -> int:
    """Parameters but those of the first and the last layer."""
    with torch.device("meta"):
        network = build_network(name, 100)
    ends = [*network.stem.parameters(), *network.head.parameters()]
    return count(name, 100) - sum(parameter.numel() for parameter in ends)


WHOLE = (960, 1320, 1500)


@pytest.mark.parametrize(
    ("variant", "layers", "grown", "millions", "slack"),
    [
        ("depth-1", 14, WHOLE, 16.1, 0.01),
        ("depth-0.5", 7, WHOLE, 21.2, 0.01),
        ("depth-2", 28, WHOLE, 13.7, 0.004),
        ("depth-3", 42, WHOLE, 12.9, 0.005),
        ("depth-4", 56, WHOLE, 12.6, 0.004),
        # a transition that takes away a quarter, three eighths, three quarters; the paper does not say what it changes
        ("compression-0.5", 14, (640, 880, 1000), 5.1, 0.21),
        ("compression-0.75", 14, (768, 1056, 1200), 10.1, 0.06),
        ("compression-1.5", 14, (1920, 2640, 3000), 80.5, 0.07),
    ],
)
def test_the_densenets_of_table_4_have_their_sizes(
    variant: str, layers: int, grown: tuple[int, int, int], millions: float, slack: float
) -> None:
    found = count(f"densenet-90-60-{variant}", 100)
    assert found == dense_numbers(layers, grown)
    assert found == pytest.approx(millions * 1e6, rel=slack)


@pytest.mark.parametrize(("units", "ratio", "millions"), [(1, 1, 20.9), (2, 1, 43.1), (4, 0.5, 24.3), (4, 1, 87.3)])
def test_the_wide_networks_of_table_5_have_their_sizes(units: int, ratio: float, millions: float) -> None:
    found = learning(f"wide-{units}-{ratio}-like-densenet-90-60")
    assert found == wide_numbers(units, ratio)
    assert found // 100_000 == round(10 * millions), "the paper's figures are cut off, not rounded"


@pytest.mark.parametrize(
    ("ratio", "inside", "millions", "slack"),
    [(1, (120, 165, 188), 17.7, 0.09), (0.5, (60, 82, 94), 7.3, 0.05)],
)
def test_the_bottleneck_networks_of_table_5_are_near_their_sizes(
    ratio: float, inside: tuple[int, int, int], millions: float, slack: float
) -> None:
    found = learning(f"bottleneck-14-{ratio}-like-densenet-90-60")
    assert found == bottleneck_numbers(14, inside)
    assert found == pytest.approx(millions * 1e6, rel=slack)


def test_the_networks_of_tables_4_and_5_have_the_hidden_states_of_their_teacher() -> None:
    wanted = hidden_shapes("densenet-90-60")
    assert wanted == [(480, 16, 16), (660, 8, 8), (750, 8, 8)]
    for variant in ("densenet-90-60-depth-2", "densenet-90-60-compression-0.5", "wide-1-0.5-like-densenet-90-60"):
        assert hidden_shapes(variant) == wanted
    assert hidden_shapes("bottleneck-1-1-like-densenet-90-60") == wanted
    assert hidden_shapes("wrn-28-10") == [(160, 32, 32), (320, 16, 16), (640, 8, 8)]
    assert hidden_shapes("imagenet-resnet-50") == [(256, 32, 32), (512, 16, 16), (1024, 8, 8), (2048, 4, 4)]
    # a plain DenseNet-BC has no transition at its end
    assert hidden_shapes("densenet-10-4") == hidden_shapes("wide-1-1-like-densenet-10-4")
    assert hidden_shapes("densenet-10-4") == [(6, 16, 16), (5, 8, 8), (9, 8, 8)]


SMALL = [
    *["wrn-10-1", "wrn-10-2", "densenet-10-4", "resnet-8", "resnet-8-projection", "preact-8", "preact-bottleneck-11"],
    *["densenet-10-4-depth-2", "densenet-10-4-compression-1.5"],
    *["wide-2-0.5-like-densenet-10-4", "bottleneck-2-1-like-densenet-10-4"],
]


@pytest.mark.parametrize("name", SMALL)
def test_who_looks_inside_a_network_sees_the_same_scores_and_a_state_of_each_stage(name: str) -> None:
    network = build_network(name, 7, seed=1).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    scores, states = network.see(images)
    assert torch.equal(scores, network(images))
    assert [tuple(state.shape[1:]) for state in states] == hidden_shapes(name)
    assert torch.equal(network.finish(states[-1]), scores), "what comes behind leaves the states as they are"


@pytest.mark.parametrize("name", SMALL)
def test_a_network_gives_logits_and_every_weight_gets_a_gradient(name: str) -> None:
    network = build_network(name, 7, seed=1)
    logits = network(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (4, 7)
    torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", SMALL)
def test_a_fresh_network_neither_fades_nor_explodes(name: str) -> None:
    logits = build_network(name, 100, seed=3)(torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert 0.05 < logits.std() < 5


def test_building_leaves_the_generators_of_the_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    reseeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)
    build_network("resnet-8", 10, seed=1)
    assert reseeded == []


def test_the_seed_decides_the_weights_and_the_global_generator_stays() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (build_network("resnet-8", 10, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["stem.weight"], other["stem.weight"])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_example_names_exist() -> None:
    for name in EXAMPLES:
        check_name(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrn281", "unknown network 'wrn281'; did you mean wrn-28-1?"),
        ("resnet20", "did you mean resnet-20?"),
        ("wrn-27-1", "wrn has depths 6n + 4, got 27; the nearest is 28"),
        ("resnet-18", "resnet has depths 6n + 2, got 18; the nearest is 20"),
        ("imagenet-resnet-20", "imagenet-resnet has depths 18, 34, 50, 101, 152, got 20"),
        ("resnet-18-projection", "resnet has depths 6n + 2, got 18; the nearest is 20"),
        ("resnet-32x2", "unknown network 'resnet-32x2'; did you mean resnet-32x4?"),
        ("densenet-7-12", "densenet has depths 6n + 4, got 7; the nearest is 10"),
        ("preact-bottleneck-110x", "unknown network"),
        ("preact-bottleneck-22", "preact-bottleneck has depths 9n + 2, got 22; the nearest is 20"),
        ("wrn-4-1", "wrn has depths 6n + 4"),
        ("densenet-90-60-depth-0.3", "depth 0.3 times of 14 layers is no whole number of layers"),
        ("densenet-10-4-depth-9", "depth 9 times leaves layers without a channel to add"),
        ("densenet-90-60-compression-2", "compression 2 times takes away every channel: choose less than 2"),
        ("densenet-10-4-compression-0.5", "compression 0.5 times leaves layers without a channel to add"),
        ("densenet-90-60-depth-0", "must lie between 1 and 2000"),
        ("wide-1-0.01-like-densenet-10-4", "ratio 0.01 leaves no channel of 6"),
        ("wide-1-1-like-densenet-11-4", "densenet has depths 6n + 4, got 11"),
        ("wide-4-0.5", "unknown network 'wide-4-0.5'"),
        ("wrn-28-0", "must lie between 1 and 2000"),
        ("wrn-9999999999999-1", "must lie between 1 and 2000"),
        ("wrn-28-1\n", "unknown network"),
        ("", "unknown network"),
    ],
)
def test_a_name_that_is_none_is_refused_with_a_hint(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_name(name)


def test_a_name_is_checked_without_a_random_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device "meta" torch loads its compiler for one: a second at every start of a script."""
    monkeypatch.setattr(torch.Tensor, "normal_", None)
    check_name("resnet-8")


def test_a_classifier_of_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 classes"):
        build_network("resnet-8", 1)
