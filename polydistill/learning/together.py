"""Several runs in one process, whose students take their steps together.

Each run is a command in a thread of its own, with its own folder, log and checkpoints, as if it were alone. Only one
thread works at a time: a run goes on until it wants a step, then waits. Once all that are left wait, the process's main
thread makes all the steps in one go, as far as they fit together, see :class:`Steps`.

Contract: no run knows of the others; one that ends in whatever way leaves the table, and the others go on. What a step
that was made together raises, all of its runs are told.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from polydistill.disk import disk_errors
from polydistill.errors import UserError

T = TypeVar("T")


class Steps(Protocol):
    """What makes the steps of one student, alone or with others."""

    @property
    def progress(self) -> tuple[int, int]:
        """Generation and steps done: who is behind the others goes first, so that all come to the same step."""

    def kind_of_step(self, diagnose: bool, *inputs: Tensor) -> Hashable | None:
        """Steps of one kind can be made together; None: this one cannot."""

    def make_alone(self, diagnose: bool, *inputs: Tensor) -> None:
        """The student's next step."""


class JointSteps(Protocol):
    """What makes the steps of several students in one go."""

    def make(self, diagnose: bool, inputs: Sequence[Sequence[Tensor]]) -> None:
        """The next step of each; ``inputs`` of each in turn."""

    def release(self) -> None:
        """From now on each can be made alone."""


class _Request(NamedTuple):
    steps: Steps
    diagnose: bool
    inputs: tuple[Tensor, ...]
    threads: int  # of torch: each thread of Python has its own number


class _Joined(NamedTuple):
    steps: dict[int, Steps]  # by the number of the run
    joint: JointSteps


class Table:
    """Where runs meet.

    Args:
        join: what makes the steps of several students.

    Attributes:
        size: how many runs there are.
        together: steps that students have made with others.
        alone: steps that they have made alone.
    """

    def __init__(self, join: Callable[[Sequence[Any]], JointSteps]) -> None:
        self._join = join
        self._turn = threading.Condition()  # who has it works; all others wait
        self._waiting: dict[int, _Request] = {}  # by the number of the run
        self._errors: dict[int, BaseException] = {}
        self._left = 0  # runs that have not ended
        self._joined: list[_Joined] = []
        self._shared: dict[Hashable, Any] = {}
        self._each_time: Callable[[], None] = lambda: None
        self.size = self.together = self.alone = 0

    def run(self, commands: Sequence[Callable[[], int]], each_time: Callable[[], None] = lambda: None) -> list[int]:
        """Run all to their ends, in this thread and others; their results.

        Args:
            commands: each gives its exit code.
            each_time: is called when all wait, before their steps are made, and when one has made its last step while
                no other waits for a step: a run that asked for one makes it, and would be a step ahead.
        """
        codes = [1] * len(commands)
        self._each_time = each_time

        def work(number: int) -> None:
            _here.table, _here.number = self, number
            with self._turn:
                try:
                    codes[number] = commands[number]()
                finally:
                    try:
                        self._leave(number)
                    finally:  # whatever that raises, the others are not kept waiting
                        self._left -= 1
                        self._turn.notify_all()

        self.size = self._left = len(commands)
        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(codes))]
        for thread in threads:
            thread.start()
        with self._turn:
            while self._left:
                self._turn.wait_for(lambda: len(self._waiting) == self._left)
                self._each_time()
                self._make_steps()
                self._turn.notify_all()
        for thread in threads:
            thread.join()
        return codes

    def meet(self, steps: Steps, diagnose: bool, *inputs: Tensor) -> None:
        """Wait for the next step of this thread's student.

        Raises:
            BaseException: what the step raised.
        """
        number: int = _here.number
        self._waiting[number] = _Request(steps, diagnose, inputs, torch.get_num_threads())
        self._turn.notify_all()
        self._turn.wait_for(lambda: number not in self._waiting)
        error = self._errors.pop(number, None)
        if error is not None:
            raise error

    def leave(self) -> None:
        """This thread's student learns alone from now on, or has learned; its weights are its own."""
        self._leave(_here.number)
        if not self._waiting:
            self._each_time()

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` gives, made for the first run that asks for ``key`` and the same for all."""
        if key not in self._shared:
            self._shared[key] = make()
        found: T = self._shared[key]
        return found

    def _make_steps(self) -> None:
        """A step for each that is behind the others, or for all: those of one kind together."""
        least = min((request.steps.progress for request in self._waiting.values()), default=None)
        kinds: dict[Hashable, list[int]] = {}
        for number, request in sorted(self._waiting.items()):
            if request.steps.progress != least:
                continue
            try:
                kind = request.steps.kind_of_step(request.diagnose, *request.inputs)
            except Exception as error:
                self._errors[number] = error
                del self._waiting[number]
            else:
                kinds.setdefault((number,) if kind is None else (kind, request.threads), []).append(number)
        for numbers in kinds.values():
            try:
                self._make(*numbers)
            except Exception as error:
                self._errors |= dict.fromkeys(numbers, error)
        for number in (number for numbers in kinds.values() for number in numbers):
            del self._waiting[number]

    def _make(self, *numbers: int) -> None:
        """The next step of these runs."""
        every = [self._waiting[number] for number in numbers]
        if torch.get_num_threads() != every[0].threads:
            torch.set_num_threads(every[0].threads)
        if len(numbers) == 1:
            self._leave(*numbers)
            (one,) = every
            one.steps.make_alone(one.diagnose, *one.inputs)
            self.alone += 1
            return
        those = {number: request.steps for number, request in zip(numbers, every, strict=True)}
        joint = next((joined.joint for joined in self._joined if joined.steps == those), None)
        if joint is None:  # other runs than before, or the next generation of theirs
            self._leave(*numbers)
            joint = self._join(list(those.values()))
            self._joined.append(_Joined(those, joint))
        joint.make(every[0].diagnose, [request.inputs for request in every])
        self.together += len(numbers)

    def _leave(self, *numbers: int) -> None:
        """Take apart what makes steps of one of these runs together with others."""
        apart = [joined for joined in self._joined if not joined.steps.keys().isdisjoint(numbers)]
        self._joined = [joined for joined in self._joined if joined not in apart]
        for joined in apart:
            joined.joint.release()


class _Here(threading.local):
    """What belongs to the run of a thread."""

    table: Table | None = None
    number: int = 0
    log: IO[str] | None = None


_here = _Here()


def table_here() -> Table | None:
    """The table at which this thread's run sits; None: it is alone in its process."""
    return _here.table


def once(key: Hashable, make: Callable[[], T]) -> T:
    """See :meth:`Table.once`; a run that is alone makes it for itself."""
    return make() if _here.table is None else _here.table.once(key, make)


# ---- commands in threads ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A run as its command would start it.

    Args:
        main: does what its words ask for.
        words: behind the name of the command.
        log: file for what it prints; an older one is replaced.
    """

    main: Callable[[list[str]], None]
    words: Sequence[str]
    log: Path

    def __call__(self) -> int:
        """Run it to its end; its exit code. What goes wrong is in the log, or where that cannot be in the process's."""
        try:
            with disk_errors(self.log):
                self.log.parent.mkdir(parents=True, exist_ok=True)
                _here.log = open(self.log, "w", encoding="utf-8")  # noqa: SIM115
                try:
                    return self._run()
                finally:
                    log, _here.log = _here.log, None
                    log.close()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    def _run(self) -> int:
        try:
            self.main(list(self.words))
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            return 1
        return 0


class LogOfThread:
    """A text stream that goes to the log of the thread that writes, or where there is none to ``other``.

    Args:
        other: standard output or standard error.
    """

    def __init__(self, other: Any) -> None:
        self._other = other

    def write(self, text: str) -> int:
        """As a file does; each line is seen at once."""
        written: int = self._stream.write(text)
        if "\n" in text:
            self._stream.flush()
        return written

    @property
    def _stream(self) -> Any:
        return self._other if _here.log is None else _here.log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def split_outputs() -> Iterator[None]:
    """While the context lasts each thread prints into its own log, see :class:`Command`."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = LogOfThread(sys.stdout), LogOfThread(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
