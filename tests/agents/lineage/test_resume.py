"""A run that was stopped, or killed, at any moment goes on and ends bit for bit like one that never was."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import re
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ale_py
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import polydistill_agents.distillation.learner
import polydistill_agents.environments.atari
import polydistill_agents.environments.task
import polydistill_agents.lineage.domain
from polydistill.errors import Interrupted, UserError, run_script
from polydistill.lineage import LineageConfig, run_lineage
from polydistill.lineage.keeper import Keeper
from polydistill.runs import Run
from polydistill.runs.checkpoint import CheckpointConfig, Checkpoints
from polydistill.runs.interruption import StopSignals
from polydistill.runs.run import PARTIAL
from polydistill.streams import derive_seed
from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill_agents.distillation.learner import Learner
from polydistill_agents.environments.atari import AtariVecEnv
from polydistill_agents.environments.evaluation import Evaluation, evaluate
from polydistill_agents.environments.protocols import PROTOCOLS
from polydistill_agents.files.sb3_zip import read_agent, write_dqn_zip
from polydistill_agents.lineage.config import AtariConfig, EvaluationConfig, PlayConfig, StudentConfig, TeacherConfig
from polydistill_agents.lineage.course import Course
from polydistill_agents.lineage.curve import SCORE
from polydistill_agents.lineage.domain import CHARTS, AgentDomain
from polydistill_agents.lineage.opening import open_teacher
from polydistill_agents.lineage.plan import PRODUCTS, require_disk, require_same_start
from polydistill_agents.lineage.students import make_env, make_student
from polydistill_agents.networks.nature import SIZES, build_network
from polydistill_agents.teachers import Teacher, as_teacher
from tests.agents.samples import FRAMES, make_network
from tests.crashes.disks import as_nobody, fill, remount, small_file_system
from tests.crashes.power import Power, PowerLossError

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
    agreement = None if options["reference"] is None else 0.5
    return Evaluation(scores, np.ones(episodes, dtype=np.int64), agreement, 0.0)


@pytest.fixture(autouse=True, scope="module")
def quick_sticky_games(one_thread: None) -> Iterator[None]:
    """Games of 40 steps, so that a short run has many starts, and sticky actions, whose chance lies in the emulator."""
    sticky = {"max_frames": 160, "repeat_action_probability": 0.25, "noop_max": 5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polydistill_agents.environments.task, "AtariVecEnv", partial(AtariVecEnv, **sticky))
        patch.setattr(polydistill_agents.lineage.domain, "evaluate", evaluate_quickly)
        patch.setattr(Course, "load", load_uncounted)
        patch.setattr(polydistill_agents.distillation.learner, "INITIAL_STATES", 32)
        yield


def make_teacher(n_actions: int = 6) -> Teacher:
    return as_teacher(make_network(n_actions=n_actions))


class Killed(Exception):
    """As a SIGKILL: nothing is saved on the way out."""


class StopAt(StopSignals):
    """Asked for the ``at``-th time whether a signal came: yes, or (``kill``) the end without a word.

    What is asked while games are played again does not count.
    """

    counting = True

    def __init__(self, at: int, kill: bool = False) -> None:
        super().__init__()
        self.left, self.kill = at, kill

    def __getattribute__(self, name: str) -> Any:
        if name != "received":
            return super().__getattribute__(name)
        self.left -= StopAt.counting
        if self.left <= 0 and self.kill:
            raise Killed
        return signal.SIGTERM if self.left <= 0 else None


def load_uncounted(course: Course, *given: Any, load: Any = Course.load) -> None:
    StopAt.counting = False
    try:
        load(course, *given)
    finally:
        StopAt.counting = True


def distill(out: Path, stop: StopSignals | None = None, config: AtariConfig = CONFIG, teacher: Any = None) -> None:
    """What the script does."""
    allowed = {"products": PRODUCTS, "may_grow": ("lineage.generations",)}
    with Run.open(out, config, kind="atari", command="-", **allowed) as run:
        run_lineage(AgentDomain(config, teacher or make_teacher()), config, run, stop=stop or StopSignals())


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


# while the teacher plays (1), when it is kept (4), at the start of generation 1 (5), in the warm-up (9), at a point of
# the curve (16), just after games have begun again (20), while it learns (31), in its last rounds (39, 40), after them
# (41), while it is scored for the table (42, 44), when it is kept (45), and so on in generation 2; while their ensemble
# is scored (87, 89)
@pytest.mark.parametrize("at", [1, 4, 5, 9, 16, 20, 31, 39, 40, 41, 42, 44, 45, 66, 83, 85, 87, 89])
def test_a_run_that_was_stopped_once_ends_like_one_that_never_was(
    tmp_path: Path, expected: dict[str, Any], at: int
) -> None:
    with pytest.raises(Interrupted):
        distill(tmp_path / "run", StopAt(at))
    assert not (tmp_path / "run" / "summary.json").exists()
    distill(tmp_path / "run")
    assert_same_outcome(tmp_path / "run", expected)


DAGGER = {
    "play": dataclasses.replace(CONFIG.play, beta=1.0, beta_end=0.0),
    "student": dataclasses.replace(CONFIG.student, averaging=0.1),
}


@pytest.mark.parametrize("changes", [{"threads": 2}, {"precision": "bfloat16"}, DAGGER])
def test_on_two_threads_in_bfloat16_or_where_mean_students_act_a_stop_changes_nothing_either(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = dataclasses.replace(CONFIG, **changes)
    distill(tmp_path / "whole", config=config)
    for at in (18, 30):
        with pytest.raises(Interrupted):
            distill(tmp_path / "run", StopAt(at), config)
    distill(tmp_path / "run", config=config)
    assert_same_outcome(tmp_path / "run", outcome(tmp_path / "whole"))


def test_the_rounds_of_a_short_run_stay_as_long_as_they_were(tmp_path: Path) -> None:
    """A round of 50 steps is cut to an eighth of the run: to one of 12, also in what is left after a stop."""
    config = dataclasses.replace(CONFIG, play=dataclasses.replace(CONFIG.play, train_freq=50), lineage=LineageConfig(1))
    distill(tmp_path / "whole", config=config)
    with pytest.raises(Interrupted):
        distill(tmp_path / "run", StopAt(9), config)
    distill(tmp_path / "run", config=config)
    assert_same_outcome(tmp_path / "run", outcome(tmp_path / "whole"))
    rounds = [json.loads(line)["step"] for line in outcome(tmp_path / "run")["metrics"] if "train/loss" in line]
    assert rounds == [24, 48, 72, 96, 120, 144, 168, 192, 200]


def test_twenty_continuations_in_a_row_change_nothing(tmp_path: Path, expected: dict[str, Any]) -> None:
    stopped = 0
    while not (tmp_path / "run" / "summary.json").exists():
        try:
            distill(tmp_path / "run", StopAt(5))  # three rounds or so in each process
        except Interrupted:
            stopped += 1
    assert stopped >= 20
    assert_same_outcome(tmp_path / "run", expected)


def test_a_signal_while_games_are_played_again_is_heeded_at_once(
    tmp_path: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        distill(tmp_path / "run", StopAt(27))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").iterdir()}
    heed = Keeper.heed
    for at in (1, 7):
        left = at

        def heed_late(keeper: Keeper[Teacher], what: str) -> None:
            nonlocal left
            left -= 1
            keeper.stop._received = None if left else signal.SIGTERM
            heed(keeper, what)

        with monkeypatch.context() as patch:
            patch.setattr(Keeper, "heed", heed_late)
            with pytest.raises(Interrupted, match="stopped while the games were played again: the same command"):
                distill(tmp_path / "run")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").iterdir()} == before
    distill(tmp_path / "run")
    assert_same_outcome(tmp_path / "run", expected)


@pytest.mark.parametrize("at", [9, 24, 41, 43, 53, 63, 84, 88])
def test_a_run_that_was_killed_goes_on_from_its_checkpoint(tmp_path: Path, expected: dict[str, Any], at: int) -> None:
    """What was played, learned and logged after the checkpoint is done again, and stands in no file twice."""
    with pytest.raises(Killed):
        distill(tmp_path / "run", StopAt(at, kill=True))
    distill(tmp_path / "run")
    assert_same_outcome(tmp_path / "run", expected)


def test_a_run_from_before_there_was_a_keeper_goes_on(tmp_path: Path, expected: dict[str, Any]) -> None:
    with pytest.raises(Interrupted, match="in generation 2"):
        distill(tmp_path / "run", StopAt(63))
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", kind="atari")
    saved = checkpoints.latest()
    assert saved is not None
    state = saved["state"]
    files = [{"file": None, "size": None}, *state["files"]]
    done = [{"summary": one, **record} for one, record in zip(state["generations"], files, strict=True)]
    earlier = {"done": done, "lesson": state["begun"], "seconds": state["seconds"], "throughput": state["throughput"]}
    for _ in range(2):  # of the two that stay none is of today's form
        checkpoints.save({"state": earlier, "position": saved["position"]}, 0)
    require_same_start(CONFIG, make_teacher(), tmp_path / "run")
    with pytest.raises(UserError, match="other weights than those that this run began with"):
        require_same_start(CONFIG, as_teacher(build_network(FRAMES, 6, SIZES["net3"])), tmp_path / "run")
    distill(tmp_path / "run")
    assert_same_outcome(tmp_path / "run", expected)


def curve(metrics: list[str], role: str, tag: str) -> dict[int, float]:
    """The points of a tag by step, of the lines of metrics.jsonl; no step is there twice."""
    lines = [json.loads(line) for line in metrics]
    points = [(line["step"], line["values"][tag]) for line in lines if line["role"] == role and tag in line["values"]]
    assert len(dict(points)) == len(points)
    return dict(points)


def test_the_last_point_of_a_curve_is_the_score_of_the_table(expected: dict[str, Any]) -> None:
    for generation in expected["summary"]["generations"][1:]:
        role = f"generation_{generation['generation']}"
        points = curve(expected["metrics"], role, "eval/mean_reward")
        assert list(points) == [0, 60, 120, 180, 200]
        assert points[200] == generation["metrics"]["score_mean"]
        assert curve(expected["metrics"], role, "eval/agreement") == {200: generation["metrics"]["agreement"]}
    teacher = expected["summary"]["generations"][0]["metrics"]["score_mean"]
    assert curve(expected["metrics"], "teacher", "eval/mean_reward") == dict.fromkeys((0, 60, 120, 180, 200), teacher)
    assert curve(expected["metrics"], "random_play", "eval/mean_reward") == dict.fromkeys((0, 60, 120, 180, 200), -20.7)


def test_an_ensemble_has_the_mean_policy_of_its_members_and_the_games_of_the_last(
    tmp_path: Path, expected: dict[str, Any]
) -> None:
    distill(tmp_path / "run")
    (ensemble,) = expected["summary"]["ensembles"]
    assert (ensemble["members"], ensemble["reference"]) == ([1, 2], 0)
    seed = derive_seed(CONFIG.seed, "evaluation", 2)
    frames = torch.randint(256, (2, 4, 84, 84), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    students = [as_teacher(tmp_path / "run" / name) for name in ("generation_1.zip", "student.zip")]
    policies = [student(frames).double().softmax(dim=1) for student in students]
    scores = (sum(policies) / 2).log().sum(dim=1)
    assert ensemble["metrics"]["scores"] == pytest.approx(scores.tolist(), abs=1e-4)
    alone = expected["summary"]["generations"][2]["metrics"]["scores"]
    assert [student(frames).sum(dim=1).tolist() for student in students][1] == pytest.approx(alone, abs=1e-4)


def test_one_chart_has_every_generation_and_the_level_of_their_ensemble(expected: dict[str, Any]) -> None:
    score = expected["summary"]["ensembles"][0]["metrics"]["score_mean"]
    roles = {role for role, tag in expected["events"] if tag == SCORE}
    assert roles == {"teacher", "random_play", "generation_1", "generation_2", "ensemble_1_2"}
    assert curve(expected["metrics"], "ensemble_1_2", SCORE) == dict.fromkeys((0, 60, 120, 180, 200), score)


def test_a_run_that_ends_while_its_ensemble_is_scored_scores_no_member_again(
    tmp_path: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        distill(tmp_path / "run", StopAt(88, kill=True))
    seeds = []

    def noted(*args: Any, seed: int, **options: Any) -> Evaluation:
        seeds.append(seed)
        return evaluate_quickly(*args, seed=seed, **options)

    monkeypatch.setattr(polydistill_agents.lineage.domain, "evaluate", noted)
    distill(tmp_path / "run")
    assert seeds == [derive_seed(CONFIG.seed, "evaluation", 2)]
    assert_same_outcome(tmp_path / "run", expected)


def test_the_charts_that_tensorboard_opens_with_are_of_tags_that_are_logged(expected: dict[str, Any]) -> None:
    logged = {tag for line in expected["metrics"] for tag in json.loads(line)["values"]}
    shown = [tag for tags in CHARTS.values() for tag in tags]
    assert shown[0] == "eval/mean_reward"
    assert set(shown) <= logged


def test_a_run_that_is_killed_once_the_last_point_is_logged_logs_it_once(
    tmp_path: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Keeper[Teacher], generation: Any) -> None:
        if generation.generation == 1:
            assert 200 in curve((tmp_path / "run" / "metrics.jsonl").read_text().splitlines(), "generation_1", SCORE)
            raise Killed
        keep(self, generation)

    keep = Keeper.keep
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "keep", killed)
        with pytest.raises(Killed):
            distill(tmp_path / "run")
    distill(tmp_path / "run")
    assert_same_outcome(tmp_path / "run", expected)


def test_without_a_curve_there_is_still_its_last_point(tmp_path: Path) -> None:
    evaluation = dataclasses.replace(CONFIG.evaluation, curve_every_steps=0)
    distill(tmp_path / "run", config=dataclasses.replace(CONFIG, evaluation=evaluation))
    found = outcome(tmp_path / "run")
    score = found["summary"]["generations"][1]["metrics"]["score_mean"]
    assert curve(found["metrics"], "generation_1", SCORE) == {200: score}


def test_a_run_survives_losses_of_power_at_any_touch_of_the_disk(
    tmp_path: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, losses = random.Random(3), 0
    while not (tmp_path / "run" / "summary.json").exists():
        with monkeypatch.context() as patch:
            Power(tmp_path / "run", rng.randrange(70), rng).connect(patch)
            try:
                distill(tmp_path / "run")
            except PowerLossError:
                losses += 1
    assert losses >= 8
    assert_same_outcome(tmp_path / "run", expected)


def segments(out: Path) -> list[Path]:
    return sorted((out / "recordings").rglob("*.segment"))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, Path.unlink])
def test_with_a_damaged_segment_the_generation_starts_over_and_ends_the_same(
    tmp_path: Path, expected: dict[str, Any], damage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Interrupted):
        distill(tmp_path / "run", StopAt(67))
    damaged = next(path for path in segments(tmp_path / "run") if path.parent.name == "generation_2")
    damage(damaged)
    capsys.readouterr()
    distill(tmp_path / "run")
    said = [line for line in capsys.readouterr().err.splitlines() if "starts over" in line]
    what = "missing" if damage is Path.unlink else "damaged"
    assert said == [f"{damaged} is {what}: generation 2 starts over"]
    assert_same_outcome(tmp_path / "run", expected)


def test_a_damaged_checkpoint_is_passed_over_with_one_line(
    tmp_path: Path, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Interrupted):
        distill(tmp_path / "run", StopAt(30))
    flip_a_bit(max((tmp_path / "run" / "checkpoints").iterdir()))
    distill(tmp_path / "run")
    assert sum("a checkpoint is damaged" in line for line in capsys.readouterr().err.splitlines()) == 1
    assert_same_outcome(tmp_path / "run", expected)


def test_a_students_file_that_was_exchanged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        distill(tmp_path / "run", StopAt(60))
    network = build_network(FRAMES, 6, SIZES["net3"])
    write_dqn_zip(tmp_path / "run" / "generation_1.zip", network)
    with pytest.raises(UserError, match="generation 1 is not what it was when it was finished"):
        distill(tmp_path / "run")


def test_a_finished_lineage_can_grow_and_ends_like_one_that_was_longer_from_the_start(
    tmp_path: Path, expected: dict[str, Any]
) -> None:
    distill(tmp_path / "run", config=dataclasses.replace(CONFIG, lineage=LineageConfig(generations=1)))
    assert {path.name for path in (tmp_path / "run").glob("*.zip")} == {"student.zip"}
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["ensembles"] == []
    distill(tmp_path / "run")
    assert_same_outcome(tmp_path / "run", expected)
    left = [path for path in (tmp_path / "run").iterdir() if not any(map(path.match, (*PARTIAL, *PRODUCTS)))]
    assert {path.name for path in left} == {"config.yaml", "summary.json", ".lock", "checkpoints"}


def test_a_second_process_is_refused_and_the_recordings_go_when_the_run_ends(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        distill(tmp_path / "run", StopAt(20))
    assert segments(tmp_path / "run")
    with (
        Run.open(tmp_path / "run", CONFIG, kind="atari", command="-", may_grow=("lineage.generations",)),
        pytest.raises(UserError, match=r"another process .* is working in"),
    ):
        distill(tmp_path / "run")
    distill(tmp_path / "run")
    assert not (tmp_path / "run" / "recordings").exists()


def test_other_games_than_those_recorded_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Interrupted):
        distill(tmp_path / "run", StopAt(20))
    with monkeypatch.context() as patch:
        patch.setattr(polydistill_agents.environments.atari, "version", lambda name: "9.9.9")
        with pytest.raises(UserError, match=r"the games were played with ale_py \S+, here it is 9\.9\.9"):
            distill(tmp_path / "run")
    with monkeypatch.context() as patch:
        step = AtariVecEnv.step
        patch.setattr(AtariVecEnv, "step", lambda self, actions: step(self, 5 - actions))
        with pytest.raises(UserError, match="the games do not show again what they showed"):
            distill(tmp_path / "run")


@pytest.mark.parametrize(
    ("at", "error"),
    [
        (3, MemoryError()),
        (11, RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")),
        (17, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 MiB.")),
    ],
)
def test_memory_that_is_gone_ends_a_run_in_one_line_and_it_goes_on(
    tmp_path: Path,
    expected: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    at: int,
    error: Exception,
) -> None:
    update, calls = Learner.update, 0

    def run_out(learner: Learner, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise error
        return update(learner, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", run_out)
        with pytest.raises(SystemExit) as end:
            run_script(distill)(tmp_path / "run")
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: out of memory: ")
    distill(tmp_path / "run")
    assert_same_outcome(tmp_path / "run", expected)


def test_a_failure_leaves_the_student_before_it_and_the_batch(tmp_path: Path) -> None:
    """The teacher is fine in the warm-up and gives no numbers later; the last checkpoints stay."""
    calls = 0

    def turns_bad(frames: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += len(frames) == 2
        return torch.full((len(frames), 6), float("nan") if calls > 50 else 0.0)

    with pytest.raises(FloatingPointError) as stopped:
        distill(tmp_path / "run", teacher=as_teacher(turns_bad))
    path = tmp_path / "run" / "generation_1_failure.pt"
    assert re.fullmatch(
        rf"the teacher's scores are not finite: generation 1 at step \d+; .* are in {re.escape(str(path))}",
        str(stopped.value),
    )
    kept = torch.load(path, weights_only=True)
    assert kept["batch"]["observations"].shape == (2, 4, 84, 84)
    assert kept["batch"]["targets"].isnan().all()
    assert kept["state"]["counters"]["_n_updates"] > 0
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2


def test_scores_that_are_not_finite_while_it_plays_leave_the_student_and_what_it_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = torch.full((1, 6), float("nan"))
    short = {"protocol": dataclasses.replace(PROTOCOLS["rusu"], max_frames=160)}
    monkeypatch.setattr(
        polydistill_agents.lineage.domain,
        "evaluate",
        lambda *given, **options: evaluate(*given, **{**options, **short}),
    )
    monkeypatch.setattr(PolicyDistillation, "student_scores", lambda self, frames: bad.expand(len(frames), 6))
    with pytest.raises(FloatingPointError) as stopped:
        distill(tmp_path / "run")
    path = tmp_path / "run" / "generation_1_failure.pt"
    assert re.fullmatch(
        rf"the scores of the agent that plays are not finite: generation 1 \(policy_kl\), curve \d+; the state "
        rf"before it and the batch are in {re.escape(str(path))}",
        str(stopped.value),
    )
    kept = torch.load(path, weights_only=True)
    assert kept["batch"]["observations"].shape[1:] == (4, 84, 84)
    assert kept["batch"]["scores"].isnan().all()
    assert "q_net.0.weight" in kept["state"]
    monkeypatch.undo()
    distill(tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_state_of_other_settings_or_of_another_replay_is_refused(tmp_path: Path) -> None:
    env = AtariVecEnv("pong", 2, seed=0, n_threads=1)
    options = {"size": "net3", "device": "cpu", "seed": 0, "learning_starts": 8, "batch_size": 8}
    make = partial(PolicyDistillation, "CnnPolicy", env, make_teacher(), **options)
    state = make(train_freq=4).learn(8).state()
    with pytest.raises(ValueError, match=r"the state is of a student with temperature 0\.01, this one has 0\.1"):
        make(train_freq=4, temperature=0.1).load_state(state)
    with pytest.raises(ValueError, match="the replay must be filled before"):
        make(train_freq=4).load_state(state)


def test_a_state_decides_the_future_and_holds_no_reference(tmp_path: Path) -> None:
    """Of any environment: games and replay are shared, all else comes out of the state."""
    env = AtariVecEnv("pong", 2, seed=0, n_threads=1)
    options = {"size": "net3", "device": "cpu", "seed": 0, "train_freq": 4, "learning_starts": 8, "batch_size": 8}
    model = PolicyDistillation("CnnPolicy", env, make_teacher(), **options).learn(40)
    model._current_progress_remaining = 0.5  # in the midst of learning
    state = model.state()
    torch.save(state, tmp_path / "state.pt")
    model.train(5, 8)
    loaded = PolicyDistillation("CnnPolicy", env, make_teacher(), **options)
    loaded.replay = model.replay
    loaded.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(state["weights"]["q_net.0.weight"], loaded.student.state_dict()["q_net.0.weight"])
    assert not torch.equal(state["weights"]["q_net.0.weight"], model.student.state_dict()["q_net.0.weight"])
    loaded.set_logger(model.logger)
    loaded.train(5, 8)
    for name, weight in model.student.state_dict().items():
        assert torch.equal(weight, loaded.student.state_dict()[name]), name


FILES = ["metrics.jsonl", "events.out.tfevents.generation_1", "*.segment", "*.checkpoint", "generation_1.zip"]


OTHER_ERRORS = [("metrics.jsonl", errno.EFBIG), ("*.segment", errno.EDQUOT), ("*.checkpoint", errno.EIO)]


@pytest.mark.parametrize(("names", "error"), [*((names, errno.ENOSPC) for names in FILES), *OTHER_ERRORS])
def test_what_the_disk_refuses_is_one_line_and_the_run_goes_on_once_it_takes_it(
    tmp_path: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch, names: str, error: int
) -> None:
    with monkeypatch.context() as patch:
        fill(patch, names, 0 if names.endswith(".zip") else 2, error)
        with pytest.raises(UserError, match=rf"^cannot write .*: {os.strerror(error)}$"):
            distill(tmp_path / "run")
    distill(tmp_path / "run")
    assert_same_outcome(tmp_path / "run", expected)


def test_a_small_file_system_that_fills_up_is_one_line_each_time(tmp_path: Path, expected: dict[str, Any]) -> None:
    with small_file_system(tmp_path / "disk", "64m") as disk:
        rng, filling, lines = random.Random(1), disk / "filling", []
        for _ in range(8):
            free = shutil.disk_usage(disk).free
            filling.write_bytes(bytes(max(0, free - rng.randrange(1_000_000))))
            try:
                distill(disk / "run")
            except UserError as error:
                lines.append(str(error))
            filling.unlink()
        assert len(lines) >= 3
        assert all(re.fullmatch(r"cannot \w+ .*: No space left on device", line) for line in lines), lines
        distill(disk / "run")
        assert_same_outcome(disk / "run", expected)


def test_a_disk_that_turns_read_only_is_one_line_and_the_run_goes_on_afterwards(
    tmp_path: Path, expected: dict[str, Any]
) -> None:
    with small_file_system(tmp_path / "disk", "256m") as disk:
        with pytest.raises(Interrupted):
            distill(disk / "run", StopAt(30))
        remount(disk, "ro")
        for out in (disk / "run", disk / "other"):
            with pytest.raises(UserError, match=r"^cannot write .*: Read-only file system$"):
                distill(out)
        remount(disk, "rw")
        distill(disk / "run")
        assert_same_outcome(disk / "run", expected)
        remount(disk, "ro")
        distill(disk / "run")  # finished: it only reads


@pytest.mark.parametrize("folder", ["checkpoints", "recordings/generation_1"])
def test_a_folder_without_permission_is_one_line_and_the_run_goes_on_with_it(
    tmp_path: Path, expected: dict[str, Any], folder: str
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        distill(out, StopAt(20))
    with as_nobody(out):
        (out / folder).chmod(0o500)
        with pytest.raises(UserError, match=r"^cannot write .*: Permission denied$"):
            distill(out)
        (out / folder).chmod(0o700)
    distill(out)
    assert_same_outcome(out, expected)


def test_a_disk_without_room_is_refused_before_anything_is_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 zips of 8 MB and 2 compact files of 4 bytes per weight, 3 checkpoints of 12, twice 200 steps of 25 bytes and
    curves of 21 points.
    """
    weights = sum(parameter.numel() for parameter in make_teacher().network.parameters())  # type: ignore[union-attr]
    needed = 2 * (8_000_000 + 4 * weights) + 3 * 12 * weights + 2 * 200 * 25 + 2 * 21 * 1000
    (tmp_path / "old.zip").write_bytes(bytes(1000))
    free = needed - 1000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, free))
    require_disk(CONFIG, make_teacher(), tmp_path)
    free -= 1
    message = rf"the run needs about {(needed - 1000) / 1e6:,.0f} MB more in .*, where {free / 1e6:,.0f} MB are free"
    with pytest.raises(UserError, match=message):
        require_disk(CONFIG, make_teacher(), tmp_path)


@pytest.mark.parametrize("game", ["pong", "breakout"])
def test_a_teacher_of_all_18_actions_teaches_a_student_of_18(tmp_path: Path, game: str) -> None:
    write_dqn_zip(tmp_path / "teacher.zip", make_teacher(18).network)  # type: ignore[arg-type]
    config = dataclasses.replace(CONFIG, game=game, teacher=TeacherConfig(path=str(tmp_path / "teacher.zip")))
    teacher = open_teacher(config)
    env = make_env(config, teacher, 1)
    assert env.action_meanings == [action.name for action in ale_py.Action]
    assert make_student(config, teacher, env, 1).student.action_space.n == 18
    own = make_env(config, make_teacher({"pong": 6, "breakout": 4}[game]), 1)
    assert len(own.action_meanings) == {"pong": 6, "breakout": 4}[game]


def test_a_lineage_of_18_actions_goes_on_too(tmp_path: Path) -> None:
    for name, stops in (("whole", []), ("stopped", [20, 12])):
        for at in stops:
            with pytest.raises(Interrupted):
                distill(tmp_path / name, StopAt(at), teacher=make_teacher(18))
        distill(tmp_path / name, teacher=make_teacher(18))
    assert read_agent(tmp_path / "whole" / "student.zip").weights["q_net.q_net.0.weight"].shape[0] == 18
    assert_same_outcome(tmp_path / "stopped", outcome(tmp_path / "whole"))
