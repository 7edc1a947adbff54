"""A copy of the network behind the scores of a Stable-Baselines3 model, which shares nothing with the model.

A model of Stable-Baselines3's own classes is rebuilt from its weights as its zip would be, so that the model and the
zip are one teacher: of an actor-critic the actor alone, with raw logits. A class derived from them is copied
whole, and called as it was written.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar, cast

from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor, NatureCNN
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor, nn

from polydistill.errors import UserError
from polydistill_agents.files.rebuild import rebuild
from polydistill_agents.files.sb3_data import MODULES, Description
from polydistill_agents.files.sb3_zip import kind_of
from polydistill_agents.networks.observations import Tensors
from polydistill_agents.networks.recurrent import Memory, Remembering

Module = TypeVar("Module", bound=nn.Module)
EXTRACTORS = (NatureCNN, FlattenExtractor, CombinedExtractor)


class Actor(nn.Module):
    """The scores of an actor-critic's policy: its logits before they are normalised, where its class leaves them so."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy
        self.observation_space = policy.observation_space
        self.raw = _leaves_logits(policy)

    def forward(self, observations: Tensors) -> Tensor:
        """Observations to ``(batch, actions)`` logits."""
        if not self.raw:
            return cast(Tensor, self.policy.get_distribution(observations).distribution.logits)
        features = BaseModel.extract_features(self.policy, observations, self.policy.pi_features_extractor)
        return cast(Tensor, self.policy.action_net(self.policy.mlp_extractor.forward_actor(features)))


class RecurrentActor(Remembering):
    """The same of a policy that remembers: sb3-contrib's RecurrentPPO."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy
        self.observation_space = policy.observation_space
        self.raw = _leaves_logits(policy)

    def begin(self, n_games: int) -> Memory:
        """The memory of games that have not begun."""
        layers, _, units = self.policy.lstm_hidden_state_shape
        hidden = next(self.policy.parameters()).new_zeros(layers, n_games, units)
        return hidden, hidden.clone()

    def step(self, observations: Tensors, memory: Memory, starts: Tensor) -> tuple[Tensor, Memory]:
        """Logits ``(games, actions)``, and the memory after this step."""
        policy = self.policy
        if not self.raw:
            distribution, after = policy.get_distribution(observations, memory, starts.float())
            return distribution.distribution.logits, after
        features = BaseModel.extract_features(policy, observations, policy.pi_features_extractor)
        latent, after = policy._process_sequence(features, memory, starts.float(), policy.lstm_actor)
        return policy.action_net(policy.mlp_extractor.forward_actor(latent)), after


def _leaves_logits(policy: Any) -> bool:
    """Whether its distribution is that of Stable-Baselines3 or sb3-contrib: a softmax of what ``action_net`` gives."""
    own = (type(policy).get_distribution, type(policy)._get_action_dist_from_latent)
    return all(method.__module__ in MODULES for method in own)


class QuantileMean(nn.Module):
    """The mean over the quantiles ``(batch, quantiles, actions)`` of a network."""

    def __init__(self, quantile_net: nn.Module) -> None:
        super().__init__()
        self.quantile_net = quantile_net
        self.observation_space = getattr(quantile_net, "observation_space", None)

    def forward(self, observations: Tensors) -> Tensor:
        """Observations to ``(batch, actions)`` Q-values."""
        return cast(Tensor, self.quantile_net(observations).mean(dim=1))


def copy_network(network: Module) -> Module:
    """A deep copy, whatever the network has just computed: tensors that hang in a graph are copied out of it."""
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in _tensors_in_graphs(network, set())}
    return copy.deepcopy(network, memo)


def score_network(model: BaseAlgorithm) -> tuple[nn.Module, str]:
    """A copy of the network behind the model's scores, and their kind.

    Raises:
        UserError: a model without discrete actions, of an unknown kind, or without networks yet.
    """
    if not isinstance(model.action_space, spaces.Discrete):
        raise UserError(f"a teacher needs discrete actions, this {type(model).__name__} has {model.action_space}")
    policy: Any = getattr(model, "policy", None)
    if policy is None:
        raise UserError(f"this {type(model).__name__} has no networks yet: build it with an environment first")
    student = getattr(model, "student", None)
    if isinstance(student, QNetwork):  # our own algorithm; not imported, since it imports this package
        return copy_network(student), getattr(model, "score_kind", "q_values")
    if isinstance(model, DQN):
        return copy_network(cast(nn.Module, model.q_net)), kind_of(vars(model))
    is_actor = hasattr(policy, "action_net")
    kind = "logits" if is_actor else "q_values"
    if (plain := _rebuilt(policy)) is not None:
        return plain, kind
    if is_actor:
        copied = copy_network(policy)
        return (RecurrentActor if hasattr(policy, "lstm_actor") else Actor)(copied), kind
    if hasattr(policy, "quantile_net"):  # sb3-contrib's QR-DQN
        return QuantileMean(copy_network(policy.quantile_net)), kind
    raise UserError(f"{type(model).__name__} is no known kind of teacher; pass a callable from observations to scores")


def learned_with_masks(model: BaseAlgorithm) -> bool:
    """Whether it is a MaskablePPO of sb3-contrib, or derived from one."""
    return any(MODULES.get(base.__module__) == "MaskablePPO" for base in type(model.policy).__mro__)


def _rebuilt(policy: Any) -> nn.Module | None:
    """The network that the policy's zip would hold; None where a class is not Stable-Baselines3's own."""
    algorithm = MODULES.get(type(policy).__module__)
    inner = getattr(policy, "quantile_net", policy)
    features = getattr(inner, "pi_features_extractor", getattr(inner, "features_extractor", None))
    if algorithm is None or type(features) not in EXTRACTORS:
        return None
    if set(getattr(policy, "lstm_kwargs", {})) - {"dropout"}:
        return None
    if type(getattr(policy, "mlp_extractor", None)) not in (MlpExtractor, type(None)):
        return None
    description = Description(
        algorithm,
        policy.activation_fn,
        int(policy.action_space.n),
        getattr(inner, "n_quantiles", 1),
        policy.observation_space,
        policy.normalize_images,
    )
    try:
        return rebuild(policy.state_dict(), description, type(policy).__name__)
    except UserError:  # a part of it was exchanged
        return None


def _tensors_in_graphs(thing: Any, seen: set[int]) -> Iterator[Tensor]:
    """Tensors below ``thing`` that were computed with a graph, such as Stable-Baselines3's last distribution."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        if not thing.is_leaf:
            yield thing
        return
    if isinstance(thing, dict):
        below = list(thing.values())
    elif isinstance(thing, (list, tuple, set, frozenset)):
        below = list(thing)
    else:
        below = [] if isinstance(thing, type) else list(getattr(thing, "__dict__", {}).values())
    for value in below:
        yield from _tensors_in_graphs(value, seen)
