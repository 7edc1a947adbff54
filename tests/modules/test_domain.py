"""A lineage of one's own model and data: README's example, and what can go wrong with one."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from polydistill.learning.lesson import Lesson
from polydistill.modules import ModuleDomain
from polydistill.modules.training import ModuleTraining

EXAMPLE = re.compile(
    r"^```python\n((?:(?!^```).)*?^from polydistill\.modules import ModuleDomain\n.*?)^```", re.MULTILINE | re.DOTALL
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


def test_readmes_example_of_an_own_model_runs(root: Path, run_python: RunPython, tmp_path: Path) -> None:
    found = EXAMPLE.search((root / "README.md").read_text(encoding="utf-8"))
    assert found is not None
    assert found.group(1).count("\n") <= 30
    for _ in range(2):  # the second time it is finished
        done = run_python("-c", found.group(1), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        accuracies = [float(number) for number in re.findall(r"accuracy ([\d.]+), sha256", done.stdout)]
        assert len(accuracies) == 3
        assert min(accuracies) > 0.8
        assert "| ensemble of 1, 2 | mean" in done.stdout
    assert (tmp_path / "runs" / "rings" / "summary.json").is_file()


def test_students_of_an_own_module_learn_from_the_teacher_and_are_their_own() -> None:
    found = list(domain().distill(2))
    assert len({generation.sha256 for generation in found}) == 3
    assert [generation.teacher_sha256 for generation in found[1:]] == [found[0].sha256, found[1].sha256]
    assert all(generation.metrics["test_accuracy"] > 0.8 for generation in found)
    assert all(generation.metrics["agreement"] > 0.8 for generation in found[1:])
    assert all(parameter.grad is None for generation in found for parameter in generation.member.parameters())
    again = list(domain().distill(2))
    assert [generation.sha256 for generation in again] == [generation.sha256 for generation in found]


@pytest.mark.parametrize("objective", ["cwtm", "dkpp", "uniform_confidence", "hinton_kd"])
def test_every_objective_serves_an_own_module(objective: str) -> None:
    found = list(domain(objective=objective, classes=3).distill(1))
    assert found[1].objective == objective
    assert found[1].metrics["test_accuracy"] > 0.6


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    batches = [(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))]
    next(ModuleDomain(build, batches, batches, epochs=1).distill())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_each_generation_starts_from_weights_of_its_own_and_a_seed_repeats_them() -> None:
    def initial(seed: int) -> list[torch.Tensor]:
        built: list[torch.Tensor] = []

        def record() -> nn.Module:
            module = build()
            built.append(torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()]))
            return module

        batches = [(torch.zeros(4, 2), torch.arange(4) % 3)] * 2
        one = ModuleDomain(record, batches, batches, epochs=1, seed=seed)
        list(one.distill(2))
        return built

    first, again, other = initial(0), initial(0), initial(1)
    assert len(first) == 3
    assert all(map(torch.equal, first, again))
    different = [*first, *other]
    assert not any(torch.equal(a, b) for i, a in enumerate(different) for b in different[:i])


@pytest.mark.parametrize("in_use", [False, True])
def test_building_leaves_the_generators_of_the_gpus_as_they_would_be(
    monkeypatch: pytest.MonkeyPatch, in_use: bool
) -> None:
    gpu = torch.Generator().manual_seed(torch.initial_seed())  # stands for a GPU's
    torch.rand(3, generator=gpu) if in_use else None
    before, drawn = gpu.get_state(), []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: in_use)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", gpu.manual_seed)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: gpu.get_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: gpu.set_state(state))
    monkeypatch.setattr(torch, "get_device_module", lambda kind: torch.cuda)

    def draw() -> nn.Module:
        drawn.append(torch.rand(3, generator=gpu))
        return build()

    for generation in (0, 0, 1):
        batches = [(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))]
        ModuleDomain(draw, batches, batches, epochs=1).workshop.make(generation)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2]), "a module built on the GPU has weights of its own too"
    assert torch.equal(gpu.get_state(), before)


def test_samples_of_one_label_are_permuted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[torch.Tensor | None] = []
    draw = Lesson.draw_permutation

    def record(self: Lesson, ids: torch.Tensor, step: int) -> torch.Tensor | None:
        drawn.append(draw(self, ids, step))
        return drawn[-1]

    monkeypatch.setattr(Lesson, "draw_permutation", record)
    batches = [(torch.zeros(6, 2), torch.zeros(6, dtype=torch.int64))] * 2
    teacher = nn.Linear(2, 20)
    one = ModuleDomain(
        lambda: nn.Linear(2, 20), batches, batches, epochs=1, objective="dkpp", classes=20, teacher=teacher
    )
    list(one.distill(1))
    first, second = drawn[-2:]  # those before are the trial's
    assert first is not None
    assert second is not None
    assert len(torch.unique(torch.cat([first, second]), dim=0)) == 12


def test_students_may_be_another_network() -> None:
    def build_student() -> nn.Module:
        return nn.Linear(2, 3)

    found = list(domain(build_student=build_student).distill(2))
    assert [type(generation.member) for generation in found] == [nn.Sequential, nn.Linear, nn.Linear]
    assert [generation.parameters for generation in found] == [259, 9, 9]


def test_ensembles_are_the_mean_probability_beside_the_teacher_of_the_first_member() -> None:
    one = domain()
    found = list(one.distill(3))
    data = rings(500, 1)
    inputs, labels = (tensor.numpy() for tensor in data.tensors)
    with torch.no_grad():
        each = [softmax(g.member(torch.from_numpy(inputs)).double().numpy(), axis=1) for g in found]
    for members, reference in (([1, 2], 0), ([3, 2], 1), ([0, 1, 2], None)):
        mean = np.mean([each[member] for member in members], axis=0)
        metrics = one.ensemble(members)
        assert metrics["test_accuracy"] == pytest.approx((mean.argmax(1) == labels).mean())
        assert metrics["test_nll"] == pytest.approx(-np.log(mean[np.arange(500), labels]).mean(), rel=1e-5)
        if reference is None:
            assert metrics["agreement"] is metrics["kl"] is None
        else:
            assert metrics["agreement"] == (mean.argmax(1) == each[reference].argmax(1)).mean()
            assert metrics["kl"] == pytest.approx(rel_entr(each[reference], mean).sum(1).mean(), rel=1e-4)


@pytest.mark.parametrize("members", [[], [1], [1, 1], [0, 2], [-1, 0]])
def test_an_ensemble_of_others_than_evaluated_generations_is_refused(members: list[int]) -> None:
    one = domain()
    list(one.distill(1))
    with pytest.raises(ValueError, match=r"at least 2 members, each once, of the generations \[0, 1\]"):
        one.ensemble(members)
    with pytest.raises(TypeError, match=r"`members` must be generations, as \[1, 2\], got 3"):
        one.ensemble(3)  # type: ignore[arg-type]


def test_test_batches_in_another_order_each_time_are_refused_and_the_student_is_kept() -> None:
    data = rings(64, 1)

    class Shuffled:
        """Draws from a generator of its own."""

        generator = np.random.default_rng(0)

        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            yield data[self.generator.permutation(64)]

    one = ModuleDomain(build, [data[:]], Shuffled(), epochs=1)
    with pytest.raises(ValueError, match="must not be shuffled") as caught:
        list(one.distill(1))
    assert "members[1]" in caught.value.__notes__[0]
    assert sorted(one.members) == [0, 1]


def test_a_loss_that_is_not_finite_says_where() -> None:
    good = (torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))
    bad = (torch.full((4, 2), torch.nan), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(FloatingPointError, match="generation 0 is nan at batch 1 of epoch 1"):
        next(ModuleDomain(build, [bad], [good], epochs=1).distill())
    with pytest.raises(FloatingPointError, match="generation 0 is nan at batch 3 of epoch 1"):
        next(ModuleDomain(build, [good, good, bad, good], [good], epochs=2).distill())


def test_between_two_reports_nothing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []
    for name in ("item", "tolist", "__bool__", "__float__", "cpu"):
        wait = getattr(torch.Tensor, name)

        def record(self: torch.Tensor, *given: object, name: str = name, wait: Any = wait, **named: object) -> object:
            waits.append(name)
            return wait(self, *given, **named)

        monkeypatch.setattr(torch.Tensor, name, record)
    batches = [(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))] * 5
    one = ModuleDomain(lambda: nn.Linear(2, 3), batches, batches, epochs=2, objective="dkpp", classes=3)
    made: list[list[str]] = []
    make_one = ModuleTraining._make_one

    def watched(self: ModuleTraining, position: int, *, diagnose: bool) -> None:
        waits.clear()
        make_one(self, position, diagnose=diagnose)
        made.append(list(waits))

    monkeypatch.setattr(ModuleTraining, "_make_one", watched)
    list(one.distill(1))
    assert made == [[]] * 20, "two generations of two epochs of five batches"


def test_weights_that_the_last_step_makes_infinite_are_refused() -> None:
    batches = [(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))]
    one = ModuleDomain(
        lambda: nn.Linear(2, 3),
        batches,
        batches,
        epochs=1,
        optimizer=lambda found: torch.optim.SGD(found, 3e38, weight_decay=100.0),
    )
    with pytest.raises(
        FloatingPointError, match="generation 0 leads to weights that are not finite at batch 1 of epoch 1"
    ):
        next(one.distill())


def test_an_objective_that_permutes_needs_the_number_of_classes_and_cannot_be_fixed() -> None:
    with pytest.raises(ValueError, match="must be told how many"):
        list(domain(objective="dkpp").distill(1))
    with pytest.raises(ValueError, match="cannot be fixed"):
        domain(objective="dkpp", options={"permutation": "fixed"}, classes=3)


def test_the_library_of_classifiers_needs_neither_torchvision_nor_triton_nor_a_gpu(run_python: RunPython) -> None:
    absent = ("torchvision", "triton", "stable_baselines3", "gymnasium", "ale_py", "pooch", "tensorboard")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import polydistill.vision.domain; print('here')"
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "here\n"


def test_autocast_around_a_lineage_changes_nothing() -> None:
    plain = [generation.summary() for generation in domain().distill(1)]
    with torch.autocast("cpu", torch.bfloat16):
        assert [generation.summary() for generation in domain().distill(1)] == plain
