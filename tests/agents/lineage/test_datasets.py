"""Play as a file: a student that learns from it is the student of the run that wrote it, and nothing else passes."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from safetensors.numpy import save as save_tables
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import polydistill_agents.files.play_file
from polydistill.config.plain_yaml import to_mapping
from polydistill.errors import Interrupted, UserError
from polydistill.lineage import LineageConfig, run_lineage
from polydistill.runs import Run, examine_folder
from polydistill.runs.checkpoint import CheckpointConfig
from polydistill.runs.interruption import StopSignals
from polydistill_agents.environments import protocols
from polydistill_agents.environments.atari import AtariVecEnv
from polydistill_agents.environments.recording import Recording
from polydistill_agents.files.play_file import read_play, write_play
from polydistill_agents.files.sb3_zip import read_agent, write_dqn_zip
from polydistill_agents.lineage.agent_config import (
    AgentConfig,
    AgentScoringConfig,
    AgentStudentConfig,
    AgentTeacherConfig,
)
from polydistill_agents.lineage.checkup import examine_lesson
from polydistill_agents.lineage.config import MAY_MOVE, AtariConfig, EvaluationConfig, PlayConfig, StudentConfig
from polydistill_agents.lineage.datasets import require_place
from polydistill_agents.lineage.domain import AgentDomain
from polydistill_agents.lineage.ensemble import how_they_act
from polydistill_agents.lineage.opening import open_teacher
from polydistill_agents.lineage.plan import PRODUCTS, disk_bytes, kind_of, require_same_start
from polydistill_agents.networks.observations import to_tensors
from tests.agents.environments import toys
from tests.agents.samples import make_network, refusal
from tests.stop_signals import StopAt

TOYS = toys.__name__
PLAY = PlayConfig(steps=640, replay_steps=640, warmup_steps=64, n_envs=4, train_freq=8)


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


def distil(out: Path, config: Any, stop: StopSignals | None = None) -> dict[str, Any]:
    options: Any = {"products": PRODUCTS, "may_grow": ("lineage.generations",), "may_move": MAY_MOVE}
    with Run.open(out, config, kind=kind_of(config), command="-", **options) as run:
        return run_lineage(AgentDomain(config, open_teacher(config)), config, run, stop=stop or StopSignals())


def weights(out: Path) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in read_agent(out / "student.zip").weights.items()}


def logged(out: Path, *without: str) -> list[Any]:
    """What was logged of the students, without these tags."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        (line["step"], {tag: value for tag, value in line["values"].items() if tag not in without})
        for line in lines
        if line["role"].startswith("generation")
    ]


def teacher_of(kind: str, folder: Path) -> tuple[str, str, dict[str, Any]]:
    """File of an untrained teacher, its environment, and what its run must say."""
    short: Any = {"policy_kwargs": {"net_arch": [8]}, "seed": 3, "device": "cpu"}
    if kind != "dqn" and kind != "table":
        short |= {"n_steps": 8, "batch_size": 8}
    path, asked = folder / "teacher.zip", {}
    match kind:
        case "dqn":
            env, model = "CartPole-v1", DQN("MlpPolicy", "CartPole-v1", **short)
        case "table":
            env, model = f"{TOYS}:Table-v3", DQN("MultiInputPolicy", gym.make("Table-v3"), **short)
        case "masked":
            env, model = f"{TOYS}:Masked-v3", MaskablePPO("MlpPolicy", gym.make("Masked-v3"), **short)
        case "normalized":
            env, behind = "CartPole-v1", VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
            model = PPO("MlpPolicy", behind, **short).learn(8)
            behind.save(str(folder / "vecnormalize.pkl"))
        case "remembering":
            env, widths = "CartPole-v1", {"net_arch": [], "lstm_hidden_size": 8}
            model = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", **(short | {"policy_kwargs": widths}))
            asked = {"student": AgentStudentConfig(batch_size=16, samples_per_step=2, net_arch=(8,))}
    model.save(path)
    return str(path), env, asked


class Saved(NamedTuple):
    """A run that has written its play."""

    config: AgentConfig
    out: Path
    file: Path


def save(folder: Path, kind: str, **changes: Any) -> Saved:
    path, env, asked = teacher_of(kind, folder)
    file = folder / "play.safetensors"
    config = config_of(path, env, **asked, **changes)
    distil(folder / "saved", dataclasses.replace(config, save_dataset=str(file)))
    return Saved(config, folder / "saved", file)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Of CartPole, where both have acted."""
    return save(tmp_path_factory.mktemp("saved"), "dqn", play=dataclasses.replace(PLAY, beta=0.5))


def from_file(saved: Saved, **changes: Any) -> AgentConfig:
    """The config of the run that wrote the play, with the play in the place of the teacher."""
    return dataclasses.replace(saved.config, dataset=str(saved.file), teacher=AgentTeacherConfig(), **changes)


# ------------------------------------------------------------------ one student


def assert_same_student(saved: Saved, out: Path) -> None:
    one, other = (json.loads((folder / "summary.json").read_text())["generations"] for folder in (saved.out, out))
    assert one[1]["sha256"] == other[1]["sha256"]
    assert weights(saved.out) == weights(out)
    ours = ("eval/agreement", "distill/teacher_action_share")  # nobody can be asked, and nobody chooses
    assert logged(out) == logged(saved.out, *ours)
    told = {"agreement", "dataset_sha256"}
    for ours, theirs in zip(one, other, strict=True):
        assert {key: value for key, value in theirs["metrics"].items() if key not in told} == {
            key: value for key, value in ours["metrics"].items() if key not in told
        }


@pytest.mark.parametrize("kind", ["table", "masked", "normalized", "remembering"])
def test_a_student_of_the_file_is_that_of_the_run_that_wrote_it_whoever_taught(tmp_path: Path, kind: str) -> None:
    saved = save(tmp_path, kind)
    distil(tmp_path / "again", from_file(saved))
    assert_same_student(saved, tmp_path / "again")


def test_where_both_act_it_is_too_and_stops_change_nothing_of_file_or_student(tmp_path: Path, saved: Saved) -> None:
    file = tmp_path / "play.safetensors"
    config = dataclasses.replace(saved.config, save_dataset=str(file))
    for at in (15, 40, 55):
        with pytest.raises(Interrupted):
            distil(tmp_path / "saved", config, StopAt(at))
    distil(tmp_path / "saved", config)
    assert file.read_bytes() == saved.file.read_bytes()
    for at in (10, 35, 50):
        with pytest.raises(Interrupted):
            distil(tmp_path / "again", from_file(saved), StopAt(at))
    distil(tmp_path / "again", from_file(saved))
    assert_same_student(saved, tmp_path / "again")


def test_with_the_teachers_file_the_whole_table_is_the_same(tmp_path: Path, saved: Saved) -> None:
    config = dataclasses.replace(from_file(saved), teacher=saved.config.teacher)
    one, other = json.loads((saved.out / "summary.json").read_text()), distil(tmp_path / "again", config)
    assert other["generations"][0]["metrics"].pop("dataset_sha256") == read_play(saved.file)[1]
    assert other["generations"] == one["generations"]


def test_other_objectives_and_sizes_learn_from_fewer_steps_of_it_and_teach_on(tmp_path: Path, saved: Saved) -> None:
    student = AgentStudentConfig("policy_mse", temperature=0.5, batch_size=32, samples_per_step=1, net_arch=(5,))
    play = dataclasses.replace(saved.config.play, steps=330, replay_steps=100)
    config = from_file(saved, student=student, play=play, lineage=LineageConfig(2), seed=7)
    summary = distil(tmp_path / "run", config)
    assert [each["parameters"] for each in summary["generations"]] == [None, 5 * 5 + 6 * 2, 5 * 5 + 6 * 2]
    assert summary["generations"][2]["metrics"]["agreement"] is not None, "its teacher is there"
    assert len(summary["ensembles"]) == 1
    assert not (tmp_path / "run" / "recordings").exists()


def test_the_doctor_examines_what_the_file_teaches(saved: Saved) -> None:
    config = from_file(saved, student=dataclasses.replace(saved.config.student, temperature=1.0))
    assert examine_lesson(config, open_teacher(config), 1).healthy


def test_atari_is_played_again_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    short = dataclasses.replace(protocols.PROTOCOLS["rusu"], max_frames=80)
    monkeypatch.setitem(protocols.PROTOCOLS, "rusu", short)
    write_dqn_zip(tmp_path / "teacher.zip", make_network("net3"))
    config = AtariConfig(
        device="cpu",
        threads=1,
        precision="float32",
        student=StudentConfig(batch_size=8, samples_per_step=0.5),
        play=PlayConfig(steps=300, replay_steps=200, warmup_steps=20, n_envs=2, train_freq=5),
        evaluation=EvaluationConfig(episodes=2, curve_every_steps=0, curve_episodes=1),
        teacher=dataclasses.replace(AtariConfig().teacher, path=str(tmp_path / "teacher.zip")),
        checkpoint=CheckpointConfig(every_seconds=1e9, every_steps=100),
    )
    file = tmp_path / "play.safetensors"
    distil(tmp_path / "saved", dataclasses.replace(config, save_dataset=str(file)))
    again = dataclasses.replace(config, dataset=str(file), teacher=AtariConfig().teacher)
    with pytest.raises(Interrupted):
        distil(tmp_path / "again", again, StopAt(20))
    distil(tmp_path / "again", again)
    assert weights(tmp_path / "again") == weights(tmp_path / "saved")
    assert how_they_act(again) == "greedy", "for ensembles of it"
    data, _ = read_play(file)
    assert data.header.environment["game"] == "pong"
    assert data.scores.shape == (150, 2, 6)
    shown = AtariVecEnv("pong", 2, n_threads=1)
    shown.start_from(data.reset_seeds)
    shown.reset()
    other = dataclasses.replace(again, game="breakout")
    assert refusal(open_teacher, other) == f"{file} holds play of pong, not of breakout"
    assert not np.array_equal(shown.reset_seeds, AtariVecEnv("pong", 2, n_threads=1, seed=0).draw_seeds())


# ------------------------------------------------------------------ refusals before anything is done


def refused(saved: Saved, **changes: Any) -> str:
    return refusal(open_teacher, from_file(saved, **changes))


def test_what_the_config_asks_for_beyond_the_file_is_one_line(saved: Saved, tmp_path: Path) -> None:
    play, file = saved.config.play, saved.file
    assert refused(saved, play=PLAY) == f"{file} was played with other settings: give --play.beta 0.5"
    other = dataclasses.replace(play, n_envs=8, beta=1.0, beta_end=0.0)
    assert refused(saved, play=other).endswith("give --play.n_envs 4 --play.beta 0.5 --play.beta_end null")
    more = dataclasses.replace(play, steps=644)
    assert refused(saved, play=more) == f"{file} holds 640 steps, and play.steps = 644: give --play.steps 640"
    assert refused(saved, env="Acrobot-v1") == f"{file} holds play of CartPole-v1, not of Acrobot-v1"
    assert refused(saved, env_max_steps=50) == f"{file} was played with max_steps = 500, here it is 50"
    sampled = dataclasses.replace(saved.config.evaluation, play="sample")
    assert "tells how its teacher scores under own, greedy: give --evaluation.play" in refused(
        saved, evaluation=sampled
    )
    DQN("MlpPolicy", "CartPole-v1", seed=4, device="cpu").save(tmp_path / "other.zip")
    given = dataclasses.replace(from_file(saved), teacher=AgentTeacherConfig(path=str(tmp_path / "other.zip")))
    assert (
        refusal(open_teacher, given) == f"the teacher of {file} is another one than teacher.path names: leave that out"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"save_dataset": "b"}, "what is learned from dataset is in that file already: leave save_dataset out"),
        ({"dataset": ""}, "dataset must name a file"),
        ({"student": AgentStudentConfig("td")}, "asks no teacher: leave dataset out"),
        ({"dataset": None, "save_dataset": "b", "student": AgentStudentConfig("td")}, "leave save_dataset out"),
    ],
)
def test_settings_that_exclude_one_another_are_named(saved: Saved, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(saved.config, **({"dataset": "a"} | changes))


def test_an_environment_that_does_not_repeat_itself_is_refused_before_anything_is_learned(tmp_path: Path) -> None:
    PPO("MlpPolicy", gym.make("Restless-v3"), n_steps=8, batch_size=8, device="cpu").save(tmp_path / "t.zip")
    config = config_of(str(tmp_path / "t.zip"), f"{TOYS}:Restless-v3", save_dataset=str(tmp_path / "play"))
    assert "Restless-v3 does not repeat itself from a seed (step 2): its play cannot" in refusal(open_teacher, config)


def test_a_place_that_cannot_be_written_is_refused_before_a_run_begins(tmp_path: Path, saved: Saved) -> None:
    def at(path: Path) -> AgentConfig:
        return dataclasses.replace(saved.config, save_dataset=str(path))

    require_place(at(tmp_path / "new" / "play"))
    require_place(saved.config)
    assert not (tmp_path / "new").exists()
    assert refusal(require_place, at(saved.file)).startswith(f"{saved.file} is there already: remove it")
    assert refusal(require_place, at(saved.file / "play")).startswith("cannot write ")
    config = at(tmp_path / "play")
    teacher = open_teacher(config)
    assert disk_bytes(config, teacher) - disk_bytes(saved.config, teacher) == 640 * 9


# ------------------------------------------------------------------ while it is played


def rewritten(saved: Saved, path: Path, **changes: Any) -> Saved:
    """The data set with other content, whose hash is right."""
    data, _ = read_play(saved.file)
    header = {key: changes.pop(key) for key in list(changes) if key not in data._fields}
    write_play(path, data._replace(**changes, header=dataclasses.replace(data.header, **header)))
    return saved._replace(file=path)


def test_another_emulator_is_found_at_once_and_named_and_a_newer_one_that_plays_alike_is_not(
    tmp_path: Path, saved: Saved
) -> None:
    data, _ = read_play(saved.file)
    old = data.header.versions | {"gymnasium": "0.1"}
    alike = rewritten(saved, tmp_path / "alike", versions=old)
    distil(tmp_path / "run", from_file(alike))
    assert weights(tmp_path / "run") == weights(saved.out)
    seen = data.checksums.copy()
    seen[0, 0] ^= 1
    assert refused(rewritten(saved, tmp_path / "other", versions=old, checksums=seen)) == (
        f"{tmp_path / 'other'}: the games do not show again what they showed (the first observations): it was played "
        f"by gymnasium 0.1, here it is {gym.__version__}"
    )


@pytest.mark.parametrize("row", [1, 3])
def test_games_that_show_something_else_stop_the_run_in_one_line(tmp_path: Path, saved: Saved, row: int) -> None:
    """Also at the last steps, after which no 64 are full, and again where the same command goes on."""
    data, _ = read_play(saved.file)
    assert len(data.checksums) == 4, "before the first step, after 64 and 128, and at the end, after 160"
    seen = data.checksums.copy()
    seen[row, 5] ^= 4
    other = rewritten(saved, tmp_path / "other", checksums=seen)
    message = rf"what they showed \(step {min(64 * row, 160) * 4}\): the environment does not repeat itself here"
    with pytest.raises(UserError, match=message):
        distil(tmp_path / "run", from_file(other))
    assert not (tmp_path / "run" / "student.zip").exists()
    assert row == 1 or list((tmp_path / "run" / "checkpoints").iterdir())
    with pytest.raises(UserError, match=message):
        distil(tmp_path / "run", from_file(other))


def test_games_that_start_elsewhere_are_found_at_that_step(tmp_path: Path, saved: Saved) -> None:
    starts = read_play(saved.file)[0].starts.copy()
    starts[33, 1] ^= True
    other = rewritten(saved, tmp_path / "other", starts=starts)
    with pytest.raises(UserError, match=r"\(step 132\)"):
        distil(tmp_path / "run", from_file(other))


def test_an_environment_that_is_found_not_to_repeat_itself_after_a_stop_is_no_data_set(
    tmp_path: Path, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(saved.config, save_dataset=str(tmp_path / "play"))
    with pytest.raises(Interrupted):
        distil(tmp_path / "run", config, StopAt(40))
    monkeypatch.setattr("polydistill_agents.environments.recording.Recording._digest", lambda _: "another")
    with pytest.raises(UserError, match=r"CartPole-v1 does not show again .* and actions: its play is no data set"):
        distil(tmp_path / "run", config)


def test_a_full_disk_at_the_end_loses_nothing(tmp_path: Path, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(saved.config, save_dataset=str(tmp_path / "play"))

    def full(path: Path, *content: bytes) -> None:
        raise UserError(f"cannot write {path}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(polydistill_agents.files.play_file, "atomic_write", full)
        with pytest.raises(UserError, match="No space left on device"):
            distil(tmp_path / "run", config)
    assert not (tmp_path / "play").exists()
    distil(tmp_path / "run", config)
    assert (tmp_path / "play").read_bytes() == saved.file.read_bytes()
    assert weights(tmp_path / "run") == weights(saved.out)


def test_a_recording_that_is_lost_at_the_end_is_played_anew(
    tmp_path: Path, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(saved.config, save_dataset=str(tmp_path / "play"))
    whole = Recording.whole

    def lose(recording: Recording) -> Any:
        next(recording.folder.glob("*.segment")).unlink()
        return whole(recording)

    with monkeypatch.context() as patch:
        patch.setattr(Recording, "whole", lose)
        with pytest.raises(UserError, match="is missing: the same command plays generation 1 again"):
            distil(tmp_path / "run", config)
    distil(tmp_path / "run", config)
    assert (tmp_path / "play").read_bytes() == saved.file.read_bytes()


# ------------------------------------------------------------------ the run folder


def test_the_file_may_move_and_must_stay_what_it_was(tmp_path: Path, saved: Saved) -> None:
    with pytest.raises(Interrupted):
        distil(tmp_path / "run", from_file(saved), StopAt(30))
    other = from_file(rewritten(saved, tmp_path / "other", truncated=1))
    standing = examine_folder(tmp_path / "run", to_mapping(other), may_move=MAY_MOVE)
    assert standing.moved == ["dataset"]
    for config in (other, saved.config):
        with pytest.raises(UserError, match="the run began with other play than dataset names now"):
            require_same_start(config, open_teacher(config), tmp_path / "run")
    moved = saved._replace(file=tmp_path / "moved")
    moved.file.write_bytes(saved.file.read_bytes())
    require_same_start(from_file(moved), open_teacher(from_file(moved)), tmp_path / "run")
    distil(tmp_path / "run", from_file(moved))
    assert weights(tmp_path / "run") == weights(saved.out)


# ------------------------------------------------------------------ the file


def test_the_file_holds_what_was_played(saved: Saved) -> None:
    data, _ = read_play(saved.file)
    assert data.header.environment["environment"] == data.name == "CartPole-v1"
    assert data.header.beta == 0.5
    assert data.starts[0].all()
    assert data.steps == 640
    env = saved.config.task.make_env(4, seed=9)
    env.start_from(data.reset_seeds)
    observations = env.reset()
    teacher = open_teacher(saved.config)
    greedy = []
    for actions, scores, starts in zip(data.actions, data.scores, data.starts, strict=True):
        labels = teacher.label(to_tensors(observations, "cpu"), starts)
        np.testing.assert_array_equal(labels.numpy(), scores)
        greedy.append(scores.argmax(axis=1) == actions)
        observations, *_ = env.step(actions.astype(np.int64))
    assert np.mean(greedy) > 0.6, "the teacher's are its best but for 1 in 40, and the student's often"
    assert saved.file.stat().st_size < 640 * 12 + 4096


@pytest.mark.parametrize("spoil", ["cut", "flipped", "longer"])
def test_a_file_that_was_changed_anywhere_is_one_line(tmp_path: Path, saved: Saved, spoil: str) -> None:
    content, generator = saved.file.read_bytes(), np.random.default_rng(0)
    spoiled: dict[str, Callable[[int], bytes]] = {
        "cut": lambda at: content[:at],
        "flipped": lambda at: content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :],
        "longer": lambda at: content + content[:at],
    }
    for at in [1, 7, 8, 9, *generator.integers(10, len(content), 40).tolist()]:
        (tmp_path / "play").write_bytes(spoiled[spoil](at))
        assert str(tmp_path / "play") in refusal(read_play, tmp_path / "play")


def test_what_is_no_such_file_is_one_line(tmp_path: Path, saved: Saved) -> None:
    for name, content in {
        "empty": b"",
        "text": b"seeds and actions\n" * 9,
        "zip": Path(saved.config.teacher.path).read_bytes(),
        "weights": save_tables({"weight": np.zeros((2, 2), np.float32)}),
        "vast": (2**62).to_bytes(8, "little") + b"{}",
    }.items():
        (tmp_path / name).write_bytes(content)
        said = refusal(read_play, tmp_path / name)
        assert said == f"{tmp_path / name} is no data set of play (--save_dataset writes one)"
    assert refusal(read_play, tmp_path) == f"{tmp_path} is no data set of play (--save_dataset writes one)"
    assert refusal(read_play, tmp_path / "none") == f"no such file: {tmp_path / 'none'}"


def test_numbers_that_do_not_fit_one_another_are_refused_though_their_hash_is_right(
    tmp_path: Path, saved: Saved
) -> None:
    data, _ = read_play(saved.file)
    wide: Any = {"channels": None, "hidden": None, "cnn_output_dim": None, "net_arch": [10**9], "activation": "ReLU"}
    for number, changes in enumerate(
        [
            {"actions": data.actions + 2},
            {"scores": data.scores[:-1]},
            {"scores": np.full_like(data.scores, -np.inf)},
            {"starts": data.starts[:, :2]},
            {"checksums": data.checksums[:-1]},
            {"reset_seeds": -data.reset_seeds - 1},
            {"teacher_games": data.teacher_games * np.nan},
            {"network": wide},
            {"network": wide | {"net_arch": [8], "activation": "os.system"}},
            {"environment": data.header.environment | {"n_envs": 5}},
            {"checked_every": 32},
            {"actions": data.actions[:0], "scores": data.scores[:0], "starts": data.starts[:0]},
        ]
    ):
        other = rewritten(saved, tmp_path / str(number), **changes)
        assert f"{other.file} is damaged: " in refusal(read_play, other.file), changes
    newer = rewritten(saved, tmp_path / "newer", format=2)
    assert refusal(read_play, newer.file) == f"{newer.file} is of format 2, this version of polydistill reads 1"


def test_a_disk_that_cannot_be_read_is_one_line(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("builtins.open", fail)
    assert refusal(read_play, saved.file) == f"cannot read {saved.file}: Input/output error"
