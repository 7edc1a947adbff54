"""A teacher that was trained on pixels normalised in its own way sees them so; its students see the data set's."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from polydistill.errors import UserError
from polydistill.learning.lesson import Lesson
from polydistill.learning.schedules import TrainingConfig
from polydistill.lineage import LineageConfig, run_lineage
from polydistill.lineage.beginning import MAY_GROW
from polydistill.runs import Run
from polydistill.runs.shared_store import SharedStore
from polydistill.vision.classifier import Classifier, load_classifier, save_classifier
from polydistill.vision.commands.distill_cifar import main
from polydistill.vision.config import CifarConfig, StudentConfig, TeacherConfig
from polydistill.vision.domain import CifarDomain
from polydistill.vision.images.augmentation import Normalizer
from polydistill.vision.images.data import DataConfig, ImageSet, Normalization, load_images
from polydistill.vision.introduction import KNOWN, Better, find_better, introduce
from polydistill.vision.model_card import make_card
from polydistill.vision.networks import StagedNetwork, build_network
from polydistill.vision.sources import open_teacher
from tests.vision.lessons import trainer

IMAGENET, HALF = KNOWN["ImageNet's"], KNOWN["0.5 for all"]
GIVEN: dict[str, Any] = {"mean": IMAGENET.mean, "std": IMAGENET.std}


def trained(seed: int = 5) -> StagedNetwork:
    """With statistics of some images, so that its inputs matter."""
    network = build_network("resnet-8", 10, seed=seed)
    with torch.no_grad():
        network(torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    return network.eval()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Weights that something else has saved."""
    torch.save(trained().state_dict(), tmp_path / "public.pth")
    return tmp_path / "public.pth"


@pytest.fixture
def config(path: Path, made_up_cifar10: Path) -> CifarConfig:
    return CifarConfig(
        device="cpu",
        threads=1,
        precision="float32",
        data=DataConfig("cifar10", str(made_up_cifar10), official=False, validation_images=40),
        teacher=TeacherConfig("resnet-8", str(path), **GIVEN),
        training=TrainingConfig(epochs=1, batch_size=40, learning_rate=0.05),
    )


def run(config: CifarConfig, out: Path) -> dict[str, Any]:
    with Run.open(out, config, kind="cifar", command="test", may_grow=MAY_GROW) as one:
        return run_lineage(CifarDomain(config, load_images(config.data)), config, one)


# ---- one network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet-8", "wrn-10-1", "densenet-10-4"])
def test_a_network_that_takes_other_pixels_gives_the_same_scores_of_the_same_weights(name: str) -> None:
    network = build_network(name, 10, seed=1).eval()
    weights = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    classifier = Classifier(network, IMAGENET, {})
    pixels = torch.randint(256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = classifier(pixels)
    classifier.take(HALF)
    given = Normalizer.of(HALF)(pixels)
    assert torch.allclose(network(given), before, atol=1e-4)
    assert torch.allclose(network.see(given).scores, before, atol=1e-4)
    assert torch.allclose(classifier(pixels), before, atol=1e-4)
    assert not torch.allclose(network(Normalizer.of(IMAGENET)(pixels)), before, atol=1e-2)
    assert list(network.state_dict()) == list(weights)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in network.state_dict().items())


def test_the_arms_of_a_study_do_not_take_over_the_scores_of_other_pixels(tmp_path: Path) -> None:
    asked = []

    def learn(its: Normalization) -> None:
        network = build_network("resnet-8", 5, seed=1)
        Classifier(network, its, {}).take(HALF)
        network.register_forward_hook(lambda *_: asked.append(1))
        for _ in trainer(Lesson("ban", network, generation=1), store=SharedStore(tmp_path)).run():
            pass

    learn(IMAGENET)
    first = len(asked)
    learn(IMAGENET)
    assert len(asked) == first > 0, "the same teacher is not asked again"
    learn(HALF)
    assert len(asked) == 2 * first


# ---- runs --------------------------------------------------------------------------------------------------------


def test_the_teacher_of_a_run_sees_its_own_pixels_and_the_student_the_data_sets(
    config: CifarConfig, tmp_path: Path
) -> None:
    summary = run(config, tmp_path / "run")
    images = load_images(config.data)
    teacher, student = (load_classifier(tmp_path / "run" / f"generation_{k}.safetensors") for k in (0, 1))
    assert (teacher.normalization, student.normalization) == (IMAGENET, images.normalization)
    normalized = Normalizer.of(IMAGENET)(images.test.images)
    with torch.no_grad():
        guess = trained()(normalized).argmax(1)
    right = (guess == images.test.labels).double().mean().item()
    agreed = (student(images.test.images).argmax(1) == guess).double().mean().item()
    told = [generation["metrics"] for generation in summary["generations"]]
    assert told[0]["test_accuracy"] == pytest.approx(right)
    assert told[1]["agreement"] == pytest.approx(agreed)
    assert summary["config"]["teacher"]["mean"] == list(IMAGENET.mean)
    told = dict(make_card(summary, tmp_path / "run").sections)["The teacher"]
    assert (
        "It sees pixels normalised by mean [0.485, 0.456, 0.406] and standard deviation [0.229, 0.224, 0.225]" in told
    )


def test_a_run_with_such_a_teacher_goes_on_as_if_it_had_not_ended(config: CifarConfig, tmp_path: Path) -> None:
    two = dataclasses.replace(config, lineage=LineageConfig(2))
    whole = run(two, tmp_path / "whole")
    run(config, tmp_path / "parts")
    parts = run(two, tmp_path / "parts")
    for name in ("generations", "ensembles"):
        assert parts[name] == whole[name]


def test_a_run_of_a_version_without_these_options_goes_on(config: CifarConfig, tmp_path: Path) -> None:
    plain = dataclasses.replace(config, teacher=TeacherConfig("resnet-8", config.teacher.path))
    run(plain, tmp_path / "run")
    stored = tmp_path / "run" / "config.yaml"
    lines = stored.read_text().splitlines(keepends=True)
    stored.write_text("".join(line for line in lines if line.strip() not in ("mean: null", "std: null")))
    assert len(stored.read_text().splitlines()) == len(lines) - 2
    grown = run(dataclasses.replace(plain, lineage=LineageConfig(2)), tmp_path / "run")
    assert len(grown["generations"]) == 3


def test_what_a_card_says_counts_and_may_be_said_again(config: CifarConfig, tmp_path: Path) -> None:
    carded = tmp_path / "carded.safetensors"
    save_classifier(carded, trained(), "resnet-8", 10, IMAGENET)
    of_card = dataclasses.replace(config, teacher=TeacherConfig("resnet-8", str(carded)))
    images = load_images(config.data)
    assert open_teacher(of_card, images, "cpu").normalization == IMAGENET
    again = dataclasses.replace(config, teacher=TeacherConfig("resnet-8", str(carded), **GIVEN))
    assert open_teacher(again, images, "cpu").normalization == IMAGENET
    other = TeacherConfig("resnet-8", str(carded), mean=HALF.mean, std=HALF.std)
    with pytest.raises(
        UserError, match=re.escape("says mean [0.485, 0.456, 0.406] and std [0.229, 0.224, 0.225]: leave")
    ):
        open_teacher(dataclasses.replace(config, teacher=other), images, "cpu")
    assert run(of_card, tmp_path / "a")["generations"] == run(config, tmp_path / "b")["generations"]


def test_a_first_layer_is_not_shared_between_other_pixels(config: CifarConfig) -> None:
    images = load_images(config.data)
    shared = dataclasses.replace(config, student=StudentConfig(shared=("last",)))
    open_teacher(shared, images, "cpu")
    shared = dataclasses.replace(config, student=StudentConfig(shared=("first", "last")))
    with pytest.raises(UserError, match=r"has the first layer of .* whose pixels are normalised in another way"):
        open_teacher(shared, images, "cpu")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": (0.5, 0.5, 0.5)}, "mean and std are given together, or neither"),
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "mean must be 3 numbers from 0 to 1"),
        (
            {"mean": (125.3, 123.0, 113.9), "std": (63.0, 62.1, 66.7)},
            "of pixels in [0, 1] (divide by 255), got [125.3, 123.0, 113.9]",
        ),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.0)}, "std must be 3 numbers from 0.001 to 1"),
        ({"mean": (0.5, 0.5, float("nan")), "std": (0.5, 0.5, 0.5)}, "mean must be a list, each a finite number"),
        ({"path": "", **GIVEN}, "mean and std are of the teacher of path"),
    ],
)
def test_what_is_no_normalisation_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        TeacherConfig("resnet-8", **{"path": "a.pth", **given})


def test_the_command_line_takes_it_and_a_dry_run_says_it(
    config: CifarConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], torch_threads_restored: None
) -> None:
    words = ["--data.name", "cifar10", "--data.root", config.data.root, "--data.official", "false"]
    words += ["--data.validation_images", "40", "--data.made_up", "0", "--data.train_images", "0"]
    words += ["--data.test_images", "0", "--teacher.path", config.teacher.path]
    words += ["--teacher.mean", "[0.485, 0.456, 0.406]", "--teacher.std", "[0.229, 0.224, 0.225]"]
    main([*words, "--device", "cpu", "--threads", "1", "--out", str(tmp_path / "out"), "--dry_run"])
    plan = capsys.readouterr().out.partition("\nwould write")[0]
    assert yaml.safe_load(plan)["teacher"]["std"] == list(IMAGENET.std)


# ---- the line before the student learns --------------------------------------------------------------------------


class Picky(nn.Module):
    """Knows the class of an image, the red of its first pixel, only from pixels normalised by ``its``."""

    def __init__(self, its: Normalization) -> None:
        super().__init__()
        self.mean, self.std = its.mean[0], its.std[0]

    def forward(self, images: Tensor) -> Tensor:
        red = (images[:, 0, 0, 0] * self.std + self.mean) * 255
        known = (red - red.round()).abs() < 0.01
        return F.one_hot(torch.where(known, red.round().long() % 10, 0) % 10, 10).float()


def drawn(n: int) -> ImageSet:
    """Images whose class is the last digit of their first red, 1 to 9."""
    pixels = torch.randint(256, (n, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    pixels[:, 0, 0, 0] = torch.arange(n) % 9 + 1 + 10 * (torch.arange(n) % 20)
    return ImageSet(pixels, pixels[:, 0, 0, 0].long() % 10)


@pytest.mark.parametrize("name", ["ImageNet's", "CIFAR-10's", "none"])
def test_the_normalisation_of_a_teacher_is_found_among_those_that_are_known(name: str) -> None:
    odd = Normalization((0.31, 0.32, 0.33), (0.21, 0.22, 0.23))
    better = find_better(Picky(KNOWN[name]), drawn(90), odd)
    assert better is not None
    assert KNOWN[better.name].mean[0] == KNOWN[name].mean[0]
    assert (better.accuracy, better.images) == (1.0, 90)
    assert better.before < 0.2
    assert find_better(Picky(odd), drawn(90), odd) is None
    assert find_better(Picky(KNOWN[name]), drawn(90), KNOWN[name]) is None


def test_not_all_of_many_images_are_tried() -> None:
    better = find_better(Picky(IMAGENET), drawn(1_250), HALF)
    assert better is not None
    assert better.images == 1_000


def test_the_line_says_what_to_change_and_a_good_teacher_has_none() -> None:
    assert introduce("t.pth", 0.7, 100, None, supposed=True) == "t.pth is right in 70.00% of the test images"
    assert introduce("t.pth", 0.0199, 100, None, supposed=True) == (
        "t.pth is right in 1.99% of the test images, as by chance: were its pixels normalised as here (--teacher.mean, "
        "--teacher.std), are its classes in this order?"
    )
    known = introduce("t.pth", 0.01, 100, None, supposed=False)
    assert known.endswith("as by chance: are its classes in this order?")
    assert introduce("t.pth", 0.612, 10, Better("ImageNet's", 0.915, 0.61, 1_000), supposed=True) == (
        "t.pth is right in 61.20% of the test images; on 1,000 of them 61.00%, but 91.50% with another normalisation "
        '(ImageNet\'s): choose --teacher.mean "[0.485, 0.456, 0.406]" '
        '--teacher.std "[0.229, 0.224, 0.225]"'
    )


@pytest.mark.parametrize("known", [False, True])
def test_nothing_is_tried_where_the_normalisation_is_known(
    config: CifarConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    known: bool,
) -> None:
    monkeypatch.setattr("polydistill.vision.domain.find_better", lambda *_: Better("none", 0.9, 0.1, 100))
    if not known:
        config = dataclasses.replace(config, teacher=TeacherConfig("resnet-8", config.teacher.path))
    run(config, tmp_path / "run")
    said = capsys.readouterr().err
    assert ("(none): choose --teacher.mean" in said) != known
    assert said.index("public.pth is right in ") < said.index("generation 1 learns")
