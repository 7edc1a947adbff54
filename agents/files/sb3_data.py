"""What the ``data`` of a Stable-Baselines3 zip says in plain JSON about the network that its shapes do not show.

Values that JSON cannot hold stand there as a base64 pickle with a plain-text summary of their attributes beside it.
Only the text is read, and of the space of observations what its pickle describes
(:mod:`polydistill_agents.files.sb3_spaces`). Nothing is unpickled. What is not known is refused: Tanh taken for ReLU
would score, and play, in silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from gymnasium import spaces
from torch import nn

from polydistill.errors import UserError
from polydistill_agents.files.archive import shown
from polydistill_agents.files.sb3_spaces import describe_space

MODULES = {
    "stable_baselines3.dqn.policies": "DQN",
    "sb3_contrib.qrdqn.policies": "QR-DQN",
    "stable_baselines3.common.policies": "actor-critic",
    "sb3_contrib.common.maskable.policies": "MaskablePPO",
    "sb3_contrib.common.recurrent.policies": "RecurrentPPO",
}
VALUES = ("DQN", "QR-DQN")  # the others are actors
ACTIVATIONS: dict[str, type[nn.Module]] = {
    f"<class 'torch.nn.modules.activation.{kind.__name__}'>": kind
    for kind in (
        *(nn.ReLU, nn.Tanh, nn.ELU, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Sigmoid, nn.SELU, nn.CELU, nn.Mish, nn.ReLU6),
        *(nn.Softplus, nn.Softsign, nn.Hardswish, nn.Hardtanh),
    )
}
COMBINED = "<class 'stable_baselines3.common.torch_layers.CombinedExtractor'>"  # of tables alone
EXTRACTORS = {
    f"<class 'stable_baselines3.common.torch_layers.{name}'>"
    for name in ("NatureCNN", "FlattenExtractor", "CombinedExtractor")
}
HARMLESS_KWARGS = {  # they choose widths, which the shapes show, initial weights, or how it learned
    *("net_arch", "n_quantiles", "ortho_init", "log_std_init", "share_features_extractor"),
    *("optimizer_class", "optimizer_kwargs", "use_expln", "full_std", "sde_net_arch", "squash_output"),
    *("lstm_hidden_size", "n_lstm_layers", "shared_lstm", "enable_critic_lstm"),
}
OWN_KEYS = (":type:", ":serialized:")
DEFAULT_QUANTILES = 200


class Description(NamedTuple):
    """What is needed beside the tensors.

    Attributes:
        algorithm: a value of ``MODULES``.
        activation: between the linear layers behind the features.
        n_actions: of the action space.
        n_quantiles: of a QR-DQN, else 1.
        space: of the observations; None where ``data`` names none. Unbounded where its bounds are not told.
        normalize_images: whether pixels are divided by 255.
        bounds_told: whether the bounds of ``space`` are the true ones: long arrays are abbreviated.
    """

    algorithm: str
    activation: type[nn.Module]
    n_actions: int
    n_quantiles: int
    space: spaces.Space[Any] | None
    normalize_images: bool
    bounds_told: bool = True


def describe(data: Mapping[str, Any], where: str) -> Description:
    """Read the plain values of ``data``.

    Raises:
        UserError: another algorithm, or something that changes the network's function in a way that is not known.
    """
    algorithm = algorithm_of(data, where)
    kwargs = _table(data.get("policy_kwargs"))
    for name in kwargs:
        known = name in (*HARMLESS_KWARGS, *OWN_KEYS, "activation_fn", "normalize_images") or "extractor" in name
        if not known and not (name == "lstm_kwargs" and _is_plain_lstm(kwargs[name])):
            raise UserError(f"{where}: its policy_kwargs hold {shown(name)}, which is not known")
    quantiles = data.get("n_quantiles", kwargs.get("n_quantiles", DEFAULT_QUANTILES))
    n_quantiles = _number(quantiles, "n_quantiles", where) if algorithm == "QR-DQN" else 1
    space, bounds_told = describe_space(data.get("observation_space"), where)
    extractor = kwargs.get("features_extractor_class")
    known_extractor = isinstance(extractor, str) and extractor in EXTRACTORS  # others are refused below
    if known_extractor and (extractor == COMBINED) != isinstance(space, spaces.Dict):
        raise UserError(f"{where}: {shown(extractor)} does not take its observations: a damaged or edited file")
    return Description(
        algorithm,
        _activation(kwargs, algorithm, where),
        _n_actions(data.get("action_space"), where),
        n_quantiles,
        space,
        _normalize_images(kwargs, where),
        bounds_told,
    )


def algorithm_of(data: Mapping[str, Any], where: str) -> str:
    """A value of ``MODULES``, by the module of the policy's class.

    Raises:
        UserError: a class from elsewhere, which may compute anything.
    """
    module = _table(data.get("policy_class")).get("__module__")
    if not isinstance(module, str) or module not in MODULES:
        known = "DQN, QR-DQN, PPO, A2C, TRPO, MaskablePPO and RecurrentPPO"
        raise UserError(f"{where}: only policies of {known} are read, its class is of {shown(module)}")
    return MODULES[module]


def full_name(data: Mapping[str, Any]) -> str:
    """The algorithm's name for people: PPO, A2C and TRPO share their policies, and differ in their settings."""
    module = _table(data.get("policy_class")).get("__module__")
    name = MODULES.get(module) if isinstance(module, str) else None
    if name != "actor-critic":
        return name or f"unknown (policy of {shown(module)})"
    return "PPO" if "clip_range" in data else "TRPO" if "cg_max_steps" in data else "A2C"


def _is_plain_lstm(kwargs: Any) -> bool:
    """Whether they change nothing that the shapes do not show: drop-out is for learning alone."""
    return kwargs is None or (isinstance(kwargs, dict) and set(kwargs) <= {"dropout", *OWN_KEYS})


def _activation(kwargs: Mapping[str, Any], algorithm: str, where: str) -> type[nn.Module]:
    if "activation_fn" not in kwargs:
        return nn.ReLU if algorithm in VALUES else nn.Tanh
    text = kwargs["activation_fn"]
    if not isinstance(text, str) or text not in ACTIVATIONS:
        raise UserError(f"{where}: its activation {shown(text)} is not known")
    return ACTIVATIONS[text]


def _normalize_images(kwargs: Mapping[str, Any], where: str) -> bool:
    extractor = kwargs.get("features_extractor_class")
    if extractor is not None and (not isinstance(extractor, str) or extractor not in EXTRACTORS):
        raise UserError(f"{where}: only Stable-Baselines3's own extractors are read, it has {shown(extractor)}")
    for name in _table(kwargs.get("features_extractor_kwargs")):
        if name not in ("features_dim", "cnn_output_dim", "normalized_image", *OWN_KEYS):
            raise UserError(f"{where}: its features_extractor_kwargs hold {shown(name)}, which is not known")
    normalize = kwargs.get("normalize_images", True)
    if not isinstance(normalize, bool):
        raise UserError(f"{where}: normalize_images is {shown(normalize)}, neither true nor false")
    return normalize


def _n_actions(given: Any, where: str) -> int:
    space = _table(given)
    if not re.fullmatch(r"<class '(gym|gymnasium)\.spaces\.discrete\.Discrete'>", str(space.get(":type:"))):
        raise UserError(f"{where}: only agents of discrete actions are read, its actions are {_type(space)}")
    return _number(space.get("n"), "the number of actions", where)


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _type(space: Mapping[str, Any]) -> str:
    return shown(str(space.get(":type:", "unknown")).removeprefix("<class '").removesuffix("'>"))


def _number(value: Any, what: str, where: str) -> int:
    """A count, written as a number or (what NumPy's integers become) as text."""
    text = str(value)[:20]
    if isinstance(value, bool) or not re.fullmatch(r"[1-9][0-9]{0,5}", text, re.ASCII):
        raise UserError(f"{where}: {what} is {shown(value)}, no count")
    return int(text)
