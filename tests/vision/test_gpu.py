"""What only a GPU can show: a recorded step does what the step does, and waits for nothing."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Literal

import pytest
import torch
from torch import Tensor

from polydistill.learning.lesson import Lesson
from polydistill.learning.schedules import TrainingConfig
from polydistill.learning.together import Table
from polydistill.learning.training import Report
from polydistill.lineage import Lineage, LineageConfig
from polydistill.lineage.keeper import Keeper
from polydistill.vision.config import CifarConfig, TeacherConfig
from polydistill.vision.domain import CifarDomain
from polydistill.vision.images.augmentation import Normalizer
from polydistill.vision.images.data import DataConfig, load_images
from polydistill.vision.joint import JointStep
from polydistill.vision.networks import build_network
from polydistill.vision.training import Trainer

pytestmark = pytest.mark.gpu

OBJECTIVES = ["ban", "cwtm", "dkpp", "hinton_kd", "uniform_confidence"]
Capture = Literal["on", "off"]


def make_trainer(
    objective: str, capture: Capture, *, precision: str = "float32", log_every_steps: int = 3, images: int = 120
) -> Trainer:
    data = load_images(DataConfig("cifar10", made_up=images, validation_images=0), "cuda")
    student, teacher = (
        build_network("wrn-10-1", 10, seed=seed).to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
        for seed in (0, 1)
    )
    return Trainer(
        student,
        Lesson(objective, teacher, generation=1, classes=10),
        data.train,
        Normalizer.of(data.normalization, "cuda"),
        TrainingConfig(epochs=3, batch_size=32, learning_rate=0.05, capture=capture, log_every_steps=log_every_steps),
        seed=0,
        generation=1,
        precision=precision,
    )


def floats(trainer: Trainer) -> Tensor:
    """All weights and running statistics, one after another."""
    state = trainer.student.state_dict().values()
    return torch.cat([tensor.double().reshape(-1) for tensor in state if tensor.is_floating_point()])


def assert_same_lesson(recorded: list[Report], plain: list[Report]) -> None:
    """But for the order in which a GPU adds up; of the 24 images of an epoch's last batch two may tip over."""
    for ours, theirs in zip(recorded, plain, strict=True):
        assert ours._replace(values={}) == theirs._replace(values={})
        assert ours.values.keys() == theirs.values.keys()
        for tag, value in theirs.values.items():
            counted = tag in ("train/accuracy", "train/agreement")
            assert ours.values[tag] == pytest.approx(value, rel=0.05, abs=0.09 if counted else 0.02), tag


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_recorded_step_does_what_the_step_does(objective: str, precision: str) -> None:
    plain, recorded = (make_trainer(objective, capture, precision=precision) for capture in ("off", "on"))
    start = floats(plain)
    assert torch.equal(floats(recorded), start)
    assert_same_lesson(list(recorded.run()), list(plain.run()))
    assert recorded._graphs is not None
    assert plain._graphs is None
    # a step too many or too few, or a rate that does not follow the schedule, is a tenth of the way or more
    learned = (floats(plain) - start).norm()
    assert (floats(recorded) - floats(plain)).norm() < (0.03 if precision == "float32" else 0.08) * learned
    tracked = [n for name, n in recorded.student.state_dict().items() if name.endswith("num_batches_tracked")]
    assert {int(n) for n in tracked} == {12}


@pytest.mark.parametrize("log_every_steps", [1, 2, 50])
def test_a_lesson_is_recorded_whatever_the_steps_between_reports(log_every_steps: int) -> None:
    plain, recorded = (make_trainer("ban", capture, log_every_steps=log_every_steps) for capture in ("off", "on"))
    assert_same_lesson(list(recorded.run()), list(plain.run()))


@contextlib.contextmanager
def waiting_is_an_error() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype feature")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("capture", ["on", "off"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_between_two_reports_nothing_waits_for_the_device(objective: str, capture: Capture) -> None:
    trainer = make_trainer(objective, capture, images=320)  # 10 steps in an epoch
    next(trainer.run())
    with waiting_is_an_error():
        for position in (3, 4, 5):
            trainer._make_one(position, diagnose=position == 5)
    assert trainer.steps == 6


def test_waiting_is_noticed() -> None:
    one = torch.ones(1, device="cuda")
    with waiting_is_an_error(), pytest.raises(RuntimeError, match="synchroniz"):
        one.item()


def test_a_recorded_lesson_goes_on_from_a_state() -> None:
    unbroken = make_trainer("ban", "on")
    reports = list(unbroken.run())
    first = make_trainer("ban", "on")
    next(first.run())
    second = make_trainer("ban", "on")
    second.load_state(first.state())
    assert_same_lesson(list(second.run()), reports[1:])


def test_a_lineage_with_recorded_steps_gives_the_memory_of_each_generation_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = CifarConfig(
        device="cuda",
        precision="float32",
        data=DataConfig("cifar10", made_up=600, validation_images=40),
        teacher=TeacherConfig("wrn-10-1"),
        training=TrainingConfig(epochs=1, batch_size=128, learning_rate=0.05, capture="on", log_every_steps=2),
        lineage=LineageConfig(3),
    ).resolve()
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # put back: the domain turns it on
    keeper = Keeper(CifarDomain(config, load_images(config.data, "cuda")), config)
    held: list[int] = []
    used: list[int] = []
    for generation in Lineage(keeper, config.lineage):
        keeper.keep(generation)
        torch.cuda.empty_cache()
        held.append(torch.cuda.memory_reserved())
        used.append(torch.cuda.max_memory_reserved() - held[-1])
        torch.cuda.reset_peak_memory_stats()
    # weights and predictions of two generations stay, a megabyte; activations and graphs, the most by far, do not
    assert held[3] - held[1] < used[1] / 2
    assert keeper.generations[3].metrics["kl"] > 0


@pytest.mark.parametrize("capture", ["on", "off"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_students_learn_together_what_each_does_alone_and_one_may_leave(capture: Capture, precision: str) -> None:
    data = load_images(DataConfig("cifar10", made_up=120, validation_images=0), "cuda")

    def make(number: int) -> Trainer:
        student, teacher = (
            build_network("wrn-10-1", 10, seed=seed).to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
            for seed in (number, 10 + number)
        )
        return Trainer(
            student,
            Lesson("cwtm", teacher, generation=1, classes=10),
            data.train,
            Normalizer.of(data.normalization, "cuda"),
            TrainingConfig(epochs=3, batch_size=32, learning_rate=0.01, capture=capture, log_every_steps=3),
            seed=number,
            generation=1,
            precision=precision,
        )

    trainers: dict[int, Trainer] = {}

    def learn(number: int) -> Callable[[], int]:
        def learns() -> int:
            trainer = trainers[number] = make(number)
            for _ in trainer.run():
                if number == 2 and trainer.steps >= 6:  # it leaves, and the others are stacked again
                    return 0
            trainer.keep()
            return 0

        return learns

    table = Table(JointStep)
    assert table.run([learn(number) for number in range(3)]) == [0, 0, 0]
    assert table.alone == 0
    for number in range(2):
        alone = make(number)
        list(alone.run())
        found, expected = floats(trainers[number]), floats(alone)
        assert (found - expected).norm() < (0.02 if precision == "float32" else 0.1) * expected.norm()
        assert trainers[number].steps == alone.steps == 12
