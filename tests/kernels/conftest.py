"""The kernels' tests: on the chip where there is one, and otherwise in Triton's interpreter, in a process of their own.

``TRITON_INTERPRET`` must be set before a kernel is imported, so these tests are skipped in a run without it
(``make test`` makes two runs). The interpreter truncates to bfloat16 where the chip rounds: one unit in the last place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from polydistill.kernels import autograd, plan, prepared
from polydistill.losses import use_backend
from polydistill.losses.backend import HAS_TRITON

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED and HAS_TRITON:
    from triton.runtime import interpreter
ON_CHIP = torch.cuda.is_available() and not INTERPRETED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/kernels/" not in item.path.as_posix():
            continue
        if not HAS_TRITON:
            item.add_marker(pytest.mark.skip(reason="needs Triton, which is not installed"))
        elif ON_CHIP and item.path.name != "test_compiles.py":  # which needs no chip
            item.add_marker(pytest.mark.gpu)
        elif not INTERPRETED and not ON_CHIP:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, or TRITON_INTERPRET=1 (make test sets it)"))


@pytest.fixture(autouse=True, scope="session")
def _searched_once_a_launch() -> Iterator[None]:
    """The interpreter searches Triton's whole language for what to replace, at each of the hundred calls of device
    functions in a launch. What it finds depends on the function's module only: once for each is enough, until the
    launch ends and all is put back."""
    search = getattr(interpreter, "_patch_lang", None) if INTERPRETED and HAS_TRITON else None
    if search is None:
        yield
        return
    searched: set[str] = set()

    def search_once(function: Callable[..., object]) -> object:
        if function.__module__ in searched:
            return None  # nobody puts back what a device function has replaced
        scope = search(function)
        if put_back := getattr(scope, "restore", None):  # an older Triton puts nothing back
            searched.add(function.__module__)
            scope.restore = lambda: (searched.clear(), put_back())
        return scope

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", search_once)
        yield


@pytest.fixture
def device() -> str:
    """Where the kernels run."""
    return "cuda" if ON_CHIP else "cpu"


@pytest.fixture(autouse=True)
def _fused():
    """Losses are computed by the kernels. What does not count is -inf in them, and a NaN of two of these is dropped:
    the interpreter's numpy would warn of it, and where scores of 3e38 become inf, as they do on the chip."""
    with use_backend("triton" if HAS_TRITON else "auto"), np.errstate(invalid="ignore", over="ignore"):
        yield


@pytest.fixture(params=["whole rows", "four rows", "streamed"])
def tiles(request, monkeypatch) -> str:
    """Once with the tiles of short rows, and the gradient along with the loss; once with four rows in a tile, as
    batches of thousands have, and once with the loop that long rows take, 8 classes at a time: these with the gradient
    from the backward pass. That loop takes four rows at once too, which the interpreter does in the time of one."""
    if request.param != "whole rows":
        monkeypatch.setattr(autograd, "FEW_SCORES", 0)
        share_tiles(monkeypatch)
    if request.param == "streamed":
        monkeypatch.setattr(plan, "LARGEST_TILE", 0)
        monkeypatch.setattr(plan, "STREAMED_TILE", 8)
        monkeypatch.setattr(plan, "plan_long_tile", lambda *bytes_, **work: plan.LongTile(2, 2, 2, 4))
    return request.param


@pytest.fixture(params=["whole rows", "four rows"])
def whole_tiles(request, monkeypatch) -> str:
    """The first two of ``tiles``."""
    if request.param == "four rows":
        share_tiles(monkeypatch)
    return request.param


def share_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rows to a tile, whatever the size of the batch."""
    original = plan.plan_tiles
    monkeypatch.setattr(plan, "plan_tiles", lambda *shape: original(*shape)._replace(rows=4))


@pytest.fixture(autouse=True)
def _nothing_prepared() -> None:
    """What was prepared for a form of tensors knows nothing of the tiles of a test."""
    prepared.PREPARED.clear()


@pytest.fixture
def launches(monkeypatch) -> list[str]:
    """Names of the kernels launched."""
    names: list[str] = []
    run = prepared.Prepared.__call__

    def counted(one: prepared.Prepared, *given: object) -> None:
        names.append(one.name)
        run(one, *given)

    monkeypatch.setattr(prepared.Prepared, "__call__", counted)
    return names
