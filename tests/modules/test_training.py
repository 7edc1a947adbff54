"""How one's own modules are trained: batches in parts, schedules, clipping, precision, the best epoch."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from polydistill.errors import Interrupted, UserError
from polydistill.learning import update
from polydistill.lineage import Generation
from polydistill.losses import ban
from polydistill.modules import ModuleDomain, kept
from polydistill.modules.batches import read_batch
from tests.stop_signals import StopAt

LABELS = torch.arange(24) % 3
INPUTS = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)) + LABELS.unsqueeze(1)


class Net(nn.Module):
    """Takes keywords; counts its rows; notes whether autocast is on while it learns, and while it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.rows, self.heard = nn.Linear(4, 3), list[int](), set[tuple[bool, bool]]()

    def forward(self, x: Tensor, **more: Any) -> Tensor:
        self.rows.append(len(x))
        self.heard.add((self.training, torch.is_autocast_enabled("cpu")))
        scores: Tensor = self.layer(x)
        return scores


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)


def domain(batches: Any = None, **options: Any) -> ModuleDomain:
    batches = batches or [(INPUTS[:16], LABELS[:16]), (INPUTS[16:], LABELS[16:])]
    return ModuleDomain(Net, batches, [(INPUTS, LABELS)], **{"epochs": 3, "optimizer": sgd, **options})


def weight(found: list[Generation[nn.Module]]) -> Tensor:
    layer: nn.Linear = found[-1].member.layer  # type: ignore[assignment]
    return layer.weight.detach()


def own(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return ban(student, teacher)


# ---- parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["ban", "cwtm", "uniform_confidence", "dkpp", "hinton_kd", own])
def test_a_batch_in_parts_is_the_same_update_as_the_whole_batch(objective: Any) -> None:
    how = {"objective": objective, "classes": 3}
    whole, parted = (list(domain(parts=parts, **how).distill(1)) for parts in (1, 3))
    assert set(parted[1].member.rows) >= {5, 6}, "16 samples in three parts"
    torch.testing.assert_close(weight(parted), weight(whole), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weight(parted[:1]), weight(whole[:1]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", ["ban", "cwtm", "uniform_confidence"])
def test_ragged_masks_in_parts_count_per_row_of_the_whole_batch(objective: str) -> None:
    labels = LABELS.view(4, 6).clone()
    labels[0, 1:], labels[1, 4:], labels[3, 5:] = -100, -100, -100  # 1, 4, 6 and 5 rows count
    batches = [{"x": INPUTS.view(4, 6, 4), "mask": labels >= 0, "labels": labels}]
    how = {"objective": objective, "epochs": 2}
    parted = list(domain(batches, parts=4, **how).distill(1))
    counted = labels.flatten() >= 0
    plain = list(domain([(INPUTS[counted], LABELS[counted])], **how).distill(1))
    torch.testing.assert_close(weight(parted), weight(plain), rtol=1e-4, atol=1e-6)
    whole = list(domain(batches, **how).distill(1))
    torch.testing.assert_close(weight(parted), weight(whole), rtol=1e-4, atol=1e-6)


def test_a_mean_of_the_means_of_parts_would_be_another_update() -> None:
    """What the two tests above would not see if their parts were all alike."""
    labels = torch.tensor([0, -100, -100, -100, 1, 2])
    batches = [(INPUTS[:6], labels)]
    right = weight(list(domain(batches, parts=2, epochs=1).distill(0)))
    network, counted = Net(), [(INPUTS[:1], labels[:1]), (INPUTS[4:6], labels[4:])]
    one = domain(batches, epochs=1)
    network.load_state_dict(one.workshop.make(0).state_dict())
    means = [nn.functional.cross_entropy(network(x), y) for x, y in counted]
    (torch.stack(means).mean()).backward()
    wrong = network.layer.weight - 0.5 * network.layer.weight.grad
    assert not torch.allclose(right, wrong, atol=1e-3)


def test_an_input_that_has_no_entry_for_each_sample_cannot_be_divided() -> None:
    with pytest.raises(ValueError, match=r"an input of shape \(5,\) cannot be divided into parts of 24 samples"):
        read_batch((INPUTS, torch.zeros(5), LABELS)).split(2)
    assert len(read_batch((INPUTS[:2], LABELS[:2])).split(5)) == 2


# ---- the rate, and the gradient ------------------------------------------------------------------------------------


def rates(out: Path) -> list[float]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line["values"]["train/learning_rate"] for line in lines if "train/learning_rate" in line["values"]]


def milestones(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.MultiStepLR(optimizer, [1, 2], gamma=0.1)


def one_cycle(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=6)


def warm_up(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    parts = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2), lr_scheduler.CosineAnnealingLR(optimizer, 4)]
    return lr_scheduler.SequentialLR(optimizer, parts, [2])


def test_a_scheduler_makes_its_steps_by_epoch_or_by_batch(tmp_path: Path) -> None:
    list(domain(scheduler=milestones, log_every_steps=1).distill(0, tmp_path / "epoch"))
    assert rates(tmp_path / "epoch") == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005, 0.005])
    list(domain(scheduler=milestones, schedule_by="step", log_every_steps=1).distill(0, tmp_path / "step"))
    assert rates(tmp_path / "step") == pytest.approx([0.5, 0.05, 0.005, 0.005, 0.005, 0.005])
    with pytest.raises(UserError, match=r"scheduler\.by is 'step' there and 'epoch' here"):
        list(domain(scheduler=milestones, log_every_steps=1).distill(0, tmp_path / "step"))


@pytest.mark.parametrize(("scheduler", "by"), [(milestones, "epoch"), (one_cycle, "step"), (warm_up, "step")])
def test_a_schedule_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: Any, by: Any
) -> None:
    how = {"scheduler": scheduler, "schedule_by": by, "log_every_steps": 3}
    whole = list(domain(**how).distill(1, tmp_path / "whole"))
    while not (tmp_path / "run" / "summary.json").exists():
        with monkeypatch.context() as patch:
            patch.setattr(kept, "StopSignals", lambda: StopAt(3))
            try:
                list(domain(**how).distill(1, tmp_path / "run"))
            except Interrupted:
                continue
    found = list(domain(**how).distill(1, tmp_path / "run"))
    assert [one.summary() for one in found] == [one.summary() for one in whole]
    assert rates(tmp_path / "run") == rates(tmp_path / "whole")


def test_a_gradient_is_scaled_to_the_norm_that_is_allowed() -> None:
    one = domain([(INPUTS * 100, LABELS)], epochs=1, clip_norm=0.25)
    before = one.workshop.make(0).state_dict()
    after = next(one.distill(0)).member.state_dict()
    moved = torch.cat([(after[name] - before[name]).flatten() for name in before])
    assert moved.norm().item() == pytest.approx(0.5 * 0.25, rel=1e-3), "the rate times the norm"


def test_an_optimiser_that_evaluates_the_loss_itself_learns_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(parameters, lr=0.5, max_iter=4, history_size=3)

    how = {"optimizer": optimizer, "scheduler": milestones, "epochs": 2}
    whole = list(domain(**how).distill(1, tmp_path / "whole"))
    assert whole[0].metrics["test_nll"] < next(domain(epochs=2).distill(0)).metrics["test_nll"], "than by SGD"
    learned = [rows for rows in whole[1].member.rows if rows == 16]
    assert len(learned) > 2 * 4, "a batch of 16 is evaluated several times in each step"
    with monkeypatch.context() as patch:
        patch.setattr(kept, "StopSignals", lambda: StopAt(2))
        with pytest.raises(Interrupted, match="in generation 0 after step"):
            list(domain(**how).distill(1, tmp_path / "run"))
    found = list(domain(**how).distill(1, tmp_path / "run"))
    assert [one.summary() for one in found] == [one.summary() for one in whole]


# ---- precision, torch.compile, device ------------------------------------------------------------------------------


def test_bfloat16_is_for_learning_and_not_for_measuring() -> None:
    plain, short = (list(domain(precision=precision).distill(1)) for precision in ("float32", "bfloat16"))
    assert not torch.equal(weight(plain), weight(short))
    torch.testing.assert_close(weight(plain), weight(short), rtol=0.1, atol=0.1)
    assert plain[1].member.heard == {(True, False), (False, False)}
    assert short[1].member.heard == {(True, True), (False, False)}
    assert {weight(short).dtype} == {torch.float32}


def test_both_networks_are_compiled_and_the_students_weights_stay_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []

    def compile_network(network: nn.Module, device: torch.device) -> nn.Module:
        compiled.append(network)
        return network

    monkeypatch.setattr(update, "compile_network", compile_network)
    found = list(domain(compile=True).distill(1))
    assert compiled == [found[0].member, found[1].member, found[0].member]


def test_every_module_is_moved_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[Any] = []
    to = nn.Module.to
    monkeypatch.setattr(nn.Module, "to", lambda self, *given, **named: (places.append(given), to(self, *given))[1])
    list(domain(device="cpu", teacher=Net()).distill(2))
    assert places.count(("cpu",)) == 3


# ---- validation ----------------------------------------------------------------------------------------------------


class Fading(Net):
    """Is right on the validation batch (all ones) while it has seen fewer than ``good`` training batches."""

    good = 4

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor, **more: Any) -> Tensor:
        scores = super().forward(x)
        if self.training:
            self.seen += 1
        elif bool((x == 1).all()):
            shown = 2.0 if 2 < self.seen <= self.good else -2.0  # scores, not a row of probabilities
            return scores * 0 + torch.tensor([shown, 0.0, 0.0])
        return scores


ONES = [(torch.ones(4, 4), torch.zeros(4, dtype=torch.int64))]


def fading(**options: Any) -> ModuleDomain:
    batches = [(INPUTS[:16], LABELS[:16]), (INPUTS[16:], LABELS[16:])]
    how = {"epochs": 9, "optimizer": sgd, "validation": ONES, **options}
    return ModuleDomain(Fading, batches, [(INPUTS, LABELS)], **how)


def test_the_best_epoch_is_kept_and_patience_ends_a_course(tmp_path: Path) -> None:
    last = next(fading().distill(0))
    best = next(fading(keep_best=True).distill(0))
    assert (last.member.seen, best.member.seen) == (18, 4), "nine epochs of two batches; the second is the best"
    impatient = next(fading(keep_best=True, patience=3).distill(0, tmp_path))
    assert impatient.sha256 == best.sha256
    lines = list(map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()))
    curve = [line["values"]["val/accuracy"] for line in lines if "val/accuracy" in line["values"]]
    assert curve == [0.0, 1.0, 0.0, 0.0, 0.0], "two epochs, and three that were no better"
    assert {"val/nll", "val/ece"} <= {name for line in lines for name in line["values"]}


def test_a_course_that_patience_ends_ends_there_if_it_was_stopped_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"keep_best": True, "patience": 3}
    expected = [one.summary() for one in fading(**how).distill(1, tmp_path / "whole")]
    for at in range(2, 40):
        with monkeypatch.context() as patch:
            patch.setattr(kept, "StopSignals", lambda at=at: StopAt(2 + at % 5))
            try:
                found = [one.summary() for one in fading(**how).distill(1, tmp_path / "run")]
            except Interrupted:
                continue
        break
    assert found == expected
    stopped, whole = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("run", "whole"))
    assert stopped == whole


def test_validation_changes_nothing_of_what_is_learned() -> None:
    class Drawn:
        def __iter__(self) -> Iterator[Any]:
            torch.rand(3)
            yield from ONES

    plain, measured = (next(fading(validation=batches).distill(0)) for batches in (None, Drawn()))
    assert plain.sha256 == measured.sha256


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"parts": 0}, ValueError, "parts must be at least 1, got 0"),
        ({"clip_norm": 0.0}, ValueError, "clip_norm must be"),
        ({"clip_norm": math.nan}, ValueError, "clip_norm must be"),
        ({"precision": "float8"}, ValueError, "unknown precision 'float8'"),
        ({"schedule_by": "batch"}, ValueError, "unknown schedule_by 'batch'"),
        ({"device": "gpu"}, ValueError, "device is 'gpu': "),
        ({"patience": 2}, ValueError, "go by the accuracy on `validation`, and there is none"),
        ({"patience": 2, "validation": ONES}, ValueError, "whose weights keep_best=True keeps"),
        ({"validation": []}, ValueError, "`validation` holds no batches"),
        ({"scheduler": 0.1}, TypeError, "`scheduler` must be a function, got a float"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_told_by_the_constructor(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        domain(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheduler", "error", "text"),
    [
        (lr_scheduler.ReduceLROnPlateau, ValueError, "goes by a metric"),
        (lambda optimizer: 0.1, TypeError, "must make one of torch's from an optimiser, it made a float"),
        (lambda optimizer: milestones(copy.deepcopy(optimizer)), ValueError, "must use the optimiser that it is given"),
    ],
)
def test_a_scheduler_that_cannot_serve_is_told_before_the_first_step(
    scheduler: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        next(domain(scheduler=scheduler).distill(0))
