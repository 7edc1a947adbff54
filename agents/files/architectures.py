"""Tables of weights that say nothing but names and shapes: recognised by their shapes, whatever the names.

One function is known: pixels divided by 255, a Nature-CNN (kernels 8, 4 and 3, strides 4, 2 and 1, ReLU, any widths, a
hidden layer, frames of 84 x 84), and behind it one head of scores or, of an actor-critic, a head of logits beside one
of a single value. Shapes tell each layer's place, so that every generation of names is read: those of
pytorch-a2c-ppo-acktr, CleanRL, pfrl, and one's own. Stable-Baselines3's names are known, and tell the head themselves.
What the shapes cannot tell, such as an activation between linear layers, is refused.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import NamedTuple

from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor, nn

from polydistill.errors import UserError, list_first
from polydistill_agents.files.archive import shown
from polydistill_agents.files.rebuild import own_memory, own_names
from polydistill_agents.networks.building import build, space_of
from polydistill_agents.networks.nature import KERNELS, SIZES, size_of

KIND_OF = dict.fromkeys(SIZES, "q_values") | {"acktr": "logits"}  # of the scores, by the name before a file
CONVOLUTIONS = ("features_extractor.cnn.0", "features_extractor.cnn.2", "features_extractor.cnn.4")
HIDDEN, HEAD = "features_extractor.linear.0", "q_net.0"
MAX_ACTIONS = 18  # of an Atari joystick; more outputs are a distribution's
LAST_SIDE = 7  # of what three convolutions make of 84 x 84
EXPECTED = (
    "a Nature-CNN: weights and biases of convolutions (32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), a linear layer "
    "(512, 3136), and a head (actions, 512), for an actor-critic also (1, 512); in any widths"
)
NO_ACTIVATION = "weights do not tell the activation between its linear layers: give the agent's zip"
# the layer's name, then what it is; KFAC's optimiser splits a bias off as a layer of its own
PARAMETER = re.compile(r"(.*?)\.?(?:(?:module\.)?(weight)|(?:add_bias\._)?(bias))")
TARGET = re.compile(r"(?:^|\.)[^.]*(?:target|_old)[^.]*\.")  # a second network, which only learning needs


class NotKnown(Exception):
    """The tensors form nothing that is known; the text says why."""


class Layer(NamedTuple):
    """One layer of a table."""

    weight: Tensor
    bias: Tensor


def rebuild_table(
    weights: Mapping[str, Tensor], where: str, name: str = "", score_kind: str = ""
) -> tuple[QNetwork, str]:
    """The network of these weights, in float32, in eval mode, with memory of its own; and the kind of its scores.

    Args:
        weights: checked.
        where: the file's name, for messages.
        name: a key of ``KIND_OF``, or empty. It tells the kind of the scores; one of Rusu's sizes, the widths too.
        score_kind: where the file tells it; else the name's. Without both, an actor beside a critic gives logits and a
            single head Q-values, with a warning unless its name says so.

    Raises:
        UserError: the tensors are not those of a network that is known; the line lists some of them.
    """
    online = {key: value for key, value in weights.items() if not TARGET.search(key)} or dict(weights)
    try:
        own, guess = _of_stable_baselines(online) or _by_shapes(online)
        network = build(own_memory(own), space_of(own), nn.ReLU)
        if name in SIZES and guess == "logits":
            raise NotKnown(f"an actor beside a critic gives logits, those of {name} are Q-values: acktr:FILE reads it")
    except (NotKnown, KeyError, RuntimeError, ValueError) as error:
        missing = isinstance(error, KeyError)
        reason = f"{error} is missing" if missing else " ".join(str(error).split())[:300]
        raise UserError(f"{where}: {reason}; found: {_list(weights)}; expected: {EXPECTED}") from None
    if name in SIZES and size_of(network) != SIZES[name]:
        raise UserError(f"{where}: its widths are {tuple(size_of(network))}, those of {name} are {tuple(SIZES[name])}")
    score_kind = score_kind or KIND_OF.get(name, "")
    if not score_kind and not guess:
        says = f"its one head is taken for Q-values; acktr:{where} says that it gives logits, nature:{where} agrees"
        warnings.warn(f"{where}: {says}", stacklevel=4)
    return network, score_kind or guess or "q_values"


def _of_stable_baselines(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str] | None:
    """A policy's or a Q-network's own names; None where the names are not Stable-Baselines3's."""
    if any(key.startswith("quantile_net.") for key in weights):
        raise NotKnown("the weights of a QR-DQN do not tell how many quantiles it has: give its zip")
    if "action_net.weight" in weights:
        own, score_kind = own_names(weights, "actor-critic"), "logits"
    elif any(key.startswith("q_net.q_net.") for key in weights):
        own, score_kind = own_names(weights, "DQN"), "q_values"
    elif "q_net.0.weight" in weights and "features_extractor.cnn.0.weight" in weights:
        own, score_kind = dict(weights), "q_values"
    else:
        return None
    if any(key.startswith("q_net.") and not key.startswith(f"{HEAD}.") for key in own):
        raise NotKnown(NO_ACTIVATION)
    return own, score_kind


def _by_shapes(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The layers under the names of a ``QNetwork``, and "logits" for an actor beside a critic, else ""."""
    layers = _layers(weights)
    if all(layer.weight.dim() == 2 for layer in layers.values()):
        raise NotKnown(NO_ACTIVATION)
    places: dict[str, Layer] = {}
    for place, (side, _) in zip(CONVOLUTIONS, KERNELS, strict=True):
        places[place] = _take(layers, 4, (side, side), f"a convolution {side} x {side}")
    features = places[CONVOLUTIONS[-1]].weight.shape[0] * LAST_SIDE**2
    places[HIDDEN] = _take(layers, 2, (features,), f"a linear layer of {features} inputs")
    width = places[HIDDEN].weight.shape[0]
    advantages = [key for key in layers if re.search("adv", key, re.IGNORECASE)]
    if 0 < len(advantages) < len(layers):  # all of them: a name before every layer
        raise NotKnown(f"{shown(advantages[0])} gives advantages: a dueling network is not known")
    critic = [key for key, layer in layers.items() if layer.weight.shape == (1, width)] if len(layers) > 1 else []
    if critic:
        del layers[critic[0]]
    places[HEAD] = _take(layers, 2, (width,), f"a head of {width} inputs")
    if layers:
        raise NotKnown(f"{shown(next(iter(layers)))} is no part of it")
    if (outputs := len(places[HEAD].weight)) > MAX_ACTIONS:
        raise NotKnown(f"{outputs} outputs are more than {MAX_ACTIONS} actions: is each a distribution (C51, QR-DQN)?")
    own = {f"{place}.weight": layer.weight for place, layer in places.items()}
    own |= {f"{place}.bias": layer.bias for place, layer in places.items()}
    return own, "logits" if critic else ""


def _layers(weights: Mapping[str, Tensor]) -> dict[str, Layer]:
    """Weight and bias of each layer; a bias may stand as a column."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in weights.items():
        match = PARAMETER.fullmatch(key)
        if match is None:
            raise NotKnown(f"{shown(key)} is neither a weight nor a bias")
        parts.setdefault(match[1], {})[match[2] or match[3]] = value
    layers = {}
    for layer, part in parts.items():
        if len(part) != 2:
            raise NotKnown(f"{shown(layer)} lacks its {'bias' if 'weight' in part else 'weight'}")
        layers[layer] = Layer(part["weight"], part["bias"].flatten())
    return layers


def _take(layers: dict[str, Layer], n_axes: int, last: tuple[int, ...], what: str) -> Layer:
    """Take the one layer out whose weights have ``n_axes``, the last of them of these lengths."""
    shapes = {key: tuple(layer.weight.shape) for key, layer in layers.items()}
    found = [key for key, shape in shapes.items() if len(shape) == n_axes and shape[-len(last) :] == last]
    if len(found) != 1:
        raise NotKnown(f"{what} is there {len(found)} times")
    return layers.pop(found[0])


def _list(weights: Mapping[str, Tensor], count: int = 12) -> str:
    return list_first((f"{shown(key)[1:-1]} {tuple(value.shape)}" for key, value in weights.items()), count)
