"""Students that have layers of their teacher, or are led by its hidden states; DenseNets that teach ResNets."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polydistill.errors import Interrupted
from polydistill.learning.average import WeightAverage
from polydistill.learning.lesson import Lesson
from polydistill.learning.networks import share_weights, start_learning
from polydistill.learning.schedules import TrainingConfig
from polydistill.learning.update import Update, make_optimizer
from polydistill.lineage import LineageConfig, run_lineage
from polydistill.runs import Run
from polydistill.runs.interruption import StopSignals
from polydistill.vision.classifier import load_classifier
from polydistill.vision.config import CifarConfig, StudentConfig, TeacherConfig
from polydistill.vision.domain import CifarDomain
from polydistill.vision.images.data import DataConfig, load_images
from polydistill.vision.networks import StagedNetwork, build_network
from polydistill.vision.networks.sharing import ROLES, check_same_states, check_sharing, share_layers
from polydistill.vision.plan import PRODUCTS
from polydistill.vision.report import format_summary
from tests.crashes.same import assert_same_run
from tests.stop_signals import StopAt

DENSE, WIDE = "densenet-10-4", "wide-1-0.5-like-densenet-10-4"


def pair(student: str = WIDE) -> tuple[StagedNetwork, StagedNetwork]:
    return build_network(student, 10, seed=1), build_network(DENSE, 10, seed=2)


def draw(n: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 10


def ends(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items() if name.startswith(("stem", "head"))}


# ---- copied and frozen -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("roles", [("first",), ("last",), ROLES, ()])
def test_the_layers_named_are_the_teachers_in_memory_of_their_own_and_no_others_are(roles: Any) -> None:
    student, teacher = pair()
    share_layers(student, teacher, roles)
    freeze = {"first": student.stem, "last": student.head}
    for role, layer in freeze.items():
        its = teacher.stem if role == "first" else teacher.head
        same = all(torch.equal(a, b) for a, b in zip(layer.parameters(), its.parameters(), strict=True))
        assert same == (role in roles)
        assert all(parameter.requires_grad != (role in roles) for parameter in layer.parameters())
    assert all(parameter.requires_grad for parameter in student.blocks.parameters())  # type: ignore[operator, union-attr]
    assert not share_weights(student, teacher)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("student_of", [WIDE, DENSE])
def test_no_gradient_no_decay_and_no_momentum_reaches_a_frozen_layer(student_of: str, momentum: float) -> None:
    student, teacher = pair(student_of)
    share_layers(student, teacher, ROLES)
    before, inner = ends(student), student.norm.weight.detach().clone()
    config = TrainingConfig(learning_rate=0.1, momentum=momentum, weight_decay=0.5)
    optimizer = make_optimizer(student, config, config.learning_rate)
    update = Update(student, Lesson("ban", teacher), optimizer)
    images, labels = draw()
    start_learning(student)
    for _ in range(3):
        update(images, labels, len(images))
    assert all(torch.equal(before[name], tensor) for name, tensor in ends(student).items())
    assert not torch.equal(student.norm.weight, inner)
    frozen = [*student.stem.parameters(), *student.head.parameters()]
    assert all(parameter.grad is None and parameter not in optimizer.state for parameter in frozen)
    assert student.stem.weight.grad is None


def test_the_mean_of_a_students_weights_has_the_frozen_layers_as_they_are() -> None:
    student, teacher = pair()
    share_layers(student, teacher, ROLES)
    before, average = ends(student), WeightAverage(student, 0.3)
    config = TrainingConfig(learning_rate=0.1)
    update = Update(student, Lesson("ban", teacher), make_optimizer(student, config, config.learning_rate))
    images, labels = draw()
    for _ in range(4):
        update(images, labels, len(images))
        average.add()
    average.show()
    assert all(torch.equal(before[name], tensor) for name, tensor in ends(student).items())


def test_batch_norms_of_a_frozen_part_keep_their_statistics_while_others_learn_theirs() -> None:
    frozen, free = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)), nn.BatchNorm2d(4)
    network = nn.Sequential(frozen, free, nn.Flatten(), nn.Dropout(0.1))
    frozen.requires_grad_(False)
    start_learning(network)
    assert [part.training for part in (frozen, *frozen, free, network[2], network[3])] == [False] * 4 + [True] * 3
    before = frozen[1].running_mean.clone()  # type: ignore[operator, union-attr]
    network(torch.randn(4, 3, 8, 8) + 5)
    assert torch.equal(frozen[1].running_mean, before)  # type: ignore[arg-type]
    assert free.running_mean is not None
    assert free.running_mean.abs().sum() > 0


@pytest.mark.parametrize(
    ("student", "teacher", "roles", "message"),
    [
        ("wrn-10-1", DENSE, ("first",), "first layer of wrn-10-1 has shape (16, 3, 3, 3), that of its teacher"),
        ("densenet-90-60", "densenet-90-60-depth-2", ("first", "first"), "each once; got ['first', 'first']"),
        ("densenet-16-4", DENSE, ("last",), "last layer of densenet-16-4 has shape (10, 16), that of its teacher"),
        (DENSE, DENSE, ("middle",), "layers to share are first, last"),
    ],
)
def test_layers_that_cannot_be_shared_are_refused(student: str, teacher: str, roles: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_sharing(student, teacher, roles, 10)


def test_layers_of_other_shapes_are_refused_when_they_are_copied_too() -> None:
    student, teacher = build_network("wrn-10-1", 10), build_network(DENSE, 10)
    with pytest.raises(ValueError, match=re.escape("the first layer has shape (16, 3, 3, 3) in the student and (8,")):
        share_layers(student, teacher, ("first",))


# ---- hidden states -----------------------------------------------------------------------------------------------


def test_the_update_takes_the_gradient_of_the_objective_and_of_the_states_as_autograd_does() -> None:
    student, teacher = pair()
    student, teacher = student.double(), teacher.double()
    images, labels = (value.double() if value.is_floating_point() else value for value in draw())
    update = Update(
        student, Lesson("ban_l", teacher, activation_weight=0.7), torch.optim.SGD(student.parameters(), 0.0)
    )
    start_learning(student)
    _, _, loss = update(images, labels, len(images))
    found = {name: parameter.grad for name, parameter in student.named_parameters()}

    z, own = student.see(images)
    with torch.no_grad():
        t, its = teacher.see(images)
    objective = F.cross_entropy(z, labels) + F.cross_entropy(z, t.softmax(1))
    expected = objective + 0.7 * sum(F.mse_loss(a, b) for a, b in zip(own, its, strict=True))
    gradients = torch.autograd.grad(expected, list(student.parameters()))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)  # scores are taken to float32
    assert len(own) == 3
    for (name, gradient), wanted in zip(found.items(), gradients, strict=True):
        assert gradient is not None, name
        assert torch.allclose(gradient, wanted, rtol=1e-4, atol=1e-7), name


def test_of_a_twin_with_the_teachers_weights_the_states_add_nothing() -> None:
    teacher = build_network(DENSE, 10, seed=2).eval()
    losses = []
    for weight in (0.0, 5.0):
        twin = build_network(DENSE, 10, seed=2).eval()
        lesson = Lesson("policy_kl", teacher, activation_weight=weight)
        update = Update(twin, lesson, torch.optim.SGD(twin.parameters(), 0.0))
        losses.append(update(*draw(), 6)[2].item())
    assert losses == [0.0, 0.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lesson("ban", nn.Linear(3, 2), activation_weight=-1.0), "at least 0, got -1"),
        (lambda: Lesson("ban", nn.Linear(3, 2), activation_weight=float("nan")), "at least 0, got nan"),
        (lambda: Lesson("cross_entropy", activation_weight=1.0), "a teacher that is a network"),
        (lambda: Lesson("ban", lambda x: x, activation_weight=1.0), "a teacher that is a network"),
    ],
)
def test_states_of_nobody_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_network_that_shows_no_states_is_refused() -> None:
    student, lesson = nn.Linear(3, 2), Lesson("ban", nn.Linear(3, 2), activation_weight=1.0)
    with pytest.raises(TypeError, match="Linear does not show its hidden states"):
        Update(student, lesson, torch.optim.SGD(student.parameters(), 0.1))


def test_states_are_not_matched_in_a_batch_that_comes_in_parts() -> None:
    student, teacher = pair()
    update = Update(student, Lesson("ban", teacher, activation_weight=1.0), torch.optim.SGD(student.parameters(), 0.1))
    images, labels = draw()
    with pytest.raises(ValueError, match="not matched in parts"):
        update.in_parts([images[:3], images[3:]], labels, 6)


def test_states_of_other_shapes_are_refused_by_name_and_stage() -> None:
    with pytest.raises(ValueError, match=re.escape("after stage 1 has shape (16, 32, 32), that of its teacher")):
        check_same_states("wrn-10-1", DENSE)
    with pytest.raises(ValueError, match="resnet-8 has 3 stages, its teacher imagenet-resnet-18 4"):
        check_same_states("resnet-8", "imagenet-resnet-18")
    check_same_states(WIDE, DENSE)


# ---- lineages ----------------------------------------------------------------------------------------------------


@pytest.fixture
def config(made_up_cifar10: Path) -> CifarConfig:
    return CifarConfig(
        device="cpu",
        threads=1,
        precision="float32",
        data=DataConfig("cifar10", str(made_up_cifar10), official=False, validation_images=40),
        teacher=TeacherConfig(DENSE),
        student=StudentConfig(WIDE, shared=ROLES, activation_weight=0.1),
        training=TrainingConfig(epochs=1, batch_size=40, learning_rate=0.05, schedule="cosine", log_every_steps=2),
        lineage=LineageConfig(2),
    )


def go_on(config: CifarConfig, out: Path, stop: StopSignals | None = None) -> dict[str, Any]:
    with Run.open(out, config, kind="cifar", command="test") as run:
        return run_lineage(CifarDomain(config, load_images(config.data)), config, run, stop=stop or StopSignals())


def test_residual_students_keep_the_first_and_last_layer_of_a_densenet_through_all_generations_and_after_a_stop(
    config: CifarConfig, tmp_path: Path
) -> None:
    summary = go_on(config, tmp_path / "whole")
    networks = [load_classifier(tmp_path / "whole" / f"generation_{k}.safetensors") for k in range(3)]
    assert [network.card["architecture"] for network in networks] == [DENSE, WIDE, WIDE]
    first, *students = (ends(network.network) for network in networks)
    assert all(torch.equal(first[name], student[name]) for student in students for name in first)
    parameters = [generation["parameters"] for generation in summary["generations"]]
    assert parameters[1] == parameters[2] != parameters[0]
    text = format_summary(summary, wide=True)
    assert f"generation 0, {DENSE}" in text
    assert f"generation 2, {WIDE}" in text
    assert f"{parameters[0]:,}" in text
    assert f"{parameters[1]:,}" in text
    with pytest.raises(Interrupted, match=r"in generation 1 after step \d,"):
        go_on(config, tmp_path / "again", StopAt(8))
    go_on(config, tmp_path / "again")
    assert_same_run(tmp_path / "whole", tmp_path / "again", PRODUCTS)


def test_what_is_inside_changes_what_a_student_learns(config: CifarConfig, tmp_path: Path) -> None:
    hashes = set()
    for name, student in {
        "plain": StudentConfig(WIDE),
        "shared": StudentConfig(WIDE, shared=("first",)),
        "states": StudentConfig(WIDE, activation_weight=0.5),
    }.items():
        one = dataclasses.replace(config, student=student, lineage=LineageConfig(1))
        hashes.add(go_on(one, tmp_path / name)["generations"][1]["sha256"])
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (StudentConfig("wrn-10-1", shared=("first",)), "student.shared: the first layer of wrn-10-1 has shape"),
        (StudentConfig("wrn-10-1", activation_weight=1.0), "student.activation_weight: the hidden state of wrn-10-1"),
    ],
)
def test_a_config_whose_networks_do_not_fit_is_refused_before_anything_is_trained(
    config: CifarConfig, student: StudentConfig, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        dataclasses.replace(config, student=student)
    assert "\n" not in str(caught.value)
