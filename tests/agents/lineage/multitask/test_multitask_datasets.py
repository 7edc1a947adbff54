"""Play of several tasks as files, one of each: a student that learns from them is that of the run that wrote them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import DQN, PPO

from polydistill.errors import Interrupted, UserError
from polydistill.lineage import LineageConfig, run_lineage
from polydistill.runs import Run
from polydistill.runs.checkpoint import CheckpointConfig
from polydistill.runs.interruption import StopSignals
from polydistill_agents.commands.distil_tasks import SEVERAL_TASKS
from polydistill_agents.files.play_file import read_play
from polydistill_agents.lineage.agent_config import AgentScoringConfig
from polydistill_agents.lineage.config import PlayConfig
from polydistill_agents.lineage.multitask.domain import MultitaskDomain
from polydistill_agents.lineage.multitask.games import ManyGamesConfig
from polydistill_agents.lineage.multitask.opening import open_teachers, require_same_teachers
from polydistill_agents.lineage.multitask.plan import KIND, PRODUCTS, disk_bytes, format_plan
from polydistill_agents.lineage.multitask.report import format_summary
from polydistill_agents.lineage.multitask.tasks import ManyTasksConfig, ManyTasksStudentConfig
from polydistill_agents.lineage.multitask.view import TASKS
from tests.stop_signals import StopAt

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ManyTasksConfig:
    """A short run of two CartPoles, with a teacher of Q-values and one of logits."""
    folder = tmp_path_factory.mktemp("teachers")
    DQN("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [8]}, device="cpu", seed=0).save(folder / "dqn.zip")
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu", seed=0).save(folder / "ppo.zip")
    return ManyTasksConfig(
        tasks={
            "light": {"env": "CartPole-v1", "teacher": str(folder / "dqn.zip")},
            "short": {"env": "CartPole-v1", "env_max_steps": 40, "teacher": str(folder / "ppo.zip")},
        },
        device="cpu",
        threads=1,
        student=ManyTasksStudentConfig(batch_size=16, samples_per_step=1.0, controller=(8,), net_arch=(8,)),
        play=PlayConfig(steps=320, replay_steps=320, warmup_steps=64, n_envs=2, train_freq=8),
        evaluation=AgentScoringConfig(episodes=3, curve_every_steps=160, curve_episodes=2),
        checkpoint=CheckpointConfig(every_seconds=1e9, every_steps=80),
    )


def without_teachers(config: ManyTasksConfig, dataset: Path) -> ManyTasksConfig:
    tasks = {name: {**entry, "teacher": ""} for name, entry in config.tasks.items()}
    return dataclasses.replace(config, tasks=tasks, dataset=str(dataset), save_dataset=None)


def distil(out: Path, config: ManyTasksConfig, stop: StopSignals | None = None) -> dict[str, Any]:
    allowed: Any = {"products": PRODUCTS, "may_grow": ("lineage.generations",), "may_move": config.may_move}
    with Run.open(out, config, kind=KIND, command="-", **allowed) as run:
        return run_lineage(MultitaskDomain(config, open_teachers(config)), config, run, stop=stop or StopSignals())


@pytest.fixture(scope="module")
def saved(config: ManyTasksConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder of files of play, and the summary of the run that wrote them."""
    folder = tmp_path_factory.mktemp("saved")
    summary = distil(folder / "run", dataclasses.replace(config, save_dataset=str(folder / "play")))
    return folder / "play", summary


def test_the_student_of_the_files_is_that_of_the_run_that_wrote_them(
    tmp_path: Path, config: ManyTasksConfig, saved: tuple[Path, dict[str, Any]]
) -> None:
    play, written = saved
    assert {path.name for path in play.iterdir()} == {"light.safetensors", "short.safetensors"}
    for name in ("light", "short"):
        data, _ = read_play(play / f"{name}.safetensors")
        began = written["generations"][0]["metrics"][TASKS][name]
        assert data.header.sha256 == began["sha256"]
        assert data.teacher_games.tolist() == began["scores"]
        assert data.steps == 320
    found = distil(tmp_path / "again", without_teachers(config, play))
    assert found["generations"][1]["sha256"] == written["generations"][1]["sha256"]
    for name in ("light", "short"):
        first, student = (each["metrics"][TASKS][name] for each in found["generations"])
        assert first["score_mean"] == written["generations"][0]["metrics"][TASKS][name]["score_mean"]
        assert first["sha256"] is None
        assert len(first["dataset_sha256"]) == 64
        assert student["agreement"] is None, "a teacher that is not there has no answer"
        assert student["scores"] == written["generations"][1]["metrics"][TASKS][name]["scores"]
    assert "light" in format_summary(found)
    asked = dataclasses.replace(config, dataset=str(play))
    told = distil(tmp_path / "asked", asked)["generations"]
    assert told[1]["sha256"] == written["generations"][1]["sha256"]
    assert told[1]["metrics"][TASKS]["short"]["agreement"] is not None
    with pytest.raises(UserError, match=r"tasks\.light\.teacher .*holds other weights"):
        require_same_teachers(config, open_teachers(without_teachers(config, play)), told[0])


def test_stops_change_neither_what_is_written_nor_what_is_learned(
    tmp_path: Path, config: ManyTasksConfig, saved: tuple[Path, dict[str, Any]]
) -> None:
    play, written = saved
    saving = dataclasses.replace(config, save_dataset=str(tmp_path / "play"))
    for name, stopped in (("a", saving), ("b", without_teachers(config, play))):
        stops = 0
        for at in (60, 140):
            try:
                distil(tmp_path / name, stopped, StopAt(at))
            except Interrupted:
                stops += 1
        assert stops, "it was never stopped"
        assert distil(tmp_path / name, stopped)["generations"][1]["sha256"] == written["generations"][1]["sha256"]
    for path in play.iterdir():
        assert (tmp_path / "play" / path.name).read_bytes() == path.read_bytes()


def test_a_second_generation_learns_from_the_first_students_play(
    tmp_path: Path, config: ManyTasksConfig, saved: tuple[Path, dict[str, Any]]
) -> None:
    two = dataclasses.replace(without_teachers(config, saved[0]), lineage=LineageConfig(generations=2))
    generations = distil(tmp_path / "run", two)["generations"]
    assert generations[1]["sha256"] == saved[1]["generations"][1]["sha256"]
    assert generations[2]["metrics"][TASKS]["light"]["agreement"] is not None


def test_what_does_not_fit_is_one_line_that_names_the_task(
    tmp_path: Path, config: ManyTasksConfig, saved: tuple[Path, dict[str, Any]]
) -> None:
    play, written = saved
    with pytest.raises(UserError, match=r"tasks\.light: no such file"):
        open_teachers(without_teachers(config, tmp_path / "nowhere"))
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    for name, other in (("light", "short"), ("short", "light")):
        (swapped / f"{name}.safetensors").write_bytes((play / f"{other}.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"tasks\.light: .* was played with max_steps = 40, here it is 500"):
        open_teachers(without_teachers(config, swapped))
    with pytest.raises(UserError, match=r"short.safetensors is there already: remove it, or give --save_dataset"):
        SEVERAL_TASKS.require_place(
            dataclasses.replace(config, save_dataset=str(play), tasks=dict(reversed(config.tasks.items())))
        )
    with pytest.raises(ValueError, match="learned from dataset is in that file already: leave save_dataset out"):
        dataclasses.replace(config, dataset=str(play), save_dataset="b")
    with pytest.raises(UserError, match=r"tasks\.light: the run began with other play than dataset names now"):
        require_same_teachers(config, open_teachers(without_teachers(config, play)), written["generations"][0])


def test_a_plan_counts_the_files_and_a_dry_run_needs_no_teacher(
    tmp_path: Path, config: ManyTasksConfig, saved: tuple[Path, dict[str, Any]]
) -> None:
    learning = without_teachers(config, saved[0])
    teachers = open_teachers(learning)
    assert "of 2 tasks" in format_plan(learning, teachers, tmp_path)
    saving = dataclasses.replace(config, save_dataset=str(tmp_path))
    assert disk_bytes(saving, teachers) > disk_bytes(config, teachers)


def test_games_have_files_of_their_names_and_need_no_teachers_then() -> None:
    games = ManyGamesConfig(games={"pong": None, "breakout": None}, dataset="play")
    assert games.of("breakout").dataset == str(Path("play", "breakout.safetensors"))
    assert games.of("breakout").save_dataset is None
    assert games.may_move[-1] == "dataset"
    with pytest.raises(ValueError, match="breakout has no teacher"):
        ManyGamesConfig(games={"pong": None, "breakout": None}, save_dataset="play")
    assert json.loads(json.dumps(games.games))["breakout"]["teacher"] == ""
