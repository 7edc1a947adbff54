"""Training batches whose labels are probabilities, as mixup, CutMix and smoothing by the data give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from polydistill.errors import Interrupted
from polydistill.losses import ban_l
from polydistill.modules import ModuleDomain, kept
from tests.stop_signals import StopAt

LABELS = torch.arange(24) % 3
INPUTS = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)) + LABELS.unsqueeze(1)
CERTAIN = torch.eye(3)[LABELS]
TEST = [(INPUTS, LABELS)]


def build() -> nn.Module:
    return nn.Linear(4, 3)


def domain(batches: Any, **options: Any) -> ModuleDomain:
    return ModuleDomain(build, batches, TEST, **{"epochs": 3, **options})


def weights(batches: Any, **options: Any) -> list[Tensor]:
    return [generation.member.weight.detach() for generation in domain(batches, **options).distill(1)]


@pytest.mark.parametrize("objective", ["ban", "ban_l", "hinton_kd", "cwtm", "uniform_confidence", "dkpp", ban_l])
@pytest.mark.parametrize("parts", [1, 3])
def test_certain_probabilities_teach_what_classes_do(objective: Any, parts: int) -> None:
    how = {"objective": objective, "parts": parts, "classes": 3}
    plain, soft = weights([(INPUTS, LABELS)], **how), weights([(INPUTS, CERTAIN)], **how)
    torch.testing.assert_close(soft, plain)


@pytest.mark.parametrize("objective", ["ban_l", "cwtm", "ban"])
def test_a_row_of_zeros_is_padding(objective: str) -> None:
    counted = torch.arange(24) % 5 != 0
    masked = [(INPUTS.view(4, 6, 4), (CERTAIN * counted.unsqueeze(1)).view(4, 6, 3))]
    expected = weights([(INPUTS[counted], LABELS[counted])], objective=objective)
    for parts in (1, 4):
        torch.testing.assert_close(weights(masked, objective=objective, parts=parts), expected, rtol=1e-4, atol=1e-6)


def test_the_teacher_sees_the_mixed_inputs_and_accuracy_goes_by_the_most_likely_class(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Seeing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x)

    certain = Seeing(4, 3)
    with torch.no_grad():
        certain.weight.copy_(50 * torch.eye(3, 4))
        certain.bias.zero_()
    known = torch.nn.functional.pad(CERTAIN, (0, 1))
    mixed = 0.7 * known + 0.3 * known.roll(1, dims=0)
    labels = 0.7 * CERTAIN + 0.3 * CERTAIN.roll(1, dims=0)
    one = ModuleDomain(
        lambda: Seeing(4, 3), [(mixed, labels)], [(known, LABELS)], epochs=30, teacher=certain, objective="ban_l"
    )
    list(one.distill(1, run=tmp_path / "run"))
    taught = [x for x in seen if torch.equal(x, mixed)]
    assert len(taught) >= 60, "student and teacher, in each step"
    lines = [json.loads(line)["values"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    learned = [line for line in lines if "train/accuracy" in line]
    assert learned[-1]["train/accuracy"] == learned[-1]["train/agreement"] == 1.0
    assert 0 < learned[-1]["distill/label_share"] <= 1


def mix(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    inputs, labels = torch.utils.data.default_collate(samples)
    share, other = torch.rand(()), torch.randperm(len(inputs))
    labels = torch.eye(3)[labels]
    return share * inputs + (1 - share) * inputs[other], share * labels + (1 - share) * labels[other]


def test_a_run_on_mixed_batches_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = DataLoader(TensorDataset(INPUTS, LABELS), 5, shuffle=True, collate_fn=mix)
    expected = [one.sha256 for one in domain(loader, objective="ban_l").distill(1)]
    monkeypatch.setattr(kept, "StopSignals", lambda: StopAt(13))
    with pytest.raises(Interrupted):
        list(domain(loader, objective="ban_l").distill(1, run=tmp_path / "run"))
    monkeypatch.undo()
    again = [one.sha256 for one in domain(loader, objective="ban_l").distill(1, run=tmp_path / "run")]
    assert again == expected


def test_the_doctor_goes_by_the_most_likely_class(capsys: pytest.CaptureFixture[str]) -> None:
    soft = 0.9 * CERTAIN + 0.1 / 3
    list(domain([(INPUTS, soft)], objective="ban_l", epochs=60).distill(1, doctor=True))
    printed = capsys.readouterr().out
    assert "doctor: ban_l, 24 samples of 3 classes" in printed
    assert "the labels are probabilities: they are examined as the most likely class" in printed
    assert "the teacher is right in" in printed


def test_probabilities_that_turn_wrong_on_the_way_are_refused() -> None:
    class Later(list):  # type: ignore[type-arg]
        """A list that is no ``list`` in its second epoch."""

        rounds = 0

        def __iter__(self) -> Any:
            self.rounds += 1
            return iter([(INPUTS, CERTAIN if self.rounds < 4 else 2 * CERTAIN)])

    with pytest.raises(ValueError, match=r"batch 1 of epoch \d has a row from 0 to 2 that adds up to 2"):
        list(domain(Later([None])).distill(1))
