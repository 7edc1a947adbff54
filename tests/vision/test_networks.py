"""polydistill.vision.networks: the sizes that the papers state, and names that say everything."""

from __future__ import annotations

import re

import pytest
import torch

from polydistill.vision.networks import EXAMPLES, build_network, check_name


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
def test_the_born_again_densenets_are_within_a_fiftieth_of_the_papers_sizes(name: str, millions: float) -> None:
    assert count(name, 10) == pytest.approx(millions * 1e6, rel=0.02)


SMALL = ["wrn-10-1", "wrn-10-2", "densenet-10-4", "resnet-8", "preact-8", "preact-bottleneck-11"]


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
        ("densenet-7-12", "densenet has depths 6n + 4, got 7; the nearest is 10"),
        ("preact-bottleneck-110x", "unknown network"),
        ("preact-bottleneck-22", "preact-bottleneck has depths 9n + 2, got 22; the nearest is 20"),
        ("wrn-4-1", "wrn has depths 6n + 4"),
        ("wrn-28-0", "must lie between 1 and 2000"),
        ("wrn-9999999999999-1", "must lie between 1 and 2000"),
        ("wrn-28-1\n", "unknown network"),
        ("", "unknown network"),
    ],
)
def test_a_name_that_is_none_is_refused_with_a_hint(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_name(name)


def test_a_classifier_of_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 classes"):
        build_network("resnet-8", 1)
