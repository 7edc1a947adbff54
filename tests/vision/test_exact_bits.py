"""The weights after some steps, bit for bit on any processor: a student whose arithmetic is exact in float32.

Weights, pixels and rates are small fractions of powers of 2, and the loss is a square, without exponentials: no sum is
rounded, so its order does not matter. What is pinned is which images a step sees, how they are augmented, what the
gradient is divided by, momentum, schedule and the weights that a course keeps.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from polydistill.learning.lesson import Lesson
from polydistill.learning.schedules import TrainingConfig
from polydistill.learning.training import never
from polydistill.lineage.course import Recorder, TrainingCourse
from polydistill.provenance import weights_sha256
from polydistill.vision.images.augmentation import Normalizer
from polydistill.vision.images.data import ImageSet, Normalization
from polydistill.vision.training import Trainer

PINNED = "3feb8dfbdf48f58530952b37d8e4572d7402efe5a7515968dca28c6ad90edd26"


class Corner(nn.Module):
    """A linear map of the four pixels in the upper left corner."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 4, bias=False, dtype=dtype)
        drawn = torch.randint(-2, 3, (4, 12), generator=torch.Generator().manual_seed(seed))
        self.layer.weight = nn.Parameter(drawn.to(dtype))

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.layer(images[:, :, :2, :2].flatten(1).to(self.layer.weight.dtype))
        return scores


def learn(dtype: torch.dtype) -> Tensor:
    """The student's weights after 4 steps."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(2, (8, 32, 32, 3), generator=generator, dtype=torch.uint8)
    data = ImageSet(images, torch.randint(4, (8,), generator=generator))
    normalizer = Normalizer.of(Normalization((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)))
    assert torch.equal(normalizer.scale, torch.ones(3, 1, 1))
    config = TrainingConfig(
        epochs=2,
        batch_size=4,
        learning_rate=0.25,
        momentum=0.5,
        weight_decay=0.0,
        milestones=(0.5,),
        decay=0.5,
        log_every_steps=2,
    )
    lesson = Lesson("policy_mse", Corner(1, dtype), generation=1)
    trainer = Trainer(Corner(2, dtype), lesson, data, normalizer, config, seed=3, generation=1)
    TrainingCourse(trainer, Recorder(None, 1), None).learn(never, lambda: None)
    return trainer.student.layer.weight.detach()


def test_the_weights_of_a_course_are_these() -> None:
    weights = learn(torch.float32)
    assert torch.equal(weights.double(), learn(torch.float64)), "nothing was rounded, or this test pins a processor"
    assert weights_sha256({"weights": weights}) == PINNED


def test_another_rate_would_be_other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = learn(torch.float32)
    monkeypatch.setattr("polydistill.vision.training.schedule_rate", lambda config, progress: config.learning_rate)
    assert not torch.equal(learn(torch.float32), expected)
