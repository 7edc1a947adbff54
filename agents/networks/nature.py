"""The Nature-CNN of Mnih et al. (2015) in the sizes of Rusu et al. (2016, Table B1), as Stable-Baselines3 modules.

A student is always a ``stable_baselines3`` ``QNetwork`` (features extractor, then linear layers, usually one), so that
its weights carry Stable-Baselines3's names. :func:`compute_scores` is the one forward pass of the project.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor, nn
from torch.nn import functional as F

from polydistill.errors import suggest

KERNELS = ((8, 4), (4, 2), (3, 1))  # (size, stride) of the three convolutions


class Size(NamedTuple):
    """Widths of a Nature-CNN: output channels of the three convolutions and units of the hidden layer."""

    channels: tuple[int, int, int]
    hidden: int


SIZES: dict[str, Size] = {
    "nature": Size((32, 64, 64), 512),  # 1,693,362 parameters with 18 actions
    "net1": Size((16, 32, 32), 256),  # 427,874: 25 %
    "net2": Size((16, 16, 16), 128),  # 113,346: 7 %
    "net3": Size((16, 16, 16), 64),  # 61,954: 4 %
}


def read_size(text: str) -> Size:
    """The widths that a text names: a name of :data:`SIZES`, or channels and hidden units with ``x`` between them.

    Raises:
        ValueError: it is neither.

    Example:
        >>> read_size("8x16x16x64")
        Size(channels=(8, 16, 16), hidden=64)
    """
    if text in SIZES:
        return SIZES[text]
    if not re.fullmatch(r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4}){3}", text, re.ASCII):
        known = f"{', '.join(SIZES)}, or three channels and the hidden units, as 8x16x16x64"
        raise ValueError(f"unknown size {text!r}{suggest(text, SIZES)} (there are {known})")
    first, second, third, hidden = map(int, text.split("x"))
    return Size((first, second, third), hidden)


def name_size(size: Size) -> str:
    """The shortest text of which :func:`read_size` makes ``size``.

    Example:
        >>> name_size(Size((16, 32, 32), 256)), name_size(Size((8, 16, 16), 64))
        ('net1', '8x16x16x64')
    """
    named = next((name for name, known in SIZES.items() if known == size), None)
    return named or "x".join(map(str, (*size.channels, size.hidden)))


def fits_stock(size: Size) -> bool:
    """Whether Stable-Baselines3's ``NatureCNN``, whose channels are those of "nature", has room for it."""
    return all(have <= room for have, room in zip(size.channels, SIZES["nature"].channels, strict=True))


class SizedNatureCNN(BaseFeaturesExtractor):
    """Stable-Baselines3's ``NatureCNN`` with free widths; the names of the weights are the same.

    Args:
        observation_space: ``Box`` of shape ``(stack, 84, 84)``, uint8.
        features_dim: units of the hidden layer.
        channels: output channels of the three convolutions.
    """

    def __init__(
        self,
        observation_space: spaces.Box,
        features_dim: int = 512,
        channels: tuple[int, int, int] = (32, 64, 64),
    ) -> None:
        super().__init__(observation_space, features_dim)
        inputs, height, width = observation_space.shape
        layers: list[nn.Module] = []
        for outputs, (size, stride) in zip(channels, KERNELS, strict=True):
            layers += [nn.Conv2d(inputs, outputs, size, stride), nn.ReLU()]
            inputs, height, width = outputs, (height - size) // stride + 1, (width - size) // stride + 1
        if height < 1 or width < 1:
            raise ValueError(f"a Nature-CNN needs frames of at least 36 x 36, got {observation_space.shape}")
        self.cnn = nn.Sequential(*layers, nn.Flatten())
        self.linear = nn.Sequential(nn.Linear(inputs * height * width, features_dim), nn.ReLU())

    def forward(self, observations: Tensor) -> Tensor:
        """``(batch, stack, height, width)`` floats in [0, 1] to ``(batch, features_dim)``."""
        return self.linear(self.cnn(observations))  # type: ignore[no-any-return]


def build_network(
    observation_space: spaces.Box,
    n_actions: int,
    size: Size = SIZES["nature"],
    net_arch: Sequence[int] = (),
    activation_fn: type[nn.Module] = nn.ReLU,
) -> QNetwork:
    """A fresh ``QNetwork`` on the CPU; initial weights come from torch's current generator.

    Args:
        observation_space: of frames ``(stack, height, width)``.
        n_actions: scores.
        size: widths of the Nature-CNN.
        net_arch: units of the linear layers between it and the scores.
        activation_fn: behind each of them.
    """
    extractor = SizedNatureCNN(observation_space, size.hidden, size.channels)
    actions = spaces.Discrete(n_actions)
    return QNetwork(observation_space, actions, extractor, size.hidden, list(net_arch), activation_fn)


def multiply_adds(size: Size) -> int:
    """Of a forward pass of one observation of 4 frames of 84 x 84, without the last layer.

    Example:
        >>> multiply_adds(SIZES["nature"])
        9343232
    """
    first, second, third = size.channels
    convolutions = 20**2 * 8**2 * 4 * first + 9**2 * 4**2 * first * second + 7**2 * 3**2 * second * third
    return convolutions + 7**2 * third * size.hidden


def size_of(network: QNetwork) -> Size:
    """The widths of a Nature-CNN, read from the shapes of its weights."""
    weights = network.state_dict()
    first, second, third = (weights[f"features_extractor.cnn.{i}.weight"].shape[0] for i in (0, 2, 4))
    return Size((first, second, third), weights["features_extractor.linear.0.weight"].shape[0])


def begins_as_nature(network: nn.Module) -> bool:
    """Whether it is a Q-network of a Nature-CNN and linear layers: what :func:`compute_scores` computes.

    It checks the classes, not the weights' names: another extractor may have the same names and compute something
    else.
    """
    if not isinstance(network, QNetwork) or type(network.features_extractor) not in (NatureCNN, SizedNatureCNN):
        return False
    extractor = cast(Any, network.features_extractor)
    cnn, linear = ([type(layer) for layer in layers] for layers in (extractor.cnn, extractor.linear))
    return cnn == [nn.Conv2d, nn.ReLU] * 3 + [nn.Flatten] and linear == [nn.Linear, nn.ReLU]


def is_nature(network: nn.Module) -> bool:
    """Whether it is a Q-network of a Nature-CNN and one linear layer behind it."""
    return begins_as_nature(network) and len(cast(Any, network).q_net) == 1


def count_parameters(network: nn.Module) -> int:
    """Number of weights of ``network``, frozen ones too."""
    return sum(parameter.numel() for parameter in network.parameters())


def compute_scores(network: QNetwork, observations: Tensor, *, precision: str = "float32") -> Tensor:
    """Scores of a Nature-CNN for frames as they are stored.

    The division by 255 is folded into the first convolution's weights: 0 to 255 are exact in bfloat16, their
    255ths are not, and the large tensor is read once less.

    Args:
        network: one that :func:`begins_as_nature`: from :func:`build_network`, or a ``q_net`` of Stable-Baselines3.
            Gradient flows. Made with ``normalize_images=False``, it sees 0 to 255.
        observations: ``(batch, stack, 84, 84)`` uint8, on the network's device.
        precision: "float32", or "bfloat16" for the Nature-CNN. What is behind it, the last layer, is always
            computed in float32: three digits of a Q-value near 1 are 0.4 nats at temperature 0.01.

    Returns:
        ``(batch, n_actions)`` float32.
    """
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    extractor = cast(Any, network.features_extractor)
    with torch.autocast(observations.device.type, enabled=False):  # an outer one would lower the last layer's precision
        first = extractor.cnn[0]
        weight = first.weight / 255.0 if network.normalize_images else first.weight
        x = F.relu(
            _convolve_frames(observations, weight.to(dtype), first.bias.to(dtype), first.stride[0]), inplace=True
        )
        for layer in (extractor.cnn[2], extractor.cnn[4]):
            x = F.relu(F.conv2d(x, layer.weight.to(dtype), layer.bias.to(dtype), layer.stride), inplace=True)
        hidden = extractor.linear[0]
        # flattened as (channel, row, column), as the stored weights expect
        x = F.relu(F.linear(x.flatten(1), hidden.weight.to(dtype), hidden.bias.to(dtype)), inplace=True)
        return network.q_net(x.float())  # type: ignore[no-any-return]


def _channels_last(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """``frames.to(dtype, memory_format=torch.channels_last)``; a processor does it in a third of the time plane by
    plane."""
    n, channels, height, width = frames.shape
    if frames.device.type != "cpu":
        return frames.to(dtype, memory_format=torch.channels_last)
    last = torch.empty((n, height, width, channels), dtype=dtype)
    for channel in range(channels):
        last[..., channel] = frames[:, channel]
    return last.permute(0, 3, 1, 2)


def _convolve_frames(frames: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """The first convolution, ``(batch, channels, rows, columns)`` in the weight's dtype, of uint8 frames.

    With its stride of 4 it reads blocks of 4 x 4 pixels that never part, so it equals a convolution of stride 1 over
    blocks, with 16 times the channels. Processors are slow at convolutions of 4 channels in bfloat16: this way forward
    and backward of the first layer take half the time. Four pixels of a row move as one 32-bit word.
    """
    n, channels, height, width = frames.shape
    outputs, _, *kernel = weight.shape
    if weight.dtype != torch.bfloat16 or stride != 4 or any(length % 4 for length in (height, width, *kernel)):
        return F.conv2d(_channels_last(frames, weight.dtype), weight, bias, stride)
    rows, columns = height // 4, width // 4
    words = frames.contiguous().flatten().view(torch.int32).view(n, channels, rows, 4 * columns)
    # two moves, the first of long rows, take a third of the time of one
    rows_of_blocks = words.transpose(1, 2).reshape(n * rows, channels * 4, columns).transpose(1, 2).contiguous()
    blocks = rows_of_blocks.view(torch.uint8).view(n, rows, columns, channels * 16)
    weight = weight.view(outputs, channels, kernel[0] // 4, 4, kernel[1] // 4, 4).permute(0, 1, 3, 5, 2, 4)
    weight = weight.reshape(outputs, channels * 16, kernel[0] // 4, kernel[1] // 4)
    return F.conv2d(blocks.to(weight.dtype).permute(0, 3, 1, 2), weight, bias)
