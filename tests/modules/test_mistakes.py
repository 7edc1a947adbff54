"""Mistakes with one's own model and data: told in one line, before anything was trained."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from polydistill.losses import OBJECTIVES
from polydistill.modules import ModuleDomain

LABELS = torch.arange(12) % 3
GOOD = [(torch.randn(12, 2, generator=torch.Generator().manual_seed(0)), LABELS)]


def build(classes: int = 3) -> nn.Module:
    return nn.Linear(2, classes)


SHARED = build()


def table() -> nn.Module:
    return nn.Embedding(3, 3)


class Nothing(IterableDataset[tuple[Tensor, Tensor]]):
    """Whose length nobody knows."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(())


class Early:
    """Gives fewer batches than it says."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(GOOD * 2)


class Once:
    """Gives what one iterator holds."""

    def __init__(self, n: int = 1) -> None:
        self.left = iter(GOOD * n)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.left


def domain(**options: Any) -> ModuleDomain:
    given = {"build": build, "batches": GOOD, "test": GOOD, "epochs": 1, **options}
    return ModuleDomain(**given)


OF_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"objective": "bann"}, ValueError, "unknown objective 'bann'.*did you mean 'ban'"),
    ({"objective": 3}, TypeError, "objective must be a name or a function"),
    ({"objective": "dkd", "options": {"aplha": 1.0}}, ValueError, "no option aplha.*did you mean alpha"),
    ({"objective": "dkd", "options": {"alpha": math.nan}}, ValueError, "alpha must be at least 0 and finite, got nan"),
    ({"objective": "dkd", "options": {"beta": math.inf}}, ValueError, "beta must be at least 0 and finite, got inf"),
    ({"objective": "hinton_kd", "options": {"temperature": 0}}, ValueError, "temperature must be from"),
    ({"objective": "ban_l", "options": {"label_weight": -1.0}}, ValueError, "label_weight must be at least 0"),
    ({"objective": "jsd", "options": {"beta": 1.5}}, ValueError, r"beta must be in \(0, 1\), got 1.5"),
    ({"objective": "ban_l", "options": {"label_weight": "1"}}, TypeError, "label_weight must be a number"),
    ({"objective": "dkpp"}, ValueError, "must be told how many, by `classes`"),
    (
        {"objective": "dkpp", "classes": 3, "options": {"permutation": "frehs"}},
        ValueError,
        "fresh or fixed, got 'frehs'",
    ),
    ({"classes": 1}, ValueError, "classes must be at least 2, got 1"),
    ({"shard": "Block"}, TypeError, "`shard` must be True, or the classes of the blocks"),
    ({"shard": (nn.Linear, 3)}, TypeError, "`shard` must be True, or the classes of the blocks"),
    ({"shard": ()}, TypeError, "`shard` must be True, or the classes of the blocks"),
    ({"shard": True, "precision": "float16"}, ValueError, "shard is for float32 and bfloat16"),
    ({"shard": nn.Linear, "compile": True}, ValueError, "shard and compile do not go together"),
    ({"shard": True, "teacher_cache": "scores"}, ValueError, "shard and teacher_cache do not go together"),
    ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
    ({"epochs": math.nan}, TypeError, "epochs must be an integer, got nan"),
    ({"epochs": 1.0}, TypeError, "epochs must be an integer, got 1.0"),
    ({"seed": -1}, ValueError, "seed must be from 0 to .*, got -1"),
    ({"seed": "0"}, TypeError, "seed must be an integer, got '0'"),
    ({"ignore_index": 0.5}, TypeError, "ignore_index must be an integer, got 0.5"),
    ({"batches": []}, ValueError, "`batches` holds no batches"),
    ({"test": []}, ValueError, "`test` holds no batches"),
    ({"batches": DataLoader(TensorDataset(GOOD[0][0], LABELS), 99, drop_last=True)}, ValueError, "holds no batches"),
    ({"batches": None}, TypeError, "`batches` must be iterable"),
    ({"test": 3}, TypeError, "`test` must be iterable"),
    ({"batches": iter(GOOD)}, ValueError, "`batches` must be iterable once per epoch.*an iterator"),
    ({"test": (batch for batch in GOOD)}, ValueError, "`test` must be iterable once per epoch"),
    ({"build": 3}, TypeError, "`build` must be a function, got a int"),
    (
        {"build": build()},
        TypeError,
        "what you have trained is given as `teacher`; got a module",
    ),
    ({"objective": OBJECTIVES["dkd"], "options": {"aplha": 1.0}}, ValueError, "no option aplha.*did you mean alpha"),
    ({"build_student": 3}, TypeError, "`build_student` must be a function, got a int"),
    ({"optimizer": "sgd"}, TypeError, "`optimizer` must be a function, got a str"),
    ({"teacher": 3}, TypeError, "`teacher` must be a module or the path of a file, got a int"),
]
OF_BATCHES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"batches": Once()}, ValueError, "`batches` is used up the second time"),
    ({"test": Once(5)}, ValueError, "`test` is used up the second time"),
    ({"build": lambda: SHARED}, ValueError, "`build` must make a fresh module each time"),
    ({"build_student": lambda: SHARED, "build": lambda: SHARED}, ValueError, "`build_student` must make a fresh"),
    ({"build": lambda: nn.Sequential(build(), nn.Softmax(1))}, ValueError, "the module that .* gives probabilities"),
    ({"teacher": nn.Sequential(build(), nn.Softmax(1))}, ValueError, "the teacher gives probabilities"),
    ({"batches": [(GOOD[0][0].double(), LABELS)]}, ValueError, r"`batches`: .*\(the inputs are torch.float64, the mod"),
    ({"teacher": build().double()}, ValueError, "the teacher, .*the inputs are torch.float32, the module is torch.fl"),
    ({"batches": [(torch.zeros(12, 5), LABELS)]}, ValueError, r"`batches`: mat1 and mat2 .* \(12x5 and 2x3\)$"),
    ({"build": table, "batches": [(LABELS + 1, LABELS)]}, ValueError, "`batches`: index out of range in self"),
    (
        {"test": [(GOOD[0][0], torch.eye(3)[LABELS])]},
        TypeError,
        r"probabilities, which are for `batches` alone: give the class of .* labels.argmax\(dim=-1\)",
    ),
    (
        {"validation": [(GOOD[0][0], torch.eye(3)[LABELS])]},
        TypeError,
        "the first batch of `validation` has labels that",
    ),
    ({"batches": [(GOOD[0][0], torch.eye(4)[LABELS])]}, ValueError, "of 3 classes; the first batch of `batches` has 4"),
    ({"batches": [(GOOD[0][0], 2 * torch.eye(3)[LABELS])]}, ValueError, "has a row from 0 to 2 that adds up to 2$"),
    ({"batches": [(GOOD[0][0], torch.eye(3)[LABELS] * math.nan)]}, ValueError, "a row from nan to nan that adds up"),
    ({"batches": [(GOOD[0][0], torch.zeros(12, 3))]}, ValueError, "is -100, which is ignored, or zeros"),
    (
        {"batches": [(GOOD[0][0], torch.zeros(12, 3))], "ignore_index": None},
        ValueError,
        "a row from 0 to 0 that adds up to 0$",
    ),
    (
        {"batches": [(GOOD[0][0], torch.eye(3)[LABELS])], "objective": "dkd"},
        ValueError,
        "objective dkd needs the class of each sample, .* ban_l, hinton_kd",
    ),
    ({"batches": [(GOOD[0][0], torch.eye(3).long()[LABELS])]}, ValueError, "for one-hot labels give the class of each"),
    ({"batches": [(GOOD[0][0], LABELS > 0)]}, TypeError, r"labels.long\(\) makes them so"),
    ({"build": lambda: None}, TypeError, "`build` must make a torch module, it made a NoneType"),
    ({"build_student": lambda: 3}, TypeError, "`build_student` must make a torch module, it made a int"),
    ({"build_student": lambda: build(4)}, ValueError, "the student gives 4 scores per sample and its teacher 3"),
    ({"teacher": build(4)}, ValueError, "the student gives 3 scores per sample and its teacher 4"),
    ({"objective": "dkpp", "classes": 4}, ValueError, "`classes` is 4, but .* gives 3 scores"),
    (
        {"build": lambda: nn.LazyLinear(3)},
        ValueError,
        "`build` makes a module with lazy parameters: call it there on",
    ),
    ({"build": lambda: build(1)}, ValueError, "gives one score per sample"),
    ({"build": lambda: nn.ConstantPad1d((0, 1), 0.0)}, ValueError, "no parameter that learns"),
    ({"build": lambda: build().requires_grad_(False)}, ValueError, "no parameter that learns"),
    ({"build_student": lambda: build().requires_grad_(False)}, ValueError, "the student has no parameter that learns"),
    ({"optimizer": lambda parameters: None}, TypeError, "`optimizer` must make a torch optimiser from parameters"),
    ({"optimizer": lambda _: torch.optim.SGD(build().parameters())}, ValueError, "must use the parameters that it is"),
    ({"batches": [(GOOD[0][0], LABELS + 1)]}, ValueError, "labels must be from 0 to 2.*`batches` has 3"),
    ({"test": [(GOOD[0][0], LABELS - 1)]}, ValueError, "labels must be from 0 to 2.*`test` has -1"),
    ({"batches": [(GOOD[0][0], LABELS.float())]}, TypeError, "labels must be a tensor of integers"),
    ({"batches": [(GOOD[0][0], LABELS[:6])]}, ValueError, "do not fit labels of shape"),
    ({"batches": [(GOOD[0][0], torch.full((12,), -100))]}, ValueError, "every label in `batches` is -100, which is ig"),
    ({"batches": [*GOOD, (GOOD[0][0], LABELS * 2)]}, ValueError, "; batch 2 of `batches` has 4"),
    ({"test": (*GOOD, (GOOD[0][0], LABELS * 2))}, ValueError, "; batch 2 of `test` has 4"),
    (
        {"optimizer": torch.optim.LBFGS, "parts": 2},
        ValueError,
        "makes a LBFGS, which evaluates the loss of a whole batch",
    ),
    (
        {"scheduler": lambda found: torch.optim.lr_scheduler.OneCycleLR(found, 0.1, total_steps=3), "epochs": 4},
        ValueError,
        "`scheduler` makes a OneCycleLR of 3 steps, and there will be 4, one after each epoch$",
    ),
    (
        {
            "scheduler": lambda found: torch.optim.lr_scheduler.OneCycleLR(found, 0.1, total_steps=5),
            "schedule_by": "step",
            "batches": GOOD * 2,
            "epochs": 3,
        },
        ValueError,
        "and there will be 6, one after each batch$",
    ),
    ({"test": [GOOD[0][0]]}, TypeError, "`test`: a batch must be"),
    ({"test": TensorDataset(*GOOD[0])}, ValueError, "`test`: labels must be those of a batch, .* into a DataLoader"),
    ({"validation": DataLoader(Nothing(), 4)}, ValueError, "`validation` holds no batches"),
    (
        {"validation": DataLoader(TensorDataset(GOOD[0][0], LABELS + 1), 12)},
        ValueError,
        "labels must be from 0 to 2.*the first batch of `validation` has 3",
    ),
    ({"teacher": build(2)}, ValueError, "the student gives 3 scores per sample and its teacher 2"),
    ({"output": lambda given: {}["nope"]}, ValueError, "the first batch of `batches`: KeyError: 'nope'$"),
    ({"batches": [({"x": torch.zeros(2)}, LABELS)]}, TypeError, "the module that `build` makes, the first batch of"),
]


class Fixed(nn.Linear):
    """Has weights, and does not use them."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(2, 3)


class Aloof(nn.Linear):
    """Computes no gradients while it is evaluated."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.training):
            return super().forward(x)


class OfTwelve(nn.Linear):
    """Knows batches of one size alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(12, 2))


def plain_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


@pytest.fixture
def _nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def learn(*given: object) -> None:
        raise AssertionError("a step was made")

    monkeypatch.setattr(ModuleDomain, "_learn", learn)


@pytest.mark.parametrize(("options", "error", "text"), OF_ARGUMENTS, ids=[text for *_, text in OF_ARGUMENTS])
def test_what_the_arguments_tell_is_told_by_the_constructor(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        domain(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("_nothing_is_trained")
@pytest.mark.parametrize(("options", "error", "text"), OF_BATCHES, ids=[text for *_, text in OF_BATCHES])
def test_what_a_batch_tells_is_told_before_the_first_step(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        list(domain(**options).distill(1))
    assert "\n" not in str(caught.value)


def test_a_label_that_is_no_class_is_told_with_its_batch() -> None:
    late = TensorDataset(torch.zeros(24, 2), torch.cat([LABELS, LABELS * 2]))
    with pytest.raises(ValueError, match=r"labels must be from 0 to 2, .*; batch 2 of epoch 1 has 4"):
        next(domain(batches=DataLoader(late, 12)).distill())
    one = domain(test=DataLoader(late, 12))
    with pytest.raises(ValueError, match=r"labels must be from 0 to 2, .*; batch 2 of `test` has 4"):
        list(one.distill(1))
    assert sorted(one.members) == [0]


def test_what_fails_in_a_later_batch_is_told_with_it() -> None:
    def network() -> nn.Module:
        return nn.Sequential(build(), nn.BatchNorm1d(3))

    loader = DataLoader(TensorDataset(torch.randn(13, 2), torch.arange(13) % 3), 4)
    with pytest.raises(ValueError, match="more than 1 value per channel when training") as caught:
        next(domain(build=network, batches=loader).distill())
    assert caught.value.__notes__ == ["in batch 4 of epoch 1 of generation 0"]


@pytest.mark.parametrize("name", ["test", "validation"])
def test_batches_for_measuring_that_end_early_are_told(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` ends after 2 batches, and says that it has 3"):
        list(domain(**{name: Early()}).distill(0))


class Broken(TensorDataset):
    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        if index == 9:
            raise OSError("picture_9.jpg is cut")
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("batches", ["while `batches` gave batch 3 of epoch 1"]),
        ("test", ["in batch 3 of `test`", "generation 0 is trained: in this process ModuleDomain.members[0] has it"]),
        ("validation", ["in batch 3 of `validation`"]),
    ],
)
def test_where_a_data_set_fails_is_told(name: str, where: list[str]) -> None:
    with pytest.raises(OSError, match=r"^picture_9\.jpg is cut") as caught:
        list(domain(**{name: DataLoader(Broken(*GOOD[0]), 4)}).distill(0))
    assert caught.value.__notes__ == where


def test_a_part_of_the_output_that_does_not_learn_is_told() -> None:
    class Both(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x @ torch.ones(2, 3), super().forward(x)

    with pytest.raises(ValueError, match="the scores of the student do not depend on its parameters: are they the ri"):
        next(domain(build=lambda: Both(2, 3)).distill())
    assert len(list(domain(build=lambda: Both(2, 3), output=1).distill())) == 2


@pytest.mark.usefixtures("_nothing_is_trained")
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"build_student": lambda: Fixed(2, 3)}, "the scores of the student do not depend on its parameters"),
        ({"teacher": build(), "build": lambda: Fixed(2, 3)}, "the scores of the student do not depend on its param"),
        (
            {"build_student": lambda: OfTwelve(2, 3), "test": [(GOOD[0][0][:6], LABELS[:6])]},
            "the student, the first batch of `test`: shape .* is invalid",
        ),
        (
            {"build_student": lambda: OfTwelve(2, 3), "validation": [(GOOD[0][0][:6], LABELS[:6])]},
            "the student, the first batch of `validation`: shape .* is invalid",
        ),
    ],
)
def test_a_student_that_will_fail_is_told_before_its_teacher_learns(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        next(domain(**given).distill(1))


def test_a_network_that_computes_gradients_only_while_it_learns_is_no_mistake() -> None:
    assert len(list(domain(build=lambda: Aloof(2, 3)).distill(1))) == 2


@pytest.mark.usefixtures("_nothing_is_trained")
def test_a_lineage_without_gradients_is_told() -> None:
    with torch.no_grad(), pytest.raises(ValueError, match=r"gradients are off.*leave out torch.no_grad\(\) around"):
        next(domain().distill(1))


def test_data_that_only_streams_is_good_enough() -> None:
    class Stream(IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield from zip(*GOOD[0], strict=True)

    loader = DataLoader(Stream(), 4)
    assert len(list(domain(batches=loader, test=loader).distill(1))) == 2


def test_a_batch_in_which_no_label_counts_is_no_mistake_and_teaches_nothing() -> None:
    ignored = (GOOD[0][0], torch.full((12,), -100))
    plain = [generation.summary() for generation in domain(optimizer=plain_sgd).distill(1)]
    given = {"batches": [ignored, *GOOD, ignored], "test": [ignored, *GOOD]}
    found = [generation.summary() for generation in domain(optimizer=plain_sgd, **given).distill(1)]
    assert found == plain


class Nan(nn.Module):
    """Gives scores that are not finite where it is told to."""

    def __init__(self, value: float, row: int) -> None:
        super().__init__()
        self.layer, self.value, self.row = nn.Linear(2, 3), value, row

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layer(x)
        if self.training or len(x) != 5:
            return scores
        return scores.index_fill(0, torch.tensor([self.row]), self.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_no_metrics_and_the_student_is_kept(value: float) -> None:
    one = domain(build_student=lambda: Nan(value, 2), test=[(torch.randn(5, 2), LABELS[:5])])
    text = "the scores of generation 1 on the test batches are not finite for 1 of 5"
    with pytest.raises(FloatingPointError, match=text) as caught:
        list(one.distill(1))
    assert caught.value.__notes__ == ["generation 1 is trained: in this process ModuleDomain.members[1] has it"]
    assert isinstance(one.members[1], Nan)


def test_a_metric_that_overflows_is_told() -> None:
    class Huge(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            scores = super().forward(x)
            return scores if len(x) != 5 else torch.tensor([3e38, -3e38, 0.0]).expand_as(scores)

    with pytest.raises(FloatingPointError, match="test_nll of generation 0 is inf"):
        list(domain(build=lambda: Huge(2, 3), test=[(torch.randn(5, 2), LABELS[:5])]).distill(1))


def test_a_lineage_that_changes_its_teacher_keeps_the_student() -> None:
    class Meddling(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if not torch.is_grad_enabled() and not self.training and len(x) == 7:
                self.weight.data.add_(1.0)
            return super().forward(x)

    one = domain(build=lambda: Meddling(2, 3), batches=[*GOOD, (torch.randn(7, 2), LABELS[:7])])
    with pytest.raises(RuntimeError, match="the teacher of generation 1 changed while teaching"):
        list(one.distill(1))
    assert sorted(one.members) == [0, 1]
