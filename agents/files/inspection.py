"""What is inside a teacher's file, shown without loading anything that could be code."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from gymnasium import spaces
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.dqn.policies import QNetwork
from torch import nn

from polydistill.errors import UserError, printable, require_at_least
from polydistill_agents.environments.gym_task import open_environment
from polydistill_agents.environments.task import Task, open_task
from polydistill_agents.files.archive import refusing, shown
from polydistill_agents.files.pickle_globals import MAX_OPCODES
from polydistill_agents.files.places import Place, opened, target_of
from polydistill_agents.files.sb3_data import describe, full_name
from polydistill_agents.files.sb3_zip import how_to_go_on, open_members, read_agent, read_data, steps_of, write_dqn_zip
from polydistill_agents.files.sources import find, read_network, read_stored_network
from polydistill_agents.files.usual_pickles import examine_pickle
from polydistill_agents.networks.corner import cut_padding
from polydistill_agents.networks.fitting import space_fits, tell_space
from polydistill_agents.networks.kinds import ScoreNetwork
from polydistill_agents.networks.nature import count_parameters
from polydistill_agents.networks.normalized import Normalized
from polydistill_agents.networks.quantiles import QuantileNetwork
from polydistill_agents.networks.recurrent import RecurrentNetwork

MAX_TEXT_BYTES = 2**16
MAX_PICKLES = 200  # that are told and looked into; Stable-Baselines3 writes twenty
SERIALIZED = ":serialized:"
Read = TypeVar("Read")


@dataclass(frozen=True)
class AgentInspectionConfig:
    """Which file is inspected, and what is done with it.

    Args:
        file: a zip of Stable-Baselines3 (.zip may be left out), or a table of weights; a path, hf:// or https://.
        convert: zip to write, which stock DQN.load opens.
        env: gymnasium id of the environment, like CartPole-v1, whose bounds are written; empty: those in the file.
        evaluate: what the agent then plays: the ROM id of a game, like pong, or a gymnasium id, like CartPole-v1.
        episodes: full games to play.
        seed: of the games and of the random actions.
    """

    file: str
    convert: str = ""
    env: str = ""
    evaluate: str = ""
    episodes: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least(1, self, "episodes")
        require_at_least(0, self, "seed")
        if self.evaluate:
            object.__setattr__(self, "evaluate", self.task.name)
        if self.env and not self.convert:
            raise ValueError("env is for convert: add --convert FILE.zip, or leave --env out")
        if self.convert and target_of(self.convert).suffix.lower() != ".zip":
            raise ValueError(f"convert must end in .zip, got {self.convert}")

    @property
    def task(self) -> Task:
        """What is played.

        Raises:
            UserError: there is none of that name.
        """
        try:
            return open_task(self.evaluate)
        except UserError:
            if not re.search(r"-v\d+$|[:/]", self.evaluate):
                raise
        return open_environment(self.evaluate)


def inspect_agent(source: str) -> list[tuple[str, str]]:
    """``(what, text)`` for each thing that the file tells about itself; each text is one line.

    Args:
        source: as :func:`~polydistill_agents.files.sources.read_network` takes it.

    Raises:
        UserError: the file is missing, no zip or table of weights, or one that only an attack needs.
    """
    found = find(source)
    with opened(found.place) as stream:
        told = [("file", f"{found.where} ({stream.seek(0, io.SEEK_END):,} bytes)")]
    if found.form != "zip":
        (network, kind), notes = _noting(lambda: read_network(source))
        told += [("format", "a table of weights"), *_tell_network(network, kind)]
        return told + [("note", printable(note)) for note in notes]
    with refusing(found.where, "Stable-Baselines3 zip"), open_members(found.place, found.where) as members:
        data = read_data(members, found.where)
        texts: dict[str, str] = {
            name: members.read(name, MAX_TEXT_BYTES).decode("utf-8", "replace")
            for name in ("_stable_baselines3_version", "system_info.txt")
            if name in members.names
        }
    told += [("format", "a zip of Stable-Baselines3"), ("algorithm", full_name(data))]
    told += [(name.replace("_", " "), _tell_space(data.get(name))) for name in ("observation_space", "action_space")]
    try:
        stored, kind, masks = read_stored_network(source)
        network = cut_padding(stored)
        told += _tell_network(network, kind)
        if masks:
            told.append(("masks", "it learned with the environment's masks of actions, which are not in the file"))
        if network is not stored:
            told.append(("stored as", f"{describe_network(stored)}, with channels of zeros"))
    except UserError as error:
        told.append(("network", f"not read: {str(error).removeprefix(f'{found.where}: ')}"))
    steps = steps_of(data)
    told.append(("steps", "unknown" if steps is None else f"{steps:,}"))
    told += _tell_versions(texts) + _tell_pickles(data)
    return [(printable(what), printable(text)) for what, text in told]


def convert_agent(source: Place, target: str | os.PathLike[str], env_id: str = "") -> list[str]:
    """Write what ``source`` holds as a clean DQN zip of today, with the same greedy actions.

    A QR-DQN becomes the DQN of its mean, an actor the DQN whose scores are its logits.

    Args:
        source: as :func:`~polydistill_agents.files.sources.read_network` takes it.
        target: path of the zip to write.
        env_id: a gymnasium environment whose bounds of observations are written; empty: those in the file.

    Returns:
        Lines for people: how to continue training, and what the file does not say.

    Raises:
        UserError: it cannot be a DQN, or cannot be read or written; another environment.
    """
    (network, kind), lines = _noting(lambda: read_network(source))
    if isinstance(network, Normalized):
        raise UserError(f"{source} cannot be a DQN alone: it sees through the statistics of a VecNormalize")
    if isinstance(network, RecurrentNetwork):
        raise UserError(f"{source} cannot be a DQN: it has a memory of its game (LSTM), and a DQN sees one observation")
    plain = network.averaged() if isinstance(network, QuantileNetwork) else network
    found, steps = find(source), None
    if found.form == "zip":
        agent = read_agent(found.place)
        steps = agent.steps
        if not env_id and not describe(agent.data, agent.where).bounds_told:
            lines.append(
                "the file does not say the bounds of its observations: DQN.load(..., env=env) takes only an unbounded "
                "env; --env ID writes those of the gymnasium environment ID"
            )
    if env_id:
        plain.observation_space = _space_of(env_id, plain)
    try:
        write_dqn_zip(target, plain, score_kind=kind, steps=steps or 0)
    except ValueError as error:
        raise UserError(f"{source} cannot be a DQN of Stable-Baselines3: {error}") from None
    return [how_to_go_on(target_of(target), kind), *lines]


def _noting(read: Callable[[], Read]) -> tuple[Read, list[str]]:
    """What is read, and the warnings on the way."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        return read(), [str(note.message) for note in notes]


def _space_of(env_id: str, network: QNetwork) -> spaces.Space[Any]:
    """The observations of an environment as Stable-Baselines3 shows them, if they and its actions are the network's."""
    mine = network.observation_space
    try:
        task = open_environment(env_id)
        theirs, (n_actions,) = task.observation_space, task.action_counts
    except UserError as error:
        raise UserError(f"--env {env_id}: {error}") from None
    if not space_fits(mine, theirs) or (isinstance(mine, spaces.Box) and mine.dtype != theirs.dtype):
        told = [tell_space(space) for space in (mine, theirs)]
        raise UserError(f"--env {env_id}: the agent sees {told[0]}, the environment shows {told[1]}")
    if n_actions != int(cast(Any, network.action_space).n):
        raise UserError(f"--env {env_id}: the agent has {network.action_space}, the environment Discrete({n_actions})")
    return theirs


def describe_network(network: nn.Module) -> str:
    """In one line: what it sees, its layers, its parameters."""
    if isinstance(network, Normalized):
        return f"{describe_network(network.network)}; behind the statistics of a VecNormalize"
    quantiles = f", the mean of {network.n_quantiles} quantiles" if isinstance(network, QuantileNetwork) else ""
    inner: Any = network.quantile_net if isinstance(network, QuantileNetwork) else network
    widths = [layer.out_features for layer in inner.q_net if isinstance(layer, nn.Linear)]
    widths[-1] //= network.n_quantiles if isinstance(network, QuantileNetwork) else 1
    memory = (
        [f"LSTM {' > '.join([str(inner.lstm.hidden_size)] * inner.lstm.num_layers)}"] if hasattr(inner, "lstm") else []
    )
    activations = [type(layer).__name__ for layer in inner.q_net if not isinstance(layer, nn.Linear)]
    between = f" ({activations[0]})" if activations else ""
    parts = [_describe_features(inner.features_extractor), *memory, *widths[:-1], f"{widths[-1]} actions"]
    return f"{' > '.join(map(str, parts))}{between}{quantiles}; {count_parameters(network):,} parameters"


def _describe_features(extractor: nn.Module) -> str:
    """What comes first in a network, in a few words."""
    if isinstance(extractor, CombinedExtractor):
        parts = [
            f"{shown(name)[1:-1]}: {_describe_features(part) if hasattr(part, 'cnn') else 'values'}"
            for name, part in extractor.extractors.items()
        ]
        return f"{', '.join(parts)} ({extractor.features_dim} in all)"
    if hasattr(extractor, "cnn"):
        channels = "-".join(
            str(layer.out_channels) for layer in cast(Any, extractor.cnn) if isinstance(layer, nn.Conv2d)
        )
        return f"Nature-CNN {channels}, {cast(Any, extractor.linear)[0].out_features}"
    return f"vectors of {extractor.features_dim}"


def _tell_network(network: ScoreNetwork, kind: str) -> list[tuple[str, str]]:
    return [("network", describe_network(network)), ("scores", kind.replace("_", "-"))]


def _tell_space(space: Any) -> str:
    if not isinstance(space, Mapping):
        return "unknown"
    kind = str(space.get(":type:", "unknown")).removeprefix("<class '").removesuffix("'>")
    details = [
        f"{name.strip('_')} {str(space[name])[:60]}"
        for name in ("n", "nvec", "_shape", "shape", "dtype", "spaces")
        if space.get(name)
    ]
    return ", ".join([shown(kind).strip("'"), *details])


def _tell_versions(texts: Mapping[str, str]) -> list[tuple[str, str]]:
    lines = [line.lstrip("- ") for line in texts.get("system_info.txt", "").splitlines() if line.startswith("- ")]
    version = texts.get("_stable_baselines3_version", "unknown").strip()
    return [("versions", "; ".join(["Stable-Baselines3: " + version, *lines])[:400])]


def _tell_pickles(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pickled fields with what each would import, and apart what is out of the ordinary."""
    told: list[tuple[str, str]] = []
    odd: dict[str, list[str]] = {}  # what is unusual -> fields
    budget = MAX_OPCODES
    pickled = [(field, value) for field, value in data.items() if isinstance(value, Mapping) and SERIALIZED in value]
    for field, value in pickled[:MAX_PICKLES]:
        try:
            # odd characters are left out, as DQN.load does
            content = base64.b64decode(str(value[SERIALIZED]).encode("utf-8", "replace"))
        except (binascii.Error, ValueError):
            told.append((f"pickled {shown(field)}", "no base64"))
            continue
        found, unusual = examine_pickle(content, budget)
        budget = max(budget - found.opcodes, 1)
        names = ", ".join(shown(name).strip("'") for name in found.names[:20]) or "imports nothing"
        rest = "" if found.complete else " (damaged, or longer than what is looked at)"
        told.append((f"pickled {shown(field)[1:-1]}", names + rest))
        for what in unusual:
            odd.setdefault(shown(what)[1:-1], []).append(shown(field)[1:-1])
    if len(pickled) > MAX_PICKLES:
        told.append(("more pickles", f"{len(pickled) - MAX_PICKLES:,}, which are not looked into"))
        odd["what is not looked into"] = ["more pickles"]
    warning = "; ".join(f"{name} in {', '.join(fields[:5])}" for name, fields in list(odd.items())[:20]) or "none"
    return [
        *told,
        ("unusual globals", f"{warning}{' (never loaded here; DQN.load would execute them)' if odd else ''}"),
    ]
