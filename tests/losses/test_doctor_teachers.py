"""Teachers as people have them, useful and useless: the doctor tells by the labels, and says why."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from polydistill.losses import doctor

CLASSES = 10
FIX = "leave the softmax out"


class Pixels:
    """Images of classes that can be told by their colours, pixels in [0, 1], and a network that tells them."""

    def __init__(self, seed: int, samples: int, classes: int = CLASSES) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(classes, (samples,), generator=generator)
        self.means = 0.45 + 0.08 * torch.randn(classes, 3, 4, 4, generator=generator)
        noise = 0.12 * torch.randn(samples, 3, 4, 4, generator=generator)
        self.pixels = (self.means[self.labels] + noise).clamp(0, 1)

    def linear(self, mean=0.0, deviation=1.0):
        """The best linear network on pixels that had this mean and deviation taken out."""
        means = (self.means - mean) / deviation
        network = nn.Sequential(nn.Flatten(), nn.Linear(48, len(means)))
        scale = (deviation / 0.12) ** 2
        network[1].weight.data = scale * means.flatten(1)
        network[1].bias.data = -0.5 * scale * means.flatten(1).square().sum(1)
        return network.eval().requires_grad_(False)


def student_of(classes):
    with torch.random.fork_rng():
        torch.manual_seed(9)
        return nn.Sequential(nn.Flatten(), nn.Linear(48, classes))


def after(network, function):
    return lambda x: function(network(x))


def build_fresh(batch):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, CLASSES)
        ).eval()


ORDER = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(3))

USELESS = {  # of a batch, and what is said
    "classes in another order": (lambda b: after(b.linear(), lambda s: s[:, ORDER]), "classes are in another order"),
    "classes reversed": (lambda b: after(b.linear(), lambda s: s.flip(1)), "classes are in another order"),
    "labels shifted up": (lambda b: after(b.linear(), lambda s: s.roll(1, 1)), "are shifted by one"),
    "labels shifted down": (lambda b: after(b.linear(), lambda s: s.roll(-1, 1)), "are shifted by one"),
    "standardised inputs": (lambda b: b.linear(b.pixels.mean(), b.pixels.std()), "with the inputs standardised"),
    "bytes as inputs": (lambda b: b.linear(0.0, 1 / 255), "with the inputs times 255"),
    "inputs from -1 to 1": (lambda b: b.linear(0.5, 0.5), r"from \[0, 1\] to \[-1, 1\]|standardised"),
    "never loaded": (build_fresh, "knows nothing of them.*(were its weights loaded)"),
    "one class for all": (lambda b: lambda x: torch.tensor([0.0] * 9 + [5.0]).expand(len(x), -1), "class 9 of 100%"),
    "noise": (
        lambda b: lambda x: torch.randn(len(x), CLASSES, generator=torch.Generator().manual_seed(5)),
        "knows nothing of them",
    ),
    "upside down": (lambda b: after(b.linear(), torch.neg), "knows nothing of them"),
    "samples in another order": (lambda b: after(b.linear(), lambda s: s.flip(0)), "knows nothing of them"),
    "probabilities": (lambda b: after(b.linear(), lambda s: s.softmax(1)), FIX),
    "one-hot": (lambda b: after(b.linear(), lambda s: nn.functional.one_hot(s.argmax(1), CLASSES).float()), FIX),
    "softmax twice": (
        lambda b: after(b.linear(), lambda s: s.softmax(1).log_softmax(1)), "a softmax is taken twice"
    ),
    "tempered probabilities": (lambda b: after(b.linear(), lambda s: (s / 4).softmax(1)), FIX),
    "probabilities in float16": (lambda b: after(b.linear(), lambda s: s.softmax(1).half().float()), FIX),
}  # fmt: skip

USEFUL = {
    "linear": lambda b: b.linear(),
    "log-probabilities": lambda b: after(b.linear(), lambda s: s.log_softmax(1)),
    "sharp": lambda b: after(b.linear(), lambda s: 5 * s),
    "soft": lambda b: after(b.linear(), lambda s: 0.3 * s),
    "output of a library": lambda b: after(b.linear(), lambda s: {"logits": s, "loss": None}),
    "with an auxiliary head": lambda b: after(b.linear(), lambda s: (s, s * 0)),
    "double": lambda b: after(b.linear(), lambda s: s.double()),
    "half": lambda b: after(b.linear(), lambda s: s.half()),
    "bfloat16": lambda b: after(b.linear(), lambda s: s.bfloat16()),
    "ensemble": lambda b: after(b.linear(), lambda s: torch.stack([s, s + 1, 0.9 * s])),
    "noisy": lambda b: after(
        b.linear(), lambda s: s + 8 * torch.randn(s.shape, generator=torch.Generator().manual_seed(0))
    ),
    "with noise in its labels": lambda b: after(
        b.linear(), lambda s: torch.where(torch.arange(len(s))[:, None] % 3 == 0, s.roll(1, 1), s)
    ),
}


def examine(batch, teacher, **options):
    return doctor(student_of(len(batch.means)), teacher, "hinton_kd", batch.pixels, batch.labels, **options)


@pytest.mark.parametrize("samples", [64, 256])
@pytest.mark.parametrize("name", USELESS)
def test_useless_teacher_is_wrong_and_told_why(name, samples) -> None:
    batch = Pixels(0, samples)
    build, expected = USELESS[name]
    report = examine(batch, build(batch))
    wrong = [text for level, text in report.findings if level == "wrong"]
    assert any(re.search(expected, text) for text in wrong), str(report)
    assert not report
    assert "lower the temperature" not in str(report)


@pytest.mark.parametrize("samples", [32, 256])
@pytest.mark.parametrize("name", USEFUL)
def test_useful_teacher_is_not_called_wrong(name, samples) -> None:
    batch = Pixels(0, samples)
    report = examine(batch, USEFUL[name](batch))
    assert report.healthy, str(report)
    assert any(text.startswith("the teacher is right in ") for _, text in report.findings)
