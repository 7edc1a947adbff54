"""The doctor before each lesson of one's own modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from polydistill.errors import UserError
from polydistill.losses import ban
from polydistill.modules import ModuleDomain

LABELS = torch.arange(60) % 3
INPUTS = 3 * torch.eye(3)[LABELS] + torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
DATA = DataLoader(TensorDataset(INPUTS, LABELS), 60, shuffle=True)


class Net(nn.Module):
    """Takes ``x``, and in other batches what is added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor, more: Tensor | float = 0.0) -> Tensor:
        scores: Tensor = self.layer(x + more)
        return scores


def domain(batches: Any = DATA, build: Any = Net, **options: Any) -> ModuleDomain:
    return ModuleDomain(build, batches, batches, **{"epochs": 20, **options})


@pytest.mark.parametrize("objective", ["ban", "cwtm", "dkpp", "hinton_kd"])
def test_each_lesson_is_examined_and_stays_the_same(objective: str, capsys: pytest.CaptureFixture[str]) -> None:
    how = {"objective": objective, "classes": 3}
    plain = [one.summary() for one in domain(**how).distill(2)]
    assert capsys.readouterr().out == ""
    assert [one.summary() for one in domain(**how).distill(2, doctor=True)] == plain
    printed = capsys.readouterr().out
    assert printed.count(f"doctor: {objective}, 60 samples of 3 classes on cpu") == 2
    assert printed.count("the teacher is another network, in evaluation mode") == 2
    assert "the teacher is right in" in printed
    assert "WRONG" not in printed


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        ({"x": INPUTS, "more": torch.zeros(60, 1), "labels": LABELS}, "60 samples of 3 classes"),
        ((INPUTS, torch.zeros(60, 1), LABELS), "60 samples of 3 classes"),
        (
            (INPUTS.view(6, 10, 3), LABELS.view(6, 10).index_fill(1, torch.tensor([9]), -100)),
            "54 samples of 3 classes (6 more have no label)",
        ),
    ],
    ids=["mapping", "two inputs", "sequences"],
)
def test_the_doctor_reads_batches_as_the_lesson_does(
    batch: Any, samples: str, capsys: pytest.CaptureFixture[str]
) -> None:
    list(domain([batch]).distill(1, doctor=True))
    printed = capsys.readouterr().out
    assert f"doctor: ban, {samples}" in printed
    assert "WRONG" not in printed


def test_a_lesson_that_the_doctor_finds_wrong_does_not_begin() -> None:
    """A teacher whose labels were shifted by one."""
    teacher = Net()
    with torch.no_grad():
        teacher.layer.weight.copy_(10 * torch.eye(3).roll(1, dims=0))
    one = domain(teacher=teacher)
    with pytest.raises(UserError, match="the doctor finds the lesson of generation 1 wrong: the teacher is right in"):
        list(one.distill(1, doctor=True))
    assert sorted(one.members) == [0]


def test_a_loss_of_ones_own_is_told_the_other_way() -> None:
    def own(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return ban(student, teacher)

    with pytest.raises(ValueError, match=r"own is a function: polydistill\.losses\.doctor compares it with the one"):
        list(domain(objective=own).distill(1, doctor=True))
