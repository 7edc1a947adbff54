"""The keeper of a lineage's run: what is finished, what is begun, when to save, how to stop, what a failure leaves.

A :class:`KeptDomain` says how one generation learns and is scored, and how a finished one is read back. The keeper does
everything else, in the same way in every world:

* It saves a checkpoint when one is due, after the last step of a course, and when a generation is finished. A
  checkpoint holds ``generations`` (the summaries of those that are finished), ``begun`` (the state of the course in
  progress, or None), ``seconds``, ``throughput``, and what the domain adds.
* It stops in one manner: a signal is heeded where the state can be asked for; the keeper saves, then raises.
* It goes on from the last good checkpoint: members are read back, and the course that was begun continues.
* It leaves ``generation_<k>_failure.pt`` where a loss, weights or scores are not finite.
* It has the doctor look at a lesson before it begins, if there is one, and writes ``summary.json`` at the end.

Contract: of several processes the first reads and writes the run folder and decides; the others follow in the same
call.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from torch import nn

from polydistill.errors import Interrupted, UserError
from polydistill.learning.processes import ALONE, Processes
from polydistill.learning.rewind import Learning, NonFiniteError
from polydistill.learning.sharded import as_whole
from polydistill.lineage.loop import Generation, Lineage, LineageConfig, Metrics
from polydistill.losses import Report
from polydistill.runs import Run
from polydistill.runs.checkpoint import CheckpointConfig, Pace
from polydistill.runs.interruption import StopSignals

Member = TypeVar("Member")
Examine = Callable[[Generation[Any]], Report]


class KeptConfig(Protocol):
    """What the keeper reads of a run's config."""

    @property
    def lineage(self) -> LineageConfig:
        """How many generations."""

    @property
    def checkpoint(self) -> CheckpointConfig:
        """How often to save."""


class Course(Protocol):
    """One generation's training, from its first step to its last; see :meth:`Keeper.follow`."""

    @property
    def steps(self) -> int:
        """Done so far."""

    @property
    def seconds(self) -> float:
        """It has taken so far, in all processes that have worked on it."""

    @property
    def learner(self) -> Learning:
        """What learns; its state is kept where a number is not finite."""

    def learn(self, due: Callable[[int], bool], save: Callable[[], None]) -> None:
        """Train to the end.

        Args:
            due: to be asked between steps, with the steps done so far, whether to save.
            save: to be called where it was due, when :meth:`state` can be asked for; it may raise to leave.
        """

    def state(self) -> dict[str, Any]:
        """Tensors and plain values on which the rest depends."""

    def rates(self) -> dict[str, float]:
        """How fast it was, by name, with the unit in the name."""


class KeptDomain(Protocol[Member]):
    """What a world gives, for the keeper to keep its runs."""

    @property
    def charts(self) -> Mapping[str, Sequence[str]]:
        """What TensorBoard shows first, see :meth:`Run.show_first`."""

    @property
    def objective(self) -> str:
        """Name of the objective by which students learn."""

    def network(self, member: Member) -> nn.Module | None:
        """The network of ``member``; None for a bare function."""

    def train(self, teacher: Member | None, begun: Mapping[str, Any] | None, keeper: Keeper[Member]) -> Member:
        """``keeper.generation``, trained in a course that :meth:`Keeper.follow` lets run, and written to the folder.

        Args:
            teacher: None for generation 0, which may be given and need no course.
            begun: the state of its course that was saved last; None: it begins.
            keeper: of the run.
        """

    def evaluate(self, member: Member, teacher: Member | None, keeper: Keeper[Member]) -> Metrics:
        """What is reported of ``member``, which is ``keeper.generation``; ``teacher`` is None for generation 0."""

    def state(self, generations: Sequence[Generation[Member]]) -> dict[str, Any]:
        """Plain values, beside its summaries, by which :meth:`read_members` finds the finished generations again."""

    def read_members(self, saved: Mapping[str, Any], keeper: Keeper[Member]) -> list[Member]:
        """The finished generations of the checkpoint ``saved``, from the run folder.

        Raises:
            UserError: their files, or the world, are not what they were.
        """

    def finish(self, keeper: Keeper[Member]) -> Mapping[str, Any]:
        """What is added to summary.json. What only an unfinished run needs may be removed."""


class Keeper(Generic[Member]):
    """Keeps the run of a domain, and is itself the :class:`~polydistill.lineage.Domain` of a :class:`Lineage`.

    Args:
        domain: the world.
        config: resolved.
        run: where everything is kept; None: nowhere (every process but the first).
        processes: of the run.
        stop: the signals that this process received; None: it heeds none.
        examine: the doctor's report on what a generation would teach; None: nobody looks.

    Attributes:
        generations: finished so far.
        seconds: wall clock of each generation so far, training and evaluation.
        throughput: rates by name, for summary.json.
    """

    def __init__(
        self,
        domain: KeptDomain[Member],
        config: KeptConfig,
        run: Run | None = None,
        processes: Processes = ALONE,
        stop: StopSignals | None = None,
        examine: Examine | None = None,
    ) -> None:
        self.domain, self.config, self.run, self.processes = domain, config, run, processes
        self.stop, self.examine = stop or StopSignals(), examine
        self.generations: list[Generation[Member]] = []
        self.seconds: list[float] = []
        self.throughput: dict[str, float] = {}
        self._begun: Mapping[str, Any] | None = None  # of the checkpoint, until its course goes on
        self._course: Course | None = None  # in progress
        self._pace = Pace(config.checkpoint)
        if run is not None:
            run.show_first(domain.charts)

    @property
    def generation(self) -> int:
        """The one in progress."""
        return len(self.generations)

    def is_kept(self) -> bool:
        """Whether the first process keeps the run in a folder; all processes ask."""
        return bool(self.processes.first_says(self.run is not None))

    # ---- what the loop asks ------------------------------------------------------------------------------------------

    @property
    def objective(self) -> str:
        """The domain's."""
        return self.domain.objective

    def network(self, member: Member) -> nn.Module | None:
        """The domain's."""
        return self.domain.network(member)

    def first(self) -> Member:
        """Generation 0."""
        return self._train(None)

    def teach(self, teacher: Member, generation: int) -> Member:
        """The student of ``generation``, once the doctor has seen its lesson.

        Raises:
            UserError: the doctor finds something wrong.
        """
        if self.examine is not None:
            report = self.examine(self.generations[-1])
            if self.processes.rank == 0:
                print(report, flush=True)
            if not report.healthy:
                raise UserError(f"the doctor finds the lesson of generation {generation} wrong: {report.wrong[0]}")
        return self._train(teacher)

    def _train(self, teacher: Member | None) -> Member:
        begun, self._begun = self._begun, None
        member = self.domain.train(teacher, begun, self)
        if len(self.seconds) == self.generation:
            self.seconds.append(0.0)  # it was given
        return member

    def evaluate(self, member: Member, teacher: Member | None, generation: int) -> Metrics:
        """What the domain reports."""
        started = time.perf_counter()
        metrics = self.domain.evaluate(member, teacher, self)
        self.seconds[-1] += time.perf_counter() - started
        return metrics

    # ---- what a domain asks ------------------------------------------------------------------------------------------

    def follow(self, course: Course) -> None:
        """Let ``course`` run to its end.

        Raises:
            Interrupted: a signal came, and the course is saved.
            FloatingPointError: a number is not finite; what it was computed from is in the run folder.
            UserError: the disk refused.
        """
        self._course, begun_at = course, course.steps
        try:
            course.learn(self.due, self.save)
            if course.steps > begun_at:
                self.save()  # to be scored may take minutes, which may end otherwise
        except NonFiniteError as error:
            state = as_whole(course.learner.state(), keep=self.run is not None)
            raise self.keep_failure(error, state) from error
        finally:
            self._course = None
        self.seconds.append(course.seconds)
        role = f"generation_{self.generation}"
        self.throughput |= {f"{role}_{name}": round(rate, 1) for name, rate in course.rates().items()}

    def heed(self, what: str) -> None:
        """Leave if a signal came: for what takes long beside the steps of a course. Nothing is lost but ``what``.

        Args:
            what: happens, for the one line, as "games are scored".

        Raises:
            Interrupted: a signal came.
        """
        received = self.processes.first_says(self.stop.received)
        if received is None:
            return
        if self._course is not None:
            self.save()
        self._leave(received, f"stopped while {what}: the same command goes on before that")

    def keep_failure(self, error: NonFiniteError, state: object) -> FloatingPointError:
        """Write what ``error`` leaves, see :meth:`Run.keep_failure`; the error to raise, which says where it is.

        Args:
            error: the number that is not finite, with its batch.
            state: of what learns, or the weights: before it, or where that is not known behind it.
        """
        if self.run is None and self.processes.rank == 0:  # nothing is kept
            return FloatingPointError(str(error))
        where = (
            "the run folder" if self.run is None else self.run.keep_failure(self.generation, error, state, error.batch)
        )
        return FloatingPointError(f"{error}; {error.left} are in {where}")

    # ---- keeping -----------------------------------------------------------------------------------------------------

    def resume(self) -> list[Generation[Member]]:
        """The generations that earlier processes have finished, from the last checkpoint; none: begin.

        Raises:
            UserError: no checkpoint is good, or the domain is not what it was.
        """
        saved = self.processes.first_says(None if self.run is None else self.run.resume())
        if saved is not None:
            saved = in_todays_form(saved)
            self.seconds, self.throughput, self._begun = saved["seconds"], saved["throughput"], saved["begun"]
            members = self.domain.read_members(saved, self)
            summaries = zip(members, saved["generations"], strict=True)
            self.generations = [Generation(member=member, **summary) for member, summary in summaries]
        return self.generations

    def keep(self, generation: Generation[Member]) -> None:
        """Note that ``generation`` is finished, and save that: it is not trained or scored again.

        Raises:
            Interrupted: a signal came meanwhile, and this is not the last generation.
            UserError: the disk refused.
        """
        self.generations.append(generation)
        self.save()

    def due(self, steps: int) -> bool:
        """Whether to save after ``steps`` steps of a course: it is time, or a signal came."""
        return bool(self.processes.first_says(self.stop.received is not None or self._pace.due(steps)))

    def save(self) -> None:
        """Save, then leave if a signal came and there is something left to do.

        Raises:
            Interrupted: a signal came.
            UserError: the disk refused; the checkpoint before is kept.
        """
        course, started = self._course, time.monotonic()
        steps = 0 if course is None else course.steps
        begun = None
        if course is not None and self.is_kept():
            with self.processes.peers_needed(among_others=True):
                begun = as_whole(course.state(), keep=self.run is not None)
        if self.run is not None:
            state = {
                "generations": [generation.summary() for generation in self.generations],
                "begun": begun,
                "seconds": self.seconds,
                "throughput": self.throughput,
                **self.domain.state(self.generations),
            }
            self.run.save(state, steps)
        self._pace.saved(steps, time.monotonic() - started)
        received = self.processes.first_says(self.stop.received)
        if received is not None and self.generation <= self.config.lineage.generations:
            done = f"after generation {self.generation - 1}"
            where = done if course is None else f"in generation {self.generation} after step {steps:,}"
            self._leave(received, f"stopped {where}, and saved: the same command goes on from there")

    def _leave(self, received: Any, line: str) -> None:
        raise Interrupted(received, line if self.processes.rank == 0 else "")

    def finish(self) -> dict[str, Any]:
        """Write summary.json; what is in it (in the other processes: without what the run knows of itself)."""
        summary = {
            "generations": [generation.summary() for generation in self.generations],
            "ensembles": [],
            "throughput": self.throughput,
            "seconds": [round(seconds, 1) for seconds in self.seconds],
            **self.domain.finish(self),
        }
        return summary if self.run is None else self.run.finish(summary)


def run_lineage(
    domain: KeptDomain[Any],
    config: KeptConfig,
    run: Run | None,
    processes: Processes = ALONE,
    *,
    stop: StopSignals | None = None,
    examine: Examine | None = None,
) -> dict[str, Any]:
    """Train all generations of a run, or those that are missing, and finish it.

    Args:
        domain: the world.
        config: resolved.
        run: its folder; None in every process but the first.
        processes: that work together on the run.
        stop: signals to heed; None: those that this process receives meanwhile.
        examine: the doctor's report on what a generation would teach; None: nobody looks.

    Returns:
        what summary.json holds. A run that is finished stays as it is.

    Raises:
        Interrupted: a signal came; the same call goes on.
        UserError: the run cannot go on, the disk refused, or the doctor finds a lesson wrong.
        FloatingPointError: a number is not finite; what it was computed from is in the run folder.
    """
    finished: dict[str, Any] | None = processes.first_says(None if run is None else run.summary)
    if finished is not None:
        return finished
    with StopSignals() if stop is None else contextlib.nullcontext(stop) as heeded:
        keeper = Keeper(domain, config, run, processes, heeded, examine)
        for generation in Lineage(keeper, config.lineage, keeper.resume()):
            keeper.keep(generation)
        return keeper.finish()


def in_todays_form(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state of a checkpoint, which agents wrote in another form before this keeper was there."""
    if "done" not in saved:
        return saved
    return {
        "generations": [record["summary"] for record in saved["done"]],
        "files": [{"file": record["file"], "size": record["size"]} for record in saved["done"][1:]],
        "begun": saved["lesson"],
        "seconds": saved["seconds"],
        "throughput": saved["throughput"],
    }
