"""A lineage of one's own modules in a run folder: stopped anywhere it ends the same, and a finished one is shown."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from polydistill.errors import Interrupted, UserError
from polydistill.lineage import Generation
from polydistill.modules import ModuleDomain, kept
from polydistill.provenance import weights_sha256
from polydistill.runs.checkpoint import CheckpointConfig
from polydistill.runs.show import format_run
from tests.stop_signals import StopAt

LABELS = torch.arange(22) % 3
DATA = TensorDataset(torch.randn(22, 2, generator=torch.Generator().manual_seed(1)) + LABELS.unsqueeze(1), LABELS)
FILES = {"config.yaml", "metrics.jsonl", "timing.jsonl", "tb", "checkpoints", "summary.json", "README.md"}


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Augments by all three global generators."""

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return DATA[index][0] + torch.rand(2) + random.random() + np.random.random(), LABELS[index]


def own_generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


class Drawing(nn.Module):
    """Dropout of Python's, numpy's and torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.last = nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.layer(x))
        if self.training:
            hidden = nn.functional.dropout(hidden, 0.2) * random.uniform(0.9, 1.1) * np.random.uniform(0.9, 1.1)
        scores: Tensor = self.last(hidden.relu())
        return scores


SOURCES: dict[str, Any] = {
    "list": lambda: [DATA[:8], DATA[8:16], DATA[16:]],
    "shuffled": lambda: DataLoader(DATA, 8, shuffle=True),
    "augmented": lambda: DataLoader(Noisy(), 8, shuffle=True, generator=own_generator()),
    "sampler": lambda: DataLoader(Noisy(), 8, sampler=RandomSampler(DATA, generator=own_generator())),
}


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01)


def domain(source: Any = "shuffled", **options: Any) -> ModuleDomain:
    given = {"epochs": 2, "optimizer": adam, "log_every_steps": 2, "objective": "ban_l", **options}
    batches = SOURCES[source]() if isinstance(source, str) else source
    return ModuleDomain(Drawing, batches, [DATA[:]], **given)


def summaries(found: list[Generation[nn.Module]]) -> list[dict[str, Any]]:
    return [generation.summary() for generation in found]


def test_a_run_folder_has_what_every_worlds_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = list(domain().distill(2, tmp_path / "run"))
    assert summaries(found) == summaries(list(domain().distill(2))), "the same as in memory"
    names = {path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith(".")}
    assert names == FILES | {f"generation_{k}.safetensors" for k in range(3)}
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["kind"] == "modules"
    assert summary["generations"] == summaries(found)
    assert [ensemble["members"] for ensemble in summary["ensembles"]] == [[1, 2]]
    assert len(summary["seconds"]) == 3
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["role"] == "generation_1" and "train/loss" in line["values"]]
    assert steps == [16, 22, 38, 44], "samples seen: a point every two batches, and at the end of an epoch"
    tags = {name for line in lines if line["role"] == "generation_1" for name in line["values"]}
    assert tags == {
        "train/loss", "train/accuracy", "train/agreement", "train/learning_rate", "distill/label_share",
        "test/accuracy", "test/nll", "test/ece",
    }  # fmt: skip
    weights = load_file(tmp_path / "run" / "generation_2.safetensors")
    assert weights_sha256(weights) == found[2].sha256
    printed = capsys.readouterr()
    assert "| ensemble of 1, 2 | mean" in printed.out
    assert "generation 2 learns: 44/44 samples (100%)" in printed.err


def test_a_second_run_of_one_domain_has_the_curves_of_the_first(tmp_path: Path) -> None:
    one = domain(teacher=Drawing())
    for name in ("first", "second"):
        list(one.distill(1, tmp_path / name))
    first, second = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("first", "second"))
    assert first == second


def test_a_finished_run_gives_its_generations_and_its_table_and_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = list(domain().distill(2, str(tmp_path)))
    table = capsys.readouterr().out
    monkeypatch.setattr(ModuleDomain, "train", None)
    one = domain()
    again = list(one.distill(2, tmp_path))
    assert summaries(again) == summaries(first)
    for ours, theirs in zip(again, first, strict=True):
        torch.testing.assert_close(ours.member.state_dict(), theirs.member.state_dict(), rtol=0, atol=0)
        assert not any(parameter.requires_grad for parameter in ours.member.parameters())
    assert capsys.readouterr().out == table
    assert table.startswith(format_run(tmp_path, wide=False))
    assert one.ensemble([1, 2]) == json.loads((tmp_path / "summary.json").read_text())["ensembles"][0]["metrics"]


@pytest.mark.parametrize("source", SOURCES)
def test_a_run_that_is_stopped_again_and_again_ends_as_the_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    expected = list(domain(source).distill(1, tmp_path / "whole"))
    stops = 0
    while not (tmp_path / "run" / "summary.json").exists():
        with monkeypatch.context() as patch:
            patch.setattr(kept, "StopSignals", lambda: StopAt(3))
            try:
                list(domain(source).distill(1, tmp_path / "run"))
            except Interrupted:
                stops += 1
    assert stops >= 4
    found = list(domain(source).distill(1, tmp_path / "run"))
    assert summaries(found) == summaries(expected)
    stopped, whole = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("run", "whole"))
    assert stopped == whole


def test_workers_draw_the_same_where_a_run_goes_on_within_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = DataLoader(Noisy(), 8, shuffle=True, num_workers=1, multiprocessing_context="fork")
    expected = list(domain(source, epochs=1).distill(0))
    monkeypatch.setattr(kept, "StopSignals", lambda: StopAt(2))
    with pytest.raises(Interrupted, match="in generation 0 after step 2, and saved"):
        list(domain(source, epochs=1).distill(0, tmp_path))
    monkeypatch.undo()
    assert summaries(list(domain(source, epochs=1).distill(0, tmp_path))) == summaries(expected)


def test_a_lineage_may_grow_and_ends_as_one_that_was_meant_to_be_long(tmp_path: Path) -> None:
    list(domain().distill(1, tmp_path))
    assert summaries(list(domain().distill(3, tmp_path))) == summaries(list(domain().distill(3)))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"epochs": 3}, "epochs is 2 there and 3 here"),
        (
            {"optimizer": lambda found: torch.optim.Adam(found, lr=0.02)},
            r"optimizer\.group_0\.lr is 0\.01 there and 0\.02 here",
        ),
        ({"objective": "ban"}, "objective is 'ban_l' there and 'ban' here"),
        ({"build_student": lambda: nn.Linear(2, 3)}, "networks.students.class is 'Drawing' there and 'Linear' here"),
        ({"teacher": Drawing()}, "teacher is '' there and "),
    ],
)
def test_the_folder_of_another_run_is_refused(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    list(domain().distill(0, tmp_path))
    with pytest.raises(UserError, match=text):
        list(domain(**options).distill(0, tmp_path))


def test_a_run_goes_on_from_a_teacher_that_was_given_in_a_shorter_float_type(tmp_path: Path) -> None:
    teacher = Drawing().to(torch.float16)
    expected = summaries(list(domain(teacher=teacher).distill(2, tmp_path / "whole")))
    list(domain(teacher=teacher).distill(1, tmp_path / "run"))
    assert summaries(list(domain(teacher=teacher).distill(2, tmp_path / "run"))) == expected
    assert "(given)" in format_run(tmp_path / "run", wide=True)


def test_other_weights_in_the_file_of_a_generation_are_refused(tmp_path: Path) -> None:
    list(domain().distill(1, tmp_path))
    path = tmp_path / "generation_1.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(UserError, match=r"generation_1\.safetensors holds other weights than those of the run"):
        list(domain().distill(1, tmp_path))


def stop_within_an_epoch(one: ModuleDomain, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(kept, "StopSignals", lambda: StopAt(2))
        with pytest.raises(Interrupted):
            list(one.distill(0, out))


def test_other_data_than_a_run_was_begun_with_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_within_an_epoch(domain("list"), tmp_path, monkeypatch)
    other = [DATA[:8], DATA[14:], DATA[8:14]]
    with pytest.raises(UserError, match="batch 2 of epoch 1 is not what it was when the run was saved"):
        list(domain(other).distill(0, tmp_path))


def test_of_data_that_stream_a_line_says_what_is_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stream(IterableDataset[tuple[Tensor, Tensor]]):
        order = np.random.default_rng(0)

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield from (DATA[int(index)] for index in self.order.permutation(22))

    stream = DataLoader(Stream(), 8)
    stop_within_an_epoch(domain(stream), tmp_path, monkeypatch)
    said = capsys.readouterr().err
    assert "but not bit for bit: `batches` loads an iterable data set, of which it is not known whether it" in said
    found = list(domain(stream).distill(0, tmp_path))
    assert "the run goes on with other batches than it would have had" in capsys.readouterr().err
    assert len(found) == 1


def test_an_epoch_that_ends_early_is_told(tmp_path: Path) -> None:
    class Short:
        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Iterator[Any]:
            yield from SOURCES["list"]()

    with pytest.raises(ValueError, match="epoch 1 of generation 0 ends after 3 batches, and `batches` says"):
        list(domain(Short()).distill(0))


def test_a_number_that_is_not_finite_leaves_the_state_before_it_and_its_batch(tmp_path: Path) -> None:
    bad = (torch.full((8, 2), torch.inf), LABELS[:8])
    batches = [DATA[:8], DATA[8:16], bad, DATA[16:]]
    with pytest.raises(FloatingPointError) as caught:
        list(domain(batches, log_every_steps=4).distill(0, tmp_path))
    path = tmp_path / "generation_0_failure.pt"
    assert str(caught.value) == (
        "the loss cross_entropy of generation 0 is nan at batch 3 of epoch 1, learning rate 0.01, where not all "
        f"inputs are finite; the state before it and the batch are in {path}"
    )
    left = torch.load(path, weights_only=True)
    assert left["state"]["steps"] == 2
    assert left["batch"]["step"] == 3
    assert torch.equal(left["batch"]["inputs"][0], bad[0])
    assert all(tensor.isfinite().all() for tensor in left["state"]["student"].values())


def test_a_run_is_saved_as_often_as_is_asked_for(tmp_path: Path) -> None:
    list(domain().distill(0, tmp_path, checkpoint=CheckpointConfig(every_steps=1)))
    numbers = [int(path.stem) for path in (tmp_path / "checkpoints").glob("*.checkpoint")]
    assert max(numbers) == 7, "after 5 of 6 steps, at the end of the course, and when it is scored"
