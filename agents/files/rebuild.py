"""Networks from tables of tensors: the shapes give the widths, a description gives the rest.

Whatever the algorithm, an agent's greedy actions come from observations -> features -> linear layers -> scores. That is
Stable-Baselines3's ``QNetwork``; a QR-DQN's has an output for each quantile, and their mean behind it; a RecurrentPPO's
has an LSTM behind its features. So :func:`rebuild` brings the tensors under the names of a ``QNetwork``, and drops what
plays no part (target networks, critics) after a look at its names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor

from polydistill.errors import UserError
from polydistill_agents.files.archive import shown
from polydistill_agents.files.sb3_data import VALUES, Description
from polydistill_agents.networks.building import build, linear_layers, space_of
from polydistill_agents.networks.quantiles import QuantileNetwork
from polydistill_agents.networks.recurrent import RecurrentNetwork, build_recurrent


def rebuild(
    weights: Mapping[str, Tensor], description: Description, where: str
) -> QNetwork | QuantileNetwork | RecurrentNetwork:
    """The network that scores the actions, in float32, in eval mode, with memory of its own.

    Args:
        weights: the tensors of ``policy.pth``, checked.
        description: what the shapes do not show.
        where: the file's name, for the refusal.

    Raises:
        UserError: the tensors do not form the network that is described.
    """
    algorithm = description.algorithm
    kind = "Nature-CNN" if any(".cnn." in name for name in weights) else "network of linear layers"
    try:
        own = own_names(weights, algorithm)
        outputs = _head(own).shape[0]
        if outputs != description.n_actions * description.n_quantiles:
            counted = f"{description.n_actions} actions" + (
                f" and {description.n_quantiles} quantiles" if algorithm == "QR-DQN" else ""
            )
            raise ValueError(f"{outputs} outputs are not those of {counted}")
        space = space_of(own) if description.space is None else description.space
        builder = build_recurrent if algorithm == "RecurrentPPO" else build
        network = builder(own_memory(own), space, description.activation, description.normalize_images)
        if algorithm in VALUES:
            _check_target(weights, "q_net" if algorithm == "DQN" else "quantile_net")
    except KeyError as error:
        raise UserError(f"{where}: its weights do not form a {algorithm} with a {kind} ({error} is missing)") from None
    except (RuntimeError, ValueError) as error:
        reason = " ".join(" ".join(str(error).splitlines()[:2]).split())[:300]
        raise UserError(f"{where}: its weights do not form a {algorithm} with a {kind} ({reason})") from None
    if algorithm == "QR-DQN" and isinstance(network, QNetwork):
        return QuantileNetwork(network, description.n_quantiles).eval()
    return network


def own_memory(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in float32, in torch's own order of axes, in memory that nothing else uses."""
    return {name: value.float().clone(memory_format=torch.contiguous_format) for name, value in weights.items()}


def own_names(weights: Mapping[str, Tensor], algorithm: str) -> dict[str, Tensor]:
    """The tensors of a policy that score the actions, under the names of a ``QNetwork``.

    Args:
        weights: under the names of Stable-Baselines3's policies.
        algorithm: a value of :data:`~polydistill_agents.files.sb3_data.MODULES`.

    Raises:
        KeyError: a tensor is missing.
        ValueError: one is no part of such a policy.
    """
    if algorithm in VALUES:
        return _of_values(weights, algorithm)
    return _of_actor(weights, remembers=algorithm == "RecurrentPPO")


def _of_values(weights: Mapping[str, Tensor], algorithm: str) -> dict[str, Tensor]:
    """The online network of a DQN or QR-DQN, under the names of a ``QNetwork``."""
    prefix = {"DQN": "q_net", "QR-DQN": "quantile_net"}[algorithm]
    own = _below(weights, f"{prefix}.")
    _refuse_others(weights, (f"{prefix}.", f"{prefix}_target."))
    return {re.sub(f"^{prefix}\\.", "q_net.", name): value for name, value in own.items()}


def _check_target(weights: Mapping[str, Tensor], prefix: str) -> None:
    own, target = (
        {name: value.shape for name, value in _below(weights, p).items()} for p in (f"{prefix}.", f"{prefix}_target.")
    )
    if target and own != target:
        raise ValueError("online and target network differ in shape")


def _of_actor(weights: Mapping[str, Tensor], remembers: bool) -> dict[str, Tensor]:
    """The actor of an actor-critic, under the names of a ``QNetwork``; with features of its own, or the critic's."""
    critic = ("vf_features_extractor.", "mlp_extractor.value_net.", "value_net.")
    actor = ("features_extractor.", "pi_features_extractor.", "mlp_extractor.shared_net.", "mlp_extractor.policy_net.")
    recurrent = ("lstm_actor.", "lstm_critic.", "critic.") if remembers else ()
    _refuse_others(weights, (*critic, *actor, *recurrent, "action_net."))
    features = _below(weights, "pi_features_extractor.") or _below(weights, "features_extractor.")
    own = {f"features_extractor.{name}": value for name, value in features.items()}
    own |= {f"lstm.{name}": value for name, value in _below(weights, "lstm_actor.").items()}
    index = 0
    for part in ("mlp_extractor.shared_net.", "mlp_extractor.policy_net."):
        layers = _below(weights, part)
        for i in range(0, len(layers), 2):  # linear layers at 0, 2, ...; a function between two of them
            for kind in ("weight", "bias"):
                own[f"q_net.{index}.{kind}"] = layers[f"{i}.{kind}"]
            index += 2
    for kind in ("weight", "bias"):
        own[f"q_net.{index}.{kind}"] = weights[f"action_net.{kind}"]
    return own


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _refuse_others(weights: Iterable[str], known: tuple[str, ...]) -> None:
    for name in weights:
        if not name.startswith(known):
            raise ValueError(f"{shown(name)} is no part of it")


def _head(weights: Mapping[str, Tensor]) -> Tensor:
    return linear_layers(weights)[-1]
