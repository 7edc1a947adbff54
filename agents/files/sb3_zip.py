"""Stable-Baselines3 zips: read without unpickling, written so that stock ``DQN.load`` opens them.

A zip holds ``data`` (JSON; what JSON cannot hold stands there as a base64 pickle, with a plain-text summary
beside it) and ``policy.pth`` (a torch state dict). Reading takes plain JSON values and tensors only: a
teacher is data, never code. Writing goes through a fresh ``DQN`` of Stable-Baselines3, so that no class of
this project is referred to.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor

from polydistill.errors import UserError
from polydistill_agents.files.archive import open_zip, read_member, refusing
from polydistill_agents.files.normalization import find_statistics, normalized, read_statistics
from polydistill_agents.files.places import UNZIPPED, Place, is_unzipped, name_of, opened, settle, write_place
from polydistill_agents.files.policies import fresh_space, policy_of
from polydistill_agents.files.rebuild import rebuild
from polydistill_agents.files.sb3_data import VALUES, describe
from polydistill_agents.files.tensors import MAX_WEIGHT_BYTES, read_torch
from polydistill_agents.networks.corner import embed
from polydistill_agents.networks.kinds import SCORE_KINDS, ScoreNetwork
from polydistill_agents.networks.nature import begins_as_nature

MAX_DATA_BYTES = 16 * 2**20  # as Python objects, brackets take twenty times as much
MAX_STEPS = 10**15
# of a zip that stock DQN.load opens: players take no memory for a buffer that nobody writes to (NumPy's zeros), and
# learners go on from what the agent can do: with the exploration at which DQN ends, and a buffer of some games first
BUFFER_SIZE = 10_000
GOES_ON: dict[str, Any] = {
    "learning_starts": 1_000,
    "exploration_initial_eps": 0.05,
    "exploration_final_eps": 0.05,
}


class AgentFile(NamedTuple):
    """What a zip says.

    Attributes:
        data: the plain JSON values of ``data``.
        weights: the tensors of ``policy.pth``, on the CPU.
        where: name of the file, for messages.
        path: of the file; None for an open one.
    """

    data: dict[str, Any]
    weights: dict[str, Tensor]
    where: str
    path: Path | None

    @property
    def score_kind(self) -> str:
        """Kind of the scores: "logits" for PPO, A2C and a student of KL or NLL, "q_values" for all others."""
        return "logits" if "action_net.weight" in self.weights else kind_of(self.data)

    @property
    def steps(self) -> int | None:
        """See :func:`steps_of`."""
        return steps_of(self.data)

    def counter(self, name: str) -> int:
        """A number of :func:`write_dqn_zip`'s ``counters``; 0 where ``data`` tells none that could be true."""
        count = self.data.get(name)
        return count if type(count) is int and 0 <= count < MAX_STEPS else 0


def kind_of(attributes: Mapping[str, Any]) -> str:
    """Kind of the scores of an agent with these attributes: those of a zip, or of a loaded model."""
    card = attributes.get("polydistill")
    kind = card.get("scores") if isinstance(card, dict) else None
    return kind if kind in SCORE_KINDS else "q_values"


def steps_of(data: Mapping[str, Any]) -> int | None:
    """Agent steps that were learned from; None where ``data`` tells no number that could be true."""
    steps = data.get("num_timesteps")
    return steps if type(steps) is int and 0 <= steps < MAX_STEPS else None


def read_agent(source: Place) -> AgentFile:
    """Read a zip of Stable-Baselines3 without executing anything in it.

    Args:
        source: its path, with or without ``.zip``, or a file opened in binary mode.

    Raises:
        UserError: the file is missing, damaged, too large, or holds something else than tensors.
    """
    place = settle(source)
    where = name_of(place)
    with refusing(where, "Stable-Baselines3 zip"):
        with open_members(place, where) as members:
            for name in UNZIPPED:
                if name not in members.names:
                    raise UserError(f"{where} is no Stable-Baselines3 zip: it has no member named {name!r}")
            data = read_data(members, where)
            content = members.read("policy.pth", MAX_WEIGHT_BYTES)
        weights = read_torch(content, f"{where}: policy.pth")
    path = place if isinstance(place, Path) else None
    return AgentFile(data, weights, where, path.parent if path is not None and is_unzipped(path) else path)


class Members(NamedTuple):
    """The parts of an agent, in a zip or in the folder that was one.

    Attributes:
        names: of all parts.
        read: from a name and a limit in bytes to the part.
    """

    names: Collection[str]
    read: Callable[[str, int], bytes]


@contextlib.contextmanager
def open_members(place: Path | IO[bytes], where: str) -> Iterator[Members]:
    """Open an agent that :func:`~polydistill_agents.files.places.settle` gave.

    Raises:
        UserError: as :func:`~polydistill_agents.files.archive.open_zip` and
            :func:`~polydistill_agents.files.archive.read_member`.
        zipfile.BadZipFile: no zip.
    """
    if isinstance(place, Path) and is_unzipped(place):
        folder = place.parent

        def read(name: str, limit: int) -> bytes:
            with opened(folder / name, limit) as stream:
                return stream.read()

        yield Members([file.name for file in folder.iterdir()], read)
        return
    with opened(place) as stream, open_zip(stream, where) as archive:
        yield Members(archive.namelist(), lambda name, limit: read_member(archive, name, limit, where))


def read_data(members: Members, where: str) -> dict[str, Any]:
    """The plain JSON of ``data``; of the pickles in it no more than their base64 text.

    Raises:
        UserError: it is missing, too large, or no table.
        ValueError: no JSON.
    """
    content = members.read("data", MAX_DATA_BYTES)
    data = json.loads(content.decode("utf-8"))  # of bytes, json would guess the encoding, and import its codec
    if not isinstance(data, dict):
        raise UserError(f"{where} is no Stable-Baselines3 zip: its data is no table")
    return data


def rebuild_scores(agent: AgentFile) -> ScoreNetwork:
    """The network behind the scores of any agent that is read, in float32, in eval mode.

    An agent that learned behind VecNormalize sees through the statistics that lie beside its zip, see
    :func:`~polydistill_agents.files.normalization.find_statistics`. A PPO or A2C that learned without leaves those of
    others alone.

    Raises:
        UserError: the tensors do not form the network that ``data`` describes, or ``data`` describes one that is not
            known; the statistics are needed and not there, or are not read.
    """
    with refusing(agent.where, "agent of Stable-Baselines3"):
        description = describe(agent.data, agent.where)
        network = rebuild(agent.weights, description, agent.where)
    is_actor = description.algorithm not in VALUES  # only their zips tell what they have seen
    saw_original = is_actor and agent.data.get("_last_original_obs", ...) is None and bool(agent.steps)
    path = None if agent.path is None or saw_original else find_statistics(agent.path)
    if path is not None:
        statistics = read_statistics(path)
        return network if statistics is None else normalized(network, statistics, agent.where)
    if is_actor and agent.data.get("_last_original_obs") is not None:
        raise UserError(
            f"{agent.where}: it learned behind VecNormalize, whose statistics are not in the zip: put beside it what "
            "env.save('vecnormalize.pkl') writes (with norm_obs=False too), or give the model with its environment"
        )
    return network


def rebuild_network(agent: AgentFile) -> QNetwork:
    """:func:`rebuild_scores` for what a student of frames is: a Nature-CNN of pixels, with linear layers behind it.

    Raises:
        UserError: also where the agent is of another form.
    """
    network = rebuild_scores(agent)
    if not begins_as_nature(network) or network.observation_space.dtype != np.uint8:
        raise UserError(f"{agent.where}: it is no Nature-CNN of pixels with linear layers behind it")
    return cast(QNetwork, network)


def write_dqn_zip(
    target: Place,
    network: QNetwork,
    *,
    score_kind: str = "q_values",
    steps: int = 0,
    counters: Mapping[str, int] | None = None,
) -> None:
    """Write ``network`` as a DQN zip that stock Stable-Baselines3 opens, atomically.

    A Nature-CNN narrower than Stable-Baselines3's ``NatureCNN`` is embedded in it
    (:mod:`polydistill_agents.networks.corner`). Online and target network share one storage.

    Args:
        target: the file to write, replaced if it exists (``.zip`` is added to a name without an ending); or one
            opened for writing bytes.
        network: of the observations of any space that Stable-Baselines3 knows; a Nature-CNN of at most 32, 64, 64
            channels, a ``CombinedExtractor``, or linear layers alone; with any linear layers behind.
        score_kind: "q_values" or "logits", stored as plain JSON under ``polydistill``.
        steps: agent steps that the network has learned from; stored as ``num_timesteps``.
        counters: further ones of Stable-Baselines3, as ``_n_updates``.

    Raises:
        ValueError: an unknown kind of scores, or a network that Stable-Baselines3 cannot build.
    """
    if score_kind not in SCORE_KINDS:
        raise ValueError(f"score_kind must be one of {SCORE_KINDS}, got {score_kind!r}")
    policy = policy_of(network)
    settings = GOES_ON | {"policy_kwargs": policy.kwargs, "device": "cpu", "_init_setup_model": False}
    model = DQN(policy.name, cast(Any, None), buffer_size=1, **settings)
    model.observation_space = fresh_space(network.observation_space)
    model.action_space = spaces.Discrete(int(network.action_space.n))
    model.n_envs = 1
    with torch.random.fork_rng(devices=[]):  # building draws initial weights that nobody keeps
        model._setup_model()
    embed(network, model.q_net)
    for old, online in zip(model.q_net_target.parameters(), model.q_net.parameters(), strict=True):
        old.data = online.data
    model.observation_space = fresh_space(network.observation_space)  # the first one was sampled
    model.replay_buffer = None
    model.buffer_size = BUFFER_SIZE
    model.exploration_rate = 0.05
    model.num_timesteps = steps
    vars(model).update(counters or {})
    model.polydistill = {"scores": score_kind}  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    model.save(buffer, exclude=["replay_buffer"])
    write_place(target, buffer.getvalue())


def how_to_go_on(path: str | os.PathLike[str], score_kind: str) -> str:
    """One line for people: how stock Stable-Baselines3 continues training from a zip, or why it must not.

    Args:
        path: of the zip.
        score_kind: of its scores.

    Example:
        >>> how_to_go_on("a.zip", "q_values")
        "to continue training in Stable-Baselines3: DQN.load('a.zip', env=env, buffer_size=100_000).learn(1_000_000)"
    """
    name = os.fspath(path)
    if score_kind == "q_values":
        load = f"DQN.load({name!r}, env=env, buffer_size=100_000)"
        return f"to continue training in Stable-Baselines3: {load}.learn(1_000_000)"
    return f"{name} gives logits, not Q-values: play it with DQN.load, and do not call DQN.learn"
