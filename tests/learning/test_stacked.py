"""polydistill.learning.stacked: what stacked networks compute is what each computes alone."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from polydistill.learning.networks import start_learning
from polydistill.learning.stacked import StackedNetworks, structure_of
from polydistill.vision.networks import build_network
from tests.vision.lessons import tiny, weights

ARCHITECTURES = ("resnet-8", "wrn-10-2", "densenet-10-6", "preact-8")


def networks_of(architecture: str, layout: torch.memory_format = torch.channels_last) -> list[nn.Module]:
    made = [build_network(architecture, 5, seed=seed).double().to(memory_format=layout) for seed in range(3)]
    for network in made:
        start_learning(network)
    return made


def assert_close(own: Tensor, other: Tensor) -> None:
    """To ten digits of the largest number: sums of float64 in another order."""
    scale = other.abs().max().clamp(min=1e-3)
    assert ((own - other).abs() <= 1e-10 * scale).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_gradients_and_running_statistics_are_those_of_each_network(architecture: str) -> None:
    networks = networks_of(architecture)
    alone = copy.deepcopy(networks)
    stacked = StackedNetworks(networks)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 3, 4, 3, 32, 32, generator=generator, dtype=torch.float64)
    for step in range(2):
        stacked.forget_gradients()
        scores = stacked(inputs[step])
        scores.square().sum().backward()  # type: ignore[no-untyped-call]
        stacked.hand_out_gradients()
        for number, network in enumerate(alone):
            network.zero_grad()
            own = network(inputs[step, number])
            own.square().sum().backward()
            assert_close(scores[number], own)
            for (name, expected), found in zip(network.named_parameters(), networks[number].parameters(), strict=True):
                assert expected.grad is not None, name
                assert found.grad is not None, name
                assert_close(found.grad, expected.grad)
    for number, network in enumerate(alone):
        found = weights(networks[number])
        for name, tensor in network.state_dict().items():
            assert_close(found[name].double(), tensor.double())
        tracked = [tensor for name, tensor in found.items() if name.endswith("num_batches_tracked")]
        assert tracked
        assert all(tensor == 2 for tensor in tracked)


class Precisions(TorchDispatchMode):
    """Which types convolutions and matrix products are given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, torch.dtype]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in {"convolution", "convolution_backward", "addmm", "bmm", "baddbmm", "mm"}:
            self.seen.add(("convolution" if "conv" in name else "product", given[1].dtype))
        return function(*given, **(named or {}))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_under_autocast_the_precision_is_that_of_each_network(architecture: str) -> None:
    networks = [network.float() for network in networks_of(architecture)]
    alone = copy.deepcopy(networks)
    stacked = StackedNetworks(networks)
    inputs = torch.randn(3, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16), Precisions() as together:
        scores = stacked(inputs)
        scores.float().logsumexp(dim=-1).sum().backward()  # type: ignore[no-untyped-call]
    stacked.hand_out_gradients()
    assert together.seen == {("convolution", torch.bfloat16), ("product", torch.bfloat16)}
    for number, network in enumerate(alone):
        with torch.autocast("cpu", torch.bfloat16), Precisions() as precisions:
            own = network(inputs[number])
            own.float().logsumexp(dim=-1).sum().backward()
        assert precisions.seen == together.seen
        torch.testing.assert_close(scores[number].float(), own.float(), rtol=0.05, atol=0.05)
        for expected, found in zip(network.parameters(), networks[number].parameters(), strict=True):
            assert expected.grad is not None
            assert found.grad is not None
            cosine = torch.cosine_similarity(found.grad.flatten(), expected.grad.flatten(), dim=0)
            assert cosine > 0.9, "in eight bits of a fraction"


def test_a_network_and_its_slice_are_one_until_they_are_released() -> None:
    networks = [tiny(seed) for seed in range(2)]
    stacked = StackedNetworks(networks)
    inputs = torch.randn(2, 4, 3, 32, 32)
    with torch.no_grad():
        networks[1].get_parameter("4.bias").add_(1.0)
    torch.testing.assert_close(stacked(inputs)[1], copy.deepcopy(networks[1])(inputs[1]))
    networks[0].load_state_dict(tiny(seed=7).state_dict())
    torch.testing.assert_close(stacked(inputs)[0], tiny(seed=7)(inputs[0]))
    stacked.release()
    before = weights(networks[1])
    with torch.no_grad():
        networks[0].get_parameter("4.bias").add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in networks[1].state_dict().items())
    assert all(own.untyped_storage().nbytes() == own.nbytes for own in networks[1].parameters())


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_released_networks_have_the_layout_that_they_had(layout: torch.memory_format) -> None:
    networks = networks_of("resnet-8", layout)
    before = [[tensor.stride() for tensor in network.state_dict().values()] for network in networks]
    StackedNetworks(networks).release()
    assert [[tensor.stride() for tensor in network.state_dict().values()] for network in networks] == before


def test_its_memory_goes_with_it() -> None:
    networks = [tiny(seed) for seed in range(2)]
    stacked = StackedNetworks(networks)
    stacked(torch.randn(2, 4, 3, 32, 32))
    stacked.release()
    gone = weakref.ref(stacked)
    gc.disable()
    try:
        del stacked
        assert gone() is None, "without the collector of cycles"
    finally:
        gc.enable()


def test_copies_do_not_change_the_networks() -> None:
    networks = [tiny(seed).eval() for seed in range(2)]
    storages = [tensor.data_ptr() for network in networks for tensor in network.state_dict().values()]
    stacked = StackedNetworks(networks, learning=False)
    inputs = torch.randn(2, 4, 3, 32, 32)
    with torch.no_grad():
        scores = stacked(inputs)
    for number, network in enumerate(networks):
        torch.testing.assert_close(scores[number], network(inputs[number]))
    assert [tensor.data_ptr() for network in networks for tensor in network.state_dict().values()] == storages


def test_frozen_layers_stay_as_they_are() -> None:
    networks = [tiny(seed) for seed in range(2)]
    for network in networks:
        network[:2].requires_grad_(False)
        start_learning(network)
    before = [weights(network[:2]) for network in networks]
    stacked = StackedNetworks(networks)
    stacked(torch.randn(2, 4, 3, 32, 32)).sum().backward()  # type: ignore[no-untyped-call]
    stacked.hand_out_gradients()
    for network, was in zip(networks, before, strict=True):
        assert all(torch.equal(tensor, was[name]) for name, tensor in network[:2].state_dict().items())
        assert [parameter.grad is None for parameter in network.parameters()] == [True] * 3 + [False] * 2


def test_networks_of_another_structure_are_refused() -> None:
    wide, frozen, evaluating = tiny(classes=6), tiny(), tiny().eval()
    frozen[0].requires_grad_(False)
    strided = tiny()
    strided[0] = nn.Conv2d(3, 8, 8, stride=8, bias=False, padding_mode="reflect")
    for other in (wide, frozen, evaluating, strided, tiny().double()):
        assert structure_of(tiny()) != structure_of(other)
        with pytest.raises(ValueError, match="only networks of one structure can be stacked"):
            StackedNetworks([tiny(), other])
