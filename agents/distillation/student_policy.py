"""The student's network, from a size and from what Stable-Baselines3's users write into ``policy_kwargs``.

Contract: one function in learning, in play and in the saved file. What changes the function is built, and stands in
the file; what could not be written there is refused here, by its name.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.dqn.policies import CnnPolicy, DQNPolicy, QNetwork
from torch import nn

from polydistill.errors import UserError, suggest
from polydistill_agents.files.places import Place
from polydistill_agents.files.sb3_data import ACTIVATIONS
from polydistill_agents.files.sb3_zip import AgentFile, read_agent, rebuild_scores
from polydistill_agents.networks.corner import cut_padding
from polydistill_agents.networks.nature import SIZES, Size, SizedNatureCNN, begins_as_nature, size_of

POLICY_KWARGS = (
    "net_arch", "activation_fn", "normalize_images", "features_extractor_class", "features_extractor_kwargs",
    "optimizer_class", "optimizer_kwargs",
)  # fmt: skip
EXTRACTOR_KWARGS = ("features_dim", "channels", "normalized_image")  # the last one only skips a check


class Sized(Protocol):
    """A teacher: its network's size where it is known."""

    size: Size | None


def check_policy(policy: str | type[BasePolicy]) -> None:
    """Refuse a class that may compute anything.

    Raises:
        ValueError: it is none of Stable-Baselines3's own for frames.
    """
    if policy not in ("CnnPolicy", CnnPolicy, DQNPolicy):
        name = policy if isinstance(policy, str) else policy.__name__
        raise ValueError(f"policy must be 'CnnPolicy', got {name}: the saved file could not hold another function")


def choose_size(size: str | Size | None, teacher: Sized | None, policy_kwargs: Mapping[str, Any]) -> Size:
    """The widths that are asked for by ``size`` or in ``policy_kwargs``, else the teacher's.

    Raises:
        ValueError: an unknown name, widths that Stable-Baselines3's ``NatureCNN`` has no room for, or two that differ.
    """
    named, asked = _named_size(size), _size_in(policy_kwargs)
    if named is not None and asked is not None and named != asked:
        raise ValueError(f"size is {tuple(named)}, policy_kwargs ask for {tuple(asked)}: give one of them")
    chosen = named or asked or (SIZES["nature"] if teacher is None else teacher.size)
    if chosen is None:
        warnings.warn("the teacher's architecture is unknown: the student is a Nature-CNN", stacklevel=4)
        return SIZES["nature"]
    return _checked(chosen)


def _named_size(size: str | Size | None) -> Size | None:
    if isinstance(size, str):
        if size not in SIZES:
            raise ValueError(f"unknown size {size!r}{suggest(size, SIZES)} (there are {', '.join(SIZES)})")
        return SIZES[size]
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
    widths, room = (*size.channels, size.hidden), SIZES["nature"].channels
    if len(size.channels) != 3 or not _are_widths(widths):
        raise ValueError(f"size must hold three numbers of channels and one of units, each at least 1: {tuple(size)}")
    if any(have > most for have, most in zip(size.channels, room, strict=True)):
        raise ValueError(f"channels {size.channels} do not fit Stable-Baselines3's NatureCNN {room}: give a size=")
    return size


def _are_widths(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) and value >= 1 for value in values)


def make_policy_kwargs(policy_kwargs: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """What ``DQNPolicy`` is built with: all that is asked for, and the Nature-CNN of ``size``.

    Raises:
        ValueError: an unknown name, or a value that Stable-Baselines3 or the saved file does not take.
    """
    for name in policy_kwargs:
        if name not in POLICY_KWARGS:
            known = ", ".join(POLICY_KWARGS)
            raise ValueError(f"policy_kwargs: unknown {name!r}{suggest(str(name), POLICY_KWARGS)} (there are {known})")
    net_arch = policy_kwargs.get("net_arch")
    net_arch = [] if net_arch is None else net_arch
    if not isinstance(net_arch, list | tuple) or not _are_widths(net_arch):
        raise ValueError(f"policy_kwargs: net_arch must be a list of widths, as [256], got {net_arch!r}")
    activation = policy_kwargs.get("activation_fn", nn.ReLU)
    if activation not in ACTIVATIONS.values():
        known = ", ".join(kind.__name__ for kind in ACTIVATIONS.values())
        raise ValueError(f"policy_kwargs: activation_fn must be one of torch.nn's {known}, got {activation!r}")
    normalize = policy_kwargs.get("normalize_images", True)
    if not isinstance(normalize, bool):
        raise ValueError(f"policy_kwargs: normalize_images must be True or False, got {normalize!r}")
    return {
        "features_extractor_class": SizedNatureCNN,
        "features_extractor_kwargs": {"features_dim": size.hidden, "channels": size.channels},
        "net_arch": list(net_arch),
        "activation_fn": activation,
        "normalize_images": normalize,
        **_optimizer(policy_kwargs),
    }


def as_in_file(
    network: QNetwork, size: str | Size | None, policy_kwargs: Mapping[str, Any]
) -> tuple[Size, dict[str, Any]]:
    """Size and ``policy_kwargs`` for a student with the weights of ``network``.

    Raises:
        ValueError: another function is asked for than that of the file.
    """
    own = size_of(network)
    for other in (_named_size(size), _size_in(policy_kwargs)):
        if other not in (None, own):
            raise ValueError(f"the file holds a student of size {tuple(own)}, not {tuple(other)}: leave the size out")
    stored = {
        "net_arch": list(network.net_arch),
        "activation_fn": network.activation_fn,
        "normalize_images": network.normalize_images,
    }
    for name, value in stored.items():
        asked = policy_kwargs.get(name)
        if asked is not None and (list(asked) if isinstance(asked, tuple) else asked) != value:
            raise ValueError(f"policy_kwargs: {name} is {value} in the file, not {asked}: leave it out")
    return own, {**policy_kwargs, **stored}


def open_student(path: Place) -> tuple[AgentFile, QNetwork]:
    """What is in a file, and its network as narrow as it was before it was written.

    Raises:
        UserError: the file is missing, damaged, or no Nature-CNN.
    """
    agent = read_agent(path)
    network = cut_padding(rebuild_scores(agent))
    if not begins_as_nature(network) or network.observation_space.dtype != np.uint8:
        raise UserError(f"{agent.where}: it is no Nature-CNN of frames")
    return agent, cast(QNetwork, network)


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
