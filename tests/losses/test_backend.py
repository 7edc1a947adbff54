"""Who computes a loss: the choice between plain formulas and kernels, and what is there without Triton."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch

from polydistill.losses import backend, use_backend
from polydistill.losses.backend import HAS_TRITON, can_launch, current_backend, uses_kernels
from polydistill.losses.examination.scores import describe_backend

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs Triton, which is not installed")


@pytest.fixture
def programs(monkeypatch) -> list[str]:
    """The programs on PATH, as far as :mod:`shutil` can see; nothing has been looked up yet, and CC is not set."""
    found: list[str] = []
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in found else None)
    monkeypatch.setattr(backend, "_can_launch", None)
    monkeypatch.delenv("CC", raising=False)
    return found


def on_cuda(dtype=torch.float32):
    """What the choice looks at of CUDA scores ``(2, 3)``."""
    return SimpleNamespace(is_cuda=True, device="cuda:0", dtype=dtype, shape=(2, 3))


@needs_triton
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_cuda_scores_go_to_the_kernels_where_there_is_a_compiler(programs, compiler) -> None:
    programs.append(compiler)
    assert uses_kernels(on_cuda())
    assert describe_backend(on_cuda()) == "fused kernels"
    assert not uses_kernels(torch.zeros(2, 3))
    assert not uses_kernels(on_cuda(torch.float64))


@needs_triton
def test_cuda_scores_stay_with_the_formulas_where_there_is_no_compiler(programs) -> None:
    programs.append("cc")  # which Triton does not try
    assert not uses_kernels(on_cuda())
    assert describe_backend(on_cuda()) == "plain formulas (Triton finds no C compiler: set CC, or install gcc)"


@needs_triton
@pytest.mark.parametrize("named", ["", "tcc"])
def test_compiler_named_by_cc_is_the_only_one_that_counts(programs, monkeypatch, named) -> None:
    programs.append("gcc")
    monkeypatch.setenv("CC", named)
    assert not can_launch()
    programs.append("tcc")
    monkeypatch.setattr(backend, "_can_launch", None)
    assert can_launch() is (named == "tcc")


@needs_triton
def test_kernels_chosen_by_hand_compute_what_they_can_and_leave_scores_on_the_cpu_to_the_formulas(
    programs, monkeypatch
) -> None:
    programs.append("gcc")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with use_backend("triton"):
        assert uses_kernels(on_cuda())
        assert not uses_kernels(torch.zeros(2, 3))
    with use_backend("torch"):
        assert not uses_kernels(on_cuda())
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with use_backend("triton"):
        assert uses_kernels(torch.zeros(2, 3))
        assert not uses_kernels(torch.zeros(2, 3, dtype=torch.float64))


@needs_triton
@pytest.mark.parametrize(
    ("gpu", "says"),
    [
        (False, "needs a GPU, and torch sees none: choose auto, or set TRITON_INTERPRET=1 in the environment"),
        (True, "needs a C compiler, and Triton finds none: set CC, or install gcc"),
    ],
)
def test_kernels_chosen_where_none_can_run_are_one_line_at_the_call(programs, monkeypatch, gpu, says) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        use_backend("triton")
    assert str(error.value) == f"backend triton {says}"
    assert current_backend() == "auto"


@needs_triton
def test_compiler_is_looked_for_once(programs) -> None:
    programs.append("gcc")
    assert can_launch()
    programs.clear()
    assert can_launch()


@needs_triton
def test_looking_for_a_compiler_breaks_no_graph(programs) -> None:
    """While compiling nothing is looked up, and what was looked up before is believed."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: x + 1 if can_launch() else x - 1, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(2)).tolist() == [1, 1]
    assert not can_launch()
    assert compiled(torch.zeros(2)).tolist() == [-1, -1]


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # importing it fails
import torch
from polydistill.losses import OBJECTIVES, draw_permutation, use_backend, value_and_grad
z, t = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
y, z = torch.tensor([0, 4, 2, 2]), z.requires_grad_()
for name, objective in OBJECTIVES.items():
    permutation = {"permutation": draw_permutation(4, 5, generator=torch.Generator().manual_seed(0))}
    options = permutation if objective.needs_permutation else {}
    (gradient,) = torch.autograd.grad(objective(z, t, y, **options).sum(), z)
    found = value_and_grad(name, z, t, y, with_diagnostics=True, **options)
    torch.testing.assert_close(found.gradient, gradient)
try:
    use_backend("triton")
except ValueError as error:
    print(error)
"""


def test_losses_do_without_triton_and_say_so_where_it_is_asked_for(run_python) -> None:
    done = run_python("-c", WITHOUT_TRITON)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "backend triton needs Triton, which is not installed: pip install triton\n"


NO_IMPORT = """
import sys, torch
from polydistill.losses import OBJECTIVES, draw_permutation, value_and_grad
z, t = torch.randn(2, 4, 5)
y = torch.tensor([0, 4, 2, 2])
for name, objective in OBJECTIVES.items():
    permutation = {"permutation": draw_permutation(4, 5, generator=torch.Generator())}
    value_and_grad(name, z, t, y, with_diagnostics=True, **(permutation if objective.needs_permutation else {}))
assert "torch" in sys.modules
print([name for name in sys.modules if name.split(".")[0] == "triton" or "kernels.device" in name])
"""


def test_losses_of_scores_on_the_cpu_import_nothing_of_triton(run_python) -> None:
    done = run_python("-c", NO_IMPORT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
