"""A network that takes a millisecond, images for it, and a trainer of both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from polydistill.learning.lesson import Lesson
from polydistill.learning.schedules import TrainingConfig
from polydistill.vision.images.augmentation import Normalizer
from polydistill.vision.images.data import ImageSet, Normalization
from polydistill.vision.training import Trainer

NORMALIZER = Normalizer.of(Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
SHORT = TrainingConfig(epochs=2, batch_size=16, learning_rate=0.05, log_every_steps=3)


def tiny(seed: int = 0, classes: int = 5) -> nn.Sequential:
    """A network with batch norm that takes a millisecond."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 8, stride=8, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, classes),
        )


def image_set(n: int = 70, classes: int = 5) -> ImageSet:
    """Images whose mean brightness tells the class."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(n) % classes
    noise = torch.randint(0, 60, (n, 32, 32, 3), generator=generator)
    return ImageSet((noise + 40 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels)


def trainer(lesson: Lesson | None = None, config: TrainingConfig = SHORT, seed: int = 0, **options: Any) -> Trainer:
    lesson = lesson or Lesson("ban", tiny(seed=9), generation=1)
    data = options.pop("data", image_set())
    return Trainer(tiny(), lesson, data, NORMALIZER, config, seed=seed, generation=1, **options)


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)
