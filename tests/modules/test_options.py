"""The mean of the weights, float16, where scores are in an output, and what a teacher of another kind sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from polydistill.errors import Interrupted, UserError
from polydistill.learning.average import MovingAverage
from polydistill.lineage import Generation
from polydistill.modules import ModuleDomain, kept
from polydistill.modules.batches import read_batch
from polydistill.modules.outputs import Reading
from polydistill.modules.training import ModuleTraining
from polydistill.provenance import weights_sha256
from tests.stop_signals import StopAt

LABELS = torch.arange(24) % 3
INPUTS = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)) + LABELS.unsqueeze(1)
LOADER = DataLoader(TensorDataset(INPUTS, LABELS), 5, shuffle=True)
TEST = [(INPUTS, LABELS)]


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.2, momentum=0.9)


def domain(**options: Any) -> ModuleDomain:
    return ModuleDomain(build, LOADER, TEST, **{"epochs": 3, "optimizer": sgd, **options})


def hashes(found: Any) -> list[str | None]:
    return [one.sha256 for one in found]


def goes_on(options: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...]) -> None:
    expected = list(domain(**options).distill(1))
    for at in stops:
        monkeypatch.setattr(kept, "StopSignals", lambda at=at: StopAt(at))
        with pytest.raises(Interrupted):
            list(domain(**options).distill(1, run=out))
    monkeypatch.undo()
    assert hashes(domain(**options).distill(1, run=out)) == hashes(expected)


# ---- the mean of the weights ---------------------------------------------------------------------------------------


def test_the_mean_follows_its_formula_in_weights_and_statistics() -> None:
    network = nn.BatchNorm1d(2)
    average = MovingAverage(network, 0.5)
    seen = []
    for step in range(1, 13):
        with torch.no_grad():
            network.weight.fill_(step)
            network.running_mean.fill_(10 * step)
            network.num_batches_tracked.fill_(step)
        average.add()
        with average.shown():
            seen.append([network.weight[0].item(), network.running_mean[0].item(), network.num_batches_tracked.item()])
        assert network.weight[0] == step
    assert seen[0] == pytest.approx([1.0, 9.0, 1]), "nine tenths of the first update: 0.1 * 1 + 0.9 * 1"
    wanted, mean = 0.0, 0.0
    for step in range(1, 13):
        decay = min(0.5, step / (step + 9))
        wanted, mean = decay * (wanted or 1.0) + (1 - decay) * step, decay * mean + (1 - decay) * 10 * step
    assert seen[-1] == pytest.approx([wanted, mean, 12], rel=1e-5)


def test_the_mean_is_what_is_validated_kept_measured_and_taught_from(monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[dict[str, Tensor]] = []
    keep = ModuleTraining.keep

    def spy(training: ModuleTraining) -> None:
        learned.append({name: tensor.clone() for name, tensor in training.student.state_dict().items()})
        keep(training)

    monkeypatch.setattr(ModuleTraining, "keep", spy)
    found = list(domain(ema=0.9, validation=TEST).distill(1))
    plain = list(domain().distill(0))
    torch.testing.assert_close(learned[0], dict(plain[0].member.state_dict()))
    assert found[0].sha256 != plain[0].sha256
    assert found[0].metrics["val_accuracy"] == found[0].metrics["test_accuracy"]
    assert found[1].teacher_sha256 == found[0].sha256 == weights_sha256(found[0].member.state_dict())
    means, weights = (one["1.running_mean"] for one in (found[0].member.state_dict(), learned[0]))
    assert not torch.equal(means, weights), "running statistics are averaged too"


@pytest.mark.parametrize("more", [{}, {"validation": TEST, "keep_best": True, "patience": 2}])
def test_a_run_of_means_goes_on_bit_for_bit(
    more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    goes_on({"ema": 0.9, **more}, tmp_path / "run", monkeypatch, (4, 17))
    assert "mean of the weights (decay 0.9)" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"ema is 0\.9 there and 0.8 here"):
        list(domain(ema=0.8, **more).distill(1, run=tmp_path / "run"))


# ---- the epoch that is kept ----------------------------------------------------------------------------------------


def test_the_kept_epoch_and_its_accuracy_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how: dict[str, Any] = {"validation": TEST, "epochs": 6}
    best = list(domain(keep_best=True, **how).distill(1, run=tmp_path / "run"))
    printed = capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for one in best:
        curve = [
            line["values"]["val/accuracy"]
            for line in lines
            if line["role"] == f"generation_{one.generation}" and "val/accuracy" in line["values"]
        ]
        assert one.metrics["val_accuracy"] == max(curve) == one.metrics["test_accuracy"]
        assert one.metrics["kept_epoch"] == curve.index(max(curve)) + 1
    assert "| epoch |" in printed
    last = list(domain(**how).distill(0))
    assert last[0].metrics["kept_epoch"] == 6
    assert "kept_epoch" not in next(domain().distill(0)).metrics
    given = list(domain(teacher=last[0].member, **how).distill(1))
    assert [one.metrics["kept_epoch"] for one in given] == [None, 6]


# ---- float16 -------------------------------------------------------------------------------------------------------


def test_float16_learns_nearly_as_float32_does() -> None:
    plain, half = (list(domain(precision=precision, clip_norm=1.0).distill(1)) for precision in ("float32", "float16"))
    for ours, theirs in zip(half, plain, strict=True):
        assert ours.sha256 != theirs.sha256
        assert ours.member.state_dict()["0.weight"].dtype is torch.float32
    weights = [one[0].member.state_dict() for one in (half, plain)]
    torch.testing.assert_close(weights[0]["4.weight"], weights[1]["4.weight"], rtol=0.1, atol=0.05)


def test_a_batch_in_parts_is_the_same_update_in_float16() -> None:
    linear = {"precision": "float16", "optimizer": lambda parameters: torch.optim.SGD(parameters, 0.05)}
    whole, parted = (
        next(ModuleDomain(lambda: nn.Linear(4, 3), TEST, TEST, epochs=2, parts=parts, **linear).distill(0))
        for parts in (1, 3)
    )
    torch.testing.assert_close(parted.member.weight, whole.member.weight, rtol=5e-3, atol=5e-4)


class Steep(nn.Linear):
    """Its gradient is 4,000 times its loss's: scaled by 65,536 no float16 holds it."""

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = super().forward(x) / 4000.0
        return scores * 4000.0


def test_a_step_whose_gradient_is_not_finite_is_left_out_and_is_no_failure(tmp_path: Path) -> None:
    out = tmp_path / "run"
    how: dict[str, Any] = {"epochs": 4, "precision": "float16", "log_every_steps": 1, "ema": 0.5}
    how |= {"optimizer": lambda parameters: torch.optim.SGD(parameters, 0.05), "schedule_by": "step"}
    how |= {"scheduler": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.5)}
    one = ModuleDomain(lambda: Steep(4, 3), TEST * 4, TEST, **how)
    found = list(one.distill(0, run=out))
    lines = [json.loads(line)["values"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    skipped = [line["train/skipped_steps"] for line in lines if "train/skipped_steps" in line]
    assert 0 < skipped[0] <= skipped[-1] < 16
    rates = [line["train/learning_rate"] for line in lines if "train/learning_rate" in line]
    before = [0.0, *skipped[:-1]]  # the rate of a step is that of so many steps made before it
    assert rates == [0.05 * 0.5 ** (step - left_out) for step, left_out in enumerate(before)]
    assert all(tensor.isfinite().all() for tensor in found[0].member.state_dict().values())


def test_a_run_in_float16_goes_on_bit_for_bit_with_its_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on({"precision": "float16", "clip_norm": 1.0}, tmp_path / "run", monkeypatch, (6, 21))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"optimizer": torch.optim.LBFGS}, "makes a LBFGS, which evaluates the loss itself: float16 scales the loss"),
        ({"build_student": lambda: build().half(), "ema": 0.5}, "the first batch of `batches`|weights of float32"),
    ],
)
def test_what_float16_cannot_be_used_with_is_told_before_the_first_step(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        list(domain(precision="float16", **options).distill(1))


def test_an_operation_that_torch_does_not_have_in_float16_is_one_line() -> None:
    class Without(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            scores = super().forward(x)
            if scores.dtype is torch.float16:
                raise RuntimeError("\"cumprod\" not implemented for 'Half'\nand more")
            return scores

    one = ModuleDomain(lambda: Without(4, 3), TEST, TEST, epochs=1, precision="float16")
    with pytest.raises(
        ValueError, match=r"in float16 on cpu \(\"cumprod\" not implemented for 'Half'\): choose bfloat16$"
    ):
        list(one.distill(1))


# ---- inputs and outputs --------------------------------------------------------------------------------------------


class Wrapped(nn.Linear):
    """Gives its scores within something else."""

    def __init__(self, wrap: Any) -> None:
        super().__init__(4, 3)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(super().forward(x))


def of_linear(wrap: Any, **options: Any) -> list[Generation[nn.Module]]:
    return list(ModuleDomain(lambda: Wrapped(wrap), TEST, TEST, epochs=2, **options).distill(1))


@pytest.mark.parametrize(
    ("output", "wrap"),
    [
        (1, lambda scores: (scores.mean(), scores)),
        (-1, lambda scores: [scores.mean(), scores]),
        ("scores", lambda scores: {"loss": None, "scores": scores}),
        ("real", lambda scores: scores),
        (lambda output: output["deep"][0], lambda scores: {"deep": [scores]}),
        (lambda output: output[1], lambda scores: (None, {"logits": scores})),
    ],
    ids=["index", "negative", "key", "attribute", "function", "function of logits"],
)
def test_scores_are_found_where_output_says(output: Any, wrap: Any, tmp_path: Path) -> None:
    expected = hashes(of_linear(lambda scores: scores))
    assert hashes(of_linear(wrap, output=output)) == expected
    assert hashes(of_linear(wrap, output=output, parts=2, validation=TEST)) != []


@pytest.mark.parametrize(
    ("output", "wrap", "text"),
    [
        (
            2,
            lambda scores: (scores, scores),
            r"the module that .* `output` is 2, and the network gives a tuple",
        ),
        (
            "scores",
            lambda scores: {"logits": scores},
            r"`output` is 'scores', and the network gives \('logits',\)",
        ),
        (0, lambda scores: scores, "`output` is 0, and the network gives a Tensor, which has no such element"),
        ("scores", lambda scores: scores, "`output` is 'scores', and the network gives a Tensor"),
    ],
)
def test_an_output_without_such_an_element_is_one_line_before_the_first_step(output: Any, wrap: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        of_linear(wrap, output=output)


def test_a_teacher_sees_and_gives_what_is_said_and_the_run_knows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shrink(x: Tensor) -> Tensor:
        return x[:, :2] / 2

    teacher = nn.Linear(2, 3)
    given: list[Tensor] = []

    class Seeing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = teacher

        def forward(self, x: Tensor) -> Any:
            given.append(x)
            return None, self.layer(x)

    how: dict[str, Any] = {"teacher": Seeing(), "teacher_inputs": shrink, "teacher_output": 1}
    found = list(domain(**how).distill(2, run=tmp_path / "run", doctor=True))
    assert len(found) == 3
    assert all(x.shape[1] == 2 for x in given)
    assert torch.equal(given[1], shrink(INPUTS)), "the test batch, in the trial"

    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = teacher

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.layer(shrink(x))
            return scores

    inside = list(domain(teacher=Inside()).distill(2))
    assert hashes(found) == hashes(inside)
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "teacher_inputs: function test_a_teacher_sees_and_gives_what_is_said_and_the_run_knows_it.<locals>" in config
    assert "teacher_output: 1" in config
    with pytest.raises(UserError, match="teacher_output is 1 there and 'x' here"):
        list(domain(**how | {"teacher_output": "x"}).distill(2, run=tmp_path / "run"))


@pytest.mark.parametrize("seen", [lambda x: (x, x), lambda x: {"a": x, "b": x}])
def test_a_teacher_may_take_several_inputs_or_keywords(seen: Any) -> None:
    class Two(nn.Linear):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return super().forward(a + b)

    two, batch = Two(4, 3), read_batch((INPUTS, LABELS))
    found = Reading(inputs=seen).score(two, batch)
    torch.testing.assert_close(found, nn.functional.linear(2 * INPUTS, two.weight, two.bias))


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"output": True}, TypeError, "`output` must be an index, a key or a function of .*, got True"),
        (
            {"teacher_output": 1},
            ValueError,
            "`teacher_output` is for a teacher that is given",
        ),
        ({"teacher_inputs": abs}, ValueError, "`teacher_inputs` is for a teacher that is given"),
        (
            {"teacher_inputs": 3, "teacher": nn.Linear(4, 3)},
            TypeError,
            "`teacher_inputs` must be a function",
        ),
        ({"ema": 1.0}, ValueError, r"ema must be in \(0, 1\), got 1.0"),
    ],
)
def test_arguments_of_another_kind_are_refused(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        domain(**options)
