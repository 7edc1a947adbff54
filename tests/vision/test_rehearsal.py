"""polydistill.vision.rehearsal: the students' lesson is tried with a batch before generation 0, and leaves no trace."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polydistill.errors import UserError
from polydistill.learning import update
from polydistill.learning.lesson import Lesson
from polydistill.learning.schedules import TrainingConfig
from polydistill.lineage import Lineage, LineageConfig
from polydistill.lineage.keeper import Keeper
from polydistill.provenance import weights_sha256
from polydistill.vision import domain as domain_module
from polydistill.vision import rehearsal
from polydistill.vision.config import CifarConfig, StudentConfig, TeacherConfig
from polydistill.vision.domain import CifarDomain
from polydistill.vision.images.data import DataConfig, load_images
from polydistill.vision.rehearsal import rehearse
from polydistill.vision.workshop import Workshop


@pytest.fixture
def config() -> CifarConfig:
    return CifarConfig(
        device="cpu",
        threads=1,
        precision="float32",
        data=DataConfig("cifar10", made_up=60, validation_images=20),
        teacher=TeacherConfig("resnet-8"),
        student=StudentConfig("wrn-10-1", objective="dkpp"),
        training=TrainingConfig(epochs=1, batch_size=20, learning_rate=0.05, schedule="cosine"),
    )


def make_keeper(config: CifarConfig) -> Keeper[nn.Module]:
    return Keeper(CifarDomain(config, load_images(config.data)), config)


def make_workshop(config: CifarConfig) -> Workshop:
    return Workshop(config, load_images(config.data))


def test_a_fault_of_the_students_lesson_is_seen_before_generation_0_learns(
    config: CifarConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    call, step = Lesson.__call__, update.Update.__call__

    def broken(self: Lesson, scores: Tensor, teacher: Tensor | None, *rest: Any) -> Tensor:
        loss = call(self, scores, teacher, *rest)
        return loss if teacher is None else loss * float("nan")

    def note(self: update.Update, *given: Any) -> Any:
        steps.append(self.lesson.objective)
        return step(self, *given)

    monkeypatch.setattr(Lesson, "__call__", broken)
    monkeypatch.setattr(update.Update, "__call__", note)
    with pytest.raises(FloatingPointError, match=r"the loss dkpp of generation 1 is nan .*before the first step"):
        make_keeper(config).first()
    assert set(steps) == {"dkpp"}, "generation 0, by cross_entropy, has not begun"


def test_what_the_rehearsal_teaches_is_the_lesson_of_generation_1(
    config: CifarConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, type[nn.Module], type[nn.Module], int]] = []
    call = update.Update.__call__

    def note(self: update.Update, inputs: Tensor, *rest: Any) -> Any:
        teacher = self.lesson.teacher
        assert teacher is not None
        names = self.lesson.objective, self.lesson.generation
        seen.append((*names, type(teacher), type(self.student), len(inputs)))
        return call(self, inputs, *rest)

    monkeypatch.setattr(update.Update, "__call__", note)
    one = make_workshop(config)
    rehearse(one)
    teacher, student = (type(one.make_student(name, 0)) for name in ("resnet-8", "wrn-10-1"))
    assert seen == [("dkpp", 1, teacher, student, 8)] * 2


def test_a_run_is_bit_for_bit_what_it_is_without(config: CifarConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[Any]:
        torch.manual_seed(3)
        sha256s = [generation.sha256 for generation in Lineage(make_keeper(config), LineageConfig(1))]
        return [*sha256s, torch.rand(1).item()]

    rehearsed = run()
    monkeypatch.setattr(domain_module, "rehearse", lambda workshop: None)
    assert run() == rehearsed


def test_memory_that_does_not_suffice_is_one_line_before_generation_0(
    config: CifarConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "FEW", 20)  # as on a GPU, which tries the whole batch
    call = update.Update.__call__

    def limited(self: update.Update, inputs: Tensor, *rest: Any) -> Any:
        if len(inputs) > 10 and self.lesson.teacher is not None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return call(self, inputs, *rest)

    monkeypatch.setattr(update.Update, "__call__", limited)
    with pytest.raises(UserError, match=r"training\.batch_size 20 for wrn-10-1; choose a smaller batch size$"):
        make_keeper(config).first()


def test_the_batch_is_tried_as_the_run_would_make_it(config: CifarConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make_workshop(dataclasses.replace(config, training=dataclasses.replace(config.training, capture="on")))
    made: list[TrainingConfig] = []

    def stop(student: nn.Module, lesson: Lesson, generation: int, schedule: TrainingConfig) -> None:
        made.append(schedule)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(one, "make_trainer", stop)
    with pytest.raises(UserError, match="out of memory"):
        rehearse(one)
    assert (made[0].capture, made[0].batch_size) == ("on", 8)


def test_an_untrained_deep_teacher_gives_scores_as_a_trained_one_would(
    config: CifarConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest: list[float] = []
    scores_of = update.Update.teacher_scores

    def note(self: update.Update, inputs: Tensor) -> Tensor | None:
        scores = scores_of(self, inputs)
        assert scores is not None
        largest.append(scores.abs().max().item())
        return scores

    monkeypatch.setattr(update.Update, "teacher_scores", note)
    config = dataclasses.replace(config, teacher=TeacherConfig("resnet-110"), student=StudentConfig("resnet-8"))
    rehearse(make_workshop(config))
    assert 0 < max(largest) < 100, "without the statistics of a batch they would be 1e9"


def test_a_run_that_goes_on_within_generation_0_is_not_rehearsed_again(
    config: CifarConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make_keeper(config)
    states: list[dict[str, Any]] = []
    one.due = lambda steps: steps == 1  # type: ignore[method-assign]
    one.save = lambda: states.append(one._course.state())  # type: ignore[method-assign,union-attr,func-returns-value]
    expected = weights_sha256(one.first().state_dict())

    def never(workshop: Workshop) -> None:
        raise AssertionError("rehearsed")

    monkeypatch.setattr(domain_module, "rehearse", never)
    again = make_keeper(config)
    again._begun = states[0]
    assert weights_sha256(again.first().state_dict()) == expected
