"""One process of a data-parallel lesson: trains, and rank 0 writes the weights. Started by test_processes.py.

usage: worker.py OUT, with a list of [name of the network, objective] as JSON on standard input
"""

import json
import sys
from pathlib import Path

import torch

from polydistill.device import prepare
from polydistill.learning.lesson import Lesson
from polydistill.learning.processes import Processes, open_processes
from polydistill.learning.schedules import TrainingConfig
from polydistill.vision.images.augmentation import Normalizer
from polydistill.vision.images.data import DataConfig, load_images
from polydistill.vision.networks import build_network
from polydistill.vision.training import Trainer

BATCH = 31  # the parts of two processes differ in size


class Exact(torch.nn.Module):
    """Computes in float64, so that rounding does not tip a ReLU from one side to the other."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.network(images.double())
        return scores


def make_network(name: str, seed: int) -> torch.nn.Module:
    """A network by name, in float64, or ``plain``: one without batch statistics."""
    if name != "plain":
        return Exact(build_network(name, 10, seed=seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 8, stride=8), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(128, 10)
        )


def train(name: str, objective: str, processes: Processes, student: torch.nn.Module | None = None) -> dict[str, object]:
    """Weights and reports of a lesson of 2 epochs of 4 steps on 100 images, the last batch of an epoch smaller."""
    images = load_images(DataConfig("cifar10", made_up=100, validation_images=0))
    teacher = make_network(name, 1)
    with torch.no_grad():  # an opinionated teacher: the confidences of the samples differ
        list(teacher.parameters())[-2].mul_(10)
    lesson = Lesson(objective, teacher, generation=1, classes=10, group=processes.group)
    trainer = Trainer(
        student or make_network(name, 0),
        lesson,
        images.train,
        Normalizer.of(images.normalization),
        TrainingConfig(epochs=2, batch_size=BATCH, learning_rate=0.05, log_every_steps=3),
        seed=0,
        generation=1,
        processes=processes,
    )
    reports = [report.values for report in trainer.run()]
    return {"weights": trainer.student.state_dict(), "reports": reports}


if __name__ == "__main__":
    prepare("cpu", 1)
    with open_processes("cpu") as found:
        results = [train(name, objective, found) for name, objective in json.load(sys.stdin)]
        torch.save(results, Path(sys.argv[1]) / f"rank_{found.rank}.pt")
