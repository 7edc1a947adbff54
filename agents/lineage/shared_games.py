"""The games that are the same for all runs of a seed: those of their first teacher, and of random play.

The first run that comes to them plays them and keeps their scores, the others read them, where a study has given them a
folder to share (:mod:`polydistill.runs.shared_store`). Contract: a run has the scores that it would have played.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polydistill.config.plain_yaml import to_mapping
from polydistill.provenance import arithmetic, versions, weights_sha256
from polydistill.runs.shared_store import SharedStore
from polydistill_agents.environments.atari import PACKAGES
from polydistill_agents.environments.evaluation import Evaluation
from polydistill_agents.lineage.students import AnyConfig
from polydistill_agents.teachers import Teacher

OF_STUDENTS = ("student", "play", "lineage", "checkpoint")  # of a config: what the teacher's games do not depend on


class SharedGames:
    """Of one teacher, in the runs of one seed.

    Args:
        config: resolved, with the temperature that was found.
        teacher: the first. Where it is a bare function nothing is shared, since nothing tells it from another.
        acts: "greedy" or "sample", see :func:`~polydistill_agents.lineage.opening.choose_play`.
    """

    def __init__(self, config: AnyConfig, teacher: Teacher, acts: str) -> None:
        self._config, self._teacher, self._acts = config, teacher, acts
        self._store = SharedStore.of_environment()

    def of_teacher(self, stream: str, play: Callable[[], Evaluation]) -> Evaluation:
        """Its games in the random stream ``stream``, as ``play`` would give them."""
        return Evaluation(**_as_arrays(self._recall(stream, lambda: _as_lists(play()._asdict()))))

    def of_random_play(self, play: Callable[[], NDArray[np.float64]]) -> NDArray[np.float64]:
        """Scores of random play, as ``play`` would give them."""
        found = self._recall("random play", lambda: _as_lists({"scores": play()}))
        return np.array(found["scores"], dtype=np.float64)

    def _recall(self, what: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if self._store is None or self._teacher.network is None or self._config.device != "cpu":
            return compute()
        key = self._key(what)
        content = self._store.read(key)
        if content is not None:
            return json.loads(bytes(content))  # type: ignore[no-any-return]
        computed = compute()
        self._store.write(key, json.dumps(computed).encode())
        return computed

    def _key(self, what: str) -> str:
        """A hash of everything on which the games depend; the code is that of one study."""
        assert self._teacher.network is not None
        config = to_mapping(self._config)
        told = {name: value for name, value in config.items() if name not in OF_STUDENTS}
        told |= {"games": what, "acts": self._acts}
        if self._acts == "sample" or self._config.teacher.more:  # elsewhere it is the students' alone
            told["temperature"] = self._config.student.temperature
        told |= {"teacher": weights_sha256(self._teacher.network.state_dict()), "network": repr(self._teacher.network)}
        told |= {"versions": versions(*PACKAGES), **arithmetic()}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _as_lists(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def _as_arrays(values: dict[str, Any]) -> dict[str, Any]:
    return values | {"scores": np.array(values["scores"], np.float64), "lengths": np.array(values["lengths"], np.int64)}
