"""polydistill.vision.graph without a GPU: recording a step leaves no trace, and the record does what the step does."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from polydistill.learning import graphs as graph
from polydistill.learning.graphs import StepGraphs
from polydistill.learning.lesson import Lesson
from polydistill.vision.training import Trainer
from tests.vision.lessons import SHORT, same, tiny, trainer, weights


class FakeStream:
    made = 0

    def __init__(self, device: torch.device | None = None) -> None:
        FakeStream.made += device is not None

    def wait_stream(self, other: FakeStream) -> None:
        assert isinstance(other, FakeStream)


class FakeGraph:
    """Does again what was kept while it recorded."""

    def __init__(self) -> None:
        self.kept: list[Callable[[], None]] = []

    def replay(self) -> None:
        for call in self.kept:
            call()

    def pool(self) -> str:
        return "the pool"


class FakeCuda:
    """Streams and graphs. As on a GPU, what is done while a graph records is kept, not done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        graph._side_stream.cache_clear()
        self.recording: FakeGraph | None = None
        self.records: list[dict[str, Any]] = []
        fakes = {"Stream": FakeStream, "current_stream": FakeStream, "CUDAGraph": FakeGraph, "graph": self.graph}
        for name, fake in (fakes | {"stream": lambda stream: contextlib.nullcontext()}).items():
            monkeypatch.setattr(torch.cuda, name, fake)

    @contextlib.contextmanager
    def graph(self, record: FakeGraph, **options: Any) -> Iterator[None]:
        self.records.append(options)
        self.recording = record
        yield
        self.recording = None

    def capture(self, one: Trainer) -> Trainer:
        """``one``, with its steps recorded."""
        step = one._make_step

        def make_or_keep(*arguments: Any) -> None:
            if self.recording is None:
                step(*arguments)
            else:
                self.recording.kept.append(functools.partial(step, *arguments))

        one._graphs, one._make_step = StepGraphs(), make_or_keep  # type: ignore[assignment, method-assign]
        return one


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    yield FakeCuda(monkeypatch)
    graph._side_stream.cache_clear()


@pytest.mark.parametrize("objective", ["ban", "cwtm", "dkpp"])
@pytest.mark.parametrize("log_every_steps", [1, 2, 3, 50])
def test_a_recorded_lesson_is_the_plain_one_bit_for_bit(cuda: FakeCuda, log_every_steps: int, objective: str) -> None:
    def make() -> Trainer:
        config = dataclasses.replace(SHORT, log_every_steps=log_every_steps)
        return trainer(Lesson(objective, tiny(seed=9), generation=1, classes=5), config)

    plain, recorded = make(), cuda.capture(make())
    assert list(recorded.run()) == list(plain.run())
    assert same(weights(recorded.student), weights(plain.student))
    assert all(map(torch.equal, recorded._momentum(), plain._momentum()))
    # the last batch of an epoch is smaller and diagnosed; of the others all, some or none
    assert len(cuda.records) == (3 if log_every_steps in (2, 3) else 2)


def test_records_share_their_memory_and_other_threads_may_use_the_device_meanwhile(cuda: FakeCuda) -> None:
    list(cuda.capture(trainer()).run())
    assert [record["pool"] for record in cuda.records] == [None, "the pool", "the pool"]
    assert {record["capture_error_mode"] for record in cuda.records} == {"thread_local"}


def test_all_trainers_record_on_one_stream(cuda: FakeCuda) -> None:
    made = FakeStream.made
    for _ in range(2):
        list(cuda.capture(trainer()).run())
    assert FakeStream.made == made + 1
    assert len({record["stream"] for record in cuda.records}) == 1


def test_a_trainer_and_its_graphs_go_without_the_garbage_collector(cuda: FakeCuda) -> None:
    one = trainer()
    one._graphs = StepGraphs()
    next(one.run())
    records = [weakref.ref(record) for record, _ in one._graphs._records.values()]
    assert records
    gc.disable()
    try:
        del one
        assert [record() for record in records] == [None] * len(records)
    finally:
        gc.enable()
