"""polydistill.vision.evaluation against numpy, scipy and cases worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torch import Tensor, nn

from polydistill.learning.measures import (
    calibration_error,
    compare,
    ensemble_logits,
    evaluation_mode,
    measure,
)
from polydistill.learning.rewind import NonFiniteError
from polydistill.vision.config import EvaluationConfig
from polydistill.vision.evaluation import predict
from polydistill.vision.examiner import Examiner
from polydistill.vision.images.augmentation import Normalizer
from polydistill.vision.images.data import Images, ImageSet, Normalization


def logits_and_labels(n: int = 400, classes: int = 10, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(n, classes, generator=generator)
    return logits, torch.randint(classes, (n,), generator=generator)


def test_accuracy_and_nll_by_hand() -> None:
    logits = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]]).log()
    measured = measure(logits, torch.tensor([1, 0, 1]))
    assert measured["accuracy"] == pytest.approx(2 / 3)
    assert measured["nll"] == pytest.approx(-(np.log(0.75) + np.log(0.5) + np.log(0.1)) / 3, abs=1e-6)


def test_calibration_error_by_hand() -> None:
    # two sure at 0.9, both right: gap 0.1; two at 0.6, one right: gap 0.1
    logits = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.6, 0.4]]).log()
    assert calibration_error(logits, torch.tensor([0, 1, 0, 1])) == pytest.approx(0.5 * 0.1 + 0.5 * 0.1, abs=1e-6)


def test_calibration_error_is_numpys_over_histogram_bins() -> None:
    logits, labels = logits_and_labels()
    probabilities = softmax(logits.double().numpy(), axis=1)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels.numpy()
    edges = np.linspace(0, 1, 16)
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(logits, labels) == pytest.approx(total, abs=1e-9)


def test_a_calibrated_classifier_has_little_error_and_a_boastful_one_much() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert calibration_error(logits, labels) < 0.02
    assert calibration_error(5 * logits, labels) > 0.2


def test_agreement_and_kl_are_scipys() -> None:
    student, _ = logits_and_labels()
    teacher = student + torch.randn(student.shape, generator=torch.Generator().manual_seed(2))
    p, q = (softmax(logits.double().numpy(), axis=1) for logits in (teacher, student))
    compared = compare(student, teacher)
    assert compared["kl"] == pytest.approx(rel_entr(p, q).sum(axis=1).mean(), rel=1e-5)
    assert compared["agreement"] == pytest.approx((p.argmax(1) == q.argmax(1)).mean())
    assert compare(student, student) == {"agreement": 1.0, "kl": pytest.approx(0, abs=1e-7)}


def test_an_ensembles_prediction_is_the_mean_probability_not_the_mean_logit() -> None:
    members = [torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])]
    expected = np.mean([softmax(member.double().numpy(), axis=1) for member in members], axis=0)
    together = ensemble_logits(members)
    assert together.softmax(dim=1).numpy() == pytest.approx(expected)
    assert together.exp().numpy() == pytest.approx(expected), "already log-probabilities"


def test_an_ensemble_of_sure_members_has_a_finite_nll() -> None:
    sure = [torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])]
    assert measure(ensemble_logits(sure), torch.tensor([0]))["nll"] == pytest.approx(np.log(2))


@pytest.mark.parametrize("training", [True, False])
def test_predicting_uses_evaluation_mode_and_leaves_the_mode_as_it_was(training: bool) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Dropout(0.5), nn.Linear(3072, 4)).train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = torch.randint(0, 256, (700, 32, 32, 3), dtype=torch.uint8)  # more than one batch
    normalizer = Normalizer.of(Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
    data = ImageSet(images, torch.zeros(700, dtype=torch.int64))
    first, second = (predict(network, data, normalizer) for _ in range(2))
    assert first.shape == (700, 4)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert network.training is training
    assert all(module.training is training for module in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


class Broken(nn.Module):
    """Gives ``wrong`` for images that are black, and otherwise small numbers."""

    def __init__(self, wrong: list[float]) -> None:
        super().__init__()
        self.wrong = torch.tensor(wrong)

    def forward(self, pixels: Tensor) -> Tensor:
        black = pixels.flatten(1).amax(dim=1) < 0
        return torch.where(black.unsqueeze(1), self.wrong, pixels.flatten(1)[:, :2])


def images(*, black_validation: bool, black_test: bool) -> Images:
    bright = ImageSet(torch.full((4, 32, 32, 3), 255, dtype=torch.uint8), torch.arange(4) % 2)
    black = ImageSet(torch.zeros(4, 32, 32, 3, dtype=torch.uint8), torch.arange(4) % 2)
    normalization = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    sets = [black if is_black else bright for is_black in (False, black_validation, black_test)]
    return Images(*sets, normalization, 2)


@pytest.mark.parametrize("wrong", [[np.nan, 0.0], [np.inf, 0.0], [0.0, -np.inf]], ids=str)
@pytest.mark.parametrize("which", ["validation", "test"])
def test_scores_that_are_not_finite_are_refused_with_their_generation(wrong: list[float], which: str) -> None:
    data = images(black_validation=which == "validation", black_test=which == "test")
    examiner = Examiner(data, Normalizer.of(data.normalization), EvaluationConfig())
    examiner.look(Broken(wrong))
    with pytest.raises(NonFiniteError, match=rf"generation 0 \(labels\) on the {which} images are not finite"):
        examiner.report(None)


def test_a_metric_that_overflows_is_refused_with_its_generation() -> None:
    data = images(black_validation=False, black_test=True)
    examiner = Examiner(data, Normalizer.of(data.normalization), EvaluationConfig())
    examiner.look(Broken([0.0, 0.0]))
    examiner.look(Broken([3e38, -3e38]))
    with pytest.raises(FloatingPointError, match=r"test_nll of generation 1 \(ban\) is inf"):
        examiner.report("ban")


def test_evaluation_leaves_each_part_in_its_own_mode() -> None:
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    network[0].eval()
    with evaluation_mode(network):
        assert not any(part.training for part in network.modules())
    assert [part.training for part in network.modules()] == [True, False, True]
