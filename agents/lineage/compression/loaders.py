"""Who opens a student's file, and how soon each of them decides.

:data:`LOADERS` is the one table of them: another loader is another line, and every table, file and picture has it.
Contract: a time is that of the processor on one thread, which is what the clock shows on a machine that does nothing
else; it is the median of rounds in which all have their turn, so that other work slows all of them alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import DQN
from stable_baselines3.dqn.policies import QNetwork

from polydistill._environment import MissingExtra, require_extra
from polydistill.device import one_thread
from polydistill.disk import atomic_write
from polydistill.errors import UserError
from polydistill_agents.export.checking import compare
from polydistill_agents.export.course import ENDING, TOLERANCE, refuse_other_scores
from polydistill_agents.export.graph import make_graph
from polydistill_agents.export.runtime import OnnxAgent
from polydistill_agents.files.compact import write_student
from polydistill_agents.files.policies import fresh_space
from polydistill_agents.networks.observations import Arrays, count_rows, example, to_tensors
from polydistill_agents.teachers import Teacher, as_teacher

Decide = Callable[[Arrays], NDArray[Any]]  # rows of observations to an action of each
Key = TypeVar("Key", bound=Hashable)

BATCHES = (1, 64)  # observations that are decided at once
ROUNDS = 25
ROUND_SECONDS = 0.005  # of each that is measured
OWN = "as_teacher"


class Loader(NamedTuple):
    """One way to play a student.

    Attributes:
        name: what a user calls to open it.
        ending: of the file that it opens.
        write: writes that file of a network and the kind of its scores; ValueError: there is none of such a network.
        open: from that file to what decides.
        extra: that it needs, beside those of the sweep; empty: none.
        rewritten: its files are the sweep's own, written each time that agents are weighed; no others are opened.
    """

    name: str
    ending: str
    write: Callable[[Path, QNetwork, str], None]
    open: Callable[[Path], Decide]
    extra: str = ""
    rewritten: bool = False


def decide_by(agent: Teacher) -> Decide:
    """The greedy actions of an agent, each in the first step of a game."""

    def decide(seen: Arrays) -> NDArray[Any]:
        scores = _first_step(agent, seen) if agent.has_memory else agent(to_tensors(seen, "cpu"))
        actions: NDArray[Any] = scores.argmax(dim=1).numpy()
        return actions

    return decide


def _first_step(agent: Teacher, seen: Arrays) -> torch.Tensor:
    n_games = count_rows(seen)
    agent.begin(n_games)
    return agent.label(to_tensors(seen, "cpu"), np.ones(n_games, dtype=bool))


def _write(path: Path, network: QNetwork, kind: str) -> None:
    write_student(path, network, score_kind=kind)


def _open_stock(path: Path) -> Decide:
    model = DQN.load(path, device="cpu")
    return lambda seen: model.predict(seen, deterministic=True)[0]


def _open_compact(path: Path) -> Decide:
    return decide_by(as_teacher(path))


def _write_graph(path: Path, network: QNetwork, kind: str) -> None:
    agent = as_teacher(network, kind=kind)
    space = fresh_space(network.observation_space)
    try:
        content = make_graph(agent, space, {"scores": kind})
    except UserError as error:
        raise ValueError(str(error)) from error
    seen = example(space, 2)
    torchs = agent(to_tensors(seen, "cpu")).numpy()
    refuse_other_scores(compare(OnnxAgent(content, kind).score(seen), torchs), TOLERANCE)
    atomic_write(path, content)


def _open_graph(path: Path) -> Decide:
    agent = OnnxAgent(path.read_bytes(), "q_values")  # or logits: the best action is the same
    return lambda seen: agent.score(seen).argmax(axis=1)


LOADERS = (
    Loader("DQN.load", ".zip", _write, _open_stock),
    Loader(OWN, ".safetensors", _write, _open_compact),
    Loader("onnxruntime", ENDING, _write_graph, _open_graph, extra="export", rewritten=True),
)


def tell_absent(loaders: Iterable[Loader]) -> dict[str, str]:
    """Why a loader is not here, in a line, by its name: its extra is not installed."""
    lines = {}
    for loader in loaders:
        try:
            if loader.extra:
                require_extra(loader.extra)
        except MissingExtra as error:
            lines[loader.name] = str(error)
    return lines


def observe(space: spaces.Space[Any], rows: int) -> Arrays:
    """``rows`` observations as they would come from a VecEnv, drawn from the space; the space's own stream moves on."""
    space.seed(0)
    drawn = [space.sample() for _ in range(rows)]
    if isinstance(space, spaces.Dict):
        return {name: np.stack([np.asarray(one[name]) for one in drawn]) for name in space}
    return np.stack([np.asarray(one) for one in drawn])


def measure(works: Mapping[Key, Callable[[], object]]) -> dict[Key, float]:
    """Processor seconds of one call of each."""
    times: dict[Key, list[float]] = {key: [] for key in works}
    with one_thread():
        calls = {}
        for key, work in works.items():
            work()  # the first call builds what later ones find
            calls[key] = max(1, round(ROUND_SECONDS / max(_seconds(work, 1), 1e-7)))
        for _ in range(ROUNDS):
            for key, work in works.items():
                times[key].append(_seconds(work, calls[key]))
    return {key: statistics.median(taken) for key, taken in times.items()}


def _seconds(work: Callable[[], object], calls: int) -> float:
    started = time.process_time()
    for _ in range(calls):
        work()
    return (time.process_time() - started) / calls
