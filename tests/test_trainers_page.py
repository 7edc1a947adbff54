"""What docs/trainers.md shows runs, where its package is installed, and what the page says of it is true."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polydistill.losses import OBJECTIVES, ban_l, hinton_kd
from tests.operators import define_operators

PAGE = Path(__file__).resolve().parent.parent / "docs" / "trainers.md"
SECTIONS = dict(re.findall(r"^## (.*?)\n\n```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL))
LOOP, LIGHTNING, HUGGING_FACE, TIMM = SECTIONS

pytestmark = pytest.mark.filterwarnings("ignore")  # of other people's packages


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run the block of a section in an empty folder, with parts of it exchanged; what it leaves behind by name."""
    monkeypatch.chdir(tmp_path)

    def run_block(section: str, **exchanged: str) -> dict[str, Any]:
        code = SECTIONS[section]
        for old, new in exchanged.items():
            assert old in code
            code = code.replace(old, new)
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(code, PAGE.name, "exec"), names)
        return names

    return run_block


@pytest.fixture(scope="module")
def torchvision_imports() -> None:
    """What imports torchvision fails beside a torch without its operators."""
    define_operators()


@pytest.fixture
def installed(torchvision_imports: None) -> Callable[[str], Any]:
    """Import a package, or skip the test where it is not installed."""

    def find(name: str) -> Any:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")
        return importlib.import_module(name)

    return find


@pytest.mark.parametrize("section", SECTIONS)
def test_an_example_is_short(section: str) -> None:
    assert len([line for line in SECTIONS[section].splitlines() if line]) <= 40


def gradient_of(student: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(student.parameters())))


# ---- a loop of one's own ---------------------------------------------------------------------------------------------


def test_the_loop_learns_and_its_loss_is_of_float32(run, capsys) -> None:
    names = run(LOOP)
    assert float(capsys.readouterr().out.removeprefix("accuracy ")) > 0.75
    assert names["scores"].dtype == torch.float16
    assert names["loss"].dtype == torch.float32


def test_a_loss_is_computed_in_float32_within_autocast() -> None:
    student, teacher = torch.tensor([[20.0, 0.0]]).half(), torch.tensor([[0.0, 20.0]]).half()
    with torch.autocast("cpu", torch.float16):
        loss = hinton_kd(student, teacher, temperature=1.0, teacher_weight=1.0)
    torch.testing.assert_close(loss, torch.tensor([20.0]), rtol=1e-6, atol=1e-6)
    assert student.softmax(-1).log().isinf().any()  # exp(-20) = 2e-9


def test_a_gradient_that_is_clipped_while_scaled_teaches_nothing(run) -> None:
    weights = []
    for exchanged in ({}, {"        scaler.unscale_(optimizer)": "        pass"}):
        torch.manual_seed(0)
        names = run(LOOP, **exchanged)
        with torch.no_grad():
            weights.append((names["student"](names["inputs"]).argmax(1) == names["labels"]).float().mean())
    assert weights[1] < 0.6 < 0.75 < weights[0]


@pytest.mark.parametrize("name", ["ban", "ban_l", "hinton_kd", "dkd", "cwtm", "uniform_confidence"])
def test_parts_add_up_to_the_batch_but_for_losses_that_divide_by_its_mean(name) -> None:
    generator = torch.Generator().manual_seed(0)
    student = nn.Linear(5, 4).double()
    inputs = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    teacher = torch.randn(8, 4, generator=generator, dtype=torch.float64) * torch.arange(1, 9).unsqueeze(1)
    labels = torch.randint(4, (8,), generator=generator)
    objective = OBJECTIVES[name]

    def mean(rows: slice) -> Tensor:
        return objective(student(inputs[rows]), teacher[rows], labels[rows]).mean()

    whole = gradient_of(student, mean(slice(8)))
    parts = gradient_of(student, (mean(slice(0, 4)) + mean(slice(4, 8))) / 2)
    assert all(torch.allclose(a, b) for a, b in zip(whole, parts, strict=True)) is not objective.batch_coupled


# ---- Lightning -------------------------------------------------------------------------------------------------------


def test_lightnings_teacher_is_neither_saved_nor_trained_nor_put_into_training_mode(run, installed, tmp_path) -> None:
    lightning = installed("lightning")
    names = run(LIGHTNING)
    module, teacher = names["module"], names["teacher"]
    assert set(module.state_dict()) == {"student.weight", "student.bias"}
    saved = torch.load(next(tmp_path.rglob("*.ckpt")), weights_only=True)
    assert set(saved["state_dict"]) == {"student.weight", "student.bias"}
    module.train()
    assert not any(part.training for part in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())

    class Registered(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = nn.Linear(4, 4), teacher

    wrong = Registered()
    assert "teacher.0.weight" in wrong.state_dict()
    assert len(list(wrong.parameters())) == 4
    wrong.train()
    assert teacher.training


def test_lightnings_accumulation_is_the_gradient_of_the_whole_batch_where_all_rows_count(run, installed) -> None:
    lightning = installed("lightning")
    names = run(LIGHTNING)

    class WithSGD(names["Distilled"]):  # type: ignore[misc]
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1.0)

    student, (inputs, labels) = nn.Linear(4, 4), names["data"][:100]
    before = [parameter.detach().clone() for parameter in student.parameters()]
    teacher = names["teacher"].eval()
    expected = gradient_of(student, hinton_kd(student(inputs), teacher(inputs), labels).mean())
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=50)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", accumulate_grad_batches=2, **quiet)
    trainer.fit(WithSGD(student, teacher), loader)
    for old, new, gradient in zip(before, student.parameters(), expected, strict=True):
        torch.testing.assert_close(old - new, gradient)


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


def test_hugging_faces_accumulation_with_ragged_padding_is_the_gradient_of_the_whole_batch(run, installed) -> None:
    transformers, _ = installed("transformers"), installed("accelerate")
    names = run(HUGGING_FACE)
    told = "        self.model_accepts_loss_kwargs = True"
    not_told = {told: "        self.model_accepts_loss_kwargs = False"}
    own_mean = run(HUGGING_FACE, **not_told)
    padded_mean = run(HUGGING_FACE, **not_told, **{"losses.sum() / (labels != -100).sum()": "losses.mean()"})
    data = names["data"][:16]
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = transformers.GPT2Config(**names["config"].to_diff_dict() | no_dropout)
    teacher = transformers.GPT2LMHeadModel(config)
    teacher.lm_head.weight.data.mul_(20.0)
    start = transformers.GPT2LMHeadModel(config)
    gradient = by_hand(start, teacher.eval(), data)

    def off(kind: type) -> float:
        """How far the step of a trainer is from the gradient, relative to its length."""
        student = transformers.GPT2LMHeadModel(config)
        student.load_state_dict(start.state_dict())
        arguments = transformers.TrainingArguments(
            "out", per_device_train_batch_size=8, gradient_accumulation_steps=2, max_steps=1, optim="sgd",
            learning_rate=1.0, lr_scheduler_type="constant", max_grad_norm=0.0, report_to="none", use_cpu=True,
            save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        kind(student, arguments, train_dataset=data, teacher=teacher).train()
        step = torch.cat([(a - b).flatten() for a, b in zip(start.parameters(), student.parameters(), strict=True)])
        return float((step - gradient).norm() / gradient.norm())

    assert off(names["DistillationTrainer"]) < 1e-4
    assert off(own_mean["DistillationTrainer"]) > 0.005
    assert off(padded_mean["DistillationTrainer"]) > 0.2


def by_hand(student: nn.Module, teacher: nn.Module, data: list[dict[str, Tensor]]) -> Tensor:
    """The gradient of the mean over all positions that count, in one batch."""
    batch = {name: torch.stack([row[name] for row in data]) for name in data[0]}
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        taught = teacher(**batch).logits[:, :-1]
    counted = labels != -100
    loss = hinton_kd(student(**batch).logits[:, :-1][counted], taught[counted], labels[counted]).mean()
    return torch.cat([part.flatten() for part in gradient_of(student, loss)])


# ---- timm ------------------------------------------------------------------------------------------------------------


def test_timms_loop_runs_and_its_label_term_is_timms(run, installed, capsys) -> None:
    installed("torchvision")
    installed("timm")
    loss = importlib.import_module("timm.loss")
    names = run(TIMM)
    assert float(capsys.readouterr().out.removeprefix("loss ")) > 0
    scores, targets = names["scores"].detach(), names["targets"]
    theirs = loss.SoftTargetCrossEntropy()(scores, targets)
    torch.testing.assert_close(ban_l(scores, torch.zeros_like(scores), targets, teacher_weight=0.0).mean(), theirs)
    assert not any(part.training for part in names["teacher"].modules())
