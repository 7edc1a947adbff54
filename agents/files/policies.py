"""What Stable-Baselines3 must be told to build the policy of a given ``QNetwork``."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.dqn.policies import QNetwork
from torch import nn

from polydistill_agents.networks.nature import SIZES, fits_stock, size_of


class Policy(NamedTuple):
    """A DQN's policy.

    Attributes:
        name: "MlpPolicy", "CnnPolicy" or "MultiInputPolicy".
        kwargs: ``policy_kwargs``.
    """

    name: str
    kwargs: dict[str, Any]


def policy_of(network: QNetwork) -> Policy:
    """The policy whose ``q_net`` has the layers of ``network``; of a Nature-CNN as many channels or more.

    Raises:
        ValueError: Stable-Baselines3 cannot build it: its ``NatureCNN`` has fewer channels, or an extractor is not its
            own.
    """
    kwargs: dict[str, Any] = {} if network.normalize_images else {"normalize_images": False}
    if network.activation_fn is not nn.ReLU:
        kwargs["activation_fn"] = network.activation_fn
    extractor = network.features_extractor
    if isinstance(extractor, FlattenExtractor):
        return Policy("MlpPolicy", kwargs | {"net_arch": list(network.net_arch)})
    if isinstance(extractor, CombinedExtractor):
        told = _combined(extractor, network.observation_space)
        return Policy("MultiInputPolicy", kwargs | told | {"net_arch": list(network.net_arch)})
    size, told = size_of(network), {}
    if not fits_stock(size):
        raise ValueError(
            f"channels {size.channels} do not fit Stable-Baselines3's NatureCNN {SIZES['nature'].channels}"
        )
    if size.hidden != SIZES["nature"].hidden:
        told["features_dim"] = size.hidden
    if not is_image_space(network.observation_space):
        told["normalized_image"] = True
    if told:
        kwargs["features_extractor_kwargs"] = told
    if network.net_arch:
        kwargs["net_arch"] = list(network.net_arch)
    return Policy("CnnPolicy", kwargs)


def _combined(extractor: CombinedExtractor, space: spaces.Space[Any]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name, part in extractor.extractors.items():
        if not list(part.parameters()):  # it only makes its part flat
            continue
        if type(part) is not NatureCNN:
            raise ValueError(f"the extractor of {name!r} is not Stable-Baselines3's NatureCNN")
        told["cnn_output_dim"] = part.features_dim
        if not is_image_space(space[name]):  # type: ignore[index]  # a Dict
            told["normalized_image"] = True
    return {"features_extractor_kwargs": told} if told else {}


def fresh_space(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """An equal space without a random state.

    Raises:
        ValueError: no agent of Stable-Baselines3 sees such a space.
    """
    if isinstance(space, spaces.Dict):
        return spaces.Dict([(name, fresh_space(part)) for name, part in space.items()])  # in its own order
    if isinstance(space, spaces.Box):
        return spaces.Box(space.low, space.high, space.shape, space.dtype)
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n), start=int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(np.array(space.nvec), dtype=space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return spaces.MultiBinary(space.n)
    raise ValueError(f"Stable-Baselines3 has no policy for observations {space}")
