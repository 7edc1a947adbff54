"""Ensembles of students from several runs: what they do, what they cost, and how they are refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3 import DQN

from polydistill.config.parsing import read_config
from polydistill.config.plain_yaml import dump_yaml
from polydistill.lineage import run_lineage
from polydistill.runs import Run
from polydistill.runs.checkpoint import CheckpointConfig
from polydistill.runs.interruption import StopSignals
from polydistill.streams import derive_seed
from polydistill.study.arms import make_plan
from polydistill.study.budget import budgets, unequal_ensembles
from polydistill.study.config import StudyConfig
from polydistill.study.worlds import open_world
from polydistill_agents.commands.ensemble_agents import main
from polydistill_agents.environments.evaluation import evaluate
from polydistill_agents.lineage.agent_config import (
    AgentConfig,
    AgentScoringConfig,
    AgentStudentConfig,
    AgentTeacherConfig,
)
from polydistill_agents.lineage.config import AtariConfig, EvaluationConfig, PlayConfig
from polydistill_agents.lineage.domain import AgentDomain
from polydistill_agents.lineage.ensemble import how_they_act
from polydistill_agents.lineage.opening import open_teacher
from polydistill_agents.lineage.plan import PRODUCTS
from polydistill_agents.teachers import Teacher, as_teacher


def save_dqn(path: Path) -> str:
    DQN("MlpPolicy", gym.make("CartPole-v1"), policy_kwargs={"net_arch": [8]}, seed=3, device="cpu").save(path)
    return str(path)


def distil(out: Path, config: AgentConfig) -> None:
    with Run.open(out, config, kind="agent", command="-", products=PRODUCTS) as run:
        run_lineage(AgentDomain(config, open_teacher(config)), config, run, stop=StopSignals())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: ``kl`` gives logits; ``mse``, of another seed of the student, Q-values at T = 0.5."""
    folder = tmp_path_factory.mktemp("runs")
    config = AgentConfig(
        env="CartPole-v1",
        device="cpu",
        threads=1,
        teacher=AgentTeacherConfig(path=save_dqn(folder / "teacher.zip")),
        student=AgentStudentConfig(batch_size=16, samples_per_step=2, temperature=0.5),
        play=PlayConfig(steps=320, replay_steps=320, warmup_steps=64, n_envs=4, train_freq=8),
        evaluation=AgentScoringConfig(episodes=5, curve_every_steps=0),
        checkpoint=CheckpointConfig(every_seconds=1e9, every_steps=10_000),
    )
    distil(folder / "kl", config)
    student = dataclasses.replace(config.student, objective="policy_mse", repeat=1)
    distil(folder / "mse", dataclasses.replace(config, student=student))
    return folder


@pytest.fixture
def copies(runs: Path, tmp_path: Path) -> Path:
    """Copies of the runs, to be changed."""
    for name in ("kl", "mse"):
        shutil.copytree(runs / name, tmp_path / name)
    return tmp_path


def words(out: Path, *more: str) -> list[str]:
    return ["--members", "[../kl, ../mse]", "--device", "cpu", "--threads", "1", "--out", str(out), *more]


def test_an_ensemble_acts_by_the_mean_policy_in_the_games_of_its_members(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = runs / "both"
    main(words(out))
    printed = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    (ensemble,) = summary["ensembles"]

    kl, mse = (as_teacher(runs / name / "student.zip") for name in ("kl", "mse"))
    assert (kl.kind, mse.kind) == ("logits", "q_values")
    mean = Teacher(lambda seen: kl(seen).softmax(dim=1) + (mse(seen) / 0.5).softmax(dim=1), kind="logits")
    expected = evaluate(mean, "CartPole-v1", episodes=5, seed=derive_seed(0, "evaluation", 1), play="greedy")
    assert ensemble["metrics"]["scores"] == expected.scores.tolist()
    alone = evaluate(kl, "CartPole-v1", episodes=5, seed=derive_seed(0, "evaluation", 1), play="greedy")
    assert summary["members"][0]["metrics"]["scores"] == alone.scores.tolist(), "in the same games"

    of_runs = [json.loads((runs / name / "summary.json").read_text())["generations"][1] for name in ("kl", "mse")]
    assert [member["sha256"] for member in summary["members"]] == [one["sha256"] for one in of_runs]
    assert (summary["kind"], summary["generations"], ensemble["members"]) == ("agent", [], [0, 1])
    rows = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("|")]
    assert [rows[0], *rows[2:]] == ["who", "random", "teacher", "../kl", "../mse", "ensemble of the 2"]
    main(words(out))
    assert capsys.readouterr().out == printed, "finished, it is printed again"


def test_a_dry_run_names_the_members_and_writes_nothing(copies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(words(copies / "both", "--dry_run"))
    assert "the mean of 2 students, the last of each of\n" in capsys.readouterr().out
    assert not (copies / "both").exists()


def change(folder: Path, **values: Any) -> None:
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    for key, value in values.items():
        group, _, name = key.rpartition("__")
        (summary["config"][group] if group else summary)[name] = value
    path.write_text(json.dumps(summary))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda out: change(out / "mse", evaluation__episodes=7), "evaluation.episodes is 5 in the first and 7 in the"),
        (lambda out: change(out / "mse", kind="tasks"), "mse is a run of tasks: a member is one of distill_atari.py"),
        (lambda out: (out / "mse" / "summary.json").unlink(), "mse/summary.json"),
        (lambda out: save_dqn(out / "mse" / "student.zip"), "holds other weights than those that its run ended with"),
        (lambda out: [path.unlink() for path in (out / "kl").glob("student.*")], "no such file"),
        (lambda out: change(out / "mse", generations=[]), "mse holds no student: nothing was trained"),
    ],
)
def test_members_that_make_no_ensemble_are_one_line(
    copies: Path, capsys: pytest.CaptureFixture[str], harm: Any, message: str
) -> None:
    harm(copies)
    with pytest.raises(SystemExit) as ended:
        main(words(copies / "both"))
    assert ended.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (copies / "both" / "summary.json").exists()


@pytest.mark.parametrize("given", ["[../kl]", "[../kl, ../kl]"])
def test_an_ensemble_of_one_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str) -> None:
    with pytest.raises(SystemExit):
        main(["--members", given, "--out", str(tmp_path / "both")])
    assert "members must be at least 2 run folders, each once" in capsys.readouterr().err


def test_students_act_as_their_run_scored_them() -> None:
    config = AtariConfig(device="cpu")
    assert how_they_act(config) == "greedy"
    zoo = dataclasses.replace(config, evaluation=EvaluationConfig(protocol="zoo"))
    assert how_they_act(zoo) == "greedy", "the project's teacher is a DQN"
    sampled = dataclasses.replace(zoo, evaluation=EvaluationConfig(protocol="zoo", play="sample"))
    assert how_they_act(sampled) == "sample"
    control = dataclasses.replace(sampled, student=dataclasses.replace(config.student, objective="td"))
    assert how_they_act(control) == "greedy"


# ---- as arms of a study ----------------------------------------------------------------------------------------------


def test_the_ensembles_of_the_published_study_cost_the_same(root: Path) -> None:
    file = root / "configs" / "study" / "pong_generations.yaml"
    plan = make_plan(read_config(StudyConfig, file, {}), open_world("atari"), file)
    steps = plan.base["play"]["steps"]
    costs = {name: (cost.networks, cost.trained, cost.training) for name, cost in budgets(plan).items()}
    students = ("independent_1", "independent_2", "independent_3")
    assert costs == {
        "generations": (3, ("independent_1", "generation_2", "generation_3"), 3 * steps),
        "independents": (3, students, 3 * steps),
    }
    assert unequal_ensembles(plan) == []


def test_agents_of_unequal_play_in_one_contrast_are_told() -> None:
    arms = {
        "one": {}, "two": {"student.repeat": 1}, "longer": {"play.steps": 80_000},
        "a": {"ensemble": ["one", "two"]}, "b": {"ensemble": ["one", "longer"]},
    }  # fmt: skip
    plan = make_plan(StudyConfig(world="atari", arms=arms, contrasts=(("a", "b"),)), open_world("atari"), None)
    assert unequal_ensembles(plan) == [
        "a takes 80,000 steps of play (one, two) and b 120,000 (one, longer): budgets are not equal"
    ]


def test_the_command_of_an_arm_scores_its_ensemble(copies: Path) -> None:
    arms = {"kl": {}, "mse": {"student.objective": "policy_mse"}, "both": {"ensemble": ["kl", "mse"]}}
    settings = {"env": "CartPole-v1", "teacher.path": "a.zip", "device": "cpu"}
    plan = make_plan(StudyConfig(world="agent", settings=settings, arms=arms), open_world("agent"), None)
    for name in ("kl", "mse"):
        (copies / "runs" / name).mkdir(parents=True)
        (copies / name).rename(copies / "runs" / name / "seed0")
    (copies / "both.yaml").write_text(dump_yaml(plan.arm("both").config))
    out = copies / "runs" / "both" / "seed0"
    main(["--config", str(copies / "both.yaml"), "--seed", "0", "--out", str(out)])
    summary = json.loads((out / "summary.json").read_text())
    assert [member["folder"] for member in summary["members"]] == ["../../kl/seed0", "../../mse/seed0"]


def test_a_study_of_atari_names_further_teachers_only_where_there_are_some() -> None:
    arms = {"one": {}, "two": {"student.repeat": 1}}
    more = StudyConfig(world="atari", arms=arms, settings={"teacher.path": "a.zip", "teacher.more": ["b.zip"]})
    assert make_plan(more, open_world("atari"), None).base["teacher"]["more"] == ["b.zip"]
    without = make_plan(StudyConfig(world="atari", arms=arms), open_world("atari"), None)
    assert "more" not in without.base["teacher"]
