"""What the ``data`` of a Stable-Baselines3 zip says in plain JSON about the network that its shapes do not show.

Values that JSON cannot hold stand there as a base64 pickle with a plain-text summary of their attributes beside it.
Only the text is read, and of a space of observations the bounds as its pickle describes them
(:mod:`polydistill_agents.files.pickle_values`): the text is rounded and abbreviated. Nothing is unpickled. What is not
known is refused: Tanh taken for ReLU would score, and play, in silence.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from torch import nn

from polydistill.errors import UserError
from polydistill_agents.files.archive import shown
from polydistill_agents.files.pickle_values import Built, array_of, read_values
from polydistill_agents.networks.building import MAX_SIDE, MAX_STACK

MODULES = {
    "stable_baselines3.dqn.policies": "DQN",
    "sb3_contrib.qrdqn.policies": "QR-DQN",
    "stable_baselines3.common.policies": "actor-critic",
}
ACTIVATIONS: dict[str, type[nn.Module]] = {
    f"<class 'torch.nn.modules.activation.{kind.__name__}'>": kind
    for kind in (nn.ReLU, nn.Tanh, nn.ELU, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Sigmoid)
}
DEFAULT_ACTIVATIONS = {"DQN": nn.ReLU, "QR-DQN": nn.ReLU, "actor-critic": nn.Tanh}
EXTRACTORS = {f"<class 'stable_baselines3.common.torch_layers.{name}'>" for name in ("NatureCNN", "FlattenExtractor")}
HARMLESS_KWARGS = {  # they choose widths, which the shapes show, initial weights, or how it learned
    *("net_arch", "n_quantiles", "ortho_init", "log_std_init", "share_features_extractor"),
    *("optimizer_class", "optimizer_kwargs", "use_expln", "full_std", "sde_net_arch", "squash_output"),
}
OWN_KEYS = (":type:", ":serialized:")
DEFAULT_QUANTILES = 200
MAX_SPACE_CHARACTERS = 2**24  # of a pickled space
DTYPES = ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")


class Description(NamedTuple):
    """What is needed beside the tensors.

    Attributes:
        algorithm: "DQN", "QR-DQN" or "actor-critic".
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
    space: spaces.Box | None
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
        if name not in (*HARMLESS_KWARGS, *OWN_KEYS, "activation_fn", "normalize_images") and "extractor" not in name:
            raise UserError(f"{where}: its policy_kwargs hold {shown(name)}, which is not known")
    quantiles = data.get("n_quantiles", kwargs.get("n_quantiles", DEFAULT_QUANTILES))
    n_quantiles = _number(quantiles, "n_quantiles", where) if algorithm == "QR-DQN" else 1
    space, bounds_told = _space(data.get("observation_space"), where)
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
    """ "DQN", "QR-DQN" or "actor-critic", by the module of the policy's class.

    Raises:
        UserError: a class from elsewhere, which may compute anything.
    """
    module = _table(data.get("policy_class")).get("__module__")
    if not isinstance(module, str) or module not in MODULES:
        raise UserError(f"{where}: only policies of DQN, QR-DQN, PPO and A2C are read, its class is of {shown(module)}")
    return MODULES[module]


def full_name(data: Mapping[str, Any]) -> str:
    """The algorithm's name for people: PPO, A2C and TRPO share their policies, and differ in their settings."""
    module = _table(data.get("policy_class")).get("__module__")
    name = MODULES.get(module) if isinstance(module, str) else None
    if name != "actor-critic":
        return name or f"unknown (policy of {shown(module)})"
    return "PPO" if "clip_range" in data else "TRPO" if "cg_max_steps" in data else "A2C"


def _activation(kwargs: Mapping[str, Any], algorithm: str, where: str) -> type[nn.Module]:
    if "activation_fn" not in kwargs:
        return DEFAULT_ACTIVATIONS[algorithm]
    text = kwargs["activation_fn"]
    if not isinstance(text, str) or text not in ACTIVATIONS:
        raise UserError(f"{where}: its activation {shown(text)} is not known")
    return ACTIVATIONS[text]


def _normalize_images(kwargs: Mapping[str, Any], where: str) -> bool:
    extractor = kwargs.get("features_extractor_class")
    if extractor is not None and (not isinstance(extractor, str) or extractor not in EXTRACTORS):
        raise UserError(f"{where}: only Nature-CNNs and plain vectors are read, it has {shown(extractor)}")
    for name in _table(kwargs.get("features_extractor_kwargs")):
        if name not in ("features_dim", "normalized_image", *OWN_KEYS):
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


def _space(given: Any, where: str) -> tuple[spaces.Box | None, bool]:
    """The space, and whether its bounds are those of the text."""
    if given is None:
        return None, False
    space = _table(given)
    shape, dtype = space.get("_shape", space.get("shape")), space.get("dtype")
    if not re.fullmatch(r"<class '(gym|gymnasium)\.spaces\.box\.Box'>", str(space.get(":type:"))):
        raise UserError(f"{where}: only observations of numbers are read (Box), its are {_type(space)}")
    sizes = shape if isinstance(shape, list) else []
    if not sizes or any(type(n) is not int or n < 1 for n in sizes) or len(sizes) > 3 or dtype not in DTYPES:
        raise UserError(f"{where}: observations of shape {shown(str(shape))} and type {shown(dtype)} are not read")
    if (max(sizes) > MAX_SIDE or sizes[0] > MAX_STACK) if len(sizes) == 3 else math.prod(sizes) > 2**20:
        raise UserError(f"{where}: observations of shape {shown(str(shape))} are larger than what is read")
    if dtype == "uint8" and len(sizes) == 3:
        bounds = [set(re.findall(r"[\d.]+", str(space.get(name, "")).replace("...", ""))) for name in ("low", "high")]
        if bounds != [{"0"}, {"255"}]:
            raise UserError(f"{where}: frames that are not pixels of 0 to 255 are not read")
        return spaces.Box(0, 255, tuple(sizes), np.uint8), True
    kind = np.dtype(dtype)
    pickled = _attributes(space)
    low, high = (_bound(pickled.get(name), space.get(name), sizes, kind) for name in ("low", "high"))
    if low is not None and high is not None and bool((low <= high).all()):
        return spaces.Box(low, high, tuple(sizes), kind), True
    limits: Any = (-np.inf, np.inf) if kind.kind == "f" else (np.iinfo(kind).min, np.iinfo(kind).max)
    return spaces.Box(limits[0], limits[1], tuple(sizes), kind), False


def _attributes(space: Mapping[str, Any]) -> dict[Any, Any]:
    """The attributes in a pickled space, described and never loaded; none where it is damaged or too long."""
    text = space.get(":serialized:")
    if not isinstance(text, str) or len(text) > MAX_SPACE_CHARACTERS:
        return {}
    try:
        built = read_values(base64.b64decode(text, validate=True))
    except Exception:  # a stranger's bytes
        return {}
    return built.attributes() if isinstance(built, Built) else {}


def _bound(pickled: Any, text: Any, sizes: list[int], kind: np.dtype[Any]) -> NDArray[Any] | None:
    """Low or high bounds as the pickle describes them, or the text, which is rounded and abbreviated; None if neither.

    The largest float stands for no bound: so environments wrote it before gymnasium 1.0, which writes infinity.
    """
    values = array_of(pickled)
    if values is None or (values.shape, values.dtype) != (tuple(sizes), kind):
        words = re.sub(r"[\[\]]", " ", text).split() if isinstance(text, str) else []
        if len(words) != math.prod(sizes):
            return None
        try:
            with np.errstate(over="ignore"):  # beyond the type: infinite
                values = np.array([float(word) if kind.kind == "f" else int(word) for word in words]).astype(kind)
        except (ValueError, OverflowError):  # "..." is no number
            return None
        if kind.kind != "f" and [int(value) for value in values] != [int(word) for word in words]:
            return None
        values = values.reshape(sizes)
    if kind.kind == "f":
        values = np.where(np.abs(values) >= np.finfo(kind).max, np.copysign(kind.type(np.inf), values), values)
    return None if np.isnan(values).any() else values


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
