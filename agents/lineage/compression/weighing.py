"""What each student of a sweep costs: parameters, multiply-adds, bytes of its files, seconds of a decision.

It is kept as ``sizes.json`` in the folder of the sweep, so that the page of a finished sweep does not change. It is
measured again where a student, the teacher, or the table of loaders is another one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from stable_baselines3.dqn.policies import QNetwork
from torch.utils.flop_counter import FlopCounterMode

from polydistill.disk import atomic_write, disk_errors
from polydistill.provenance import hardware, weights_sha256
from polydistill_agents.files.policies import fresh_space
from polydistill_agents.lineage.compression.loaders import (
    BATCHES,
    LOADERS,
    OWN,
    Decide,
    Loader,
    decide_by,
    measure,
    observe,
    tell_absent,
)
from polydistill_agents.lineage.student_file import find_student
from polydistill_agents.networks.nature import count_parameters
from polydistill_agents.networks.observations import example, to_tensors
from polydistill_agents.teachers import Teacher, as_teacher

FILE, TEACHER_STEM = "sizes.json", Path("teacher", "teacher")
OWN_FILES = "exported"  # folder, within that of the sweep, of what loaders open that is no file of a run


Files = Mapping[Loader, Path]


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
        absent: loaders that were not there, and why, in a line each.
    """

    teacher: Weight
    students: dict[str, Weight]
    machine: str
    absent: dict[str, str] = {}  # noqa: RUF012


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
    absent = tell_absent(LOADERS)
    known = _read(out, hashes, absent)
    if known is None:
        there = [loader for loader in LOADERS if loader.name not in absent]
        files = {name: _places(out, name, stem, there) for name, stem in {"": out / TEACHER_STEM, **students}.items()}
        for name, agent in agents.items():
            _store(agent, files[name], of_teacher=not name)
        known = _measure(agents, files)._replace(absent=absent)
        _write(out, hashes, known)
    return known


def _places(out: Path, name: str, stem: Path, loaders: Sequence[Loader]) -> Files:
    """The file of an agent that each loader opens; a run's own files, or the sweep's."""
    own = out / OWN_FILES / (name or TEACHER_STEM.name)
    return {loader: (own if loader.rewritten else stem).with_suffix(loader.ending) for loader in loaders}


def _sha256(agent: Teacher) -> str:
    assert agent.network is not None  # of a file
    return weights_sha256(agent.network.state_dict())


def _store(agent: Teacher, files: Files, *, of_teacher: bool) -> None:
    """Write the files that are not there, where they can be; of the teacher all, since another may have left some."""
    for loader, path in files.items():
        with disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            if of_teacher or loader.rewritten:
                path.unlink(missing_ok=True)
        if isinstance(agent.network, QNetwork) and not path.is_file():
            with contextlib.suppress(ValueError):  # this loader knows no such network
                loader.write(path, agent.network, agent.kind)


def _measure(agents: Mapping[str, Teacher], files: Mapping[str, Files]) -> Weighed:
    works: dict[tuple[str, str, int], Callable[[], object]] = {}
    for name, agent in agents.items():
        assert agent.observation_space is not None  # of a file
        seen = {batch: observe(fresh_space(agent.observation_space), batch) for batch in BATCHES}
        for loader, decide in _open(files[name], agent).items():
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
        n_bytes = {loader.ending: path.stat().st_size for loader, path in files[name].items() if path.is_file()}
        weights[name] = Weight(_count(agent), count_multiply_adds(agent), n_bytes, seconds)
    return Weighed(weights.pop(""), weights, str(hardware().get("cpu") or "an unknown processor"))


def _open(files: Files, agent: Teacher) -> dict[str, Decide]:
    """What decides, by each loader that finds a file; of a teacher that none can store, the network as it is."""
    found = {loader.name: loader.open(path) for loader, path in files.items() if path.is_file()}
    return found if OWN in found else {**found, OWN: decide_by(agent)}


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
        "absent": weighed.absent,
        "loaders": [loader.name for loader in LOADERS],
        "batches": BATCHES,
        "sha256": hashes,
        "agents": {name: weight._asdict() for name, weight in [("", weighed.teacher), *weighed.students.items()]},
    }
    atomic_write(out / FILE, (json.dumps(whole, indent=2) + "\n").encode())


def _read(out: Path, hashes: Mapping[str, str], absent: Mapping[str, str]) -> Weighed | None:
    """What was found of exactly these agents; None: something else, or nothing that can be read, or a loader is here
    that was ``absent`` then.
    """
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
        was_absent = {str(name): str(why) for name, why in whole["absent"].items()}
        if not was_absent.keys() <= absent.keys():
            return None
        agents = {name: _weight(told) for name, told in whole["agents"].items()}
        return Weighed(agents.pop(""), agents, whole["machine"], was_absent)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None  # edited, or cut: it is measured again


def _weight(told: Mapping[str, Any]) -> Weight:
    seconds = {loader: tuple(times) for loader, times in told["seconds"].items()}
    return Weight(told["parameters"], told["multiply_adds"], told["n_bytes"], seconds)
