"""What decides a distillation is checked when it is built: a mistake is noticed before anything is played."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polydistill.errors import UserError
from polydistill.lineage import LineageConfig
from polydistill_agents.commands.scoring import AgentEvaluationConfig
from polydistill_agents.files.sb3_zip import write_dqn_zip
from polydistill_agents.lineage.agent_config import AgentConfig, AgentTeacherConfig
from polydistill_agents.lineage.config import (
    AtariConfig,
    EvaluationConfig,
    PlayConfig,
    StudentConfig,
    TeacherConfig,
)
from polydistill_agents.lineage.opening import choose_play, open_teacher
from polydistill_agents.lineage.plan import count_student
from polydistill_agents.lineage.students import make_env, make_student, rehearse
from polydistill_agents.networks.nature import count_parameters
from polydistill_agents.teachers import Teacher, as_teacher
from tests.agents.samples import make_frames, make_network

NAN, INF = float("nan"), float("inf")
CARTPOLE = {"env": "CartPole-v1", "teacher": AgentTeacherConfig(path="a.zip")}


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (TeacherConfig, {"epsilon": NAN}, "epsilon must be a finite number, got nan"),
        (TeacherConfig, {"epsilon": 1.5}, "epsilon is a probability"),
        (TeacherConfig, {"play": "samples"}, "play must be one of greedy, sample.*did you mean sample"),
        (TeacherConfig, {"path": "a.zip", "more": ("b.zip", "a.zip")}, "path and more name the teacher a.zip twice"),
        (AgentTeacherConfig, {"path": "a.zip", "more": ("b.zip", "b.zip")}, "more name the teacher b.zip twice"),
        (TeacherConfig, {"more": ("b.zip", "")}, "more names files, one of them is empty"),
        (StudentConfig, {"temperature": 0.0}, "temperature must be positive"),
        (StudentConfig, {"temperature": INF}, "temperature must be a finite number"),
        (StudentConfig, {"learning_rate": NAN}, "learning_rate must be a finite number"),
        (StudentConfig, {"learning_rate": -1e-3}, "learning_rate must be positive"),
        (StudentConfig, {"samples_per_step": INF}, "samples_per_step must be a finite number"),
        (StudentConfig, {"averaging": 1.0}, "averaging is a share of the updates, from 0 to below 1, got 1.0"),
        (StudentConfig, {"batch_size": 1.5}, "batch_size must be a whole number"),
        (StudentConfig, {"delta": 1.0}, "policy_kl has no option delta"),
        (StudentConfig, {"objective": "policy_huber", "delta": 0.0}, "delta"),
        (StudentConfig, {"objective": "policy_huber", "delta": NAN}, "delta must be a finite number"),
        (StudentConfig, {"objective": "jsd", "beta": 1.5}, "beta"),
        (StudentConfig, {"q_weight": 0.1}, "policy_kl has no option q_weight"),
        (StudentConfig, {"objective": "policy_kl_q", "q_weight": 0.0}, "q_weight must be positive and finite, got 0.0"),
        (StudentConfig, {"objective": "policy_kl_q", "temperature": 1e-30}, "temperature must be from 1e-18"),
        (PlayConfig, {"steps": 64, "warmup_steps": 65}, "warmup_steps must lie between 0 and steps = 64"),
        (PlayConfig, {"n_envs": 6, "replay_steps": 16, "warmup_steps": 16}, "warmup_steps = 16 do not fit .* 12 steps"),
        (PlayConfig, {"beta": -0.5}, "beta is a probability, got -0.5"),
        (PlayConfig, {"beta_end": 1.5}, "beta_end is a probability, got 1.5"),
        (PlayConfig, {"n_envs": True}, "n_envs must be a whole number"),
        (EvaluationConfig, {"episodes": 0}, "episodes must be at least 1"),
        (EvaluationConfig, {"curve_every_steps": -1}, "curve_every_steps must not be negative"),
        (EvaluationConfig, {"play": "stochastic"}, "play must be one of protocol, greedy, sample"),
        (EvaluationConfig, {"protocol": "zooo"}, "did you mean zoo"),
        (AgentEvaluationConfig, {"file": "a.zip", "temperature": 0.0}, "temperature must be positive"),
        (AgentEvaluationConfig, {"file": "a.zip", "play": "random"}, "play must be one of"),
        (AgentEvaluationConfig, {"file": "a.zip", "threads": 1025}, "threads must be at most 1,024, got 1,025"),
        (AtariConfig, {"threads": 100_000}, "threads must be at most 1,024, got 100,000"),
        (AtariConfig, {"lineage": LineageConfig(0)}, "lineage.generations counts .* at least 1, got 0: the teacher is"),
        (AgentConfig, {**CARTPOLE, "lineage": LineageConfig(0)}, "lineage.generations counts .* at least 1, got 0"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused_by_name(config: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, UserError), match=message) as refused:
        config(**options)
    assert "\n" not in str(refused.value)


def test_a_run_that_would_never_make_an_update_is_refused() -> None:
    play = PlayConfig(steps=64, replay_steps=256, warmup_steps=0)
    with pytest.raises(ValueError, match=r"play.steps = 64 at student.samples_per_step = 1 never make one update of"):
        AtariConfig(play=play, student=StudentConfig(samples_per_step=1.0, batch_size=128))
    AtariConfig(play=play, student=StudentConfig(samples_per_step=2.0, batch_size=128))


def test_the_options_of_a_loss_are_reached() -> None:
    assert StudentConfig(objective="policy_huber", delta=0.5).options() == {"delta": 0.5}
    assert StudentConfig(objective="jsd", beta=0.25).options() == {"beta": 0.25}
    assert StudentConfig(objective="policy_kl_q", q_weight=0.25).options() == {"q_weight": 0.25}
    assert StudentConfig().options() == {}


# ------------------------------------------------------------------ one batch before the first step

SMALL = AtariConfig(
    device="cpu",
    threads=1,
    precision="float32",
    student=StudentConfig(size="net3", batch_size=8),
    play=PlayConfig(steps=64, replay_steps=64, warmup_steps=8, n_envs=2),
)


def test_a_lesson_that_works_is_rehearsed_without_a_trace() -> None:
    teacher = as_teacher(make_network())
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    rehearse(SMALL, teacher)
    assert all(torch.equal(value, before[name]) for name, value in teacher.network.state_dict().items())
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_a_teacher_whose_scores_are_not_finite_is_refused_before_the_first_step() -> None:
    teacher = as_teacher(make_network())
    broken = Teacher(lambda frames: teacher(frames) + torch.where(frames.amax((1, 2, 3)) > 0, NAN, 0.0)[:, None])
    with pytest.raises(UserError, match="the teacher's scores of the first states are not finite"):
        rehearse(SMALL, broken)


def test_a_first_update_that_is_not_finite_is_refused_with_what_to_change() -> None:
    config = dataclasses.replace(SMALL, student=dataclasses.replace(SMALL.student, learning_rate=1e38))
    with pytest.raises(UserError, match=r"the first update .* student.learning_rate = 1e\+38") as refused:
        rehearse(config, as_teacher(make_network()))
    assert "\n" not in str(refused.value)


def test_open_teacher_rehearses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dqn_zip(tmp_path / "a.zip", as_teacher(make_network()).network)
    asked = []
    monkeypatch.setattr("polydistill_agents.lineage.opening.rehearse", lambda config, teacher: asked.append(config))
    config = dataclasses.replace(SMALL, teacher=TeacherConfig(path=str(tmp_path / "a.zip")))
    open_teacher(config)
    assert asked == [config]


# ------------------------------------------------------------------ several teachers


@pytest.fixture
def zips(tmp_path: Path) -> dict[str, str]:
    """Files of a DQN of net3, of a student of that, and of a wider DQN."""
    for name, size, kind in (("dqn", "net3", "q_values"), ("student", "net3", "logits"), ("wide", "net2", "q_values")):
        network = as_teacher(make_network(size, seed=len(name))).network
        write_dqn_zip(tmp_path / f"{name}.zip", network, score_kind=kind)
    return {name: str(tmp_path / f"{name}.zip") for name in ("dqn", "student", "wide")}


def test_generations_of_atari_teach_as_the_mean_of_their_policies(zips: dict[str, str]) -> None:
    teachers = TeacherConfig(path=zips["dqn"], more=(zips["student"],))
    student = StudentConfig(size="teacher", batch_size=8, temperature=0.02)
    config = dataclasses.replace(SMALL, teacher=teachers, student=student)
    teacher = open_teacher(config)
    dqn, logits = as_teacher(zips["dqn"])(make_frames()), as_teacher(zips["student"])(make_frames())
    expected = ((dqn / 0.02).softmax(dim=1) + logits.softmax(dim=1)) / 2
    torch.testing.assert_close(teacher(make_frames()).exp(), expected, rtol=1e-5, atol=1e-7)
    assert count_student(config, teacher) == count_parameters(make_network("net3")), "the size that both have"
    both = dataclasses.replace(SMALL, teacher=TeacherConfig(more=(zips["student"],)))
    assert len(open_teacher(both).members) == 2, "the project's own teacher and another"  # type: ignore[attr-defined]


def test_generations_of_atari_that_are_no_one_teacher_are_one_line(zips: dict[str, str], tmp_path: Path) -> None:
    write_dqn_zip(tmp_path / "other.zip", make_network("net3", n_actions=4))
    for more, message in (
        (zips["wide"], "teacher.more: the teachers are of several sizes: choose student.size, of nature, net1, net2"),
        (str(tmp_path / "other.zip"), "has 6: was it trained"),
        (str(tmp_path / "none.zip"), "no such file"),
    ):
        teachers = TeacherConfig(path=zips["dqn"], more=(more,))
        config = dataclasses.replace(SMALL, teacher=teachers, student=StudentConfig(batch_size=8))
        with pytest.raises(UserError, match=message) as refused:
            open_teacher(config)
        assert "\n" not in str(refused.value)
    mixed = TeacherConfig(path=zips["dqn"], more=(zips["wide"],))
    open_teacher(dataclasses.replace(SMALL, teacher=mixed))  # its student is a net3


# ------------------------------------------------------------------ greedy or sampled


def test_a_lineage_samples_under_the_zoo_where_its_teacher_is_an_actor_critic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    q_values = as_teacher(make_network())
    logits = as_teacher(q_values.network, kind="logits")
    zoo = dataclasses.replace(SMALL, evaluation=EvaluationConfig(protocol="zoo"))
    assert choose_play(zoo, logits) == "sample"
    assert choose_play(zoo, q_values) == choose_play(SMALL, logits) == "greedy"
    write_dqn_zip(tmp_path / "student.zip", q_values.network, score_kind="logits")
    student = dataclasses.replace(zoo, teacher=TeacherConfig(path=str(tmp_path / "student.zip")))
    assert choose_play(student, as_teacher(tmp_path / "student.zip")) == "greedy", "rl_zoo3 sees a DQN"
    more = TeacherConfig(path=str(tmp_path / "student.zip"), more=("hf://nobody/has/this.zip",))
    monkeypatch.setattr("polydistill_agents.lineage.opening.is_student", lambda path: path == more.path)
    assert choose_play(dataclasses.replace(student, teacher=more), logits) == "sample", "one of them is none"
    sampled = dataclasses.replace(student, evaluation=EvaluationConfig(protocol="zoo", play="sample"))
    assert choose_play(sampled, as_teacher(tmp_path / "student.zip")) == "sample"
    assert choose_play(dataclasses.replace(zoo, evaluation=EvaluationConfig("zoo", play="greedy")), logits) == "greedy"


def test_a_teacher_may_sample_while_it_plays_for_the_student() -> None:
    play = dataclasses.replace(SMALL.teacher, play="sample", epsilon=0.0)
    config, greedy = (dataclasses.replace(SMALL, teacher=t) for t in (play, TeacherConfig(epsilon=0.0)))
    torn = Teacher(lambda frames: torch.tensor([0.0, 0, -9, -9, -9, 0]).expand(len(frames), 6))
    taken: dict[str, set[int]] = {}
    for name, settings in (("sample", config), ("greedy", greedy)):
        env = make_env(settings, torn, 1)
        model = make_student(settings, torn, env, 1)
        actions: set[int] = set()
        step = env.step
        env.step = lambda given, step=step, actions=actions: actions.update(given.tolist()) or step(given)
        model.learn(64)
        taken[name] = actions
    assert taken == {"sample": {0, 1, 5}, "greedy": {0}}


@pytest.mark.parametrize(("beta", "beta_end", "ends"), [(0.5, None, [0.5, 0.5]), (1.0, 0.0, [1.0, 0.0])])
def test_the_beta_of_a_config_reaches_the_student(beta: float, beta_end: float | None, ends: list[float]) -> None:
    config = dataclasses.replace(SMALL, play=dataclasses.replace(SMALL.play, beta=beta, beta_end=beta_end))
    teacher = Teacher(lambda frames: torch.zeros(len(frames), 6))
    assert make_student(config, teacher, make_env(config, teacher, 1), 1).beta_ends == ends


def test_an_environment_named_with_its_package_stands_in_two_fields_so_that_a_stored_config_finds_it():
    config = AgentConfig(env="tests.agents.environments.toys:Toy-v3", teacher=AgentTeacherConfig(path="a.zip"))
    assert (config.env, config.env_package) == ("Toy-v3", "tests.agents.environments.toys")
