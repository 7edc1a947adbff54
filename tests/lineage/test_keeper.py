"""polydistill.lineage.keeper, in a world of tiny linear networks: stopped or failing anywhere, a run ends the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from polydistill.errors import Interrupted, UserError
from polydistill.learning.rewind import NonFiniteError
from polydistill.lineage import Generation, LineageConfig, run_lineage
from polydistill.lineage.keeper import Keeper
from polydistill.losses import Finding, Report
from polydistill.runs import Run
from polydistill.runs.checkpoint import CheckpointConfig
from polydistill.runs.interruption import StopSignals
from tests.stop_signals import StopAt

STEPS = 3


@dataclass(frozen=True)
class TinyConfig:
    lineage: LineageConfig = field(default_factory=lambda: LineageConfig(2))
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every_seconds=1e9))


class TinyCourse:
    """Adds 1 to every weight at each step."""

    seconds = 2.0

    def __init__(self, generation: int, fails_at: int | None = None) -> None:
        self.layer, self.steps, self.fails_at = nn.Linear(2, 1), 0, fails_at
        self.learner = self
        with torch.no_grad():
            for weight in self.layer.parameters():
                weight.fill_(100.0 * generation)

    def learn(self, due: Callable[[int], bool], save: Callable[[], None]) -> None:
        while self.steps < STEPS:
            if self.steps == self.fails_at:
                raise NonFiniteError("the loss is nan", {"step": self.steps})
            with torch.no_grad():
                for weight in self.layer.parameters():
                    weight += 1.0
            self.steps += 1
            if due(self.steps):
                save()

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "weights": {k: v.clone() for k, v in self.layer.state_dict().items()}}

    def load_state(self, state: Any) -> None:
        self.steps = state["steps"]
        self.layer.load_state_dict(state["weights"])

    def rates(self) -> dict[str, float]:
        return {"steps_per_second": STEPS / self.seconds}


class TinyDomain:
    """Keeps each member as ``<k>.pt``, and a diary of the steps at which courses began."""

    charts: Mapping[str, Sequence[str]] = {}
    objective = "mse"

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at, self.diary = fails_at, list[tuple[int, int]]()

    def network(self, member: nn.Module) -> nn.Module:
        return member

    def train(self, teacher: nn.Module | None, begun: Mapping[str, Any] | None, keeper: Keeper[nn.Module]) -> nn.Module:
        course = TinyCourse(keeper.generation, self.fails_at if teacher is not None else None)
        if begun is not None:
            course.load_state(begun)
        self.diary.append((keeper.generation, course.steps))
        keeper.follow(course)
        assert keeper.run is not None
        torch.save(course.layer.state_dict(), keeper.run.out / f"{keeper.generation}.pt")
        return course.layer

    def evaluate(self, member: nn.Module, teacher: nn.Module | None, keeper: Keeper[nn.Module]) -> dict[str, Any]:
        keeper.heed("members are scored")
        return {"weight": float(next(iter(member.parameters())).mean())}

    def state(self, generations: Sequence[Generation[nn.Module]]) -> dict[str, Any]:
        return {"files": [f"{generation.generation}.pt" for generation in generations]}

    def read_members(self, saved: Mapping[str, Any], keeper: Keeper[nn.Module]) -> list[nn.Module]:
        assert keeper.run is not None
        members = [nn.Linear(2, 1) for _ in saved["files"]]
        for member, name in zip(members, saved["files"], strict=True):
            member.load_state_dict(torch.load(keeper.run.out / name, weights_only=True))
        return list(members)

    def finish(self, keeper: Keeper[nn.Module]) -> dict[str, Any]:
        return {"world": "tiny"}


def go(out: Path, domain: TinyDomain, **options: Any) -> dict[str, Any]:
    with Run.open(out, TinyConfig(), kind="tiny", command="test") as run:
        return run_lineage(domain, TinyConfig(), run, **{"stop": StopSignals(), **options})


def test_a_run_that_is_stopped_again_and_again_goes_on_where_it_was(tmp_path: Path) -> None:
    expected = go(tmp_path / "whole", TinyDomain())
    domain, said = TinyDomain(), list[str]()
    while not (tmp_path / "run" / "summary.json").exists():
        try:
            found = go(tmp_path / "run", domain, stop=StopAt(2))
        except Interrupted as stopped:
            said.append(str(stopped))
    assert {name: found[name] for name in ("generations", "world")} == {
        name: expected[name] for name in ("generations", "world")
    }
    assert found["throughput"] == {f"generation_{k}_steps_per_second": 1.5 for k in range(3)}
    assert domain.diary == sorted(domain.diary), "nothing is done twice"
    assert said[0] == "stopped in generation 0 after step 2, and saved: the same command goes on from there"
    assert "stopped after generation 0, and saved: the same command goes on from there" in said


def test_a_signal_while_members_are_scored_goes_on_after_the_last_step(tmp_path: Path) -> None:
    domain = TinyDomain()
    with pytest.raises(Interrupted, match=r"^stopped while members are scored: the same command goes on before that$"):
        go(tmp_path / "run", domain, stop=StopAt(5))
    go(tmp_path / "run", domain)
    assert domain.diary[:2] == [(0, 0), (0, STEPS)]


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    expected, domain = go(tmp_path / "run", TinyDomain()), TinyDomain()
    assert go(tmp_path / "run", domain) == expected
    assert domain.diary == []


def test_a_number_that_is_not_finite_leaves_the_state_before_it_and_its_batch(tmp_path: Path) -> None:
    path = tmp_path / "run" / "generation_1_failure.pt"
    with pytest.raises(FloatingPointError) as failed:
        go(tmp_path / "run", TinyDomain(fails_at=2))
    assert str(failed.value) == f"the loss is nan; the state before it and the batch are in {path}"
    kept = torch.load(path, weights_only=True)
    assert (kept["state"]["steps"], kept["batch"], kept["error"]) == (2, {"step": 2}, "the loss is nan")


def test_a_lesson_that_the_doctor_finds_wrong_does_not_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def examine(teacher: Generation[nn.Module]) -> Report:
        level = "wrong" if teacher.generation == 1 else "fine"
        return Report("mse", (Finding(level, f"seen with weight {teacher.metrics['weight']:g}"),), {})

    domain = TinyDomain()
    with pytest.raises(UserError, match=r"^the doctor finds the lesson of generation 2 wrong: seen with weight 103$"):
        go(tmp_path / "run", domain, examine=examine)
    assert domain.diary == [(0, 0), (1, 0)]
    assert "seen with weight 3" in capsys.readouterr().out
