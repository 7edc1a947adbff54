"""polydistill.vision.classifier: a file and its card are enough, and a file that does not fit its card is refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from polydistill.errors import UserError
from polydistill.provenance import weights_sha256
from polydistill.vision.classifier import load_classifier, save_classifier
from polydistill.vision.images.augmentation import Normalizer
from polydistill.vision.images.data import Normalization
from polydistill.vision.networks import build_network

PIXELS = Normalization((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    network = build_network("resnet-8", 7, seed=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network(torch.randn(16, 3, 32, 32))  # running statistics of its own
    path = tmp_path / "generation_0.safetensors"
    save_classifier(path, network, "resnet-8", 7, PIXELS, generation=0)
    return path


def test_a_classifier_comes_back_with_its_weights_and_its_normalisation(saved: Path) -> None:
    classifier = load_classifier(saved)
    card = json.loads(saved.with_suffix(".json").read_text())
    assert (card["architecture"], card["classes"], card["generation"]) == ("resnet-8", 7, 0)
    assert weights_sha256(classifier.network.state_dict()) == card["sha256"]
    assert not classifier.training
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    floats = (images.permute(0, 3, 1, 2) / 255 - torch.tensor(PIXELS.mean).view(3, 1, 1)) / torch.tensor(
        PIXELS.std
    ).view(3, 1, 1)
    assert torch.allclose(classifier(images), classifier.network(floats), atol=1e-4)
    assert torch.equal(classifier(images), classifier.network(Normalizer.of(PIXELS)(images)))


def test_normaliser_is_not_built_at_each_call(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, built, build = load_classifier(saved), [], Normalizer.of
    monkeypatch.setattr(Normalizer, "of", lambda *given: built.append(given) or build(*given))
    for _ in range(2):
        classifier(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))
    assert built == []


def test_saving_leaves_the_network_as_it_is(tmp_path: Path) -> None:
    network = build_network("resnet-8", 7, seed=1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    save_classifier(tmp_path / "a.safetensors", network, "resnet-8", 7, PIXELS)
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("images", [torch.zeros(2, 32, 32, 3), torch.zeros(2, 3, 32, 32, dtype=torch.uint8)])
def test_anything_but_pixels_is_refused(saved: Path, images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"takes \(batch, height, width, 3\) uint8 pixels"):
        load_classifier(saved)(images)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(bytes(content))


DAMAGE: list[tuple[Callable[[Path], Any], str]] = [
    (flip_a_bit, "does not hold the weights that generation_0.json describes"),
    (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is no safetensors file, or damaged"),
    (lambda path: path.write_bytes(b""), "is no safetensors file, or damaged"),
    (lambda path: path.unlink(), "cannot read"),
    (lambda path: path.with_suffix(".json").unlink(), "the card of the classifier"),
    (lambda path: path.with_suffix(".json").write_text("["), "must hold a JSON object"),
    (lambda path: path.with_suffix(".json").write_text("[" * 100_000), "must hold a JSON object"),
    (lambda path: path.with_suffix(".json").write_bytes(b"\xff{}"), "must hold a JSON object"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_is_one_clear_line(saved: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(saved)
    with pytest.raises(UserError, match=re.escape(message)):
        load_classifier(saved)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("architecture", "resnet-14", "does not fit its card"),
        ("architecture", "resnet8", "did you mean resnet-8?"),
        ("architecture", 8, "architecture is 8"),
        ("classes", 8, "does not fit its card"),
        ("classes", 10**9, "classes is 1000000000"),
        ("classes", True, "classes is True"),
        ("std", [0.1, 0.0, 0.1], "std is"),
        ("mean", [0.1, 0.1], "mean is"),
        ("mean", None, "mean is None"),
        ("sha256", "0" * 64, "sha256 differs"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(saved: Path, key: str, value: object, message: str) -> None:
    path = saved.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(UserError, match=re.escape(message)):
        load_classifier(saved)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    network = build_network("resnet-8", 7, seed=1)
    with torch.no_grad():
        next(network.parameters())[0] = torch.nan
    save_classifier(tmp_path / "a.safetensors", network, "resnet-8", 7, PIXELS)
    with pytest.raises(UserError, match=r"a\.safetensors: its \S+\.weight is not finite"):
        load_classifier(tmp_path / "a.safetensors")


@pytest.mark.parametrize("ending", [".safetensors", ".json"])
def test_a_pipe_is_not_waited_for_and_a_file_that_is_too_large_is_not_read(saved: Path, ending: str) -> None:
    path = saved.with_suffix(ending)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"is no file of at most [\d,]+ bytes"):
        load_classifier(saved)
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(2**32 + 1)  # a hole, which takes no room
    with pytest.raises(UserError, match=r"is no file of at most [\d,]+ bytes"):
        load_classifier(saved)
