"""Training a teacher: what is saved, how it goes on, and who may write."""

from __future__ import annotations

import dataclasses
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from polydistill.errors import Interrupted, UserError
from polydistill.runs.checkpoint import Checkpoints
from polydistill.runs.interruption import StopSignals
from polydistill_agents.environments.atari import AtariVecEnv
from polydistill_agents.teachers import kept_training
from polydistill_agents.teachers import training as teacher_training
from polydistill_agents.teachers.continuing import load_training_state, training_state
from polydistill_agents.teachers.training import finish_teacher, train_teacher
from polydistill_agents.teachers.training_config import TeacherTrainingConfig, check_folder, open_folder
from tests.curves_and_tables import explained
from tests.stop_signals import StopAt

CONFIG = TeacherTrainingConfig(
    steps=120, n_envs=2, batch_size=4, threads=1, buffer_size=400, learning_starts=20, checkpoint_steps=40, episodes=1,
    device="cpu", precision="float32", cooldown_steps=0,
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("steps", [1, 10_000])
def test_steps_that_end_before_learning_starts_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=rf"10,000 steps of random play leave none of steps = {steps:,} to learn in"):
        TeacherTrainingConfig(steps=steps)


def test_precision_threads_and_device_are_resolved_once_for_the_machine(monkeypatch) -> None:
    def say(has: bool) -> None:
        # torch 2.10 has no such function
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has}, raising=False)

    say(False)
    found = TeacherTrainingConfig(device="cpu").resolve()
    assert (found.precision, found.device) == ("float32", "cpu")
    assert found.threads >= 1
    say(True)
    assert TeacherTrainingConfig(device="cpu").resolve().precision == "bfloat16"
    assert TeacherTrainingConfig(device="cpu", precision="bfloat16", threads=3).resolve().threads == 3


def train(out: Path, stop: StopSignals | None = None, config: TeacherTrainingConfig = CONFIG) -> DQN:
    with open_folder(config, out):
        return train_teacher(config, out, stop)


def latest(out: Path) -> dict[str, Any]:
    state = Checkpoints(out / "checkpoints", kind="teacher").latest()
    assert state is not None
    return state


def test_a_signal_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="stopped at step 62, and saved: the same command goes on from there"):
        train(tmp_path / "a", StopAt(32))
    assert latest(tmp_path / "a")["counters"]["num_timesteps"] == 62
    with pytest.raises(Interrupted, match="stopped while the games were played again"):
        train(tmp_path / "a", _Stopped())
    assert latest(tmp_path / "a")["counters"]["num_timesteps"] == 62
    assert train(tmp_path / "a").num_timesteps == 120
    assert latest(tmp_path / "a")["counters"]["num_timesteps"] == 120
    assert len(Checkpoints(tmp_path / "a" / "checkpoints", kind="teacher").paths()) == 2


def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    train(tmp_path / "unbroken")
    for at in (14, 25):  # asked once before each step: at steps 26 and 74
        with pytest.raises(Interrupted):
            train(tmp_path / "stopped", StopAt(at))
    train(tmp_path / "stopped")
    assert_same(*(latest(tmp_path / name) for name in ("unbroken", "stopped")))


def assert_same(one: Any, other: Any, where: str = "state") -> None:
    """Of checkpoints, all but the recordings, which lie in other segments."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one.keys() - {"recording"}:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def test_without_its_recording_the_replay_is_filled_by_new_games(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a"
    with pytest.raises(Interrupted):
        train(out, StopAt(32))
    for segment in (out / "recording").glob("*.segment"):
        segment.unlink()
    with pytest.raises(Interrupted, match="stopped while the replay was filled again"):
        train(out, StopAt(4))
    assert "is missing: the replay is filled again by new games" in capsys.readouterr().err
    with pytest.raises(Interrupted, match="stopped at step 68"):
        train(out, StopAt(10 + 5))  # asked after each of the 10 steps of both games, then before each
    capsys.readouterr()
    assert train(out).num_timesteps == 120
    assert "filled" not in capsys.readouterr().err, "the new games are recorded"


def test_a_checkpoint_of_an_earlier_version_goes_on_from_a_replay_that_is_filled_again(tmp_path: Path) -> None:
    out = tmp_path / "a"
    with pytest.raises(Interrupted):
        train(out, StopAt(32))
    state = latest(out)
    earlier = {name: value for name, value in state.items() if name not in ("recording", "games")}
    earlier["counters"] = {
        name: state["counters"][name] for name in ("num_timesteps", "_n_updates", "_n_calls", "_episode_num")
    }
    Checkpoints(out / "checkpoints", kind="teacher").save(earlier, 62)
    assert train(out).num_timesteps == 120


def test_its_curves_are_those_that_are_explained(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_games = partial(AtariVecEnv, max_frames=16)  # 4 steps, so that some end
    monkeypatch.setattr("polydistill_agents.environments.task.AtariVecEnv", short_games)
    train(tmp_path / "a")
    events = EventAccumulator(str(tmp_path / "a" / "tb")).Reload()
    assert set(events.Tags()["scalars"]) == explained(root, "Curves of train_teacher.py")
    assert [event.step for event in events.Scalars("rollout/ep_len_mean")] == [64], "the 16th game ends there"


def test_what_comes_back_is_what_was_saved_random_states_and_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filling the replay draws numbers and counts steps; learning begins as if it had not."""
    with pytest.raises(Interrupted):
        train(tmp_path / "a", StopAt(32))
    saved = latest(tmp_path / "a")
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(
        kept_training._Watch, "_on_training_start", lambda watch: seen.append(training_state(watch.model))
    )
    monkeypatch.setattr(DQN, "train", lambda *_, **options: None)
    train(tmp_path / "a")
    assert seen[0]["generators"] == saved["generators"]
    assert seen[0]["counters"] == saved["counters"]
    assert saved["counters"]["_n_updates"] == 21  # one after each step of both games, from step 22 to 62
    assert torch.equal(seen[0]["torch"], saved["torch"])
    for name, weight in saved["policy"].items():
        assert torch.equal(weight, seen[0]["policy"][name]), name
    momenta = [entry["exp_avg"] for entry in seen[0]["optimizer"]["state"].values()]
    assert all(
        torch.equal(one, two["exp_avg"]) for one, two in zip(momenta, saved["optimizer"]["state"].values(), strict=True)
    )
    assert any(bool(momentum.any()) for momentum in momenta)


def test_numbers_drawn_after_a_restored_state_are_those_that_would_have_been(tmp_path: Path) -> None:
    model = train(tmp_path / "a", config=CONFIG)
    state = training_state(model)

    def draw() -> tuple[float, int, float]:
        return np.random.rand(), int(model.action_space.sample()), float(torch.rand(()))

    first = draw()
    draw()
    load_training_state(model, state)
    assert draw() == first


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "a")
    newest = Checkpoints(tmp_path / "a" / "checkpoints", kind="teacher").paths()[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    assert train(tmp_path / "a").num_timesteps == 120
    assert "a checkpoint is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", 2**32, "seed must be at most 4,294,967,295, got 4,294,967,296"),
        ("threads", 1025, "threads must be at most 1,024, got 1,025"),
    ],
)
def test_a_number_beyond_what_is_used_below_is_refused_by_name(field: str, value: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        TeacherTrainingConfig(game="pong", **{field: value})


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with open_folder(CONFIG, tmp_path / "a"), pytest.raises(UserError, match="another process"):
        train(tmp_path / "a")
    with open_folder(CONFIG, tmp_path / "a"):
        pass


def test_a_loss_that_is_not_finite_ends_it_and_the_checkpoint_before_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = DQN.train

    def turns_bad(model: DQN, gradient_steps: int, batch_size: int = 100) -> None:
        if model.num_timesteps == 90:
            with torch.no_grad():
                next(iter(model.q_net_target.parameters())).fill_(float("nan"))
        learn(model, gradient_steps, batch_size)

    monkeypatch.setattr(DQN, "train", turns_bad)
    with pytest.raises(
        FloatingPointError, match="the loss of DQN is nan at step 90; the checkpoint of step 80 is kept"
    ):
        train(tmp_path / "a")
    kept = latest(tmp_path / "a")
    assert kept["counters"]["num_timesteps"] == 80
    assert all(bool(weight.isfinite().all()) for weight in kept["policy"].values())


def test_weights_that_the_last_update_makes_infinite_are_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = DQN.train

    def turns_bad(model: DQN, gradient_steps: int, batch_size: int = 100) -> None:
        learn(model, gradient_steps, batch_size)
        if model.num_timesteps == 120:
            with torch.no_grad():
                next(iter(model.q_net.parameters())).fill_(float("inf"))

    with monkeypatch.context() as patch:
        patch.setattr(DQN, "train", turns_bad)
        words = "the weights of DQN are not finite at step 120; the checkpoint of step 80 is kept"
        with pytest.raises(FloatingPointError, match=words):
            train(tmp_path / "a")
    kept = latest(tmp_path / "a")  # from before that update
    assert kept["counters"]["num_timesteps"] == 80
    assert all(bool(weight.isfinite().all()) for weight in kept["policy"].values())
    assert train(tmp_path / "a").num_timesteps == 120


def test_a_folder_of_an_older_version_is_not_started_over(tmp_path: Path) -> None:
    train(tmp_path / "a")
    (tmp_path / "a" / "checkpoints" / "step_000000040.zip").write_bytes(b"")
    with pytest.raises(UserError, match="was begun by an older version, whose checkpoints are not read"):
        train(tmp_path / "a")


def test_the_finished_teacher_is_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = teacher_training.evaluate
    monkeypatch.setattr(
        teacher_training, "evaluate", lambda *given, **options: evaluate(*given, **options | {"episodes": 1})
    )
    model = train(tmp_path / "a")
    with pytest.raises(Interrupted, match="stopped while games were scored"):
        finish_teacher(model, CONFIG, tmp_path / "a", "-", _Stopped())
    card = finish_teacher(model, CONFIG, tmp_path / "a", "-")
    assert card["steps"] == 120
    opened = DQN.load(tmp_path / "a" / "teacher.zip", device="cpu")
    assert all(
        torch.equal(one, other) for one, other in zip(opened.q_net.parameters(), model.q_net.parameters(), strict=True)
    )


class _Stopped(StopSignals):
    def raise_if_received(self, how_to_go_on: str) -> None:
        raise Interrupted(signal.SIGTERM, how_to_go_on)


def test_a_folder_is_bound_by_its_first_checkpoint_and_a_dry_look_writes_nothing(tmp_path: Path) -> None:
    out, other = tmp_path / "run", dataclasses.replace(CONFIG, gamma=0.5)
    assert check_folder(CONFIG, out).state == "new"
    assert not out.exists()
    with open_folder(CONFIG, out):
        pass
    with open_folder(other, out):
        Checkpoints(out / "checkpoints", kind="teacher").save({}, 1)
    with pytest.raises(UserError, match=r"gamma is 0\.5 there"):
        check_folder(CONFIG, out)


def test_a_training_goes_on_with_the_threads_that_it_began_with() -> None:
    stored = {"device": "cpu", "threads": 5, "precision": "float32"}
    assert TeacherTrainingConfig().resolve(stored).threads == 5
    assert TeacherTrainingConfig(threads=2).resolve(stored).threads == 2
