"""Both worlds take their losses from one place: by name, through ``get_objective``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from polydistill.losses import OBJECTIVES

LOSSES = frozenset(objective.function.__name__ for objective in OBJECTIVES.values())
# A loss by its own name measures a classifier here: test NLL, and agreement with the teacher. Nothing is trained by it
MEASURES = {("polydistill/learning/measures.py", "cross_entropy"), ("polydistill/learning/measures.py", "policy_kl")}
TRAINERS = ("polydistill/learning/lesson.py", "agents/distillation/algorithm.py")


def users(root: Path) -> Iterator[Path]:
    """Modules that train, and the scripts in front of them; the benchmark of the losses names what it measures."""
    for folder in ("polydistill/learning", "polydistill/vision", "agents", "scripts"):
        yield from (path for path in sorted((root / folder).rglob("*.py")) if path.name != "bench_losses.py")


def taken_losses(source: str) -> set[str]:
    """Losses that the source takes by their own names, imported or as attributes of an imported module."""
    found: set[str] = set()
    modules: set[str] = set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("polydistill"):
            names = {alias.name for alias in node.names}
            if (node.module or "").startswith("polydistill.losses"):
                found |= names & LOSSES
            modules |= {alias.asname or alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            modules |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in LOSSES:
            base = node.value
            while isinstance(base, ast.Attribute):
                base = base.value
            if isinstance(base, ast.Name) and base.id in modules:
                found.add(node.attr)
    return found


def test_no_trainer_takes_a_loss_by_its_own_name(root: Path) -> None:
    taken = {
        (path.relative_to(root).as_posix(), name)
        for path in users(root)
        for name in taken_losses(path.read_text(encoding="utf-8"))
    }
    assert taken == MEASURES


@pytest.mark.parametrize("name", TRAINERS)
def test_trainers_ask_for_their_objective_by_name(root: Path, name: str) -> None:
    tree = ast.parse((root / name).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert any(isinstance(call.func, ast.Name) and call.func.id == "get_objective" for call in calls)


@pytest.mark.parametrize(
    "source",
    [
        "from polydistill.losses import policy_kl",
        "from polydistill.losses.policy import policy_kl as kl",
        "from polydistill import losses\nlosses.policy_kl(z, t)",
        "from polydistill import losses as ours\nloss = ours.policy_kl",
        "import polydistill.losses.policy\npolydistill.losses.policy.policy_kl(z, t)",
    ],
)
def test_a_loss_taken_by_its_own_name_is_found(source: str) -> None:
    assert taken_losses(source) == {"policy_kl"}


def test_what_is_no_loss_may_be_imported() -> None:
    source = "from polydistill.losses import OBJECTIVES, get_objective, gradient_shares\nlosses.jsd(self.jsd)"
    assert taken_losses(source) == set()
