"""polydistill.vision.public_names: networks written as public code writes them give the same scores here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polydistill.errors import UserError
from polydistill.learning.schedules import TrainingConfig
from polydistill.lineage import run_lineage
from polydistill.runs import Run
from polydistill.vision.config import CifarConfig, TeacherConfig
from polydistill.vision.domain import CifarDomain, introduce
from polydistill.vision.images.data import DataConfig, load_images
from polydistill.vision.networks import build_network
from polydistill.vision.public_names import translate
from polydistill.vision.sources import open_teacher


class Plain(nn.Module):
    """A block of a ResNet: zeros for new channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.stride, self.new = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        kept = x[..., :: self.stride, :: self.stride]
        zeros = torch.zeros(len(x), self.new // 2, *kept.shape[2:])
        return (y + torch.cat([zeros, kept, zeros], dim=1)).relu()


class Wide(nn.Module):
    """A block of a Wide-ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.bn1(x).relu()
        y = self.conv2(self.bn2(self.conv1(active)).relu())
        return y + (x if self.convShortcut is None else self.convShortcut(active))


def stage(block: type[nn.Module], inputs: int, outputs: int, n: int, first: int) -> nn.Sequential:
    return nn.Sequential(*(block(inputs if not i else outputs, outputs, 1 if i else first) for i in range(n)))


class Public(nn.Module):
    """A network of public code, by its names; ``last`` is what it calls the last layer."""

    def __init__(self, n: int, width: int, last: str, *, wide: bool) -> None:
        super().__init__()
        self.wide, self.last = wide, last
        sizes = [16, 16 * width, 32 * width, 64 * width]
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(sizes[-1] if wide else 16)
        for number in (1, 2, 3):
            made = stage(Wide if wide else Plain, sizes[number - 1], sizes[number], n, 1 if number == 1 else 2)
            if wide:
                holder = nn.Module()
                holder.layer = made
                setattr(self, f"block{number}", holder)
            else:
                setattr(self, f"layer{number}", made)
        setattr(self, last, nn.Linear(sizes[-1], 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x) if self.wide else self.bn1(self.conv1(x)).relu()
        for number in (1, 2, 3):
            x = getattr(self, f"block{number}").layer(x) if self.wide else getattr(self, f"layer{number}")(x)
        x = self.bn1(x).relu() if self.wide else x
        scores: Tensor = getattr(self, self.last)(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return scores


def learned(network: nn.Module) -> nn.Module:
    """With statistics of some images, so that every number counts."""
    with torch.no_grad():
        network.train()(torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    return network.eval()


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (Public(1, 1, "linear", wide=False), "resnet-8"),
        (Public(3, 1, "fc", wide=False), "resnet-20"),
        (Public(1, 2, "fc", wide=True), "wrn-10-2"),
        (Public(2, 1, "fc", wide=True), "wrn-16-1"),
    ],
    ids=["resnet-8", "resnet-20", "wrn-10-2", "wrn-16-1"],
)
def test_the_same_weights_give_the_same_scores_here(network: Public, name: str) -> None:
    found = translate(learned(network).state_dict())
    assert found is not None
    assert found.architecture == name
    ours = build_network(name, 10).eval()
    ours.load_state_dict(found.weights)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.allclose(ours(images), network(images), atol=1e-5)


def test_what_is_of_no_convention_stays_as_it_is() -> None:
    assert translate(build_network("resnet-8", 10).state_dict()) is None
    weights = Public(1, 1, "fc", wide=False).state_dict()
    shortcut = {"layer2.0.shortcut.0.weight": torch.zeros(32, 16, 1, 1)}
    assert translate({**weights, **shortcut}) is None  # a projection, which resnet-8 does not have
    assert translate({**weights, "layer4.0.conv1.weight": torch.zeros(1)}) is None
    assert translate({**weights, "layer2.1.conv1.weight": torch.zeros(1)}) is None  # stages of other lengths
    assert translate({**weights, "pool.weight": torch.zeros(1)}) is None
    assert translate({}) is None


def test_a_teacher_from_a_file_is_introduced_before_its_student_learns(
    tmp_path: Path, made_up_cifar10: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "public.pth"
    torch.save(learned(Public(1, 1, "linear", wide=False)).state_dict(), path)
    config = CifarConfig(
        device="cpu",
        threads=1,
        precision="float32",
        data=DataConfig("cifar10", str(made_up_cifar10), official=False, validation_images=40),
        teacher=TeacherConfig("resnet-8", str(path)),
        training=TrainingConfig(epochs=1, batch_size=40, learning_rate=0.05),
    )
    with Run.open(tmp_path / "run", config, kind="cifar", command="test") as run:
        summary = run_lineage(CifarDomain(config, load_images(config.data)), config, run)
    accuracy = summary["generations"][0]["metrics"]["test_accuracy"]
    said = capsys.readouterr().err
    introduced = said.index(f"{path} is right in {accuracy:.2%} of the test images")
    assert introduced < said.index("generation 1 learns")
    assert ("as by chance: was it trained on pixels normalised as here" in said) == (accuracy <= 0.2)


def test_a_good_teacher_is_introduced_without_a_question() -> None:
    config = CifarConfig(teacher=TeacherConfig("resnet-8", "t.pth"))
    assert introduce(config, 0.7, 100) == "t.pth is right in 70.00% of the test images"
    assert introduce(config, 0.0199, 100).startswith("t.pth is right in 1.99% of the test images, as by chance: ")


def test_a_teacher_of_public_code_is_opened_or_told_by_name(tmp_path: Path, made_up_cifar10: Path) -> None:
    network, path = learned(Public(1, 1, "linear", wide=False)), tmp_path / "public.pth"
    # as DataParallel and a training script store them
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in network.state_dict().items()}}, path)

    def config(name: str) -> CifarConfig:
        data = DataConfig("cifar10", str(made_up_cifar10), official=False, validation_images=40)
        return CifarConfig(device="cpu", data=data, teacher=TeacherConfig(name, str(path)))

    images = load_images(config("resnet-8").data)
    classifier = open_teacher(config("resnet-8"), images, "cpu")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.allclose(classifier.network(pixels), network(pixels), atol=1e-5)
    wanted = f"{path} holds a resnet-8, but teacher.network is wrn-10-1; choose --teacher.network resnet-8"
    with pytest.raises(UserError, match=re.escape(wanted)):
        open_teacher(config("wrn-10-1"), images, "cpu")
