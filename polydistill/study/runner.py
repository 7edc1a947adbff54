"""Runs a plan: what is ready starts as soon as a core is free, what is finished is not run again.

A run is a command of its world with a run folder of its own: locks, checkpoints and resuming are there. So a study that
was stopped or killed goes on by looking at the folders. Its own folder holds ``plan.json``, ``results.csv``,
``arms/<arm>.yaml`` (the config of its runs), ``runs/<arm>/seed<n>`` and ``logs/<arm>/seed<n>.txt``. One job may make
several runs of an arm: then it is told by ``together/<arm>/seed<n>x<k>.yaml``, and has a log beside theirs.

Contract: a run that fails is recorded with one line why; it stops only those that its student would have taught. What
every further run would fail of stops the study: a full disk, and a reason for which each of the first runs failed.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polydistill.config.plain_yaml import dump_yaml
from polydistill.disk import atomic_write, disk_errors, wait_for_files
from polydistill.errors import UserError
from polydistill.runs import Progress
from polydistill.runs.folder import is_bound
from polydistill.runs.interruption import StopSignals
from polydistill.runs.speeds import remember
from polydistill.study.arms import GIVEN
from polydistill.study.datasets import own_files
from polydistill.study.executors.interface import Executor, Job, Outcome
from polydistill.study.failures import FirstRuns, explain, is_of_full_disk, says_why
from polydistill.study.finished import FinishedRuns
from polydistill.study.plan import Plan
from polydistill.study.planned import Key, PlannedRun, file_of, in_order_of_start, keys_of, name_of, planned_runs
from polydistill.study.records import TEACHER, RunRecord, read_failures, read_record, write_results
from polydistill.study.sharing import SharedScores
from polydistill.study.teachers import given_path, words_of_more
from polydistill.study.worlds import World

POLL_SECONDS = 0.5  # between two looks for a signal, and for runs of other processes
WRITE_SECONDS = 1.0  # between two results.csv: of a thousand rows each takes as long as some runs
REMEMBER_SECONDS = 10.0  # between two times that a run of an arm is noted to have taken
SEEN_SECONDS = 15.0  # for what another computer has written to be seen here
MOST_LOSSES = 5  # of one run, with its computer or worker, until it counts as failed


def read_records(plan: Plan, out: Path) -> list[RunRecord]:
    """What is there of each run of the plan, in :func:`planned_runs`' order. Writes nothing."""
    failures = read_failures(out)
    return [read_record(out, *run.key, run.folder, failures.get(run.key, "")) for run in planned_runs(plan)]


def write_configs(plan: Plan, out: Path) -> None:
    """Write ``arms/<arm>.yaml``: what each run's ``--config`` reads."""
    configs = {arm.name: arm.config for arm in plan.arms}
    if plan.teacher is not None:
        configs[TEACHER] = plan.teacher
    with disk_errors(out / "arms"):
        (out / "arms").mkdir(exist_ok=True)
    for name, config in configs.items():
        atomic_write(out / "arms" / f"{name}.yaml", dump_yaml(config).encode())


class Runner:
    """Runs what is not finished of a plan.

    Args:
        plan: as :func:`~polydistill.study.plan.keep_plan` gives it.
        world: of its runs.
        out: folder of the study; this process has its lock.
        executor: of the commands.
        moved: dotted keys that are elsewhere than the plan says, see :func:`~polydistill.study.plan.moved_places`.
        shared: the scores that runs of a seed share; None: they share none.
        together: how many runs of an arm one job makes, where its world has a command for that.

    Raises:
        UserError: a folder of a run holds another run.
    """

    def __init__(
        self,
        plan: Plan,
        world: World,
        out: Path,
        executor: Executor,
        moved: Mapping[str, Any] | None = None,
        shared: SharedScores | None = None,
        together: int = 1,
    ) -> None:
        self.plan, self.world, self.out, self.executor = plan, world, out, executor
        self.moved, self.shared, self.together = moved or {}, shared, together
        self.runs = {run.key: run for run in planned_runs(plan)}
        self.records = {record.key: record for record in read_records(plan, out)}
        self._started: dict[str, bool] = {}  # name -> whether it began at its beginning
        self._tried: set[Key] = set()  # those that failed in this process
        self._losses: Counter[Key] = Counter()
        self._written = float("-inf")
        self._remembered: dict[str, float] = {}  # arm -> when
        self._memory = ""  # in words, once it has been short
        self._first = FirstRuns()
        self._finished = FinishedRuns(out, self.runs, self.records)
        for key in self.runs:
            self._finished.check(self.runs[key])
        for key in (key for name in executor.found for key in keys_of(name)):
            self._started[self.runs[key].name] = False
            self.records[key] = RunRecord(*key, self.runs[key].folder, "running")
        # kept at hand, so that a round of the loop takes no longer in a large study: the runs that are neither finished
        # nor given up, in order of start, and those that run
        order = (run.key for run in in_order_of_start(plan))
        self._open = dict.fromkeys(key for key in order if self.records[key].status != "done")
        self._running = dict.fromkeys(key for key, record in self.records.items() if record.status == "running")

    @property
    def sorted_records(self) -> list[RunRecord]:
        """In the order of :func:`planned_runs`."""
        return [self.records[key] for key in self.runs]

    def run(self, stop: StopSignals) -> None:
        """Until all are finished or failed, or ``stop`` has received a signal and every run has saved.

        Raises:
            UserError: the disk is full, or a run's folder holds another run.
        """
        if not self._open:  # its runs may have been made elsewhere, and brought here
            self._write()
            return
        write_configs(self.plan, self.out)
        done = sum(record.status == "done" for record in self.records.values())
        with Progress("study", len(self.runs), "runs", done=done) as bar:
            self._write()
            try:
                self._run(stop, bar)
            except UserError:
                with contextlib.suppress(UserError):  # the disk may be full
                    self._write()
                raise
        self._write()

    def _run(self, stop: StopSignals, bar: Progress) -> None:
        while self._open and stop.received is None:
            self._start_ready()
            self._tell(bar)
            outcomes = self.executor.wait(POLL_SECONDS)
            self._see(outcomes, lambda: stop.received is not None)
            for outcome in outcomes:
                self._end(outcome, bar)
            self._look_at_others()
            self._tell(bar)
        if stop.received is not None:
            self._stop(bar)

    # ---- what is ready ---------------------------------------------------------------------------------------------

    @property
    def pending(self) -> list[PlannedRun]:
        """Those that are neither finished nor given up."""
        return [self.runs[key] for key in self._open]

    def _start_ready(self) -> None:
        for key in list(self._open):
            if self.executor.running >= self.executor.workers:
                return
            if key not in self._open:  # found to be finished, or given up, in this round
                continue
            run = self.runs[key]
            if run.name in self._started or self._must_wait(run):
                continue
            if self.executor.short_of_memory:
                self._memory = "short, a core waits"
                return
            self._memory = "enough" if self._memory else ""
            if self._may_start(run):
                self._start([run, *self._others(run)])

    def _may_start(self, run: PlannedRun) -> bool:
        """Whether nobody is at work on it: another process may be, of a study that was killed, or the user's."""
        self._note(run.key)
        if self.records[run.key].status == "failed":  # its summary cannot be read
            self._fail(run.key, self.records[run.key].why)
        return self.records[run.key].status == "missing"

    def _others(self, run: PlannedRun) -> list[PlannedRun]:
        """Those of its arm that the same job makes."""
        found: list[PlannedRun] = []
        if self.together == 1 or run.members:
            return found
        for other in self.pending:
            if len(found) == self.together - 1:
                break
            if other.arm != run.arm or other is run or other.name in self._started:
                continue
            if not self._must_wait(other) and self._may_start(other):
                found.append(other)
        return found

    def _must_wait(self, run: PlannedRun) -> bool:
        """Whether its teacher or a member is not there; where one of those has failed, so has the run."""
        needed = {run.teacher: "teacher"} if run.teacher else dict.fromkeys(run.members, "member")
        absent = [key for key in needed if self.records[key].status != "done"]
        failed = next((key for key in absent if key in self._tried), None)
        if failed is not None:
            self._fail(run.key, f"its {needed[failed]}, {'/seed'.join(map(str, failed))}, failed")
        return bool(absent)

    def _start(self, runs: Sequence[PlannedRun]) -> None:
        """Start a job that makes these."""
        for run in runs:
            self._started[run.name] = len(runs) == 1 and not is_bound(self.out / run.folder)
        if len(runs) == 1:
            command = (*self._command(*runs), *self._words(*runs))
            environment = () if self.shared is None else self.shared.environment(*runs)
        else:
            command, environment = self._command_together(runs), ()
        self.executor.start(Job(name_of(runs), command, self._log(file_of(runs)), environment))
        for run in runs:
            self._set(RunRecord(*run.key, run.folder, "running"))

    def _log(self, name: str) -> Path:
        return self.out / "logs" / f"{name}.txt"

    def _words(self, run: PlannedRun) -> list[str]:
        """Those of its command, after the name of that."""
        words = ["--config", str(self.out / "arms" / f"{run.arm}.yaml")]
        words += ["--seed", str(run.seed), "--out", str(self.out / run.folder)]
        teacher = self._teacher_file(run)
        if teacher:
            words += [f"--{GIVEN}", teacher, *words_of_more(run)]
        for key, value in [*own_files(run).items(), *self.moved.items()]:
            words += [f"--{key}", str(value)]
        return words

    def _command_together(self, runs: Sequence[PlannedRun]) -> tuple[str, ...]:
        """The command of a job that makes several runs; what an earlier one of them printed is removed."""
        assert self.world.together is not None  # the study's config would have been refused
        file = self.out / "together" / f"{file_of(runs)}.yaml"
        with disk_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            for run in runs:
                self._log(run.name).unlink(missing_ok=True)
        atomic_write(file, dump_yaml({str(self._log(run.name)): self._words(run) for run in runs}).encode())
        return (*self.world.together, str(file))

    def _command(self, run: PlannedRun) -> tuple[str, ...]:
        """The words that start a run, before its flags."""
        if not run.members:
            return self.world.command
        assert self.world.ensemble is not None  # its plan could not have been made
        return self.world.ensemble.command

    def _teacher_file(self, run: PlannedRun) -> str:
        """Path of the teacher of a run; empty: there is none."""
        if run.teacher is None:
            return given_path(run.config, run.seed)
        teacher = self.runs[run.teacher]
        last = teacher.config["lineage"]["generations"]
        return str(self.out / teacher.folder / self.world.product.format(last=last))

    # ---- what has ended --------------------------------------------------------------------------------------------

    def _see(self, outcomes: Sequence[Outcome], leave: Callable[[], bool] = lambda: False) -> None:
        """Wait for what other computers have written of the runs that ended well."""
        waiting: list[PlannedRun] = []
        for outcome in (one for one in outcomes if self.executor.elsewhere and not one.lost):
            runs = [self.runs[key] for key in keys_of(outcome.name)]
            if outcome.code:  # that of several is of those that failed
                runs = [run for run in runs if len(runs) > 1 and not says_why(self._log(run.name))]
            waiting += runs
        wait_for_files([self.out / run.folder / "summary.json" for run in waiting], self.out, SEEN_SECONDS, leave)

    def _end(self, outcome: Outcome, bar: Progress) -> None:
        runs = [self.runs[key] for key in keys_of(outcome.name)]
        whole = [self._started.pop(run.name) for run in runs]
        for run in runs:  # all of them before any is told to have failed, which may end the study
            self._note(run.key)
        ended_well = len(runs) > 1 or not outcome.code or outcome.lost  # the code of several is of those that failed
        done = [run for run in runs if ended_well and self.records[run.key].status == "done"]
        if done and whole[0] and not outcome.code and not outcome.lost:
            self._remember(done[0], outcome.seconds)
        if any(run.arm != TEACHER for run in done):
            self._first.add_success()
        whys = {run.name: self._fail_or_lose(run, runs, outcome, bar) for run in runs if run not in done}
        self._write_in_turn()
        told = {why: name for name, why in whys.items() if why}
        alike = len(runs) > 1 and not _ended_by_itself(outcome)  # one thing has happened, and not to each
        for name, why in whys.items():
            if why and (not alike or told[why] == name):
                self._first.add_failure(name, why)

    def _remember(self, run: PlannedRun, seconds: float) -> None:
        """How long a run took, for later plans; of an arm's short runs not of each."""
        if time.monotonic() - self._remembered.get(run.arm, float("-inf")) > REMEMBER_SECONDS:
            remember(work_of(self.plan.world, run.config), 1 / seconds)
            self._remembered[run.arm] = time.monotonic()

    def _fail_or_lose(self, run: PlannedRun, runs: Sequence[PlannedRun], outcome: Outcome, bar: Progress) -> str:
        """A run of a job that has ended, and the run has not: why it failed, or empty where it goes on."""
        if outcome.lost:
            self._lose(run, outcome.lost, bar)
        elif not outcome.code:
            why = self.records[run.key].why or f"{run.folder} has no summary.json, though it ended well"
            self._fail(run.key, why)
        else:  # of several each has a log of its own, but what ended their process is in that of the job
            own = self._log(run.name)
            self._fail(run.key, explain(outcome.code, own if says_why(own) else self._log(file_of(runs))))
        return self.records[run.key].why if self.records[run.key].status == "failed" else ""

    def _lose(self, run: PlannedRun, why: str, bar: Progress) -> None:
        """Its computer or worker has gone: it is started again, which goes on from its checkpoint."""
        self._losses[run.key] += 1
        if self._losses[run.key] > MOST_LOSSES or is_of_full_disk(why):
            self._fail(run.key, why if is_of_full_disk(why) else f"lost {MOST_LOSSES + 1} times, the last time: {why}")
        else:
            bar.say(f"{run.name} was lost and goes on: {why}")

    def _set(self, record: RunRecord) -> None:
        self.records[record.key] = record
        if record.status == "done":
            self._open.pop(record.key, None)
        if record.status == "running":
            self._running[record.key] = None
        else:
            self._running.pop(record.key, None)

    def _note(self, key: Key) -> None:
        """Read the record of a run from its folder."""
        self._set(read_record(self.out, *key, self.runs[key].folder))
        self._finished.check(self.runs[key])

    def _fail(self, key: Key, why: str) -> None:
        self._tried.add(key)
        self._open.pop(key, None)
        self._set(RunRecord(*key, self.runs[key].folder, "failed", why=why))
        if is_of_full_disk(why):  # every further run would fail of it
            self._write()
            how = "" if "make room" in why else "; make room, and the same command goes on"
            raise UserError(f"{self.runs[key].name}: {why}{how}")

    def _look_at_others(self) -> None:
        """Read those that other processes run."""
        for key in list(self._running):
            if self.runs[key].name not in self._started:
                self._note(key)
                if self.records[key].status == "done":
                    self._write_in_turn()

    # ---- what is told ----------------------------------------------------------------------------------------------

    def _tell(self, bar: Progress) -> None:
        """Show how many have ended, are running, and have failed."""
        numbers: dict[str, float | str] = {"failed": len(self._tried)} if self._tried else {}
        if self._losses:
            numbers["lost and gone on"] = self._losses.total()
        if self._memory:
            numbers["memory"] = self._memory
        ended = len(self.runs) - len(self._open)
        bar.advance(ended - bar.done, running=len(self._running), **numbers)

    def _write_in_turn(self) -> None:
        """Write the results unless that was done a moment ago; :meth:`run` writes them at its end."""
        if time.monotonic() - self._written > WRITE_SECONDS:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        write_results(self.out, self.sorted_records)
        if self.shared is not None:
            self.shared.clear(self.pending)

    def _stop(self, bar: Progress) -> None:
        """Ask the runs to save, and wait until they have."""
        bar.say(f"asked {len(self._started)} runs to save and stop")
        self.executor.stop()
        while self.executor.running:
            outcomes = self.executor.wait(POLL_SECONDS)
            self._see(outcomes)
            for key in (key for outcome in outcomes for key in keys_of(outcome.name)):
                del self._started[self.runs[key].name]
                self._note(key)


def _ended_by_itself(outcome: Outcome) -> bool:
    """Whether a job was not killed."""
    return 0 <= outcome.code < 128


def work_of(world: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the seconds of a run depend on, for :mod:`polydistill.runs.speeds`: everything but seed and teacher."""
    return {"kind": "run of a study", "world": world, "device": config.get("device"), "config": config}
