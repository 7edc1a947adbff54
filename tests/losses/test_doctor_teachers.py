"""Teachers as people have them, useful and useless: the doctor tells by the labels, and says why."""

from __future__ import annotations

import copy
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


class Own(nn.Module):
    """A module of somebody's own, with what is given in its middle."""

    def __init__(self, middle):
        super().__init__()
        self.first, self.middle, self.last = nn.Flatten(), middle, nn.Linear(48, CLASSES)

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


class Noise(nn.Module):
    """Depends on the mode, and no module of torch's own does."""

    def forward(self, x):
        return x + torch.randn_like(x) if self.training else x


MODES = {  # what is in the middle, and whether training mode changes the outputs
    "nothing": (nn.Identity, False),
    "a layer": (lambda: nn.Linear(48, 48), False),
    "norms of a sample": (lambda: nn.Sequential(nn.LayerNorm(48), nn.ReLU()), False),
    "dropout of 0": (lambda: nn.Dropout(0.0), False),
    "statistics of the batch": (lambda: nn.BatchNorm1d(48, track_running_stats=False), False),
    "dropout": (lambda: nn.Dropout(0.1), True),
    "batch norm": (lambda: nn.BatchNorm1d(48), True),
    "random slopes": (nn.RReLU, True),
    "noise": (Noise, True),
}


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("wrap", [nn.Sequential, Own], ids=["torch's own", "of one's own"])
def test_mode_is_a_fault_only_where_it_changes_the_outputs(name, wrap) -> None:
    build, matters = MODES[name]
    network = Own(build()) if wrap is Own else nn.Sequential(nn.Flatten(), build(), nn.Linear(48, CLASSES))
    batch = Pixels(0, 32)
    useful, state = batch.linear(), torch.get_rng_state()
    before = copy.deepcopy(network.state_dict())
    teaching = doctor(student_of(CLASSES), network.requires_grad_(False), "ban", batch.pixels)
    assert teaching.healthy is not matters, str(teaching)
    assert ("the teacher is in training mode" in " ".join(teaching.wrong)) is matters
    learning = doctor(network.requires_grad_(True).eval(), useful, "ban", batch.pixels)
    assert ("the student is in evaluation mode" in str(learning)) is matters, str(learning)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_report_is_true_where_it_is_healthy() -> None:
    batch = Pixels(0, 64)
    assert examine(batch, batch.linear())
    assert not examine(batch, USELESS["never loaded"][0](batch))


def test_flat_probabilities_are_no_reason_to_lower_the_temperature() -> None:
    batch = Pixels(0, 64, classes=5)
    report = doctor(student_of(5), after(batch.linear(), lambda s: s.softmax(1)), "hinton_kd", batch.pixels)
    assert any("the targets are flat" in text for _, text in report.findings)
    assert "lower the temperature" not in str(report)


def test_few_samples_do_not_tell() -> None:
    """Three of eight are 38%: by chance once in twenty-six times, and no useless teacher for sure."""
    batch = Pixels(0, 8)
    labels = torch.arange(8)
    teacher = nn.functional.one_hot(torch.tensor([0, 1, 2, 0, 1, 2, 3, 9]), CLASSES).float() * 3 - 1
    report = doctor(student_of(CLASSES), lambda x: teacher, "ban", batch.pixels, labels)
    (found,) = [finding for finding in report.findings if finding.text.startswith("the teacher is right in 37.5% of 8")]
    assert found.level == "cannot tell"
    assert "choose a larger batch" in found.text
    assert report.healthy


def test_scores_that_are_integers_are_a_finding() -> None:
    batch = Pixels(0, 32)
    report = examine(batch, after(batch.linear(), lambda s: s.round().long()))
    assert any("must be a floating tensor, got a tensor of torch.int64" in text for text in report.wrong)


@pytest.mark.parametrize("noise", [8.0, 20.0])
def test_noise_that_larger_inputs_drown_is_no_other_normalisation(noise) -> None:
    """The scores of times as large inputs are larger, so that the same noise makes fewer mistakes."""
    batch = Pixels(0, 256)
    drawn = noise * torch.randn(256, CLASSES, generator=torch.Generator().manual_seed(0))
    report = examine(batch, after(batch.linear(), lambda s: s + drawn))
    assert report.healthy, str(report)
    assert "normalis" not in str(report)


def test_other_normalisation_is_only_said_to_be_likely_and_the_best_is_named() -> None:
    batch = Pixels(0, 256)
    report = examine(batch, batch.linear(0.0, 1 / 255))
    (text,) = [text for text in report.wrong if "normalisation" in text]
    assert re.search("with the inputs times 255 it is right in .*: perhaps it was trained with that normal", text)


def test_labels_of_one_class_do_not_tell() -> None:
    batch = Pixels(0, 256)
    one = batch.labels == 3
    report = doctor(student_of(CLASSES), batch.linear(), "ban", batch.pixels[one], batch.labels[one])
    assert any(level == "cannot tell" and "choose a mixed batch" in text for level, text in report.findings)


def test_two_classes_that_are_swapped_are_suspicious() -> None:
    batch = Pixels(0, 256)
    swapped = torch.arange(CLASSES)
    swapped[[3, 5]] = swapped[[5, 3]]
    report = examine(batch, after(batch.linear(), lambda s: s[:, swapped]))
    (text,) = [text for level, text in report.findings if "in another order" in text and level == "suspicious"]
    assert "its class 3 is label 5, its class 5 is label 3)" in text


def test_student_that_is_better_than_its_teacher_is_suspicious() -> None:
    batch = Pixels(0, 256)
    weak = after(batch.linear(), lambda s: torch.where(torch.arange(len(s))[:, None] % 2 == 0, s.roll(1, 1), s))
    report = doctor(lambda x: batch.linear()(x), weak, "ban", batch.pixels, batch.labels)
    assert any(level == "suspicious" and "better than its teacher" in text for level, text in report.findings)


def centred(scores):
    return (scores - scores.mean(1, keepdim=True)) / 10


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize(
    ("function", "level", "text"),
    [
        (lambda s: s.softmax(1), "wrong", "gives probabilities"),
        (lambda s: s.softmax(1).log_softmax(1), "wrong", "a softmax is taken twice"),
        (lambda s: s.log_softmax(1), "fine", "gives log-probabilities, which are valid scores"),
        (lambda s: centred(s).sigmoid(), "suspicious", "does it end in a sigmoid"),
        (lambda s: centred(s).relu(), "suspicious", "does it end in a ReLU"),
    ],
    ids=["softmax", "softmax twice", "log-softmax", "sigmoid", "relu"],
)
def test_what_is_no_score_is_seen_of_both(side, function, level, text) -> None:
    batch = Pixels(0, 64)
    network = after(batch.linear(), function)
    other = after(batch.linear(), lambda s: s + 0.1)
    pair = (network, other) if side == "student" else (other, network)
    report = doctor(*pair, "ban", batch.pixels, batch.labels)
    assert any(found == level and f"the {side}" in said and text in said for found, said in report.findings), str(
        report
    )


def test_tokens_count_where_they_have_a_label() -> None:
    """(batch, time, classes), padding of -100: as the rows that are left, whatever the padding holds."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (8, 12), generator=generator)
    teacher = 4.0 * nn.functional.one_hot(labels, CLASSES) + torch.randn(8, 12, CLASSES, generator=generator)
    student = torch.randn(8, 12, CLASSES, generator=generator)
    padded = labels.clone()
    padded[:, 9:] = -100
    rows = padded != -100
    flat = doctor(lambda x: student[rows], lambda x: teacher[rows], "hinton_kd", None, labels[rows])
    teacher[:, 9:] = 7.0
    found = doctor(lambda x: {"logits": student}, lambda x: (teacher, None), "hinton_kd", None, padded)
    assert found.title == "hinton_kd, 72 samples of 10 classes (24 more have no label) on cpu, plain formulas"
    assert found.findings == flat.findings
    assert found.terms == flat.terms
    assert found.healthy


def test_batch_without_a_label_is_wrong() -> None:
    report = doctor(lambda x: torch.randn(4, 3), lambda x: torch.randn(4, 3), "ban", None, torch.full((4,), -100))
    assert report.wrong == ("every label is -100: no row is left",)
