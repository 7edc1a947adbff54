"""The Nature-CNN in its sizes, and the one forward pass of the project."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.dqn.policies import QNetwork

from polydistill_agents.networks.beginning import initialize_from_data
from polydistill_agents.networks.nature import (
    SIZES,
    _channels_last,
    _convolve_frames,
    begins_as_nature,
    build_network,
    compute_scores,
    count_parameters,
    is_nature,
    size_of,
)
from tests.agents.samples import FRAMES, make_frames, make_network


@pytest.mark.parametrize(
    ("size", "parameters"), [("nature", 1_693_362), ("net1", 427_874), ("net2", 113_346), ("net3", 61_954)]
)
def test_sizes_have_the_parameters_of_the_paper(size, parameters):
    assert count_parameters(make_network(SIZES[size], 18)) == parameters


def test_weights_bear_the_names_and_shapes_of_stable_baselines():
    extractor = NatureCNN(FRAMES)
    theirs = QNetwork(FRAMES, spaces.Discrete(6), extractor, 512, net_arch=[])
    ours = {name: value.shape for name, value in make_network("nature").state_dict().items()}
    assert ours == {name: value.shape for name, value in theirs.state_dict().items()}


@pytest.mark.parametrize("size", SIZES)
def test_size_is_read_back_from_the_weights(size):
    assert size_of(make_network(SIZES[size], 3)) == SIZES[size]


@pytest.mark.parametrize("size", SIZES)
def test_compute_scores_is_the_networks_own_forward_pass(size):
    network, frames = make_network(size=SIZES[size]), make_frames(5)
    torch.testing.assert_close(compute_scores(network, frames), network(frames), rtol=1e-5, atol=1e-6)


def test_compute_scores_has_the_gradient_of_the_networks_own_forward_pass():
    network, frames = make_network(size=SIZES["net3"]), make_frames(4)
    gradients = []
    for forward in (network, lambda x: compute_scores(network, x)):
        network.zero_grad()
        forward(frames).square().sum().backward()
        gradients.append({name: weight.grad.clone() for name, weight in network.named_parameters()})
    for name, expected in gradients[0].items():
        assert expected.abs().max() > 0
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-5)


def test_frames_are_not_changed_and_may_lie_in_any_memory_order():
    network, frames = make_network(size=SIZES["net3"]), make_frames(4)
    kept = frames.clone()
    scores = compute_scores(network, frames)
    assert torch.equal(frames, kept)
    strided = frames.to(memory_format=torch.channels_last)
    torch.testing.assert_close(compute_scores(network, strided), scores)


def test_a_network_that_sees_raw_pixels_gets_raw_pixels():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = QNetwork(
            FRAMES, spaces.Discrete(6), NatureCNN(FRAMES, normalized_image=True), 512, [], normalize_images=False
        )
    frames = make_frames(3)
    torch.testing.assert_close(compute_scores(network, frames), network(frames), rtol=1e-4, atol=1e-3)
    assert network(frames).abs().max() > 10 * make_network("nature")(frames).abs().max(), "255 times brighter"


def nearly_equal_actions() -> QNetwork:
    """Two actions whose weights differ by 0.001 near 1: the same number in bfloat16."""
    network = make_network("nature", 2)
    with torch.no_grad():
        head = network.q_net[0]
        head.weight.copy_(torch.tensor([[1.0], [1.001]]).expand(2, 512))
        head.bias.zero_()
    return network


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_last_layer_tells_actions_apart_that_bfloat16_cannot(precision):
    scores = compute_scores(nearly_equal_actions(), make_frames(8), precision=precision)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores[:, 1] / scores[:, 0], torch.full((8,), 1.001), rtol=1e-5, atol=0)


def test_an_outer_autocast_does_not_lower_the_last_layers_precision():
    network, frames = nearly_equal_actions(), make_frames(8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = compute_scores(network, frames)
    assert torch.equal(inside, compute_scores(network, frames))


def test_bfloat16_is_used_where_it_is_asked_for_and_stays_near():
    network, frames = make_network("nature"), make_frames(8)
    exact, coarse = (compute_scores(network, frames, precision=p) for p in ("float32", "bfloat16"))
    assert not torch.equal(exact, coarse)
    torch.testing.assert_close(coarse, exact, rtol=0, atol=0.02 * exact.abs().max().item())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(4, 84, 84), (1, 84, 84), (3, 36, 52), (4, 37, 50)])
def test_the_first_convolution_in_bfloat16_is_a_convolution(memory_format, shape):
    """Products of a byte and a bfloat16 are exact in float32: only the rounding of the result may differ."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (5, *shape), dtype=torch.uint8, generator=generator)
    weight = torch.randn(32, shape[0], 8, 8, generator=generator).bfloat16().to(memory_format=memory_format)
    bias = torch.randn(32, generator=generator).bfloat16()
    results = []
    for inputs, convolve in ((frames, _convolve_frames), (frames.float(), torch.nn.functional.conv2d)):
        leaves = [value.clone().to(torch.float32).requires_grad_() for value in (weight, bias)]
        cast = [leaf.to(torch.bfloat16) if inputs.dtype == torch.uint8 else leaf for leaf in leaves]
        output = convolve(inputs.to(memory_format=memory_format), *cast, 4)
        output.float().sign().mul(output).sum().backward()
        results.append((output.float(), *(leaf.grad for leaf in leaves)))
    for ours, exact in zip(*results, strict=True):
        assert ours.shape == exact.shape
        assert (ours - exact).norm() < 0.01 * exact.norm()


def test_frames_too_small_for_the_kernels_are_refused():
    with pytest.raises(ValueError, match="at least 36 x 36"):
        build_network(spaces.Box(0, 255, (4, 35, 84), np.uint8), 6)
    frames = spaces.Box(0, 255, (4, 36, 36), np.uint8)
    network = build_network(frames, 6)
    assert network(torch.zeros((1, 4, 36, 36), dtype=torch.uint8)).shape == (1, 6)


def test_only_a_nature_cnn_with_one_linear_layer_is_nature():
    class Squared(NatureCNN):
        def forward(self, observations):
            return super().forward(observations) ** 2

    def behind(extractor, net_arch):
        return QNetwork(FRAMES, spaces.Discrete(6), extractor, 512, net_arch=net_arch)

    assert is_nature(make_network("nature"))
    assert is_nature(behind(NatureCNN(FRAMES), []))
    assert not is_nature(behind(NatureCNN(FRAMES), [64])), "a hidden layer more"
    assert not is_nature(behind(Squared(FRAMES), [])), "the same names, another function"
    assert not is_nature(torch.nn.Linear(2, 2))
    assert not is_nature(DQN("MlpPolicy", "CartPole-v1", buffer_size=1, device="cpu").q_net)


def test_a_nature_cnn_whose_layers_were_exchanged_is_none() -> None:
    for part, place, layer in (
        ("cnn", 1, torch.nn.Tanh()),
        ("cnn", 2, torch.nn.Identity()),
        ("linear", 1, torch.nn.ELU()),
    ):
        network = make_network("nature")
        assert begins_as_nature(network)
        getattr(network.features_extractor, part)[place] = layer
        assert not begins_as_nature(network)


@pytest.mark.parametrize("activation", [torch.nn.ReLU, torch.nn.Tanh])
def test_layers_behind_the_nature_cnn_are_computed_and_initialized_too(activation: type[torch.nn.Module]) -> None:
    network, frames = build_network(FRAMES, 6, SIZES["net3"], [8, 5], activation), make_frames(64)
    assert begins_as_nature(network)
    initialize_from_data(network, frames, torch.Generator().manual_seed(0))
    torch.testing.assert_close(compute_scores(network, frames), network(frames), rtol=1e-5, atol=1e-6)
    x = network.features_extractor(frames.float() / 255)
    for layer in (network.q_net[0], network.q_net[2]):
        inputs = layer(x)
        torch.testing.assert_close(inputs.mean(0), torch.zeros(inputs.shape[1]), atol=1e-3, rtol=0)
        torch.testing.assert_close(inputs.std(0), torch.ones(inputs.shape[1]), atol=2e-2, rtol=0)
        x = activation()(inputs)
    assert network(frames).abs().max() < 1.0


def test_initial_weights_from_data_give_every_unit_mean_0_and_deviation_1() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.full((64, 4, 84, 84), 87, dtype=torch.uint8)  # a background, and few pixels that move
    for i in range(64):
        frames[i, :, i : i + 4, 20 + i // 8 : 24 + i // 8] = 236
    network = build_network(FRAMES, 6, SIZES["net1"]).to(memory_format=torch.channels_last)
    before = torch.random.get_rng_state()
    initialize_from_data(network, frames, generator)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())

    extractor = network.features_extractor
    x = frames.float() / 255
    for layer in (extractor.cnn[0], extractor.cnn[2], extractor.cnn[4], extractor.linear[0]):
        inputs = layer(x if isinstance(layer, torch.nn.Conv2d) else x.flatten(1))
        axes = [axis for axis in range(inputs.dim()) if axis != 1]
        torch.testing.assert_close(inputs.mean(axes), torch.zeros(inputs.shape[1]), atol=1e-3, rtol=0)
        torch.testing.assert_close(inputs.std(axes), torch.ones(inputs.shape[1]), atol=2e-2, rtol=0)
        x = torch.relu(inputs)
    scores = compute_scores(network, frames)
    assert scores.abs().max() < 1.0  # a policy near uniform


def test_initial_weights_from_data_are_those_of_the_generator() -> None:
    frames = torch.randint(0, 256, (32, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    weights = []
    for seed in (0, 0, 1):
        network = build_network(FRAMES, 6, SIZES["net3"])
        initialize_from_data(network, frames, torch.Generator().manual_seed(seed))
        weights.append(network.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert not torch.equal(weights[0]["q_net.0.weight"], weights[2]["q_net.0.weight"])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_frames_as_channels_last_floats_are_those_of_torch_strides_too(channels):
    frames = torch.randint(0, 256, (3, channels, 20, 36), dtype=torch.uint8)
    theirs = frames.to(torch.float32, memory_format=torch.channels_last)
    ours = _channels_last(frames, torch.float32)
    assert torch.equal(ours, theirs)
    assert ours.is_contiguous(memory_format=torch.channels_last)
