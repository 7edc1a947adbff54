"""Objectives by name: complete, frozen, and telling how they are to be used."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math

import pytest
import torch
from torch import Tensor, nn

from polydistill import losses
from polydistill.losses import OBJECTIVES, as_objective, get_objective, hinton_kd, policy_kl
from tests.losses.reference import NAMES


def test_every_loss_is_an_objective_under_its_own_name() -> None:
    assert list(OBJECTIVES) == NAMES
    for name, objective in OBJECTIVES.items():
        assert objective.name == name
        assert objective.function is getattr(losses, name)
        assert get_objective(name) is objective


def test_objectives_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        OBJECTIVES["mine"] = OBJECTIVES["ban"]  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        OBJECTIVES["ban"].name = "mine"  # type: ignore[misc]


def test_objective_is_its_function_behind_one_signature(make_batch) -> None:
    student, teacher, labels = make_batch()
    assert torch.equal(
        OBJECTIVES["policy_kl"](student, teacher, None, temperature=0.5), policy_kl(student, teacher, temperature=0.5)
    )
    expected = hinton_kd(student, teacher, labels, temperature=2.0)
    assert torch.equal(OBJECTIVES["hinton_kd"](student, teacher, labels, temperature=2.0), expected)
    assert OBJECTIVES["cross_entropy"](student, None, labels).shape == (5,)


@pytest.mark.parametrize("name", NAMES)
def test_flags_say_what_the_signature_has(name) -> None:
    objective = OBJECTIVES[name]
    parameters = inspect.signature(objective.function).parameters
    positional = [p.name for p in parameters.values() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert positional == [
        "student",
        *("teacher_q" if n == "teacher" and "teacher_q" in positional else n for n in objective.takes),
    ]
    required_labels = "labels" in parameters and parameters["labels"].default is inspect.Parameter.empty
    assert objective.needs_labels == required_labels
    assert objective.needs_permutation == ("permutation" in parameters)
    assert objective.batch_coupled == ("group" in parameters)
    assert not objective.tempered or "temperature" in parameters


@pytest.mark.parametrize("name", NAMES)
def test_tempered_objectives_temper_the_teacher_alone(make_batch, name) -> None:
    objective = OBJECTIVES[name]
    if "temperature" not in inspect.signature(objective.function).parameters:
        assert not objective.tempered
        return
    batch = make_batch()
    halved = objective(*batch, temperature=0.5)
    teacher_alone = objective(batch.student, batch.teacher / 0.5, batch.labels, temperature=1.0)
    assert torch.allclose(halved, teacher_alone) == objective.tempered


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_the_teachers_where_only_equal_scores_are_optimal(name) -> None:
    """A regression has no gradient at the teacher's own scores, and feels a shift of them; a softmax feels none."""
    scores = torch.tensor([[1.0, -1.0, 0.5]])
    permutation = {"permutation": torch.tensor([[1, 0]])} if OBJECTIVES[name].needs_permutation else {}
    one, other = (OBJECTIVES[name](z, scores, torch.tensor([0]), **permutation) for z in (scores, scores + 3))
    feels_shift = not torch.allclose(one, other, atol=1e-4)
    assert (OBJECTIVES[name].score_kind == "teacher") == feels_shift


@pytest.mark.parametrize("name", [name for name in NAMES if OBJECTIVES[name].needs_labels])
def test_missing_labels_are_one_line(make_batch, name) -> None:
    student, teacher, _ = make_batch()
    with pytest.raises(ValueError, match=f"objective {name} needs labels, got None"):
        OBJECTIVES[name](student, teacher, None)


def test_unknown_option_is_refused(make_batch) -> None:
    with pytest.raises(TypeError, match="temprature"):
        OBJECTIVES["policy_kl"](*make_batch(), temprature=0.01)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("policy_lk", "did you mean 'policy_kl'"),
        ("Hinton-KD", "did you mean 'hinton_kd'"),
        ("zzz", "there are cross_entropy, ban, "),
    ],
)
def test_unknown_name_is_answered_with_the_nearest(name, text) -> None:
    with pytest.raises(ValueError, match=text) as error:
        get_objective(name)
    assert repr(name) in str(error.value)


def test_name_without_resemblance_gets_no_guess() -> None:
    with pytest.raises(ValueError, match="unknown objective") as error:
        get_objective("zzz")
    assert "did you mean" not in str(error.value)


def test_import_of_losses_loads_torch_and_nothing_of_ours_besides_the_kernels_launcher(run_python) -> None:
    code = (
        "import sys, torch, polydistill.losses;"
        "ours = [n for n in sys.modules if n.startswith(('polydistill', 'agents', 'triton', 'numpy.testing'))];"
        "layers = ('polydistill.losses', 'polydistill.kernels');"
        "assert all(n == 'polydistill' or n.startswith(layers) for n in ours), ours;"
        "assert not any('device' in n for n in ours), ours"
    )
    process = run_python("-c", code)
    assert process.returncode == 0, process.stderr


def test_losses_are_means_of_nothing(make_batch) -> None:
    """Two copies of a batch give each value twice, and no sum or mean over it."""
    for name, objective in OBJECTIVES.items():
        batch = make_batch(3, 4)
        options = batch.options(name)
        once = objective(*batch, **options)
        twice = objective(*(torch.cat([x, x]) for x in batch), **{k: torch.cat([v, v]) for k, v in options.items()})
        torch.testing.assert_close(twice, torch.cat([once, once]), msg=name)
        assert not math.isclose(once[0].item(), once[1].item())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_plain_formula_compiles_without_a_graph_break(make_batch, name) -> None:
    objective, batch = OBJECTIVES[name], make_batch(4, 6, dtype=torch.float32)
    options = batch.options(name)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *b: objective(*b, **options).sum(), fullgraph=True, backend="aot_eager")
    found, expected = compiled(*batch), objective(*batch, **options).sum()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, batch.student)[0] for loss in (found, expected)))


class Weighted(nn.Module):
    """A loss with a weight that somebody meant to be learned."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return self.weight * (student - teacher).square().sum(dim=1)


def test_a_loss_with_parameters_that_nobody_would_train_is_refused(make_batch) -> None:
    module = Weighted()
    for objective in (module, functools.partial(module), module.forward):
        with pytest.raises(ValueError, match=r"has parameters of its own \(weight\), that no optimiser trains: give "):
            as_objective(objective)
    student, teacher, labels = make_batch()
    expected = (student - teacher).square().sum(dim=1)
    assert torch.equal(as_objective(module.requires_grad_(False))(student, teacher, labels), expected)
