"""One seed, one lineage of one's own modules: whatever draws, and whatever the objective, in every process."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, TensorDataset, WeightedRandomSampler

from polydistill.lineage import Generation
from polydistill.losses import ban
from polydistill.modules import ModuleDomain, world

LABELS = torch.arange(24) % 3
DATA = TensorDataset(torch.randn(24, 2, generator=torch.Generator().manual_seed(1)) + LABELS.unsqueeze(1), LABELS)


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))


def own_generator() -> torch.Generator:
    return torch.Generator().manual_seed(torch.seed() % 1000)


class Shuffled:
    """An iterable that draws from the global generators of Python and numpy."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = list(range(24))
        random.shuffle(order)
        order = [order[i] for i in np.random.permutation(24)]
        yield DATA[order[:12]]
        yield DATA[order[12:]]


LOADERS: dict[str, Callable[[], Any]] = {
    "shuffle": lambda: DataLoader(DATA, 8, shuffle=True),
    "own generator": lambda: DataLoader(DATA, 8, shuffle=True, generator=own_generator()),
    "own sampler": lambda: DataLoader(DATA, 8, sampler=RandomSampler(DATA, generator=own_generator())),
    "weighted": lambda: DataLoader(DATA, 8, sampler=WeightedRandomSampler([1.0] * 24, 24)),
    "global generators": Shuffled,
}


def domain(batches: Any, **options: Any) -> ModuleDomain:
    return ModuleDomain(build, batches, [DATA[:]], epochs=2, **options)


def grow(batches: Any, generations: int = 1, **options: Any) -> list[Generation[nn.Module]]:
    return list(domain(batches, **options).distill(generations))


def test_a_repeated_student_is_another_one_of_the_same_teacher_and_as_repeatable() -> None:
    first, again, other = (grow(DataLoader(DATA, 8, shuffle=True), repeat=number) for number in (1, 1, 0))
    assert first[1].sha256 == again[1].sha256 != other[1].sha256
    assert first[0].sha256 == other[0].sha256


def hashes(found: list[Generation[nn.Module]]) -> list[str | None]:
    return [generation.sha256 for generation in found]


@pytest.mark.parametrize("kind", LOADERS)
def test_a_seed_decides_the_order_of_batches_and_dropout(kind: str) -> None:
    first = hashes(grow(LOADERS[kind]()))
    torch.rand(3), random.random(), np.random.random()  # what was drawn before is of no account
    assert hashes(grow(LOADERS[kind]())) == first
    assert hashes(grow(LOADERS[kind](), seed=1))[0] != first[0]


@pytest.mark.parametrize("kind", LOADERS)
def test_arms_of_one_seed_have_the_same_generation_0(kind: str) -> None:
    arms = [hashes(grow(LOADERS[kind](), objective=name, classes=3)) for name in ("ban", "cwtm", "dkpp")]
    assert len({arm[0] for arm in arms}) == 1
    assert len({arm[1] for arm in arms}) == 3


@pytest.mark.parametrize("kind", LOADERS)
def test_the_order_of_batches_does_not_depend_on_what_is_drawn_between_them(kind: str) -> None:
    seen: list[Tensor] = []

    class Recording(nn.Module):
        def __init__(self, dropout: float) -> None:
            super().__init__()
            self.layer, self.dropout = nn.Linear(2, 3), nn.Dropout(dropout)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                seen.append(x[:, 0])
            scores: Tensor = self.layer(self.dropout(x))
            return scores

    def noisy(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return ban(student + torch.rand(3) + float(np.random.random()), teacher)

    def order(objective: Any, dropout: float) -> Tensor:
        seen.clear()
        one = ModuleDomain(lambda: Recording(dropout), LOADERS[kind](), [DATA[:]], epochs=3, objective=objective)
        list(one.distill(1))
        return torch.cat(seen)

    expected = order("ban", 0.0)
    assert len(expected) == 2 * 3 * 24
    assert torch.equal(order("ban", 0.5), expected)
    assert torch.equal(order(noisy, 0.0), expected)


def test_a_sampler_of_several_processes_is_told_the_epoch() -> None:
    told: list[int] = []

    class Told(DistributedSampler[Any]):
        def set_epoch(self, epoch: int) -> None:
            told.append(epoch)
            super().set_epoch(epoch)

    grow(DataLoader(DATA, 8, sampler=Told(DATA, 1, 0)))
    assert told == [0, 1, 0, 1], "two generations of two epochs"


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_draw_from_the_seed(persistent: bool) -> None:
    class Noisy(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            return DATA[index][0] + torch.rand(2) + random.random() + np.random.random(), LABELS[index]

    def loader() -> Any:
        return DataLoader(Noisy(), 8, num_workers=1, persistent_workers=persistent, multiprocessing_context="fork")

    first = grow(loader())
    torch.rand(3), random.random(), np.random.random()
    assert hashes(grow(loader())) == hashes(first)


def test_all_global_generators_and_those_of_the_loader_are_as_before() -> None:
    loader = LOADERS["own generator"]()

    def states() -> list[Any]:
        numpys = np.random.get_state()[1]
        return [torch.get_rng_state(), torch.as_tensor(numpys.astype(np.int64)), loader.generator.get_state()]

    before, python = states(), random.getstate()
    grow(loader)
    assert all(map(torch.equal, states(), before))
    assert random.getstate() == python


def test_the_trial_before_the_first_step_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def network() -> nn.Module:
        return nn.Sequential(build(), nn.BatchNorm1d(3))

    def run() -> list[str | None]:
        one = ModuleDomain(network, DataLoader(DATA, 8, shuffle=True), [DATA[:]], epochs=1, build_student=network)
        return hashes(list(one.distill(2)))

    tried = run()
    monkeypatch.setattr(world, "rehearse", lambda workshop, teacher, generation, learns: None)
    assert run() == tried


def test_test_batches_that_a_loader_shuffles_come_in_one_order() -> None:
    one = ModuleDomain(build, [DATA[:]], DataLoader(DATA, 8, shuffle=True), epochs=1)
    found = list(one.distill(1))
    in_order = ModuleDomain(build, [DATA[:]], DataLoader(DATA, 8), epochs=1)
    expected = list(in_order.distill(1))[1].metrics
    assert found[1].metrics == pytest.approx(expected, rel=1e-5)


def test_another_process_with_that_seed_makes_the_same_students(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    code = (
        "import torch; from torch import nn; from torch.utils.data import DataLoader, TensorDataset\n"
        "from polydistill.modules import ModuleDomain\n"
        "data = TensorDataset(torch.eye(12), torch.arange(12) % 3)\n"
        "build = lambda: nn.Sequential(nn.Dropout(0.3), nn.Linear(12, 3))\n"
        "domain = ModuleDomain(build, DataLoader(data, 4, shuffle=True), DataLoader(data, 4), epochs=2)\n"
        "found = [generation.sha256 for generation in domain.distill(1)]\n"
    )
    here: dict[str, Any] = {}
    exec(code, here)
    there = run_python("-c", code + "print(found)")
    assert there.returncode == 0, there.stderr
    assert there.stdout == f"{here['found']}\n"
