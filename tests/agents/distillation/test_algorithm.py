"""PolicyDistillation: a Stable-Baselines3 algorithm in every respect, whose student learns its teacher's policy."""

from __future__ import annotations

import json
import random
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.overrides import TorchFunctionMode

from polydistill.learning.rewind import NonFiniteError
from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill_agents.networks.nature import SIZES, build_network, compute_scores, size_of
from polydistill_agents.teachers import Teacher, as_teacher
from tests.agents.distillation.squares import N_ACTIONS, SMALL, SPACE, Squares, look, make
from tests.curves_and_tables import OF_Q_VALUES, explained

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_student_learns_what_its_teacher_does_and_not_something_else() -> None:
    model = make(learning_rate=1e-3).learn(960)
    env = Squares(64, seed=99)
    frames = torch.from_numpy(env.reset())
    actions = model.student_scores(frames).argmax(dim=1)
    wanted = look(frames).argmax(dim=1)
    agreement = (actions == wanted).float().mean().item()
    generator = torch.Generator().manual_seed(0)
    by_chance = [(actions == wanted[torch.randperm(64, generator=generator)]).float().mean().item() for _ in range(200)]
    assert agreement > max(by_chance)
    assert agreement > 0.9


def test_the_student_gets_the_policy_at_the_temperature_not_only_its_best_action() -> None:
    model = make(learning_rate=1e-3, temperature=0.02).learn(1_600)
    frames = torch.from_numpy(Squares(64, seed=99).reset())
    target = torch.softmax(look(frames) / 0.02, dim=1)
    learned = torch.softmax(model.student_scores(frames), dim=1)
    assert (target - learned).abs().mean() < 0.1
    hard = torch.nn.functional.one_hot(target.argmax(dim=1), N_ACTIONS)
    assert (target - learned).abs().mean() < (target - hard).abs().mean()


def test_updates_follow_the_steps_of_play_at_the_asked_rate() -> None:
    model = make().learn(640)
    assert model.num_timesteps == 640
    assert model._n_updates == 640 * 4 // 32


def test_nothing_is_learned_before_the_warm_up_is_over() -> None:
    model = make(learning_starts=320)
    before = {name: value.clone() for name, value in model.student.state_dict().items()}
    with pytest.warns(UserWarning, match="learn made no update: the replay holds 256 samples of learning_starts=320"):
        model.learn(256)
    assert model._n_updates == 0
    assert all(torch.equal(value, before[name]) for name, value in model.student.state_dict().items())


class Hooks(BaseCallback):
    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.called: list[str] = []
        self.stop_after = stop_after

    def _on_training_start(self) -> None:
        self.called.append("training_start")
        assert self.locals["total_timesteps"] > 0

    def _on_rollout_start(self) -> None:
        self.called.append("rollout_start")

    def _on_step(self) -> bool:
        self.called.append("step")
        assert {"infos", "dones", "rewards", "actions"} <= set(self.locals)
        return self.stop_after is None or self.called.count("step") < self.stop_after

    def _on_rollout_end(self) -> None:
        self.called.append("rollout_end")

    def _on_training_end(self) -> None:
        self.called.append("training_end")


def test_every_hook_of_a_callback_is_called_in_order() -> None:
    hooks = Hooks()
    make().learn(256, callback=hooks)
    one_round = ["rollout_start", *["step"] * 8, "rollout_end"]
    assert hooks.called == ["training_start", *one_round * 8, "training_end"]


def test_a_callback_can_stop_the_learning() -> None:
    hooks = Hooks(stop_after=3)
    with pytest.warns(UserWarning, match="learn made no update: the replay holds 12 samples"):
        model = make().learn(64, callback=hooks)
    assert hooks.called.count("step") == 3
    assert model.num_timesteps == 12
    assert hooks.called[-1] == "training_end"


def test_stable_baselines_own_callbacks_work(tmp_path: Path) -> None:
    callbacks = [
        EvalCallback(Squares(2), eval_freq=16, n_eval_episodes=2, log_path=str(tmp_path), verbose=0),
        CheckpointCallback(save_freq=16, save_path=str(tmp_path / "saved")),
    ]
    make().learn(128, callback=callbacks)
    assert np.load(tmp_path / "evaluations.npz")["results"].tolist() == [[12.0, 12.0]] * 2
    saved = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert saved == ["rl_model_128_steps.zip", "rl_model_64_steps.zip"]
    assert DQN.load(tmp_path / "saved" / saved[0], device="cpu").action_space.n == N_ACTIONS


def test_learning_can_go_on_and_can_start_over() -> None:
    model = make().learn(64)
    assert model.learn(64, reset_num_timesteps=False).num_timesteps == 128
    assert model.learn(64).num_timesteps == 64


def test_learn_returns_the_model_and_needs_a_teacher() -> None:
    model = make()
    assert model.learn(64) is model
    with pytest.raises(ValueError, match="there is no teacher"):
        make(teacher=None).learn(64)


def test_curves_carry_the_known_tags_over_steps_of_play(root: Path, tmp_path: Path) -> None:
    make(tensorboard_log=str(tmp_path)).learn(640, tb_log_name="twin")
    events = EventAccumulator(str(tmp_path / "twin_1"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags == {
        *("teacher/ep_rew_mean", "teacher/ep_len_mean", "time/fps", "train/loss", "train/learning_rate"),
        *("distill/loss", "distill/replay_agreement", "distill/replay_regret", "distill/label_share"),
    }, "rollout/* would be the learner's own play"
    others = {"eval/mean_reward", "eval/agreement", "distill/teacher_action_share", *OF_Q_VALUES}
    assert tags == explained(root, "Curves of distill_atari.py and distill_agent.py") - others
    assert [event.step for event in events.Scalars("distill/loss")] == list(range(64, 641, 32))
    assert events.Scalars("teacher/ep_rew_mean")[-1].value == 12.0


def test_predict_is_greedy_or_explores_with_a_coin_for_each_row() -> None:
    model = make(exploration_rate=0.5)
    frames = Squares(512).reset()
    greedy, state = model.predict(frames, deterministic=True)
    assert state is None
    np.testing.assert_array_equal(greedy, model.student_scores(torch.from_numpy(frames)).argmax(dim=1).numpy())
    explored, _ = model.predict(frames)
    changed = (explored != greedy).mean()
    assert 0.2 < changed < 0.47  # 0.5 of the rows draw, a third of them the greedy action again
    assert np.ndim(model.predict(frames[0], deterministic=True)[0]) == 0


def test_equal_seeds_give_equal_students_and_others_do_not() -> None:
    first, again, other, next_generation = (
        make(**options).learn(128).student.state_dict() for options in ({}, {}, {"seed": 1}, {"generation": 2})
    )
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    for different in (other, next_generation):
        assert not torch.equal(first["q_net.0.weight"], different["q_net.0.weight"])


def test_initial_weights_depend_on_seed_and_generation_only() -> None:
    states = [
        make(**options).student.state_dict()["q_net.0.weight"] for options in ({}, {"batch_size": 8}, {"generation": 2})
    ]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_no_global_generator_is_used_or_reseeded() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.random(), torch.rand(()).item()

    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = draw()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    make().learn(128).predict(Squares().reset())
    assert draw() == expected


def test_the_teacher_stays_frozen_in_eval_mode_and_unchanged() -> None:
    torch.manual_seed(0)
    network = build_network(SPACE, N_ACTIONS, SIZES["net3"])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    model = make(teacher=network)
    assert model.teacher is not None
    model.teacher.network.train()  # someone else's mistake
    model.learn(128)
    assert not model.teacher.network.training
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.teacher.network.state_dict().items())
    taught = {p.data_ptr() for p in model.teacher.network.parameters()}
    assert taught.isdisjoint({p.data_ptr() for p in model.student.parameters()})


def test_the_student_is_not_left_in_training_mode() -> None:
    assert not make().learn(128).student.training


def test_the_saved_file_is_a_plain_dqn_zip_without_the_teacher(tmp_path: Path) -> None:
    model = make().learn(128)
    model.save(tmp_path / "student")
    with zipfile.ZipFile(tmp_path / "student.zip") as archive:
        data = json.loads(archive.read("data"))
        assert not any(word in archive.read("data").decode() for word in ("PolicyDistillation", "agents."))
    assert data["polydistill"] == {"scores": "logits"}
    assert data["num_timesteps"] == 128
    frames = Squares(8).reset()
    loaded = DQN.load(tmp_path / "student.zip", device="cpu")
    np.testing.assert_allclose(
        loaded.q_net(torch.from_numpy(frames)).detach().numpy(),
        model.student_scores(torch.from_numpy(frames)).numpy(),
        atol=1e-5,
    )


def test_load_needs_no_teacher_and_learning_goes_on_with_one(tmp_path: Path) -> None:
    model = make().learn(128)
    model.save(tmp_path / "student.zip")
    loaded = PolicyDistillation.load(tmp_path / "student.zip", device="cpu")
    assert size_of(loaded.student) == size_of(model.student), "not the wide one that it is stored in"
    frames = Squares(8).reset()
    actions, expected = (agent.predict(frames, deterministic=True)[0] for agent in (loaded, model))
    np.testing.assert_array_equal(actions, expected)
    options = {"teacher": look, "seed": 0, "train_freq": 8, "learning_starts": 64}
    again = PolicyDistillation.load(tmp_path / "student.zip", Squares(), device="cpu", **options)
    assert again.num_timesteps == 128
    again.learn(128, reset_num_timesteps=False)
    assert again.num_timesteps == 256


@pytest.mark.parametrize(
    ("objective", "expected"),
    [("policy_kl", "logits"), ("policy_nll", "logits"), ("policy_mse", "q_values"), ("policy_kl_q", "q_values")],
)
def test_the_kind_of_scores_follows_the_objective(objective: str, expected: str, tmp_path: Path) -> None:
    model = make(objective=objective).learn(128)
    assert model.score_kind == expected
    model.save(tmp_path / "student.zip")
    assert as_teacher(tmp_path / "student.zip").kind == expected
    assert as_teacher(model).kind == expected


def test_learning_begins_with_weights_from_play_unless_others_were_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import polydistill_agents.distillation.learner as module

    begun: list[PolicyDistillation] = []
    monkeypatch.setattr(module, "begin", lambda network, *_, scaled: begun.append(network))
    fresh = make()
    fresh.learn(128)
    fresh.learn(128)
    assert begun == [fresh.student]
    for set_weights in (
        lambda model: model.set_parameters({"policy": fresh.policy.state_dict()}, exact_match=False),
        lambda model: model.student.load_state_dict(fresh.student.state_dict()),
    ):
        warm = make()
        set_weights(warm)
        warm.learn(128)
    assert begun == [fresh.student]


def test_a_loaded_agent_keeps_its_kind_of_scores_until_it_learns_another(tmp_path: Path) -> None:
    make(objective="policy_mse").learn(128).save(tmp_path / "first.zip")
    options = {"teacher": look, "seed": 0, "train_freq": 8, "learning_starts": 32, "batch_size": 32}
    loaded = PolicyDistillation.load(tmp_path / "first.zip", Squares(), device="cpu", **options)
    loaded.save(tmp_path / "same.zip")
    assert as_teacher(tmp_path / "same.zip").kind == "q_values"
    assert loaded.learn(64).score_kind == "logits"


def test_generation_2_is_taught_the_entropy_of_generation_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharpening logits with 0.01 again would leave only their argmax."""
    first = make(learning_rate=1e-3, temperature=0.02).learn(800)
    second = make(as_teacher(first), temperature=0.02, generation=2)
    seen: list[tuple[Tensor, float]] = []
    objective = second.lesson._function

    class Spy:
        name, batch_coupled, has_closed_form = objective.name, objective.batch_coupled, False

        def __call__(self, student: Tensor, teacher: Tensor, labels: None, *, temperature: float) -> Tensor:
            seen.append((teacher, temperature))
            return objective(student, teacher, labels, temperature=temperature)

    monkeypatch.setattr(second.lesson, "_function", Spy())
    second.learn(128)
    assert seen
    for scores, temperature in seen:
        assert temperature == 1.0
        target = torch.softmax(scores / temperature, dim=1)
        entropy = -(target * target.log()).sum(dim=1).mean()
        assert entropy > 0.05  # sharpened by 0.02 it would be below 1e-3
    frames = torch.from_numpy(Squares(64, seed=5).reset())
    assert second.teacher is not None
    torch.testing.assert_close(second.teacher(frames), first.student_scores(frames))


def test_a_bare_callable_gets_a_nature_cnn_with_a_notice() -> None:
    with pytest.warns(UserWarning, match="architecture is unknown"):
        model = make(env=Squares(shape=(4, 84, 84)), size=None)
    assert sum(p.numel() for p in model.student.parameters()) == 1_693_362 - 15 * 513


def test_a_student_is_as_wide_as_its_teacher_unless_asked() -> None:
    network = build_network(SPACE, N_ACTIONS, SIZES["net2"])
    widths = [
        make(teacher=network, size=size).student.state_dict()["q_net.0.weight"].shape[1] for size in (None, "net3")
    ]
    assert widths == [128, 64]


def test_scores_are_float32_whatever_the_precision() -> None:
    model = make(precision="bfloat16").learn(128)
    assert all(value.dtype == torch.float32 for value in model.student.state_dict().values())
    frames = torch.from_numpy(Squares(4).reset())
    assert compute_scores(model.student, frames, precision="bfloat16").dtype == torch.float32


def test_scores_of_a_teacher_that_are_not_finite_stop_the_run_and_say_where() -> None:
    def fail_once_it_sees_something(frames: Tensor) -> Tensor:
        return look(frames) / (frames.max() == 0)  # 0 / 0 or x / 0 in play, not in the check of its shape

    with pytest.raises(FloatingPointError, match="the teacher's scores are not finite: generation 3 at step 0"):
        make(fail_once_it_sees_something, generation=3).learn(128)


@pytest.mark.parametrize("culprit", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_names_the_first_bad_update_and_leaves_the_student_before_it(
    monkeypatch: pytest.MonkeyPatch, culprit: str
) -> None:
    """The sixth update goes wrong, in the middle of a round of eight: at once, or by its weights in the seventh."""
    model = make(objective="policy_mse", generation=3, samples_per_step=8.0)
    objective, asked, weights = model.lesson._function, [0], []
    bad_targets: list[Tensor] = []

    def fail_at_the_sixth(student: Tensor, teacher: Tensor, labels: None, **options: Any) -> Tensor:
        weights.append(model.student.state_dict()["q_net.0.weight"].clone())
        asked[0] += 1
        if not bad_targets and asked[0] == 6:
            bad_targets.append(teacher.clone())
        losses = objective(student, teacher, labels, **options)
        if not torch.equal(teacher, bad_targets[0] if bad_targets else teacher + 1):
            return losses
        if culprit == "loss":
            return losses * float("nan")
        return torch.sqrt(losses * 0)  # zero, with the gradient 0 * infinity

    fail_at_the_sixth.batch_coupled = fail_at_the_sixth.has_closed_form = False  # type: ignore[attr-defined]
    monkeypatch.setattr(model.lesson, "_function", fail_at_the_sixth)
    said = r"policy_mse is nan" if culprit == "loss" else "policy_mse leads to infinite weights"
    with pytest.raises(NonFiniteError, match=said + r": generation 3 at step 64, update 6$") as stopped:
        model.learn(640)
    assert torch.equal(stopped.value.batch["targets"], bad_targets[0])
    assert stopped.value.batch["observations"].shape == (32, *SMALL)
    assert model._n_updates == 5
    assert torch.equal(model.student.state_dict()["q_net.0.weight"], weights[5])
    assert all(bool(weight.isfinite().all()) for weight in model.student.parameters())


class Waits(TorchFunctionMode):
    """Counts what would make the processor wait for a GPU."""

    NAMES = ("item", "tolist", "__bool__", "__float__", "__int__")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in self.NAMES:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("objective", ["policy_kl", "policy_mse", "policy_kl_q"])
def test_a_round_of_updates_waits_for_the_device_once(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(objective=objective).learn(64)
    scores = torch.zeros(32, 3)
    said = torch.tensor(0.5), scores
    monkeypatch.setattr(model.learner, "update", lambda *batch: said)  # Adam on a CPU looks at its steps
    with Waits() as waits:
        model.train(4, 32)
    assert len(waits.seen) == 1, waits.seen


def test_a_teacher_of_other_actions_is_refused() -> None:
    from polydistill.errors import UserError

    with pytest.raises(UserError, match="scores 5 actions, the environment has 3"):
        make(lambda frames: torch.zeros(len(frames), 5))


def test_building_one_allocates_no_replay_and_learning_one_of_its_own() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make(buffer_size=10_000_000)
    assert model.replay is None
    assert not hasattr(model, "replay_buffer")


def test_teacher_may_be_a_teacher() -> None:
    teacher = Teacher(look, kind="logits")
    assert make(teacher).teacher is teacher


def test_single_decisions_are_made_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    seen: list[int] = []
    predict = model.policy.predict

    def spy(*given: Any, **named: Any) -> Any:
        seen.append(torch.get_num_threads())
        return predict(*given, **named)

    monkeypatch.setattr(model.policy, "predict", spy)
    torch.set_num_threads(2)
    try:
        frame = model.observation_space.sample()
        model.predict(frame, deterministic=True)
        model.predict(np.stack([frame] * 2), deterministic=True)
        model.predict(np.stack([frame] * 64), deterministic=True)
    finally:
        torch.set_num_threads(1)
    assert seen == [1, 1, 2]
