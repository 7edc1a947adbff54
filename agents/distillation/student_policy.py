"""The student's network, from a size and from what Stable-Baselines3's users write into ``policy_kwargs``.

Contract: one function in learning, in play and in the saved file. What changes the function is built, and stands in
the file; what could not be written there is refused here, by its name.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.dqn.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, QNetwork
from torch import nn

from polydistill.errors import UserError, suggest
from polydistill_agents.files.places import Place
from polydistill_agents.files.sb3_data import ACTIVATIONS
from polydistill_agents.files.sb3_zip import AgentFile, read_agent, rebuild_scores
from polydistill_agents.files.sources import find, read_compact
from polydistill_agents.networks.architecture import DEFAULT_WIDTHS, Architecture, architecture_of
from polydistill_agents.networks.corner import cut_padding
from polydistill_agents.networks.nature import SIZES, Size, SizedNatureCNN, count_parameters, read_size
from polydistill_agents.networks.scaling import ScaledCombined, ScaledFlatten

POLICY_KWARGS = (
    "net_arch", "activation_fn", "normalize_images", "features_extractor_class", "features_extractor_kwargs",
    "optimizer_class", "optimizer_kwargs",
)  # fmt: skip
POLICIES: dict[str, type[BasePolicy]] = {
    "CnnPolicy": CnnPolicy,
    "MlpPolicy": MlpPolicy,
    "MultiInputPolicy": MultiInputPolicy,
}
STOCK = {  # as wide as Stable-Baselines3's own
    "CnnPolicy": Architecture(SIZES["nature"], None, (), nn.ReLU),
    "MlpPolicy": Architecture(None, None, DEFAULT_WIDTHS, nn.ReLU),
    "MultiInputPolicy": Architecture(None, 256, DEFAULT_WIDTHS, nn.ReLU),
}
EXTRACTOR_KWARGS = ("features_dim", "channels", "normalized_image")  # the last one only skips a check


class Taught(Protocol):
    """A teacher: the widths of its network where they are known."""

    @property
    def architecture(self) -> Architecture | None:
        """Of its network."""


def policy_name(policy: str | type[BasePolicy]) -> str:
    """The name of a policy of Stable-Baselines3's own.

    Raises:
        ValueError: it is none: such a class may compute anything.
    """
    for name, kind in POLICIES.items():
        if policy in (name, kind):
            return name
    name = policy if isinstance(policy, str) else policy.__name__
    there_are = f"{', '.join(POLICIES)}{suggest(name, POLICIES)}"
    raise ValueError(f"policy must be one of {there_are}, got {name}: the saved file could not hold another function")


def choose_architecture(
    policy: str, size: str | Size | None, teacher: Taught | None, policy_kwargs: Mapping[str, Any]
) -> Architecture:
    """The network that is asked for by ``size`` and ``policy_kwargs``; what they leave open is the teacher's.

    Args:
        policy: "CnnPolicy", "MlpPolicy" or "MultiInputPolicy".
        size: widths of a Nature-CNN.
        teacher: whose network is copied in shape where it is of that policy, else Stable-Baselines3's own widths.
        policy_kwargs: Stable-Baselines3's.

    Raises:
        ValueError: an unknown name, or two widths that differ.
    """
    _check_names(policy_kwargs)
    taught = None if teacher is None else teacher.architecture
    twin = taught if taught is not None and taught.policy == policy else None
    own = (
        _of_frames(size, twin, policy_kwargs)
        if policy == "CnnPolicy"
        else _of_others(policy, size, twin, policy_kwargs)
    )
    asked = size is not None or {"net_arch", "features_extractor_kwargs"} & set(policy_kwargs)
    if teacher is not None and twin is None and not asked:
        widths = "a Nature-CNN" if policy == "CnnPolicy" else f"of net_arch {list(DEFAULT_WIDTHS)}"
        warnings.warn(f"the teacher's architecture is unknown: the student is {widths}", stacklevel=5)
    net_arch, activation = _net_arch(policy_kwargs, own.net_arch), _activation(policy_kwargs, own.activation)
    return own._replace(net_arch=net_arch, activation=activation)


def _of_frames(size: str | Size | None, twin: Architecture | None, policy_kwargs: Mapping[str, Any]) -> Architecture:
    named, asked = _named_size(size), _size_in(policy_kwargs)
    if named is not None and asked is not None and named != asked:
        raise ValueError(f"size is {tuple(named)}, policy_kwargs ask for {tuple(asked)}: give one of them")
    chosen = named or asked
    if chosen is not None:
        return STOCK["CnnPolicy"]._replace(size=_checked(chosen))
    if twin is None or twin.size is None:
        return STOCK["CnnPolicy"]
    return twin._replace(size=_checked(twin.size))


def _of_others(
    policy: str, size: str | Size | None, twin: Architecture | None, policy_kwargs: Mapping[str, Any]
) -> Architecture:
    if size is not None:
        raise ValueError(f"size is of a Nature-CNN: give the widths of a {policy} as policy_kwargs=dict(net_arch=[64])")
    dim = _cnn_output_dim(policy, policy_kwargs, twin)
    return (twin or STOCK[policy])._replace(cnn_output_dim=dim)


def _cnn_output_dim(policy: str, policy_kwargs: Mapping[str, Any], twin: Architecture | None) -> int | None:
    """Features of each image in a table; and a look at what is said of the extractor."""
    kind, options = policy_kwargs.get("features_extractor_class"), policy_kwargs.get("features_extractor_kwargs") or {}
    tables = policy == "MultiInputPolicy"
    own, known = (CombinedExtractor, ("cnn_output_dim", "normalized_image")) if tables else (FlattenExtractor, ())
    if kind not in (None, own):
        name = getattr(kind, "__name__", kind)
        raise ValueError(f"policy_kwargs: features_extractor_class must be {own.__name__} for {policy}, got {name}")
    for name in options:
        if name not in known:
            may = f"may hold {', '.join(known)}" if known else "must be empty"
            raise ValueError(f"policy_kwargs: features_extractor_kwargs {may} for {policy}, got {name!r}")
    if not tables:
        return None
    dim: Any = options.get("cnn_output_dim", (twin or STOCK[policy]).cnn_output_dim)
    if not _are_widths([dim]):
        raise ValueError(f"policy_kwargs: cnn_output_dim must be a whole number of at least 1, got {dim!r}")
    return int(dim)


def _named_size(size: str | Size | None) -> Size | None:
    if isinstance(size, str):
        return read_size(size)
    if size is None:
        return None
    try:
        channels, hidden = size
        return Size(tuple(channels), hidden)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"size is a name or ((channels, channels, channels), hidden), got {size!r}") from None


def _size_in(policy_kwargs: Mapping[str, Any]) -> Size | None:
    """What the extractor in ``policy_kwargs`` would have; None where nothing is said of it."""
    kind, options = policy_kwargs.get("features_extractor_class"), policy_kwargs.get("features_extractor_kwargs") or {}
    if kind not in (None, NatureCNN, SizedNatureCNN):
        name = getattr(kind, "__name__", kind)
        raise ValueError(f"policy_kwargs: features_extractor_class must be NatureCNN, got {name}")
    for name in options:
        if name not in EXTRACTOR_KWARGS or (name == "channels" and kind is NatureCNN):
            known = ", ".join(EXTRACTOR_KWARGS[: 1 if kind is NatureCNN else 2])
            raise ValueError(f"policy_kwargs: features_extractor_kwargs may hold {known}, got {name!r}")
    if kind is None and not {"features_dim", "channels"} & set(options):
        return None
    default = SIZES["nature"]
    return _named_size(Size(options.get("channels", default.channels), options.get("features_dim", default.hidden)))


def _checked(size: Size) -> Size:
    if len(size.channels) != 3 or not _are_widths((*size.channels, size.hidden)):
        raise ValueError(f"size must hold three numbers of channels and one of units, each at least 1: {tuple(size)}")
    return size


def _are_widths(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) and value >= 1 for value in values)


def _check_names(policy_kwargs: Mapping[str, Any]) -> None:
    for name in policy_kwargs:
        if name not in POLICY_KWARGS:
            known = ", ".join(POLICY_KWARGS)
            raise ValueError(f"policy_kwargs: unknown {name!r}{suggest(str(name), POLICY_KWARGS)} (there are {known})")


def _net_arch(policy_kwargs: Mapping[str, Any], default: tuple[int, ...]) -> tuple[int, ...]:
    net_arch = policy_kwargs.get("net_arch")
    net_arch = default if net_arch is None else net_arch
    if not isinstance(net_arch, list | tuple) or not _are_widths(net_arch):
        raise ValueError(f"policy_kwargs: net_arch must be a list of widths, as [256], got {net_arch!r}")
    return tuple(net_arch)


def _activation(policy_kwargs: Mapping[str, Any], default: type[nn.Module]) -> type[nn.Module]:
    activation = policy_kwargs.get("activation_fn", default)
    if activation not in ACTIVATIONS.values():
        known = ", ".join(kind.__name__ for kind in ACTIVATIONS.values())
        raise ValueError(f"policy_kwargs: activation_fn must be one of torch.nn's {known}, got {activation!r}")
    return activation  # type: ignore[no-any-return]


def make_policy_kwargs(policy_kwargs: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    """What ``DQNPolicy`` is built with: all that is asked for, and the network of ``architecture``.

    Raises:
        ValueError: a value that Stable-Baselines3 or the saved file does not take.
    """
    normalize = policy_kwargs.get("normalize_images", True)
    if not isinstance(normalize, bool):
        raise ValueError(f"policy_kwargs: normalize_images must be True or False, got {normalize!r}")
    size, dim = architecture.size, architecture.cnn_output_dim
    extractor: type[BaseFeaturesExtractor] = ScaledFlatten
    options: dict[str, Any] = {}
    if size is not None:
        extractor, options = SizedNatureCNN, {"features_dim": size.hidden, "channels": size.channels}
    elif dim is not None:
        extractor, options = ScaledCombined, {"cnn_output_dim": dim}
    return {
        "features_extractor_class": extractor,
        "features_extractor_kwargs": options,
        "net_arch": list(architecture.net_arch),
        "activation_fn": architecture.activation,
        "normalize_images": normalize,
        **_optimizer(policy_kwargs),
    }


def count_weights(space: spaces.Space[Any], n_actions: int, architecture: Architecture) -> int:
    """Parameters of a student; no memory is taken."""
    kwargs = make_policy_kwargs({}, architecture)
    for name in ("optimizer_class", "optimizer_kwargs"):
        del kwargs[name]
    extractor = kwargs.pop("features_extractor_class"), kwargs.pop("features_extractor_kwargs")
    with torch.device("meta"):
        features = extractor[0](space, **extractor[1])
        network = QNetwork(space, spaces.Discrete(n_actions), features, features.features_dim, **kwargs)
    return count_parameters(network)


def as_in_file(
    network: QNetwork, size: str | Size | None, policy_kwargs: Mapping[str, Any]
) -> tuple[Architecture, dict[str, Any]]:
    """Architecture and ``policy_kwargs`` for a student with the weights of ``network``.

    Raises:
        ValueError: another function is asked for than that of the file.
    """
    own = architecture_of(network)
    assert own is not None  # see open_student
    others = [_named_size(size), _size_in(policy_kwargs) if own.policy == "CnnPolicy" else None]
    for other in others:
        if other not in (None, own.size):
            held = f"of size {tuple(own.size)}" if own.size else f"for {own.policy}"
            raise ValueError(f"the file holds a student {held}, not {tuple(other)}: leave the size out")
    stored: dict[str, Any] = {
        "net_arch": list(network.net_arch),
        "activation_fn": network.activation_fn,
        "normalize_images": network.normalize_images,
    }
    if own.cnn_output_dim is not None:
        stored["features_extractor_kwargs"] = {"cnn_output_dim": own.cnn_output_dim}
    for name, value in stored.items():
        asked = policy_kwargs.get(name)
        if asked is not None and (list(asked) if isinstance(asked, tuple) else asked) != value:
            raise ValueError(f"policy_kwargs: {name} is {value} in the file, not {asked}: leave it out")
    return own, {**policy_kwargs, **stored}


def open_student(path: Place) -> tuple[AgentFile, QNetwork]:
    """What is in a file, and its network as narrow as it was before it was written.

    Raises:
        UserError: the file is missing, damaged, or of a form that no student has.
    """
    found = find(path)
    compact = read_compact(found)
    if compact is not None:
        data = {"polydistill": {"scores": compact.kind}, **compact.counters}
        return AgentFile(data, {}, found.where, None), compact.network
    agent = read_agent(found.place)
    network = cut_padding(rebuild_scores(agent))
    if not isinstance(network, QNetwork) or architecture_of(network) is None:
        raise UserError(f"{agent.where}: it is no plain Q-network that a student could be")
    return agent, network


def _optimizer(policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Class and options of the optimiser, tried with one step on a weight of its own."""
    kind = policy_kwargs.get("optimizer_class", torch.optim.Adam)
    options = policy_kwargs.get("optimizer_kwargs")
    if options is None:
        options = {"fused": True} if kind is torch.optim.Adam else {}
    try:
        weight = nn.Parameter(torch.zeros(2, 2))
        weight.grad = torch.zeros(2, 2)
        kind([weight], lr=1e-3, **options).step()
    except Exception as error:
        what = "optimizer_class and optimizer_kwargs" if options else "optimizer_class"
        raise ValueError(f"policy_kwargs: {what} make no step: {' '.join(str(error).split())[:200]}") from None
    return {"optimizer_class": kind, "optimizer_kwargs": dict(options)}
