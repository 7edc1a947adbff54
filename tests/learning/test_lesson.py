"""polydistill.learning.lesson: one temperature, one kind and one set of options, for the update and for the doctor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polydistill.learning.lesson import Lesson
from polydistill.learning.update import Update
from polydistill.losses import OBJECTIVES

STUDENT = torch.tensor([[0.3, -0.2, 0.5], [1.0, 0.0, -1.0]])
TEACHER = torch.tensor([[0.10, 0.12, 0.05], [0.02, 0.00, 0.03]])


def ask(inputs: Tensor) -> Tensor:
    return TEACHER


@pytest.mark.parametrize(
    ("kind", "given", "expected"), [("q_values", {"temperature": 0.02}, 0.02), ("logits", {"temperature": 0.02}, 1.0)]
)
def test_q_values_are_sharpened_and_logits_are_taken_as_they_are(
    kind: str, given: dict[str, float], expected: float
) -> None:
    lesson = Lesson("policy_kl", ask, teacher_kind=kind, **given)
    p = (TEACHER.double() / expected).softmax(1)
    by_hand = (p * (p.log() - STUDENT.double().log_softmax(1))).sum(1)
    torch.testing.assert_close(lesson(STUDENT, TEACHER, None, None).double(), by_hand, rtol=1e-5, atol=1e-6)
    assert lesson.temperature == lesson.options()["temperature"] == expected


def test_an_option_goes_before_the_temperature_of_the_kind() -> None:
    assert Lesson("jsd", ask, options={"temperature": 2.0}).options() == {"temperature": 2.0}


@pytest.mark.parametrize(
    ("objective", "kind", "expected"),
    [
        ("policy_kl", "q_values", "logits"),
        ("policy_mse", "q_values", "q_values"),
        ("policy_kl_q", "q_values", "q_values"),
        ("policy_mse", "logits", "logits"),
        ("ban", "logits", "logits"),
    ],
)
def test_the_students_kind_is_its_teachers_only_after_a_regression(objective: str, kind: str, expected: str) -> None:
    assert Lesson(objective, ask, teacher_kind=kind).score_kind == expected


def test_q_values_are_kept_at_the_temperature_of_the_lesson_and_those_of_a_teacher_of_logits_are_not_there() -> None:
    lesson = Lesson("policy_kl_q", ask, teacher_kind="q_values", temperature=0.02, options={"q_weight": 0.3})
    assert lesson.options() == {"q_weight": 0.3, "temperature": 0.02}
    lesson.temper(0.04)
    assert lesson.options() == {"q_weight": 0.3, "temperature": 0.04}
    with pytest.raises(ValueError, match="policy_kl_q keeps Q-values, and the teacher gives logits: choose policy_kl"):
        Lesson("policy_kl_q", ask, teacher_kind="logits")


@pytest.mark.parametrize("name", ["ban_l", "cwtm", "dkpp", "reverse_kl", "hinton_kd"])
def test_the_options_are_those_of_the_loss_that_is_learned_from(name: str) -> None:
    lesson, labels = Lesson(name, ask, classes=3), torch.tensor([0, 2])
    permutation = lesson.draw_permutation(torch.arange(2), 0)
    plain = OBJECTIVES[name](STUDENT, TEACHER, labels, **lesson.options(permutation))
    assert torch.equal(plain, lesson(STUDENT, TEACHER, labels, permutation))


def test_a_teacher_that_has_said_its_scores_is_not_asked_again() -> None:
    asked: list[Any] = []
    student = nn.Linear(3, 3)
    lesson = Lesson("policy_kl", lambda inputs: (asked.append(inputs), TEACHER)[1])
    update = Update(student, lesson, torch.optim.SGD(student.parameters(), 0.1))
    _, said, _ = update(STUDENT, None, 2, teacher_scores=TEACHER)
    assert said is TEACHER
    assert not asked
    update(STUDENT, None, 2)
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["policy_kl", "policy_mse", "ban_l", "cwtm"])
@pytest.mark.parametrize("n_batch", [2, torch.tensor(5)])
def test_backward_is_the_gradient_of_the_mean(name: str, n_batch: int | Tensor) -> None:
    lesson, labels = Lesson(name, ask, classes=3), torch.tensor([0, 2])
    twins = [nn.Linear(3, 3) for _ in range(2)]
    twins[1].load_state_dict(twins[0].state_dict())
    losses = lesson.backward(twins[0](STUDENT), TEACHER, labels, None, n_batch)
    expected = lesson(twins[1](STUDENT), TEACHER, labels, None)
    (expected.sum() / n_batch).backward()
    torch.testing.assert_close(losses, expected.detach())
    assert not losses.requires_grad
    for found, wanted in zip(*(twin.parameters() for twin in twins), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad)


def test_backward_leaves_out_what_does_not_count() -> None:
    student = nn.Linear(3, 3)
    lesson = Lesson("policy_kl", ask, ignore_index=-100)
    teacher = torch.tensor([[0.1, 0.2, 0.3], [torch.nan] * 3])
    losses = lesson.backward(student(STUDENT), teacher, torch.tensor([0, -100]), None, 1)
    assert losses[1] == 0
    assert student.weight.grad is not None
    assert student.weight.grad.isfinite().all()


def test_backward_of_a_function_of_ones_own() -> None:
    def squares(student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        return (student - teacher).square().sum(dim=1)

    scores = STUDENT.clone().requires_grad_()
    Lesson(squares, ask).backward(scores, TEACHER, None, None, 2)
    torch.testing.assert_close(scores.grad, STUDENT - TEACHER)


@pytest.mark.parametrize("objective", ["cross_entropy", "ban", "cwtm"])
def test_sums_leave_out_what_is_ignored_whatever_its_scores_are(objective: str) -> None:
    scores, teacher = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    padded = torch.tensor([0, -100, 2, 3, -100, 1])
    counted = padded >= 0
    given = None if objective == "cross_entropy" else ask
    plain, masked = Lesson(objective, given), Lesson(objective, given, ignore_index=-100)
    of_teacher = None if given is None else teacher[counted]
    expected = plain.tally(scores[counted], of_teacher, labels[counted], diagnose=True)
    scores[~counted], teacher[~counted] = torch.nan, torch.inf
    found = masked.tally(scores, None if given is None else teacher, padded, diagnose=True)
    torch.testing.assert_close(found, expected)
    assert masked.summarize(found.tolist()) == pytest.approx(plain.summarize(expected.tolist()))
    none = masked.tally(scores, None if given is None else teacher, torch.full((6,), -100), diagnose=True)
    assert masked.summarize(none.tolist()) == {}
