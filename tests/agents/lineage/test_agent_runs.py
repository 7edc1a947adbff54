"""Runs in environments of gymnasium: from a zip to a table, stopped and gone on with, exactly where that can be."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import DQN, PPO

from polydistill.config.plain_yaml import to_mapping
from polydistill.errors import Interrupted, UserError
from polydistill.lineage import Generation, LineageConfig, run_lineage
from polydistill.provenance import weights_sha256
from polydistill.runs import Run, require_same_config
from polydistill.runs.checkpoint import CheckpointConfig
from polydistill.runs.interruption import StopSignals
from polydistill_agents.files.sb3_zip import read_agent, write_dqn_zip
from polydistill_agents.lineage.agent_config import (
    AgentConfig,
    AgentScoringConfig,
    AgentStudentConfig,
    AgentTeacherConfig,
)
from polydistill_agents.lineage.checkup import examine_lesson
from polydistill_agents.lineage.config import MAY_MOVE, AtariConfig, PlayConfig
from polydistill_agents.lineage.domain import AgentDomain
from polydistill_agents.lineage.opening import measure_temperature, open_teacher, require_same_teacher
from polydistill_agents.lineage.plan import PRODUCTS, kind_of
from polydistill_agents.lineage.report import format_summary
from polydistill_agents.lineage.student_file import read_student
from polydistill_agents.lineage.students import make_env
from polydistill_agents.networks.nature import SIZES, build_network, count_parameters
from polydistill_agents.teachers import Teacher, as_teacher
from polydistill_agents.teachers.several import MeanTeacher
from tests.agents.environments import toys
from tests.stop_signals import StopAt

PLAY = PlayConfig(steps=640, replay_steps=640, warmup_steps=64, n_envs=4, train_freq=8)


class Walk(gym.Env[Any, Any]):
    """Episodes of 10 steps along a line: 1 point for each step to the right; a table of where and how it stands."""

    repeats = True
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            {"place": spaces.Box(-20.0, 20.0, (1,), np.float32), "wind": spaces.Discrete(3)}
        )
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.age = 0.0, 0
        return self._look(), {}

    def _look(self) -> dict[str, Any]:
        chance = self.np_random if self.repeats else np.random.default_rng()
        return {"place": np.array([self.place], np.float32), "wind": np.int64(chance.integers(3))}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place += 1.0 if action else -1.0
        self.age += 1
        return self._look(), float(action), self.age == 10, False, {}


class Gusts(Walk):
    """One that does not repeat itself."""

    repeats = False


gym.register("polydistill-test/Walk-v0", Walk)
gym.register(
    "polydistill-test/Stacked-v0", lambda: gym.wrappers.FrameStackObservation(gym.make("CartPole-v1"), stack_size=3)
)
gym.register("polydistill-test/Gusts-v0", Gusts)


@pytest.fixture
def zipped(tmp_path: Path) -> Any:
    """A function that saves an untrained agent of an environment."""

    def save(env: str, kind: Any = DQN, **options: Any) -> str:
        policy = "MultiInputPolicy" if isinstance(gym.make(env).observation_space, spaces.Dict) else "MlpPolicy"
        widths: dict[str, Any] = {"net_arch": [8]}
        if kind is RecurrentPPO:
            policy, widths = "MlpLstmPolicy", {"net_arch": [], "lstm_hidden_size": 8}
        model = kind(policy, gym.make(env), policy_kwargs=widths, seed=3, device="cpu", **options)
        model.save(tmp_path / f"{kind.__name__}.zip")
        return str(tmp_path / f"{kind.__name__}.zip")

    return save


def config_of(path: str, env: str, **changes: Any) -> AgentConfig:
    config = AgentConfig(
        env=env,
        device="cpu",
        threads=1,
        teacher=AgentTeacherConfig(path=path),
        student=AgentStudentConfig(batch_size=16, samples_per_step=2),
        play=PLAY,
        evaluation=AgentScoringConfig(episodes=5, curve_every_steps=320, curve_episodes=3),
        checkpoint=CheckpointConfig(every_seconds=1e9, every_steps=160),
    )
    return dataclasses.replace(config, **changes)


def distil(out: Path, config: AgentConfig, stop: StopSignals | None = None) -> dict[str, Any]:
    options: Any = {"products": PRODUCTS, "may_grow": ("lineage.generations",)}
    with Run.open(out, config, kind=kind_of(config), command="-", **options) as run:
        return run_lineage(AgentDomain(config, open_teacher(config)), config, run, stop=stop or StopSignals())


def outcome(out: Path) -> Any:
    summary = json.loads((out / "summary.json").read_text())
    weights = read_agent(out / "student.zip").weights
    told = {k: v for k, v in summary.items() if k not in {"wall_seconds", "seconds", "throughput", "command"}}
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return told, lines, {name: value.numpy().tobytes() for name, value in weights.items()}


@pytest.mark.parametrize("env", ["CartPole-v1", "polydistill-test/Walk-v0"])
def test_a_run_that_was_stopped_ends_like_one_that_never_was(tmp_path: Path, zipped: Any, env: str) -> None:
    config = config_of(zipped(env), env)
    distil(tmp_path / "whole", config)
    for at in (12, 40, 70):
        with pytest.raises(Interrupted):
            distil(tmp_path / "run", config, StopAt(at))
    distil(tmp_path / "run", config)
    for found, expected in zip(outcome(tmp_path / "run"), outcome(tmp_path / "whole"), strict=True):
        assert found == expected


def make_walker(tmp_path: Path, action: int) -> str:
    """A teacher of the walk that always does the same: right (1) has 10 points in each game, random play 5."""
    env = gym.make("polydistill-test/Walk-v0")
    model = DQN("MultiInputPolicy", env, policy_kwargs={"net_arch": [8]}, seed=3, device="cpu")
    with torch.no_grad():
        last = [module for module in model.q_net.modules() if isinstance(module, torch.nn.Linear)][-1]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([1.0 - action, float(action)]))
    model.save(tmp_path / "walker.zip")
    return str(tmp_path / "walker.zip")


@pytest.fixture
def walker(tmp_path: Path) -> str:
    return make_walker(tmp_path, action=1)


def test_how_soon_the_student_is_as_good_is_kept_over_a_stop(tmp_path: Path, walker: str) -> None:
    config = config_of(walker, "polydistill-test/Walk-v0")
    config = dataclasses.replace(
        config,
        student=dataclasses.replace(config.student, temperature=1.0),
        evaluation=dataclasses.replace(config.evaluation, curve_every_steps=64),
    )
    whole = distil(tmp_path / "whole", config)["generations"]
    with pytest.raises(Interrupted):
        distil(tmp_path / "run", config, StopAt(60))
    distil(tmp_path / "run", config)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")

    baseline, student = whole[0]["metrics"], whole[1]["metrics"]
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    curve = [
        (line["step"], line["values"]["eval/mean_reward"])
        for line in lines
        if line["role"] == "generation_1" and "eval/mean_reward" in line["values"]
    ]
    needed = baseline["random_mean"] + 0.95 * (10.0 - baseline["random_mean"])
    first = next((step for step, score in curve if score >= needed), None)
    assert len(curve) == 11  # 0, 64, ..., 576, and the table's at 640
    assert student["reached_95"] == float(first is not None)
    assert student["steps_to_95"] == (640 if first is None else first)
    assert "steps_to_95" not in baseline


@pytest.mark.parametrize(("action", "every"), [(1, 0), (0, 320)])
def test_how_soon_is_not_said_without_a_curve_or_of_a_teacher_below_random_play(
    tmp_path: Path, action: int, every: int
) -> None:
    config = config_of(make_walker(tmp_path, action), "polydistill-test/Walk-v0")
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, curve_every_steps=every))
    metrics = distil(tmp_path / "run", config)["generations"][1]["metrics"]
    assert (metrics["teacher_normalized"] is None) == (action == 0)
    assert "steps_to_95" not in metrics


def test_a_student_repeated_has_other_streams_and_meets_the_same_teacher_and_games(tmp_path: Path, walker: str) -> None:
    config = config_of(walker, "polydistill-test/Walk-v0")
    again = dataclasses.replace(config, student=dataclasses.replace(config.student, repeat=1))
    first, second = distil(tmp_path / "first", config), distil(tmp_path / "second", again)
    assert first["generations"][0] == second["generations"][0]  # the scores of the teacher's games, too
    assert first["generations"][1]["sha256"] != second["generations"][1]["sha256"]
    assert make_env(config, as_teacher(walker), 1).own_seed != make_env(again, as_teacher(walker), 1).own_seed


def test_where_an_environment_does_not_repeat_itself_the_run_goes_on_in_new_games(
    tmp_path: Path, zipped: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(zipped("polydistill-test/Gusts-v0"), "polydistill-test/Gusts-v0")
    with pytest.raises(Interrupted):
        distil(tmp_path / "run", config, StopAt(60))
    capsys.readouterr()
    summary = distil(tmp_path / "run", config)
    assert "generation 1 goes on in new games" in capsys.readouterr().err
    assert len(summary["generations"]) == 2
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 640


def test_the_table_has_random_play_teacher_and_student(tmp_path: Path, zipped: Any) -> None:
    env = "polydistill-test/Walk-v0"
    summary = distil(tmp_path / "run", config_of(zipped(env), env))
    text = format_summary(json.loads((tmp_path / "run/summary.json").read_text()))
    words = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert words == ["who", "---------", "random", "teacher", "student 1"]
    assert max(map(len, text.splitlines())) <= 80
    first = summary["generations"][0]["metrics"]
    assert 3.0 < first["random_mean"] < 7.0  # half of ten steps
    assert DQN.load(tmp_path / "run/student.zip", env=gym.make(env), device="cpu").predict(
        {"place": np.zeros(1, np.float32), "wind": np.int64(1)}
    )


def test_a_teacher_that_plays_otherwise_than_it_should_stops_the_run_before_it_trains(
    tmp_path: Path, zipped: Any
) -> None:
    config = config_of(zipped("CartPole-v1"), "CartPole-v1")
    config = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, expected_score=475.0))
    with pytest.raises(UserError, match=r"the teacher scores .* in 5 games, and is known for 475") as refused:
        distil(tmp_path / "run", config)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run" / "student.zip").exists()


def test_a_card_beside_the_teachers_file_is_believed_where_it_is_its_own(tmp_path: Path, zipped: Any) -> None:
    path = zipped("CartPole-v1")
    network = as_teacher(path).network
    assert network is not None
    card = {"sha256": weights_sha256(network.state_dict()), "evaluation": {"protocol": "own", "score_mean": 475.0}}
    Path(path).with_suffix(".json").write_text(json.dumps(card | {"sha256": "another"}))
    distil(tmp_path / "other", config_of(path, "CartPole-v1"))
    Path(path).with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="is known for 475"):
        distil(tmp_path / "own", config_of(path, "CartPole-v1"))


def test_an_actor_critic_needs_no_temperature_and_a_dqn_gets_its_own(
    tmp_path: Path, zipped: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    distil(tmp_path / "ppo", config_of(zipped("CartPole-v1", PPO, n_steps=8, batch_size=8), "CartPole-v1"))
    assert "temperature" not in capsys.readouterr().out
    distil(tmp_path / "dqn", config_of(zipped("CartPole-v1"), "CartPole-v1"))
    assert "temperature" in capsys.readouterr().out


def test_a_teacher_may_see_another_view_and_the_student_is_saved_with_its_own(tmp_path: Path, zipped: Any) -> None:
    stacked = "polydistill-test/Stacked-v0"
    config = config_of(zipped(stacked), "CartPole-v1")
    config = dataclasses.replace(
        config, teacher_wrappers=("FrameStackObservation:3",), wrappers=("TimeAwareObservation",)
    )
    whole = distil(tmp_path / "whole", config)
    for at in (25, 60):
        with pytest.raises(Interrupted):
            distil(tmp_path / "run", config, StopAt(at))
    distil(tmp_path / "run", config)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert DQN.load(tmp_path / "whole/student.zip", device="cpu").observation_space.shape == (5,), (
        "CartPole's four, and the time"
    )
    assert 0 <= whole["generations"][1]["metrics"]["agreement"] <= 1


def test_a_teacher_of_another_view_than_its_wrappers_show_is_one_line(zipped: Any) -> None:
    config = config_of(zipped("CartPole-v1"), "CartPole-v1", teacher_wrappers=("FrameStackObservation:3",))
    with pytest.raises(UserError, match=r"the teacher sees \(4,\) float32, the environment shows \(3, 4\) float32"):
        open_teacher(config)


def told_of(out: Path) -> tuple[str, dict[str, list[str]]]:
    """The wide table of a run, and its columns by their names."""
    text = format_summary(json.loads((out / "summary.json").read_text()), wide=True)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return text, {name: [line[i] for line in lines[2:]] for i, name in enumerate(lines[0])}


def test_a_student_of_masked_play_is_scored_as_stock_play_with_its_invalid_actions_and_masked(
    tmp_path: Path, zipped: Any
) -> None:
    path = zipped("Masked-v3", MaskablePPO, n_steps=8, batch_size=8)
    summary = distil(tmp_path / "run", config_of(path, "Masked-v3", play=dataclasses.replace(PLAY, steps=2560)))
    _, table = told_of(tmp_path / "run")
    assert table["who"] == ["random", "teacher", "student 1"]
    assert [cell[-1] for cell in table["invalid"]] == ["-", "%", "%"]
    assert table["masked score"][0] == "-"
    for generation in summary["generations"]:
        metrics = generation["metrics"]
        assert 0 <= metrics["invalid_share"] <= 1
        assert 0 <= metrics["masked_score_mean"] <= toys.LENGTH


def test_below_the_table_of_a_teacher_with_a_memory_stands_what_its_student_goes_without(
    tmp_path: Path, zipped: Any
) -> None:
    path = zipped("CartPole-v1", RecurrentPPO, n_steps=8, batch_size=8)
    student = AgentStudentConfig(batch_size=16, samples_per_step=2, net_arch=(8,))
    config = config_of(path, "CartPole-v1", student=student)
    distil(tmp_path / "whole", config)
    text, table = told_of(tmp_path / "whole")
    note = " ".join(text[text.index("note: the teacher remembers") :].split())
    share = table["of teacher"][-1]
    kept = "" if share == "-" else f": it keeps {share} of what the teacher scores above random play"
    assert note.startswith(f"note: the teacher remembers earlier steps, student 1 sees one observation alone{kept}")
    with pytest.raises(Interrupted):
        distil(tmp_path / "run", config, StopAt(30))
    distil(tmp_path / "run", config)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_several_teachers_and_two_generations(tmp_path: Path, zipped: Any) -> None:
    more = (zipped("CartPole-v1", PPO, n_steps=8, batch_size=8),)
    teacher = AgentTeacherConfig(path=zipped("CartPole-v1"), more=more)
    config = config_of(teacher.path, "CartPole-v1", teacher=teacher, lineage=LineageConfig(generations=2))
    config = dataclasses.replace(config, student=dataclasses.replace(config.student, net_arch=(6,)))
    summary = distil(tmp_path / "run", config)
    assert [one["parameters"] for one in summary["generations"][1:]] == [4 * 6 + 6 + 6 * 2 + 2] * 2
    moved = dataclasses.replace(teacher, more=(str(shutil.copy(more[0], tmp_path / "moved.zip")),))
    elsewhere = dataclasses.replace(config, teacher=moved)
    require_same_config(tmp_path / "run", to_mapping(elsewhere), may_move=MAY_MOVE)
    first = summary["generations"][0]
    require_same_teacher(elsewhere, open_teacher(elsewhere), first)
    other = dataclasses.replace(config, teacher=AgentTeacherConfig(path=more[0], more=(teacher.path,)))
    with pytest.raises(UserError, match=r"teacher\.path and teacher\.more hold other weights"):
        require_same_teacher(other, open_teacher(other), first)


def test_a_lineage_that_grows_keeps_its_ensembles_and_scores_the_new_one(
    tmp_path: Path, walker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = AgentStudentConfig(objective="policy_mse", temperature=0.5, batch_size=16, samples_per_step=2)
    config = config_of(walker, "polydistill-test/Walk-v0", student=student, lineage=LineageConfig(generations=3))
    whole = distil(tmp_path / "whole", config)
    assert [ensemble["members"] for ensemble in whole["ensembles"]] == [[1, 2], [1, 2, 3]]
    distil(tmp_path / "run", dataclasses.replace(config, lineage=LineageConfig(generations=2)))
    played: list[Any] = []
    play = AgentDomain.play

    def noted(domain: AgentDomain, member: Teacher, *args: Any, **options: Any) -> Any:
        played.append(member)
        return play(domain, member, *args, **options)

    monkeypatch.setattr(AgentDomain, "play", noted)
    distil(tmp_path / "run", config)
    ensembles = [member for member in played if isinstance(member, MeanTeacher)]
    assert [(len(one.members), one.temperatures) for one in ensembles] == [(3, (0.5, 0.5, 0.5))]
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def examined(config: AgentConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of student and teacher in the states that the doctor looks at."""
    found: list[torch.Tensor] = []
    told = lambda student, teacher, _, rows, **options: found.extend((student(rows), teacher(rows)))  # noqa: E731
    monkeypatch.setattr("polydistill_agents.lineage.checkup.doctor", told)
    monkeypatch.setattr("polydistill_agents.lineage.checkup.STATES", 64)
    examine_lesson(config, open_teacher(config), 1)
    return found[0], found[1]


def test_a_teacher_of_another_view_is_examined_with_what_it_sees(zipped: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(
        zipped("polydistill-test/Stacked-v0"), "CartPole-v1", teacher_wrappers=("FrameStackObservation:3",)
    )
    student, teacher = examined(config, monkeypatch)
    assert student.shape == teacher.shape == (64, 2)


def test_a_teacher_with_masks_is_examined_with_them(zipped: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(zipped("Masked-v3", MaskablePPO, n_steps=8, batch_size=8), "Masked-v3")
    _, teacher = examined(config, monkeypatch)
    assert (teacher == -torch.inf).sum(dim=1).tolist() == [1] * 64


def test_what_masks_make_of_a_loss_is_found_before_a_run(zipped: Any) -> None:
    path = zipped("Masked-v3", MaskablePPO, n_steps=8, batch_size=8)
    student = AgentStudentConfig(objective="reverse_kl", batch_size=16, net_arch=(8,))
    with pytest.raises(UserError, match=r"not finite with student\.objective = reverse_kl"):
        open_teacher(config_of(path, "Masked-v3", student=student))


def test_a_student_of_frames_with_layers_behind_is_read_back_in_the_same_widths(tmp_path: Path, zipped: Any) -> None:
    config = config_of(zipped("CartPole-v1"), "CartPole-v1")
    domain = AgentDomain(config, open_teacher(config))
    space = spaces.Box(0, 255, (3, 40, 40), np.uint8)
    write_dqn_zip(tmp_path / "student.zip", build_network(space, 2, SIZES["net3"], [8]), score_kind="logits")
    student = read_student(tmp_path / "student.zip", SIZES["net3"])
    generations = [
        Generation(k, member, None, None, None, None, {}) for k, member in enumerate((domain.teacher, student))
    ]
    assert domain.state(generations)["files"] == [{"file": "student.zip", "size": [[16, 16, 16], 64]}]


def test_a_temperature_is_measured_with_the_teachers_own_set_of_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polydistill_agents.lineage.opening.STATES", 4)
    config = AtariConfig(threads=1, device="cpu", play=PlayConfig(n_envs=2))
    last = Teacher(lambda frames: torch.arange(18.0).repeat(len(frames), 1))
    assert measure_temperature(config, last).gap == 1.0


def test_students_of_frames_may_have_layers_behind_their_convolutions(tmp_path: Path) -> None:
    DQN("CnnPolicy", gym.make("Large-v3"), buffer_size=1, device="cpu").save(tmp_path / "DQN.zip")
    student = AgentStudentConfig(batch_size=16, samples_per_step=1, net_arch=(8,))
    play = PlayConfig(steps=64, replay_steps=64, warmup_steps=16, n_envs=4, train_freq=8)
    config = config_of(str(tmp_path / "DQN.zip"), "Large-v3", student=student, play=play)
    summary = distil(tmp_path / "run", config)
    assert summary["generations"][1]["parameters"] == count_parameters(DQN.load(tmp_path / "run/student.zip").q_net)
