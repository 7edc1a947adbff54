"""What each student of a sweep costs: parameters, multiply-adds, bytes of its files, seconds of a decision.

It is kept as ``sizes.json`` in the folder of the sweep, so that the page of a finished sweep does not change. It is
measured again where a student, the teacher, or the table of loaders is another one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from stable_baselines3.dqn.policies import QNetwork
from torch.utils.flop_counter import FlopCounterMode

from polydistill.disk import atomic_write, disk_errors
from polydistill.provenance import hardware, weights_sha256
from polydistill_agents.files.policies import fresh_space
from polydistill_agents.lineage.compression.loaders import BATCHES, LOADERS, OWN, Decide, decide_by, measure, observe
from polydistill_agents.lineage.student_file import find_student
from polydistill_agents.networks.nature import count_parameters
from polydistill_agents.networks.observations import example, to_tensors
from polydistill_agents.teachers import Teacher, as_teacher

FILE, TEACHER_STEM = "sizes.json", Path("teacher", "teacher")


class Weight(NamedTuple):
    """What an agent costs.

    Attributes:
        parameters: of the network that scores the actions.
        multiply_adds: of a forward pass of one observation, by torch's counter: of its convolutions and matrices.
        n_bytes: ending -> of its file.
        seconds: name of the loader -> of one decision, for each of ``BATCHES`` at once.
    """

    parameters: int
    multiply_adds: int
    n_bytes: dict[str, int]
    seconds: dict[str, tuple[float, ...]]

    @property
    def decision(self) -> float:
        """Seconds of one decision by :data:`OWN`, which plays whatever this project reads."""
        return self.seconds[OWN][0]

    def seconds_of(self, loader: str, batch: int) -> float | None:
        """Of one decision among ``batch``; None: that loader cannot open it."""
        return self.seconds[loader][BATCHES.index(batch)] if loader in self.seconds else None


class Weighed(NamedTuple):
    """All agents of a sweep.

    Attributes:
        teacher: of all.
        students: name of the size -> of its student.
        machine: whose times these are, in words.
    """

    teacher: Weight
    students: dict[str, Weight]
    machine: str


def weigh(out: Path, teacher: Teacher, students: Mapping[str, Path]) -> Weighed:
    """Weigh the teacher and the students, or read what was found before.

    Args:
        out: folder of the sweep.
        teacher: of all. The files of each loader that can be are written of it, and of students that lack them.
        students: name of a size -> path of its files without an ending.

    Raises:
        UserError: a file is missing or damaged, or the disk refused.
    """
    agents = {"": teacher, **{name: as_teacher(find_student(stem)) for name, stem in students.items()}}
    hashes = {name: _sha256(agent) for name, agent in agents.items()}
    known = _read(out, hashes)
    if known is None:
        stems = {"": out / TEACHER_STEM, **students}
        for name, agent in agents.items():
            _store(agent, stems[name], anew=not name)  # an earlier teacher may have left some
        known = _measure(agents, stems)
        _write(out, hashes, known)
    return known


def _sha256(agent: Teacher) -> str:
    assert agent.network is not None  # of a file
    return weights_sha256(agent.network.state_dict())


def _store(agent: Teacher, stem: Path, *, anew: bool) -> None:
    """Write the files that loaders open and that are not there, or all of them ``anew``, where they can be."""
    with disk_errors(stem.parent):
        stem.parent.mkdir(parents=True, exist_ok=True)
        for loader in LOADERS if anew else ():
            stem.with_suffix(loader.ending).unlink(missing_ok=True)
    for loader in LOADERS:
        path = stem.with_suffix(loader.ending)
        if isinstance(agent.network, QNetwork) and not path.is_file():
            with contextlib.suppress(ValueError):  # this loader knows no such network
                loader.write(path, agent.network, agent.kind)


def _measure(agents: Mapping[str, Teacher], stems: Mapping[str, Path]) -> Weighed:
    works: dict[tuple[str, str, int], Callable[[], object]] = {}
    for name, agent in agents.items():
        assert agent.observation_space is not None  # of a file
        seen = {batch: observe(fresh_space(agent.observation_space), batch) for batch in BATCHES}
        for loader, decide in _open(stems[name], agent).items():
            for batch in BATCHES:
                works[name, loader, batch] = partial(decide, seen[batch])
    taken = measure(works)
    weights = {}
    for name, agent in agents.items():
        seconds = {
            loader.name: tuple(taken[name, loader.name, batch] / batch for batch in BATCHES)
            for loader in LOADERS
            if (name, loader.name, BATCHES[0]) in taken
        }
        weights[name] = Weight(_count(agent), count_multiply_adds(agent), _bytes_of(stems[name]), seconds)
    return Weighed(weights.pop(""), weights, str(hardware().get("cpu") or "an unknown processor"))


def _open(stem: Path, agent: Teacher) -> dict[str, Decide]:
    """What decides, by each loader that finds a file; of a teacher that none can store, the network as it is."""
    found = {
        loader.name: loader.open(stem.with_suffix(loader.ending))
        for loader in LOADERS
        if stem.with_suffix(loader.ending).is_file()
    }
    return found if OWN in found else {**found, OWN: decide_by(agent)}


def _bytes_of(stem: Path) -> dict[str, int]:
    paths = {loader.ending: stem.with_suffix(loader.ending) for loader in LOADERS}
    return {ending: path.stat().st_size for ending, path in paths.items() if path.is_file()}


def _count(agent: Teacher) -> int:
    assert agent.network is not None
    return count_parameters(agent.network)


def count_multiply_adds(agent: Teacher) -> int:
    """Of one decision, by torch's counter, which counts a multiplication and an addition as two."""
    assert agent.observation_space is not None
    seen = to_tensors(example(agent.observation_space, 1), "cpu")
    agent.begin(1)
    with FlopCounterMode(display=False) as counter:
        agent.label(seen, torch.ones(1, dtype=torch.bool).numpy())
    return int(counter.get_total_flops()) // 2


# ---- sizes.json ------------------------------------------------------------------------------------------------------


def _write(out: Path, hashes: Mapping[str, str], weighed: Weighed) -> None:
    whole = {
        "machine": weighed.machine,
        "loaders": [loader.name for loader in LOADERS],
        "batches": BATCHES,
        "sha256": hashes,
        "agents": {name: weight._asdict() for name, weight in [("", weighed.teacher), *weighed.students.items()]},
    }
    atomic_write(out / FILE, (json.dumps(whole, indent=2) + "\n").encode())


def _read(out: Path, hashes: Mapping[str, str]) -> Weighed | None:
    """What was found of exactly these agents; None: something else, or nothing that can be read."""
    path = out / FILE
    if not path.is_file():
        return None
    with disk_errors(path, "read"):
        text = path.read_text(encoding="utf-8")
    try:
        whole = json.loads(text)
        same = whole["sha256"] == dict(hashes) and tuple(whole["batches"]) == BATCHES
        if not same or whole["loaders"] != [loader.name for loader in LOADERS]:
            return None
        agents = {name: _weight(told) for name, told in whole["agents"].items()}
        return Weighed(agents.pop(""), agents, whole["machine"])
    except (ValueError, LookupError, TypeError, AttributeError):
        return None  # edited, or cut: it is measured anew


def _weight(told: Mapping[str, Any]) -> Weight:
    seconds = {loader: tuple(times) for loader, times in told["seconds"].items()}
    return Weight(told["parameters"], told["multiply_adds"], told["n_bytes"], seconds)
