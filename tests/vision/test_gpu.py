"""What only a GPU can show: a recorded step does what the step does, and waits for nothing."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from polydistill.vision.augmentation import Normalizer
from polydistill.vision.data import DataConfig, load_images
from polydistill.vision.lesson import Lesson
from polydistill.vision.networks import build_network
from polydistill.vision.schedules import TrainingConfig
from polydistill.vision.training import Trainer

pytestmark = pytest.mark.gpu


def make_trainer(objective: str, capture: Literal["on", "off"], *, precision: str = "float32") -> Trainer:
    images = load_images(DataConfig("cifar10", made_up=100, validation_images=0), "cuda")
    student, teacher = (
        build_network("wrn-10-1", 10, seed=seed).to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
        for seed in (0, 1)
    )
    return Trainer(
        student,
        Lesson(objective, teacher, generation=1, classes=10),
        images.train,
        Normalizer.of(images.normalization, "cuda"),
        TrainingConfig(epochs=3, batch_size=32, learning_rate=0.05, capture=capture, log_every_steps=3),
        seed=0,
        generation=1,
        precision=precision,
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("objective", ["ban", "cwtm", "dkpp", "hinton_kd", "uniform_confidence"])
def test_a_recorded_step_does_what_the_step_does(objective: str, precision: str) -> None:
    plain, recorded = (make_trainer(objective, capture, precision=precision) for capture in ("off", "on"))
    for ours, theirs in zip(recorded.run(), plain.run(), strict=True):
        assert ours.steps == theirs.steps
        assert ours.values == pytest.approx(theirs.values, rel=0.02, abs=0.02)
    tolerance = 1e-3 if precision == "float32" else 0.05
    for name, weight in plain.student.state_dict().items():
        assert torch.allclose(weight.float(), recorded.student.state_dict()[name].float(), atol=tolerance), name


def test_between_two_reports_nothing_waits_for_the_device() -> None:
    for capture in ("on", "off"):
        trainer = make_trainer("ban", capture)  # type: ignore[arg-type]
        next(trainer.run())
        batch = trainer._plan[1][:32]  # type: ignore[index]
        torch.cuda.set_sync_debug_mode("error")
        try:
            trainer._step(False, batch)
            trainer._step(True, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_recorded_lesson_goes_on_from_a_state() -> None:
    unbroken = make_trainer("ban", "on")
    reports = list(unbroken.run())
    first = make_trainer("ban", "on")
    next(first.run())
    second = make_trainer("ban", "on")
    second.load_state(first.state())
    rest = list(second.run())
    assert [report.steps for report in rest] == [report.steps for report in reports[1:]]
    assert rest[-1].values == pytest.approx(reports[-1].values, rel=0.05, abs=0.05)
