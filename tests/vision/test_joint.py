"""Students that take their steps together learn what each would learn alone."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polydistill.errors import UserError
from polydistill.learning.lesson import Lesson
from polydistill.learning.rewind import NonFiniteError
from polydistill.learning.stacked import StackedNetworks
from polydistill.learning.together import Table
from polydistill.learning.training import Report
from polydistill.losses.objectives import OBJECTIVES
from polydistill.vision.images.augmentation import Normalizer
from polydistill.vision.joint import JointStep
from polydistill.vision.networks import build_network
from polydistill.vision.training import Trainer
from tests.vision.lessons import NORMALIZER, SHORT, image_set, tiny, weights

K = 3
DATA = image_set()
Make = Callable[[int], Trainer]
OPTIONS: dict[str, dict[str, Any]] = {"dkpp": {"permutation": "fresh"}, "hinton_kd": {"temperature": 3.0}}
# networks in float64, so that no ReLU is on the other side of its corner; losses are computed in float32
PIXELS = Normalizer(NORMALIZER.scale.double(), NORMALIZER.shift.double())
TOLERANCE = 1e-5  # after ten steps, of the largest number in a tensor


def teacher_of(number: int) -> nn.Module:
    return tiny(seed=9 + number).double().eval()


def make_lesson(objective: Any, teacher: nn.Module | None, number: int) -> Lesson:
    options = OPTIONS.get(objective) if isinstance(objective, str) else None
    kind = "q_values" if objective == "policy_kl_q" else "logits"
    return Lesson(objective, teacher, teacher_kind=kind, seed=number, generation=1, options=options, classes=5)


def make_trainer(number: int, lesson: Lesson, **changes: Any) -> Trainer:
    config = dataclasses.replace(SHORT, **changes)
    student = tiny(seed=number).double().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Trainer(student, lesson, DATA, PIXELS, config, seed=number, generation=1)


def run_together(make: Make, found: dict[int, tuple[Trainer, list[Report]]], k: int = K) -> Table:
    """Run the trainers at a table, made in their threads as a run makes them."""

    def command(number: int) -> Callable[[], int]:
        def learn() -> int:
            trainer = make(number)
            reports: list[Report] = []
            found[number] = trainer, reports
            try:
                reports.extend(trainer.run())
            except NonFiniteError:
                return 3
            trainer.keep()
            return 0

        return learn

    table = Table(JointStep)
    table.codes = table.run([command(number) for number in range(k)])  # type: ignore[attr-defined]
    return table


def run_alone(make: Make, number: int) -> tuple[Trainer, list[Report]]:
    trainer = make(number)
    return trainer, list(trainer.run())


def assert_same_training(one: tuple[Trainer, list[Report]], other: tuple[Trainer, list[Report]]) -> None:
    """Weights, running statistics, momentum and reports, up to rounding."""
    (trainer, reports), (alone, expected) = one, other
    state, wanted = trainer.state(), alone.state()
    for name, tensor in wanted["student"].items():
        assert_close(state["student"][name], tensor)
    for found, tensor in zip(state["momentum"], wanted["momentum"], strict=True):
        assert_close(found, tensor)
    assert state["steps"] == wanted["steps"]
    assert [report[:4] for report in reports] == [report[:4] for report in expected]
    for report, its in zip(reports, expected, strict=True):
        assert report.values == pytest.approx(its.values, rel=1e-3, abs=1e-3)


def assert_close(found: Tensor, expected: Tensor) -> None:
    if not expected.is_floating_point():
        assert torch.equal(found, expected)
        return
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp(min=1e-2)


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_each_student_learns_what_it_would_alone(objective: str) -> None:
    def make(number: int) -> Trainer:
        teacher = None if objective == "cross_entropy" else teacher_of(number)
        return make_trainer(number, make_lesson(objective, teacher, number), learning_rate=0.01)

    found: dict[int, tuple[Trainer, list[Report]]] = {}
    table = run_together(make, found)
    assert (table.together, table.alone) == (K * 10, 0), "five batches, the last a short one, in two epochs"
    for number in range(K):
        assert_same_training(found[number], run_alone(make, number))
    assert not torch.equal(found[0][0].student.state_dict()["0.weight"], found[1][0].student.state_dict()["0.weight"])


def squares(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    assert student.dim() == 2, "one's own objective knows of one student"
    return (student - teacher).square().sum(dim=1) + labels.float() * student.mean(dim=1).square()


def test_an_objective_of_ones_own_is_asked_for_each_student() -> None:
    def make(number: int) -> Trainer:
        return make_trainer(number, make_lesson(squares, teacher_of(number), number), learning_rate=0.001)

    found: dict[int, tuple[Trainer, list[Report]]] = {}
    assert run_together(make, found).alone == 0
    for number in range(K):
        assert_same_training(found[number], run_alone(make, number))


@pytest.mark.parametrize("teachers", ["one network", "equal weights", "others", "other structures"])
def test_a_teacher_of_all_is_asked_once(teachers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = teacher_of(0)
    networks: dict[str, Callable[[int], nn.Module]] = {
        "one network": lambda number: one,
        "equal weights": lambda number: teacher_of(0),
        "others": teacher_of,
        "other structures": lambda number: nn.Sequential(*teacher_of(0), *[nn.Identity()] * (number > 0)).eval(),
    }

    def make(number: int) -> Trainer:
        return make_trainer(number, make_lesson("ban", networks[teachers](number), number))

    asked: list[torch.Size] = []
    stacked: list[int] = []
    alone = [run_alone(make, number) for number in range(K)]
    with monkeypatch.context() as patch:
        scores, init = Trainer.__init__, StackedNetworks.__init__

        def watch(self: Trainer, *args: Any, **options: Any) -> None:
            scores(self, *args, **options)
            of_teacher = self.update.teacher_scores
            self.update.teacher_scores = lambda inputs: asked.append(inputs.shape) or of_teacher(inputs)  # type: ignore[func-returns-value, method-assign]

        def count(self: StackedNetworks, given: Sequence[nn.Module], *, learning: bool = True) -> None:
            stacked.append(learning)
            init(self, given, learning=learning)

        patch.setattr(Trainer, "__init__", watch)
        patch.setattr(StackedNetworks, "__init__", count)
        found: dict[int, tuple[Trainer, list[Report]]] = {}
        assert run_together(make, found).alone == 0
    for number in range(K):
        assert_same_training(found[number], alone[number])
    times = {"one network": 10, "equal weights": 10, "others": 0, "other structures": 10 * K}
    assert len(asked) == times[teachers]
    assert stacked == ([True, False] if teachers == "others" else [True])
    if times[teachers] == 10:
        assert asked[0] == (K * SHORT.batch_size, 3, 32, 32), "of all batches at once"


def test_a_training_that_goes_on_ends_bit_for_bit_as_the_one_that_nobody_stopped() -> None:
    def make(number: int) -> Trainer:
        return make_trainer(number, make_lesson("cwtm", teacher_of(number), number))

    whole: dict[int, tuple[Trainer, list[Report]]] = {}
    run_together(make, whole)
    states: dict[int, dict[str, Any]] = {}

    def stop(number: int) -> Callable[[], int]:
        def learn() -> int:
            trainer = make(number)
            for _ in trainer.run(lambda steps: steps == 7):
                if trainer.steps == 7:
                    break
            states[number] = trainer.state()
            return 0

        return learn

    Table(JointStep).run([stop(number) for number in range(K)])
    assert {state["steps"] for state in states.values()} == {7}

    def go_on(number: int) -> Trainer:
        trainer = make(number)
        trainer.load_state(states[number])
        return trainer

    second: dict[int, tuple[Trainer, list[Report]]] = {}
    assert run_together(go_on, second).together == 3 * K
    for number in range(K):
        found, expected = (pair[number][0].state() for pair in (second, whole))
        assert all(torch.equal(found["student"][name], tensor) for name, tensor in expected["student"].items())
        assert all(map(torch.equal, found["momentum"], expected["momentum"]))
        assert second[number][1] == whole[number][1][-len(second[number][1]) :]


def test_students_at_different_steps_and_with_different_rates_learn_together() -> None:
    def make(number: int) -> Trainer:
        lesson = make_lesson("ban_l", teacher_of(number), number)
        return make_trainer(number, lesson, learning_rate=0.01 * (number + 1))

    ahead = make(2)
    next(ahead.run(lambda steps: steps == 2), None)

    def go_on(number: int) -> Trainer:
        trainer = make(number)
        if number == 2:
            trainer.load_state(ahead.state())
        return trainer

    found: dict[int, tuple[Trainer, list[Report]]] = {}
    table = run_together(go_on, found)
    assert (table.together, table.alone) == (2 * 10 + 8, 0), "the others catch up"
    for number in range(K):
        trainer, _ = run_alone(make, number)
        for name, tensor in trainer.state()["student"].items():
            assert_close(found[number][0].state()["student"][name], tensor)


def test_one_whose_loss_is_not_finite_is_told_its_step_and_the_others_learn_on() -> None:
    def make(number: int) -> Trainer:
        rate = 1e30 if number == 1 else 0.01
        return make_trainer(number, make_lesson("ban", teacher_of(number), number), learning_rate=rate)

    found: dict[int, tuple[Trainer, list[Report]]] = {}
    table = run_together(make, found)
    assert table.codes == [0, 3, 0]  # type: ignore[attr-defined]
    for number in (0, 2):
        assert_same_training(found[number], run_alone(make, number))
    with pytest.raises(NonFiniteError) as error:
        run_alone(make, 1)
    assert found[1][0].steps == error.value.batch["step"] - 1, "it was brought back to before the first bad step"
    assert all(tensor.isfinite().all() for tensor in weights(found[1][0].student).values())


def test_in_bfloat16_the_first_step_is_the_same_up_to_its_rounding() -> None:
    nets = [build_network("resnet-8", 5, seed=number) for number in range(K)]

    def make(number: int) -> Trainer:
        student = build_network("resnet-8", 5, seed=number)
        lesson = make_lesson("ban", nets[number].eval(), number)
        config = dataclasses.replace(SHORT, learning_rate=0.01, log_every_steps=1)
        return Trainer(student, lesson, DATA, NORMALIZER, config, seed=number, generation=1, precision="bfloat16")

    firsts: dict[int, Report] = {}

    def learn(number: int) -> Callable[[], int]:
        def first_step() -> int:
            firsts[number] = next(make(number).run())
            return 0

        return first_step

    table = Table(JointStep)
    table.run([learn(number) for number in range(K)])
    assert table.alone == 0
    for number in range(K):
        assert firsts[number].values["train/loss"] == pytest.approx(
            next(make(number).run()).values["train/loss"], rel=1e-2
        )


def test_steps_that_cannot_be_made_together_are_made_alone() -> None:
    def make(number: int) -> Trainer:
        if number == 0:  # another network
            student = build_network("resnet-8", 5, seed=number).double()
            return Trainer(student, make_lesson("ban", teacher_of(0), 0), DATA, PIXELS, SHORT, seed=0, generation=1)
        objective = "ban" if number == 1 else "ban_l"
        return make_trainer(number, make_lesson(objective, teacher_of(number), number))

    found: dict[int, tuple[Trainer, list[Report]]] = {}
    table = run_together(make, found)
    assert (table.together, table.alone) == (0, 30)
    for number in (1, 2):
        trainer, _ = run_alone(make, number)
        assert all(torch.equal(own, its) for own, its in zip(
            found[number][0].student.state_dict().values(), trainer.student.state_dict().values(), strict=True
        ))  # fmt: skip


def test_too_many_students_for_the_memory_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: StackedNetworks, inputs: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(StackedNetworks, "__call__", refuse)
    told: list[str] = []

    def learn(number: int) -> Callable[[], int]:
        def learns() -> int:
            try:
                list(make_trainer(number, make_lesson("ban", teacher_of(number), number)).run())
            except UserError as error:
                told.append(str(error))
            return 0

        return learns

    before = set(threading.enumerate())
    Table(JointStep).run([learn(number) for number in range(K)])
    line = "out of memory on cpu with 3 students together; choose a smaller --students_together"
    assert told == [line] * K
    assert set(threading.enumerate()) <= before
