"""A teacher that one has, and objectives of one's own."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polydistill.errors import UserError
from polydistill.losses import OBJECTIVES, ban, dkd, policy_kl
from polydistill.modules import ModuleDomain
from polydistill.provenance import weights_sha256

LABELS = torch.arange(12) % 3
DATA = [(torch.randn(12, 2, generator=torch.Generator().manual_seed(1)) + LABELS.unsqueeze(1), LABELS)]


def build(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, width))


def domain(**options: Any) -> ModuleDomain:
    return ModuleDomain(options.pop("build", build), DATA, DATA, epochs=2, **options)


def test_a_teacher_that_one_has_is_generation_0_and_stays_as_it_is() -> None:
    teacher = build().train()
    teacher[1].eval()
    teacher[0].weight.requires_grad_(False)
    before = weights_sha256(teacher.state_dict())
    found = list(domain(teacher=teacher).distill(2))
    assert found[0].sha256 == found[1].teacher_sha256 == weights_sha256(teacher.state_dict()) == before
    assert 0 <= found[0].metrics["test_accuracy"] <= 1
    assert [part.training for part in teacher.modules()] == [True, True, False, True]
    assert [parameter.requires_grad for parameter in teacher.parameters()] == [False, *[True] * 5]
    teacher[0].weight.data.zero_()  # the lineage has a copy
    assert weights_sha256(found[0].member.state_dict()) == before


def test_a_file_of_weights_is_the_same_teacher_as_the_module(tmp_path: Path) -> None:
    teacher, path = build(), tmp_path / "teacher.pt"
    torch.save(teacher.state_dict(), path)
    of_module = list(domain(teacher=teacher).distill(1))
    for file in (path, str(path)):
        of_file = list(domain(teacher=file).distill(1))
        assert [generation.summary() for generation in of_file] == [generation.summary() for generation in of_module]


def test_a_foreign_file_is_told_by_its_names(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pt"
    torch.save({"conv1.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"missing 0\.weight, 0\.bias, 1\.weight and .* more; unexpected conv1\.weight"):
        next(domain(teacher=path).distill())


def test_students_of_a_given_teacher_may_be_another_network() -> None:
    found = list(domain(teacher=build(), build_student=lambda: nn.Linear(2, 3)).distill(1))
    assert [generation.parameters for generation in found] == [67, 9]


def test_a_teacher_that_has_just_learned_is_copied_with_what_it_remembers() -> None:
    """Spectral norm of the old kind keeps a weight with its graph."""
    teacher = nn.Sequential(nn.utils.spectral_norm(nn.Linear(2, 3)))
    expected = teacher(DATA[0][0])
    teacher.eval()
    found = next(domain(teacher=teacher).distill(1))
    torch.testing.assert_close(found.member(DATA[0][0]), teacher(DATA[0][0]))
    expected.sum().backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_teacher_may_be_one_of_torchscript() -> None:
    plain = build()
    scripted = torch.jit.script(plain)
    of_scripted, of_plain = (list(domain(teacher=one).distill(1)) for one in (scripted, plain))
    assert of_scripted[1].sha256 == of_plain[1].sha256
    assert all(parameter.requires_grad for parameter in scripted.parameters())


def test_a_teacher_that_cannot_be_copied_is_told_the_other_way() -> None:
    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo: object) -> nn.Module:
            raise RuntimeError("holds a socket")

    with pytest.raises(ValueError, match="cannot be copied, give the path of a file of its weights: holds a socket"):
        next(domain(teacher=Stubborn(2, 3)).distill())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_teacher_may_give_scores_of_another_float_type(dtype: torch.dtype) -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).to(dtype)

    found = list(domain(teacher=Cached()).distill(1))
    assert 0 <= found[1].metrics["agreement"] <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_teacher_in_a_shorter_float_type_is_cast_up_and_stays_as_it_is(dtype: torch.dtype) -> None:
    teacher = build().to(dtype)
    found = list(domain(teacher=teacher).distill(1))
    upcast = list(domain(teacher=copy.deepcopy(teacher).float()).distill(1))
    assert found[1].sha256 == upcast[1].sha256
    assert {parameter.dtype for parameter in teacher.parameters()} == {dtype}


def test_a_function_of_ones_own_teaches_as_the_loss_that_it_is() -> None:
    def mine(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        assert labels.shape == student.shape[:1]
        return ban(student, teacher)

    expected = list(domain(objective="ban").distill(1))[1]
    found = list(domain(objective=mine).distill(1))[1]
    assert found.objective == "mine"
    assert found.sha256 == expected.sha256


@pytest.mark.parametrize("function", [ban, policy_kl, functools.partial(policy_kl, temperature=0.5), dkd])
def test_a_function_of_the_library_is_given_what_it_takes_and_keeps_its_defaults(function: Any) -> None:
    name = getattr(function, "func", function).__name__
    bound = {"temperature": OBJECTIVES[name].default("temperature")} if name == "policy_kl" else {}
    options = {**bound, **getattr(function, "keywords", {})}
    expected = list(domain(objective=name, options=options).distill(1))[1]
    found = list(domain(objective=function).distill(1))[1]
    assert (found.objective, found.sha256) == (name, expected.sha256)


def test_options_of_ones_own_function_are_bound_or_given() -> None:
    def tempered(
        student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float = 1.0, permutation: str = ""
    ) -> Tensor:
        assert permutation == "mine"
        return policy_kl(student, teacher, temperature=temperature)

    expected = list(domain(objective="policy_kl", options={"temperature": 2.0}).distill(1))[1]
    options = {"temperature": 2.0, "permutation": "mine"}
    bound = functools.partial(functools.partial(tempered), **options)
    for one in (domain(objective=bound), domain(objective=tempered, options=options)):
        found = list(one.distill(1))[1]
        assert (found.objective, found.sha256) == ("tempered", expected.sha256)


def test_an_object_that_is_called_goes_by_its_class() -> None:
    class Squares:
        def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
            return (student - teacher).square().sum(dim=1)

    assert domain(objective=Squares()).objective == "Squares"


@pytest.mark.parametrize(
    ("function", "error", "text"),
    [
        (lambda z, t, y: ban(z, t).mean(), ValueError, r"one loss per sample, \(12,\), got \(\): do not reduce it"),
        (lambda z, t, y: ban(z, t).unsqueeze(1), ValueError, r"one loss per sample, \(12,\), got \(12, 1\)"),
        (lambda z, t, y: z - t, ValueError, r"got \(12, 3\)"),
        (lambda z, t, y: ban(z, t) * float("nan"), FloatingPointError, "is not finite on the first batch"),
        (lambda z, t, y: ban(z.detach(), t), ValueError, "has no gradient"),
        (lambda z, t, y: ban(z.detach(), torch.zeros(12, 3, requires_grad=True)), ValueError, "has no gradient"),
        (lambda z, t, y: ban(z, t).tolist(), TypeError, "must return a tensor of losses, got"),
        (lambda z, t, y: None, TypeError, "must return a tensor of losses, got None"),
        (lambda z, t: ban(z, t), TypeError, "takes 2 positional arguments but 3 were given"),
        (lambda z, t, y: z @ t, ValueError, "cannot be computed of the first batch"),
    ],
    ids=["reduced", "column", "per class", "nan", "detached", "other gradient", "list", "none", "arguments", "shapes"],
)
def test_a_function_that_gives_no_losses_is_refused_before_the_first_step(
    function: Any, error: type[Exception], text: str
) -> None:
    steps: list[int] = []

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        made = torch.optim.SGD(parameters, 0.1)
        made.register_step_pre_hook(lambda *_: steps.append(1))
        return made

    with pytest.raises(error, match=text) as caught:
        next(domain(objective=function, optimizer=optimizer).distill())
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("objective ") == 1
    assert not steps
