"""Arms of a seed share the scores of their teacher, and learn what they would learn without."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polydistill.learning.lesson import Lesson
from polydistill.runs.shared_store import SharedStore
from polydistill.vision.epoch_scores import EpochScores
from polydistill.vision.images.augmentation import draw_plan
from polydistill.vision.training import Trainer
from tests.vision.lessons import NORMALIZER, SHORT, image_set, same, tiny, trainer, weights

BATCHES = 2 * 5  # of 16 of 70 images, two epochs


class Asked(nn.Module):
    """A teacher that counts how often it is asked."""

    def __init__(self, seed: int = 9) -> None:
        super().__init__()
        self.network, self.times = tiny(seed=seed), 0

    def forward(self, images: Tensor) -> Tensor:
        self.times += 1
        scores: Tensor = self.network(images)
        return scores


def arm(folder: Path | None, objective: str = "ban", teacher_seed: int = 9, **options: Any) -> tuple[int, Trainer]:
    """How often its teacher was asked, and the trainer at its end."""
    teacher = Asked(teacher_seed)
    lesson = Lesson(objective, teacher, generation=1)
    one = trainer(lesson, store=None if folder is None else SharedStore(folder), **options)
    for _ in one.run():
        pass
    return teacher.times, one


def test_the_second_arm_asks_its_teacher_nothing_and_learns_the_same(tmp_path: Path) -> None:
    alone = arm(None, "ban_l")
    assert alone[0] == BATCHES
    assert arm(tmp_path, "ban")[0] == BATCHES
    asked, shared = arm(tmp_path, "ban_l")
    assert asked == 0
    assert same(weights(alone[1].student), weights(shared.student))


@pytest.mark.parametrize(
    "other",
    [
        {"teacher_seed": 8},
        {"seed": 1},
        {"precision": "bfloat16"},
        {"config": dataclasses.replace(SHORT, augment=False)},
        {"config": dataclasses.replace(SHORT, batch_size=10)},
        {"data": dataclasses.replace(image_set(), images=255 - image_set().images)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_other_images_or_another_teacher_share_nothing(tmp_path: Path, other: dict[str, Any]) -> None:
    arm(tmp_path)
    alone, shared = arm(None, **other), arm(tmp_path, **other)
    assert shared[0] == alone[0] > 0
    assert same(weights(alone[1].student), weights(shared[1].student))


def test_more_epochs_of_the_same_images_ask_for_the_new_ones_alone(tmp_path: Path) -> None:
    arm(tmp_path)
    longer = dataclasses.replace(SHORT, epochs=3)
    assert arm(tmp_path, config=longer)[0] == 5


def test_an_arm_that_begins_within_an_epoch_keeps_no_part_of_it(tmp_path: Path) -> None:
    whole = arm(None)[1]
    first = trainer(Lesson("ban", Asked(), generation=1), store=SharedStore(tmp_path))
    next(iter(first.run(lambda steps: steps == 3)), None)
    assert not list(tmp_path.iterdir())
    second = trainer(Lesson("ban", Asked(), generation=1), store=SharedStore(tmp_path))
    second.load_state(first.state())
    for _ in second.run():
        pass
    assert len(list(tmp_path.iterdir())) == 1, "the second epoch alone is whole"
    assert same(weights(whole.student), weights(second.student))


def test_steps_that_are_made_again_after_a_failure_count_once(tmp_path: Path) -> None:
    data = image_set()
    scores = EpochScores(SharedStore(tmp_path), tiny(), data, NORMALIZER, 16, {})
    scores.begin(draw_plan(len(data), 0, 1, 0))
    for position in (0, 1, 2, 1, 2, 3, 4):
        assert not list(tmp_path.iterdir())
        scores(position, lambda position=position: torch.full((6 if position == 4 else 16, 5), float(position)))
    again = EpochScores(SharedStore(tmp_path), tiny(), data, NORMALIZER, 16, {})
    again.begin(draw_plan(len(data), 0, 1, 0))
    assert [again(position, refuse)[-1, 0].item() for position in range(5)] == [0, 1, 2, 3, 4]
    assert len(again(4, refuse)) == 6


def refuse() -> Tensor:
    raise AssertionError("the teacher is asked again")


def test_scores_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    teacher = Asked()
    with torch.no_grad():
        teacher.network[4].bias.fill_(float("inf"))
    one = trainer(Lesson("cross_entropy", teacher, generation=1), store=SharedStore(tmp_path))
    for _ in one.run():
        pass
    assert not list(tmp_path.iterdir())
