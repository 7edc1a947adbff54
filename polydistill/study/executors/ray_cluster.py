"""A Ray cluster as an executor: a task for each job, on whatever computer Ray chooses.

A task that is lost with its process or computer is told as lost, and nothing of it is tried by Ray itself: what goes on
is for the study to say, which knows what was saved. The tasks end with the study: a run whose worker ends gets SIGTERM.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polydistill.errors import UserError
from polydistill.study.executors.errand import make_errand, outcome_of, words_of
from polydistill.study.executors.interface import Job, Outcome, stop_and_wait
from polydistill.study.executors.settings import RayConfig

ANSWER_SECONDS = 5.0  # for an address that is alive
FELLOW_SECONDS = 60.0  # for a computer to say what it has
AHEAD = 8  # for so many jobs one more waits in Ray's queue, so that no processor waits for the study
LOOK_SECONDS = 5.0  # between two looks at which computers there are
PATIENCE_SECONDS = 60.0  # for runs that were asked to stop when an error ends the study
KEPT_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ray sets handlers of its own


class RayExecutor:
    """An executor of the computers of a Ray cluster; a context manager that connects.

    Args:
        settings: the cluster, and what a job takes of it.
        witness: a file of the study's folder, by which another computer sees that it has the same folder.
        workers: jobs at once; 0: as many as fit.
    """

    found: tuple[str, ...] = ()
    short_of_memory = False  # Ray counts it
    elsewhere = True

    def __init__(self, settings: RayConfig, witness: Path, workers: int) -> None:
        self.settings, self.witness, self._most = settings, witness, workers
        self._jobs: dict[Any, tuple[str, float]] = {}  # reference -> name and start
        self._fitting, self._looked = 0, float("-inf")
        self._errand: Any = None

    # ---- connecting ------------------------------------------------------------------------------------------------

    def __enter__(self) -> RayExecutor:
        address = self.settings.address
        if ":" in address:
            _require_answer(address)
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        handlers = {number: signal.getsignal(number) for number in KEPT_SIGNALS}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # of many kinds
            why = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"no Ray cluster at {address}: {why[0]}; `ray start --head` makes one") from error
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        options: dict[str, Any] = {"num_cpus": self.settings.cpus, "max_retries": 0}
        if self.settings.gpus:
            options["num_gpus"] = self.settings.gpus
        if self.settings.memory_gib:
            options["memory"] = int(self.settings.memory_gib * 2**30)
        self._errand = ray.remote(make_errand()).options(**options)
        try:
            self._require_room()
            self._require_fellows()
        except BaseException:
            ray.shutdown()
            raise
        return self

    def _require_room(self) -> None:
        if not self.workers:
            nodes = [{key: _resources(node).get(key, 0.0) for key in self._needs} for node in _alive_nodes()]
            told = "; ".join(_say(node) for node in nodes if any(node.values()))  # one that ends has nothing any more
            raise UserError(
                f"a run takes {_say(self._needs)}, and no computer of the cluster has that: they have {told or 'none'}"
            )

    def _require_fellows(self) -> None:
        """Ask each computer that could have a job whether it has the study's folder and code."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        asked = [
            ray.remote(make_errand())
            .options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            )
            .remote(words_of(None, self.witness))
            for node in _alive_nodes()
            if _count_fitting(_resources(node), self._needs)
        ]
        for answer in asked:
            with contextlib.suppress(ray.exceptions.RayError):  # it has gone, or is slow: a job would tell
                why = ray.get(answer, timeout=FELLOW_SECONDS).get("refused")
                if why:
                    raise UserError(why)

    # ---- jobs ------------------------------------------------------------------------------------------------------

    @property
    def workers(self) -> int:
        """How many jobs fit into the computers that there are now, and into their queue; at most as many as were asked
        for.
        """
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked = time.monotonic()
            with _cluster_errors():
                self._fitting = sum(_count_fitting(_resources(node), self._needs) for node in _alive_nodes())
        if self._most and self._most < self._fitting:
            return self._most
        return self._fitting + math.ceil(self._fitting / AHEAD)

    @property
    def _needs(self) -> dict[str, float]:
        needs = {
            "CPU": self.settings.cpus,
            "GPU": self.settings.gpus,
            "memory": self.settings.memory_gib * 2.0**30,
        }
        return {key: value for key, value in needs.items() if value}

    @property
    def running(self) -> int:
        """How many are started and not yet told to have ended."""
        return len(self._jobs)

    def start(self, job: Job) -> None:
        """See :class:`~polydistill.study.executors.interface.Executor`."""
        words = words_of(job, self.witness)
        with _cluster_errors():
            self._jobs[self._errand.remote(words)] = job.name, time.monotonic()

    def wait(self, seconds: float) -> list[Outcome]:
        """See :class:`~polydistill.study.executors.interface.Executor`."""
        import ray

        if not self._jobs:
            time.sleep(seconds)
            return []
        with _cluster_errors():
            ready, others = ray.wait(list(self._jobs), timeout=seconds)
            if others:
                ready += ray.wait(others, num_returns=len(others), timeout=0)[0]
        return [self._end(reference) for reference in ready]

    def _end(self, reference: Any) -> Outcome:
        import ray

        name, started = self._jobs.pop(reference)
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayError as error:
            answer = {"refused": _in_a_line(error)}
        return outcome_of(name, answer, time.monotonic() - started)

    def stop(self) -> None:
        """See :class:`~polydistill.study.executors.interface.Executor`."""
        import ray

        for reference in self._jobs:
            ray.cancel(reference)

    def __exit__(self, *error: object) -> None:
        import ray

        with contextlib.suppress(UserError):  # a cluster that has gone took its tasks with it
            stop_and_wait(self, PATIENCE_SECONDS)
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Ray itself waits for minutes for an address that nobody has.

    Raises:
        UserError: nothing listens there.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"no Ray cluster at {address}: {why}; `ray start --head` prints the address of one") from error


@contextlib.contextmanager
def _cluster_errors() -> Iterator[None]:
    """One line where the cluster does not answer any more."""
    import ray

    try:
        yield
    except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
        raise UserError(
            f"the Ray cluster does not answer any more ({_in_a_line(error)}); the same command goes on"
        ) from error


def _alive_nodes() -> list[dict[str, Any]]:
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def _resources(node: dict[str, Any]) -> dict[str, float]:
    return dict(node["Resources"])


def _count_fitting(has: dict[str, float], needs: dict[str, float]) -> int:
    """How many jobs a computer has room for."""
    return int(min(has.get(key, 0.0) / value + 1e-9 for key, value in needs.items()))


def _say(resources: dict[str, float]) -> str:
    """``2 CPU, 0.25 GPU, 1.5 GiB``."""
    return ", ".join(
        f"{value / 2**30:.1f} GiB" if key == "memory" else f"{value:g} {key}" for key, value in resources.items()
    )


def _in_a_line(error: BaseException) -> str:
    """What one of Ray's errors says, which go on for a page: its first line, of an exception in a task its last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    import ray

    return lines[-1 if isinstance(error, ray.exceptions.RayTaskError) else 0]
