"""polydistill.vision.public_names: networks written as public code writes them give the same scores here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polydistill.errors import UserError
from polydistill.learning.schedules import TrainingConfig
from polydistill.lineage import run_lineage
from polydistill.runs import Run
from polydistill.vision.classifier import load_classifier
from polydistill.vision.config import CifarConfig, TeacherConfig
from polydistill.vision.domain import CifarDomain
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


# ---- shortcuts with weights: random weights under their names, and the scores by the paper's description -------------


class Written(NamedTuple):
    """How a repository writes the parts of a network: of a layer, and of a layer in a block of a stage from 1."""

    outside: dict[str, str]
    inside: str  # a pattern of stage, block and part
    parts: dict[str, str]


NUMBERED = {f"conv{n}": f"conv{n}" for n in (1, 2, 3)} | {f"norm{n}": f"bn{n}" for n in (1, 2, 3)}
OUTSIDE = {"stem": "conv1", "norm": "bn1"}
KUANGLIU = Written(
    {**OUTSIDE, "head": "linear"},
    "layer{stage}.{block}.{part}",
    {**NUMBERED, "shortcut": "shortcut.0", "shortcut norm": "shortcut.1"},
)
TORCHVISION = Written(
    {**OUTSIDE, "head": "fc"},
    "layer{stage}.{block}.{part}",
    {**NUMBERED, "shortcut": "downsample.0", "shortcut norm": "downsample.1"},
)
WEIAICUNZAI = Written(
    {"stem": "conv1.0", "norm": "conv1.1", "head": "fc"},
    "conv{stage_after}_x.{block}.{part}",
    {
        **{f"conv{n}": f"residual_function.{3 * n - 3}" for n in (1, 2, 3)},
        **{f"norm{n}": f"residual_function.{3 * n - 2}" for n in (1, 2, 3)},
        "shortcut": "shortcut.0",
        "shortcut norm": "shortcut.1",
    },
)


class Described(NamedTuple):
    """Channels behind the first layer and inside each stage, blocks of each stage, and whether they are bottlenecks."""

    channels: tuple[int, ...]
    blocks: tuple[int, ...]
    bottleneck: bool = False


def layers_of(network: Described, written: Written) -> Iterator[tuple[str, str, str, tuple[int, ...]]]:
    """(block, part, name in the file, shape) of each convolution and batch norm, in order."""
    before, *widths = network.channels
    yield "", "stem", written.outside["stem"], (before, 3, 3, 3)
    yield "", "norm", written.outside["norm"], (before,)
    for stage, (width, n_blocks) in enumerate(zip(widths, network.blocks, strict=True), start=1):
        for block in range(n_blocks):
            after = 4 * width if network.bottleneck else width
            shapes = [(width, before, 3, 3), (after, width, 3, 3)]
            if network.bottleneck:
                shapes = [(width, before, 1, 1), (width, width, 3, 3), (after, width, 1, 1)]
            parts: list[tuple[str, tuple[int, ...]]] = []
            for number, shape in enumerate(shapes, start=1):
                parts += [(f"conv{number}", shape), (f"norm{number}", shape[:1])]
            if before != after or (stage > 1 and block == 0):
                parts += [("shortcut", (after, before, 1, 1)), ("shortcut norm", (after,))]
            for part, shape in parts:
                named = written.parts[part]
                name = written.inside.format(stage=stage, stage_after=stage + 1, block=block, part=named)
                yield f"{stage} {block}", part, name, shape
            before = after


def drawn(network: Described, written: Written, classes: int = 10) -> dict[str, Tensor]:
    """Random weights and statistics, all different from those of a fresh network."""
    generator = torch.Generator().manual_seed(7)
    weights: dict[str, Tensor] = {}
    shape: tuple[int, ...] = ()
    for _, _, name, shape in layers_of(network, written):
        if len(shape) > 1:
            fan = shape[1] * shape[2] * shape[3]
            weights[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / fan) ** 0.5
            continue
        for kind in ("weight", "running_var"):
            weights[f"{name}.{kind}"] = torch.rand(shape, generator=generator) + 0.5
        for kind in ("bias", "running_mean"):
            weights[f"{name}.{kind}"] = torch.randn(shape, generator=generator) / 10
        weights[f"{name}.num_batches_tracked"] = torch.tensor(3)
    last = network.channels[-1] * (4 if network.bottleneck else 1)
    weights[f"{written.outside['head']}.weight"] = torch.randn(classes, last, generator=generator) / last**0.5
    weights[f"{written.outside['head']}.bias"] = torch.randn(classes, generator=generator)
    return weights


def described_scores(network: Described, written: Written, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Of He et al. (2016a): each residual and its shortcut are added, then ReLU; the first block of a later stage has
    stride 2, in the first 3 x 3 convolution."""

    def apply(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        if weight.dim() == 4:
            return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, variance, bias = (weights[f"{name}.{kind}"] for kind in ("running_mean", "running_var", "bias"))
        scale = weight / (variance + 1e-5).sqrt()
        return x * scale[:, None, None] + (bias - mean * scale)[:, None, None]

    blocks: dict[str, dict[str, str]] = {}
    for block, part, name, _ in layers_of(network, written):
        blocks.setdefault(block, {})[part] = name
    first = blocks.pop("")
    x = apply(first["norm"], apply(first["stem"], x)).relu()
    for block, names in blocks.items():
        stride = 2 if block.endswith(" 0") and not block.startswith("1") else 1
        shortcut = x
        if "shortcut" in names:
            shortcut = apply(names["shortcut norm"], apply(names["shortcut"], x, stride))
        strides = (1, stride, 1) if network.bottleneck else (stride, 1)
        for number, step in enumerate(strides, start=1):
            x = apply(names[f"norm{number}"], apply(names[f"conv{number}"], x, step))
            x = x.relu() if number < len(strides) else x
        x = (x + shortcut).relu()
    head = written.outside["head"]
    return x.mean(dim=(2, 3)) @ weights[f"{head}.weight"].T + weights[f"{head}.bias"]


FOUR_STAGES = (64, 64, 128, 256, 512)
SMALLEST = Described((16, 16, 32, 64), (1, 1, 1))


@pytest.mark.parametrize(
    ("name", "network", "written"),
    [
        ("resnet-8-projection", SMALLEST, TORCHVISION),
        ("resnet-20-projection", Described((16, 16, 32, 64), (3, 3, 3)), TORCHVISION),
        ("resnet-8x4", Described((32, 64, 128, 256), (1, 1, 1)), TORCHVISION),
        ("imagenet-resnet-18", Described(FOUR_STAGES, (2, 2, 2, 2)), KUANGLIU),
        ("imagenet-resnet-18", Described(FOUR_STAGES, (2, 2, 2, 2)), WEIAICUNZAI),
        ("imagenet-resnet-34", Described(FOUR_STAGES, (3, 4, 6, 3)), TORCHVISION),
        ("imagenet-resnet-50", Described(FOUR_STAGES, (3, 4, 6, 3), bottleneck=True), KUANGLIU),
        ("imagenet-resnet-50", Described(FOUR_STAGES, (3, 4, 6, 3), bottleneck=True), WEIAICUNZAI),
    ],
)
def test_a_network_as_the_paper_describes_it_gives_the_same_scores_here(
    name: str, network: Described, written: Written
) -> None:
    weights = drawn(network, written)
    found = translate(weights)
    assert found is not None
    assert found.architecture == name
    ours = build_network(name, 10).eval()
    ours.load_state_dict(found.weights)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    wanted = described_scores(network, written, weights, images)
    with torch.no_grad():
        assert torch.allclose(ours(images), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("depth", [101, 152])
def test_the_deepest_networks_are_told_by_their_blocks(depth: int) -> None:
    blocks = {101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[depth]
    layers = layers_of(Described(FOUR_STAGES, blocks, bottleneck=True), TORCHVISION)
    weights = {f"{name}.weight": torch.empty(shape, device="meta") for *_, name, shape in layers}
    for name in [name for name, tensor in weights.items() if tensor.dim() == 1]:
        for kind in ("bias", "running_mean", "running_var"):
            weights[f"{name.removesuffix('weight')}{kind}"] = weights[name]
    weights |= {"fc.weight": torch.empty(100, 2048, device="meta"), "fc.bias": torch.empty(100, device="meta")}
    found = translate(weights)
    assert found is not None
    assert found.architecture == f"imagenet-resnet-{depth}"


def test_batch_norms_of_old_files_have_no_counters() -> None:
    weights = {name: each for name, each in drawn(SMALLEST, TORCHVISION).items() if "num_batches" not in name}
    found = translate(weights)
    assert found is not None
    build_network("resnet-8-projection", 10).load_state_dict(found.weights)


def without(part: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {name: tensor for name, tensor in weights.items() if not name.startswith(part)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: weights | {"layer1.0.conv1.weight": torch.zeros(24, 16, 3, 3)},
            "its layer1.0.conv1.weight has shape (24, 16, 3, 3), that of a resnet-8-projection (16, 16, 3, 3)",
        ),
        (
            lambda weights: weights | {"layer4.0.conv1.weight": torch.zeros(128, 64, 3, 3)},
            "its stages have 1, 1, 1, 1 blocks, as no network here",
        ),
        (
            lambda weights: weights | {"layer2.1.conv1.weight": torch.zeros(32, 32, 3, 3)},
            "its stages have 1, 2, 1 blocks, as no network here",
        ),
        (
            lambda weights: weights | {"layer1.0.conv3.weight": torch.zeros(64, 16, 1, 1)},
            "its stages have 1, 1, 1 bottlenecks, as no network here",
        ),
        (lambda weights: weights | {"layer3.4.conv1.weight": torch.zeros(1)}, "blocks of its stages are missing"),
        (lambda weights: weights | {f"layer{10**15}.0.bn1.bias": torch.zeros(1)}, "it has more than 4 stages"),
        (lambda weights: weights | {"fc.weight": torch.tensor(1.0)}, "its last layer is missing"),
        (
            lambda weights: weights | {"conv1.weight": torch.tensor(1.0)},
            "its first layer or the batch norm beside it is missing",
        ),
        (
            lambda weights: weights | {"conv1.weight": torch.zeros(16, 3, 7, 7)},
            "its first layer is 7 x 7, for larger images than these",
        ),
        (
            lambda weights: weights | {"layer1.0.se.fc1.weight": torch.zeros(1)},
            "it has layer1.0.se.fc1.weight, which no network here has",
        ),
        (lambda weights: weights | {"pool.weight": torch.zeros(1)}, "it has pool.weight, which no network here has"),
        (
            lambda weights: weights | {"layer1.0.conv1.bias": torch.zeros(16)},
            "it has layer1.0.conv1.bias, which a resnet-8-projection does not have",
        ),
        (without("bn1"), "its first layer or the batch norm beside it is missing"),
        (without("fc"), "its last layer is missing"),
        (without("layer2.0.bn2.running_mean"), "it lacks the blocks.1.norms.1.running_mean of a resnet-8-projection"),
        (
            lambda weights: weights | {"layer1.0.downsample.0.weight": torch.zeros(16, 16, 1, 1)},
            "it has layer1.0.downsample.0.weight, which a resnet-8-projection does not have",
        ),
    ],
)
def test_a_network_of_public_code_that_is_not_here_is_told_in_one_line(
    tmp_path: Path,
    made_up_cifar10: Path,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
) -> None:
    path = tmp_path / "public.pth"
    torch.save(change(drawn(SMALLEST, TORCHVISION)), path)
    config = config_of("resnet-8-projection", path, made_up_cifar10)
    with pytest.raises(UserError) as caught:
        open_teacher(config, load_images(config.data), "cpu")
    assert str(caught.value) == f"{path} holds a residual network of public code that is not here: {message}"


def test_a_public_teacher_of_other_classes_is_refused(tmp_path: Path, made_up_cifar10: Path) -> None:
    path = tmp_path / "public.pth"
    torch.save(drawn(SMALLEST, TORCHVISION, classes=100), path)
    config = config_of("resnet-8-projection", path, made_up_cifar10)
    with pytest.raises(UserError, match=r"public\.pth tells 100 classes apart, the images of this run have 10$"):
        open_teacher(config, load_images(config.data), "cpu")


def config_of(network: str, path: Path, folder: Path, **teacher: Any) -> CifarConfig:
    data = DataConfig("cifar10", str(folder), official=False, validation_images=40)
    return CifarConfig(
        device="cpu",
        threads=1,
        precision="float32",
        data=data,
        teacher=TeacherConfig(network, str(path), **teacher),
        training=TrainingConfig(epochs=1, batch_size=40, learning_rate=0.05),
    )


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
    assert translate({"features.0.weight": torch.zeros(64, 3, 3, 3)}) is None  # as VGG is written
    assert translate({}) is None


def test_a_teacher_from_a_file_is_introduced_before_its_student_learns(
    tmp_path: Path, made_up_cifar10: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "public.pth"
    last, averaged = (learned(Public(1, 1, "linear", wide=False)).state_dict() for _ in range(2))
    torch.save({"state_dict": last, "state_dict_ema": averaged}, path)
    config = config_of("resnet-8", path, made_up_cifar10)
    with Run.open(tmp_path / "run", config, kind="cifar", command="test") as run:
        summary = run_lineage(CifarDomain(config, load_images(config.data)), config, run)
    accuracy = summary["generations"][0]["metrics"]["test_accuracy"]
    said = capsys.readouterr().err
    assert f"{path} holds averaged weights (state_dict_ema): they teach\n" in said
    found = load_classifier(tmp_path / "run" / "generation_0.safetensors").network.state_dict()
    assert torch.equal(found["stem.weight"], averaged["conv1.weight"])
    introduced = said.index(f"{path} is right in {accuracy:.2%} of the test images")
    assert introduced < said.index("generation 1 learns")


def test_a_teacher_of_public_code_is_opened_or_told_by_name(tmp_path: Path, made_up_cifar10: Path) -> None:
    network, path = learned(Public(1, 1, "linear", wide=False)), tmp_path / "public.pth"
    # as DataParallel and a training script store them
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in network.state_dict().items()}}, path)
    config = config_of("resnet-8", path, made_up_cifar10)
    images = load_images(config.data)
    classifier = open_teacher(config, images, "cpu")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.allclose(classifier.network(pixels), network(pixels), atol=1e-5)
    wanted = f"{path} holds a resnet-8, but teacher.network is wrn-10-1; choose --teacher.network resnet-8"
    with pytest.raises(UserError, match=re.escape(wanted)):
        open_teacher(config_of("wrn-10-1", path, made_up_cifar10), images, "cpu")
