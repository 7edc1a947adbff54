"""Runs of one student of several games: what they leave, that they go on bit for bit, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3 import DQN

import polydistill_agents.distillation.multitask.learner
import polydistill_agents.environments.task
import polydistill_agents.lineage.domain
import polydistill_agents.lineage.multitask.domain
from polydistill.errors import Interrupted, UserError
from polydistill.lineage import LineageConfig, run_lineage
from polydistill.runs import Run
from polydistill.runs.checkpoint import CheckpointConfig
from polydistill.runs.interruption import StopSignals
from polydistill_agents.commands.distil_tasks import show
from polydistill_agents.environments.atari import AtariVecEnv
from polydistill_agents.files.multitask_file import read_multitask
from polydistill_agents.files.sb3_zip import read_agent
from polydistill_agents.lineage.config import EvaluationConfig, PlayConfig
from polydistill_agents.lineage.domain import AgentDomain
from polydistill_agents.lineage.multitask.course import MultitaskCourse
from polydistill_agents.lineage.multitask.domain import MultitaskDomain, geometric_mean, means
from polydistill_agents.lineage.multitask.games import ManyGamesConfig, ManyGamesStudentConfig
from polydistill_agents.lineage.multitask.plan import KIND, PRODUCTS, format_plan, require_same_start
from polydistill_agents.lineage.multitask.report import format_summary
from polydistill_agents.lineage.multitask.view import TASKS
from polydistill_agents.networks.nature import compute_scores
from polydistill_agents.teachers import Teacher, as_teacher
from tests.agents.lineage.test_resume import Killed, StopAt, evaluate_quickly
from tests.agents.samples import FRAMES, make_frames, make_network
from tests.crashes.same import assert_same_run

CONFIG = ManyGamesConfig(
    games={"pong": "pong.zip", "breakout": {"teacher": "breakout.zip", "weight": 2.0}},
    device="cpu",
    threads=1,
    precision="float32",
    student=ManyGamesStudentConfig(
        size="net3", controller=(8,), batch_size=8, samples_per_step=1.0, averaging=0.1, weighting="gap"
    ),
    play=PlayConfig(steps=64, replay_steps=32, warmup_steps=16, n_envs=2, train_freq=4, beta=1.0, beta_end=0.0),
    evaluation=EvaluationConfig(episodes=2, curve_every_steps=32, curve_episodes=1, play="greedy"),
    lineage=LineageConfig(generations=2),
    checkpoint=CheckpointConfig(every_seconds=1e9, every_steps=16),
)


@pytest.fixture(autouse=True, scope="module")
def quick_games(one_thread: None) -> Iterator[None]:
    """Games of 20 steps with sticky actions, and scores that weights and seed decide in the place of whole games."""
    short = {"max_frames": 80, "repeat_action_probability": 0.25, "noop_max": 5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polydistill_agents.environments.task, "AtariVecEnv", partial(AtariVecEnv, **short))
        patch.setattr(polydistill_agents.lineage.domain, "evaluate", evaluate_quickly)
        patch.setattr(MultitaskCourse, "load", load_uncounted)
        patch.setattr(polydistill_agents.distillation.multitask.learner, "INITIAL_STATES", 16)
        yield


def load_uncounted(course: MultitaskCourse, *given: Any, load: Any = MultitaskCourse.load) -> None:
    StopAt.counting = False
    try:
        load(course, *given)
    finally:
        StopAt.counting = True


def teachers() -> dict[str, Teacher]:
    """One of Q-values with its game's six actions, one of logits with its game's four."""
    return {
        "pong": as_teacher(make_network(n_actions=6)),
        "breakout": as_teacher(make_network(n_actions=4, seed=1), kind="logits"),
    }


def distill(out: Path, stop: StopSignals | None = None, config: ManyGamesConfig = CONFIG) -> dict[str, Any]:
    """What the script does."""
    allowed = {"products": PRODUCTS, "may_grow": ("lineage.generations",)}
    with Run.open(out, config, kind=KIND, command="-", **allowed) as run:
        return run_lineage(MultitaskDomain(config, teachers()), config, run, stop=stop or StopSignals())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that is never stopped."""
    out = tmp_path_factory.mktemp("never") / "stopped"
    distill(out)
    return out


def assert_same(expected: Path, found: Path) -> None:
    assert_same_run(expected, found, products=("generation_*.safetensors",))
    for path in expected.glob("*.zip"):
        one, other = read_agent(path).weights, read_agent(found / path.name).weights
        assert all(torch.equal(one[key], other[key]) for key in one), path.name


def test_a_run_leaves_a_zip_of_each_game_that_stock_dqn_plays_as_the_student_does(whole: Path) -> None:
    student = read_multitask(whole / "generation_2.safetensors", FRAMES)
    assert student.kinds == {"pong": "logits", "breakout": "logits"}
    for game, n_actions in (("pong", 6), ("breakout", 4)):
        model = DQN.load(whole / f"generation_2_{game}.zip", device="cpu")
        assert model.action_space.n == n_actions
        with torch.no_grad():
            torch.testing.assert_close(
                model.q_net(make_frames(5)), compute_scores(student.network.of(game), make_frames(5))
            )
    assert {path.name for path in whole.glob("*.zip")} == {
        f"generation_{k}_{g}.zip" for k in (1, 2) for g in teachers()
    }


def test_its_summary_has_each_game_of_each_generation_and_what_they_come_to(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    first, *students = summary["generations"]
    assert [each["generation"] for each in students] == [1, 2]
    assert first["parameters"] == sum(sum(p.numel() for p in t.network.parameters()) for t in teachers().values())
    for student in students:
        assert list(student["metrics"][TASKS]) == ["pong", "breakout"]
        of_tasks = {name: student["metrics"][TASKS][name] for name in teachers()}
        assert {len(metrics["scores"]) for metrics in of_tasks.values()} == {2}
        assert student["metrics"] == {TASKS: of_tasks, **means(of_tasks)}
    assert students[1]["teacher_sha256"] == students[0]["sha256"]
    (ensemble,) = summary["ensembles"]
    assert (ensemble["members"], ensemble["reference"]) == ([1, 2], 0)
    of_tasks = ensemble["metrics"][TASKS]
    assert ensemble["metrics"] == {TASKS: of_tasks, **means(of_tasks)}
    for name, metrics in of_tasks.items():
        assert metrics["scores"] != students[1]["metrics"][TASKS][name]["scores"]
        percent = 100 * metrics["score_mean"] / first["metrics"][TASKS][name]["score_mean"]
        assert metrics["percent_of_teacher"] == pytest.approx(percent)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    tags = {(line["role"], tag) for line in lines for tag in line["values"]}
    for game in teachers():
        for tag in ("eval/mean_reward", "distill/loss", "distill/replay_agreement", "teacher/ep_rew_mean"):
            assert ("generation_2", f"{game}/{tag}") in tags
        roles = ("teacher", "random_play", "ensemble_1_2")
        assert {(role, f"{game}/eval/mean_reward") for role in roles} <= tags


def test_an_ensemble_acts_in_each_task_by_the_mean_of_its_students_policies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played: dict[str, Any] = {}

    def look(domain: AgentDomain, member: Any, *given: Any, members: Any = (), **options: Any) -> Any:
        if members:
            played[domain.config.game] = member
        return play(domain, member, *given, members=members, **options)

    play = AgentDomain.play
    monkeypatch.setattr(AgentDomain, "play", look)
    distill(tmp_path / "run", config=dataclasses.replace(CONFIG, play=dataclasses.replace(CONFIG.play, steps=24)))
    assert list(played) == list(teachers())
    for game, ensemble in played.items():
        policies = []
        for k in (1, 2):
            network, kinds = read_multitask(tmp_path / "run" / f"generation_{k}.safetensors", FRAMES)
            assert kinds[game] == "logits"
            policies.append(compute_scores(network.of(game), make_frames(5)).softmax(dim=1))
        with torch.no_grad():
            torch.testing.assert_close(ensemble(make_frames(5)).softmax(dim=1), sum(policies) / 2)


# in the warm-up, while it learns, and in generation 2 between the first points of the two curves
@pytest.mark.parametrize(("at", "kill"), [(12, False), (25, True), (47, False)])
def test_a_run_that_was_stopped_or_killed_ends_like_one_that_never_was(
    tmp_path: Path, whole: Path, at: int, kill: bool
) -> None:
    with pytest.raises(Killed if kill else Interrupted):
        distill(tmp_path / "run", StopAt(at, kill))
    assert not (tmp_path / "run" / "summary.json").exists()
    distill(tmp_path / "run")
    assert_same(whole, tmp_path / "run")


def test_a_longer_lineage_goes_on_behind_a_finished_one(tmp_path: Path, whole: Path) -> None:
    distill(tmp_path / "run", config=dataclasses.replace(CONFIG, lineage=LineageConfig(generations=1)))
    distill(tmp_path / "run")
    found = [json.loads((folder / "summary.json").read_text())["ensembles"] for folder in (tmp_path / "run", whole)]
    assert found[0] == found[1]
    for name in ("generation_1.safetensors", "generation_2.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def test_other_teachers_than_those_that_a_run_began_with_are_refused(tmp_path: Path, whole: Path) -> None:
    others = teachers() | {"breakout": as_teacher(make_network(n_actions=4, seed=2), kind="logits")}
    require_same_start(CONFIG, teachers(), whole)
    with pytest.raises(UserError, match=r"games\.breakout\.teacher breakout\.zip holds other weights"):
        require_same_start(CONFIG, others, whole)


def test_a_torso_too_wide_for_stock_dqn_is_kept_without_zips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    once = dataclasses.replace(CONFIG, lineage=LineageConfig(1), play=dataclasses.replace(CONFIG.play, steps=16))
    wide = dataclasses.replace(once, student=dataclasses.replace(CONFIG.student, size="wide"))
    plan = format_plan(wide, teachers(), tmp_path / "run")
    assert "its heads are not written as zips: stock DQN.load has no room" in plan
    assert "0 zips" in plan
    monkeypatch.setattr(polydistill_agents.lineage.multitask.domain, "fits_stock", lambda torso: False)
    summary = distill(tmp_path / "run", config=once)
    assert not list((tmp_path / "run").glob("*.zip"))
    show(summary, tmp_path / "run", False)
    assert "generation_1.safetensors (too wide for zips that DQN.load opens)" in capsys.readouterr().out


def test_one_head_has_the_actions_of_the_joystick_as_far_as_they_are_used(tmp_path: Path) -> None:
    student = dataclasses.replace(CONFIG.student, heads="one")
    once = {"lineage": LineageConfig(1), "play": dataclasses.replace(CONFIG.play, steps=24)}
    distill(tmp_path / "run", config=dataclasses.replace(CONFIG, student=student, **once))
    network = read_multitask(tmp_path / "run" / "generation_1.safetensors", FRAMES).network
    assert network.heads["all"][-1].out_features == 13, "the last of Pong's is LEFTFIRE, number 12"
    assert DQN.load(tmp_path / "run" / "generation_1_breakout.zip", device="cpu").action_space.n == 4


def games_of(**changes: Any) -> dict[str, Any]:
    return {"pong": "a.zip", "breakout": "b.zip", **changes}


@pytest.mark.parametrize(
    ("games", "message"),
    [
        (games_of(qbert=None), "games: qbert has no teacher, and none of it is shipped: give its file, qbert: FILE"),
        (games_of(qbert={"weight": 2.0}), "qbert has no teacher"),
        (games_of(pong=["a.zip", "b.zip"]), r"games\.pong has 2 teachers: a task has one"),
        (games_of(pong={"teacher": ["a.zip", "b.zip"]}), r"games\.pong has 2 teachers"),
        ({"pong": "a.zip", "ALE/Pong-v5": "b.zip"}, r"pong is there twice, as pong and as ALE/Pong-v5"),
        ({"pong": "a.zip"}, "must name two tasks at least, got 1"),
        ({}, "must name two tasks at least, got 0"),
        (games_of(brekout="a.zip"), "unknown game 'brekout'; did you mean breakout"),
        (games_of(pong={"teachr": "a.zip"}), r"games\.pong: unknown option teachr; did you mean teacher"),
        (games_of(pong=3), r"games\.pong must be the file of its teacher, or options"),
        (games_of(pong={"temperature": 0}), r"games\.pong\.temperature must be positive"),
        (games_of(pong={"weight": None}), r"games\.pong\.weight must be a number"),
    ],
)
def test_games_and_teachers_that_do_not_go_together_are_one_line(games: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, UserError), match=message) as refused:
        ManyGamesConfig(games=games)
    assert "\n" not in str(refused.value)


def test_a_game_has_its_own_temperature_and_teacher_and_the_settings_of_all() -> None:
    config = dataclasses.replace(CONFIG, games=games_of(pong={"teacher": "a.zip", "temperature": 0.1}))
    assert (config.of("pong").student.temperature, config.of("breakout").student.temperature) == (0.1, 0.01)
    assert config.of("breakout").teacher.path == "b.zip"
    assert config.of("pong").play == CONFIG.play
    four = dataclasses.replace(config, threads=5)
    assert {four.learning(name).threads for name in four.names} == {2}
    assert len({four.learning(name).seed for name in four.names}) == 2


def test_the_geometric_mean_is_not_defined_where_a_game_gave_no_positive_number(whole: Path) -> None:
    assert geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)
    summary = json.loads((whole / "summary.json").read_text())
    for student in [*summary["generations"][1:], *summary["ensembles"]]:
        for name, metrics in student["metrics"][TASKS].items():
            metrics |= {"teacher_normalized": 0.5 if name == "pong" else -0.25, "percent_of_teacher": 80.0}
        student["metrics"] |= means(student["metrics"][TASKS])
    text = format_summary(summary)
    assert "student 1: geometric mean of 'of teacher': not defined, no positive number in breakout" in text
    assert "student 2: geometric mean of '% of teacher': 80.0%" in text
    assert "ensemble of 1, 2: geometric mean of '% of teacher': 80.0%" in text
    rows = [line.split("|")[2].strip() for line in text.splitlines() if line.startswith("| pong")]
    assert rows == ["1", "2", "ensemble of 1, 2"]
    assert max(map(len, text.splitlines())) <= 100
