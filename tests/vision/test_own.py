"""A lineage of one's own model and data: README's example, and what can go wrong with one."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from polydistill.lineage import Lineage, LineageConfig
from polydistill.vision import ModuleDomain

EXAMPLE = re.compile(
    r"^```python\n((?:(?!^```).)*?^from polydistill\.vision import ModuleDomain\n.*?)^```", re.MULTILINE | re.DOTALL
)
RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


def rings(n: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (n,), generator=generator)
    angle = 6.283 * torch.rand(n, generator=generator)
    radius = 1 + labels + 0.2 * torch.randn(n, generator=generator)
    return TensorDataset(torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), labels)


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 3))


def domain(**options: object) -> ModuleDomain:
    batches = DataLoader(rings(256, 0), batch_size=64)
    return ModuleDomain(build, batches, DataLoader(rings(500, 1), 500), epochs=15, **options)  # type: ignore[arg-type]


def test_readmes_example_of_an_own_model_runs(root: Path, run_python: RunPython) -> None:
    found = EXAMPLE.search((root / "README.md").read_text(encoding="utf-8"))
    assert found is not None
    assert found.group(1).count("\n") <= 30
    done = run_python("-c", found.group(1))
    assert done.returncode == 0, done.stderr
    accuracies = [float(number) for number in re.findall(r"0\.\d+|1\.0", done.stdout)]
    assert len(accuracies) >= 3
    assert min(accuracies) > 0.8


def test_students_of_an_own_module_learn_from_the_teacher_and_are_their_own() -> None:
    found = list(Lineage(domain(), LineageConfig(2)))
    assert len({generation.sha256 for generation in found}) == 3
    assert [generation.teacher_sha256 for generation in found[1:]] == [found[0].sha256, found[1].sha256]
    assert all(generation.metrics["test_accuracy"] > 0.8 for generation in found)
    assert all(generation.metrics["agreement"] > 0.8 for generation in found[1:])
    again = list(Lineage(domain(), LineageConfig(2)))
    assert [generation.sha256 for generation in again] == [generation.sha256 for generation in found]


@pytest.mark.parametrize("objective", ["cwtm", "dkpp", "uniform_confidence", "hinton_kd"])
def test_every_objective_serves_an_own_module(objective: str) -> None:
    found = list(Lineage(domain(objective=objective, classes=3), LineageConfig(1)))
    assert found[1].objective == objective
    assert found[1].metrics["test_accuracy"] > 0.6


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one = ModuleDomain(build, [(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))], [], epochs=1)
    one.first()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_generator_of_batches_is_refused_when_it_is_empty() -> None:
    batches = iter([(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))])
    with pytest.raises(ValueError, match="no batches in epoch 2"):
        ModuleDomain(build, batches, [], epochs=2).first()


def test_a_student_that_shares_its_teachers_weights_is_refused() -> None:
    shared = build()
    one = domain()
    one.build = lambda: shared
    with pytest.raises(RuntimeError, match="shares weights with its teacher"):
        list(Lineage(one, LineageConfig(1)))


def test_a_loss_that_is_not_finite_says_where() -> None:
    batches = [(torch.full((4, 2), torch.nan), torch.zeros(4, dtype=torch.int64))]
    with pytest.raises(FloatingPointError, match="generation 0 is nan at batch 1 of epoch 1"):
        ModuleDomain(build, batches, [], epochs=1).first()


def test_an_objective_that_permutes_needs_the_number_of_classes_and_cannot_be_fixed() -> None:
    with pytest.raises(ValueError, match="must be told how many"):
        list(Lineage(domain(objective="dkpp"), LineageConfig(1)))
    with pytest.raises(ValueError, match="cannot be fixed"):
        domain(objective="dkpp", options={"permutation": "fixed"}, classes=3)


def test_the_library_of_classifiers_needs_neither_torchvision_nor_triton_nor_a_gpu(run_python: RunPython) -> None:
    absent = ("torchvision", "triton", "stable_baselines3", "gymnasium", "ale_py", "pooch", "tensorboard")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import polydistill.vision.domain; print('here')"
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "here\n"
