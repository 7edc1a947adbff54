"""A run that was stopped, or killed, at any moment goes on and ends bit for bit like one that never was."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import agents.distillation
import agents.domain
import agents.lesson
from agents.atari import AtariVecEnv
from agents.config import AtariConfig, EvaluationConfig, PlayConfig, StudentConfig
from agents.domain import AtariDomain
from agents.evaluation import Evaluation
from agents.networks import SIZES, build_network
from agents.sb3_zip import read_agent
from agents.teachers import Teacher, as_teacher
from polydistill.checkpoint import CheckpointConfig
from polydistill.errors import Interrupted
from polydistill.interruption import StopSignals
from polydistill.lineage import Lineage, LineageConfig
from polydistill.tracking import Run

CONFIG = AtariConfig(
    device="cpu",
    threads=1,
    precision="float32",
    student=StudentConfig(size="net3", batch_size=8, samples_per_step=1.0),
    play=PlayConfig(steps=200, replay_steps=96, warmup_steps=20, n_envs=2, train_freq=5),
    evaluation=EvaluationConfig(episodes=2, curve_every_steps=60, curve_episodes=1),
    lineage=LineageConfig(generations=2),
    checkpoint=CheckpointConfig(every_seconds=1e9, every_steps=40),
)


def evaluate_quickly(agent: Any, game: str, *, episodes: int, seed: int, on_step: Any, **options: Any) -> Evaluation:
    """Scores that depend on the weights and the seed, in the place of games that would take most of a test's time."""
    frames = torch.randint(256, (episodes, 4, 84, 84), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    for games in range(3):
        on_step(games)
    scores = agent(frames).sum(dim=1).numpy().astype(np.float64)
    return Evaluation(scores, np.ones(episodes, dtype=np.int64), 0.5, 0.0)


@pytest.fixture(autouse=True, scope="module")
def quick_sticky_games() -> Iterator[None]:
    """Games of 40 steps, so that a short run has many starts, and sticky actions, whose chance lies in the emulator."""
    sticky = {"max_frames": 160, "repeat_action_probability": 0.25, "noop_max": 5}
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agents.lesson, "AtariVecEnv", partial(AtariVecEnv, **sticky))
        patch.setattr(agents.domain, "evaluate", evaluate_quickly)
        patch.setattr(agents.distillation, "INITIAL_STATES", 32)
        yield
    torch.set_num_threads(before)


def make_teacher(n_actions: int = 6) -> Teacher:
    torch.manual_seed(0)
    return as_teacher(build_network(spaces.Box(0, 255, (4, 84, 84), np.uint8), n_actions, SIZES["net3"]))


class Killed(Exception):
    """As a SIGKILL: nothing is saved on the way out."""


class StopAt(StopSignals):
    """Asked for the ``at``-th time whether to stop: a signal, or (``kill``) the end without a word."""

    def __init__(self, at: int, kill: bool = False) -> None:
        super().__init__()
        self.left, self.kill = at, kill

    def raise_if_received(self, how_to_go_on: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed if self.kill else Interrupted(signal.SIGTERM, how_to_go_on)


def distill(out: Path, stop: StopSignals | None = None, config: AtariConfig = CONFIG, teacher: Any = None) -> None:
    """What the script does."""
    with Run.open(out, config, kind="atari", command="-", may_grow=("lineage.generations",)) as run:
        if run.summary is None:
            domain = AtariDomain(config, teacher or make_teacher(), run, stop)
            for generation in Lineage(domain, config.lineage, domain.resume()):
                domain.keep(generation)
            domain.finish()


def outcome(out: Path) -> dict[str, Any]:
    """All that must be equal: weights, metrics, summary and events, without what the clock decides."""
    summary = json.loads((out / "summary.json").read_text())
    events = {}
    for role in sorted(path.name for path in (out / "tb").iterdir()):
        accumulator = EventAccumulator(str(out / "tb" / role), size_guidance={"scalars": 0})
        accumulator.Reload()
        for tag in accumulator.Tags()["scalars"]:
            points = [(event.step, event.value) for event in accumulator.Scalars(tag)]
            events[role, tag] = [step for step, _ in points] if tag.startswith("time/") else points
    weights = {path.name: read_agent(path).weights for path in sorted(out.glob("*.zip"))}
    return {
        "summary": {k: v for k, v in summary.items() if k not in {"wall_seconds", "seconds", "throughput", "command"}},
        "rates": sorted(summary["throughput"]),
        "metrics": (out / "metrics.jsonl").read_text().splitlines(),
        "events": events,
        "weights": {name: {k: v.numpy().tobytes() for k, v in tensors.items()} for name, tensors in weights.items()},
    }


def assert_same_outcome(out: Path, expected: dict[str, Any]) -> None:
    found = outcome(out)
    for part, value in expected.items():
        assert found[part] == value, part


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of the run that is never stopped."""
    out = tmp_path_factory.mktemp("never") / "stopped"
    distill(out)
    return outcome(out)


@pytest.mark.parametrize("at", [*range(1, 12), 26, 27, 28, 31, 32, 33, 36, 60, 63, 66])
def test_a_run_that_was_stopped_once_ends_like_one_that_never_was(
    tmp_path: Path, expected: dict[str, Any], at: int
) -> None:
    with pytest.raises(Interrupted):
        distill(tmp_path / "run", StopAt(at))
    assert not (tmp_path / "run" / "summary.json").exists()
    distill(tmp_path / "run")
    assert_same_outcome(tmp_path / "run", expected)
