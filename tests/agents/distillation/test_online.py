"""Students that learn while their teacher does: what they learn, and that their teacher does not notice."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3 as sb3
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from polydistill.statistics import permutation_p
from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill_agents.distillation.online import DistillCallback
from polydistill_agents.distillation.online import group as group_module
from polydistill_agents.distillation.online.labels import Labels
from polydistill_agents.distillation.online.seen import InReplay, InRollouts, SharedBatches
from polydistill_agents.distillation.online.students import name_students
from polydistill_agents.networks.nature import SIZES, Size
from polydistill_agents.teachers import as_teacher
from tests.agents.distillation.squares import Squares

N_ACTIONS = 3
pytestmark = pytest.mark.usefixtures("one_thread")


class Largest(gym.Env[Any, Any]):
    """Games of 8 steps: of three numbers the largest is the right action, for a reward of 1."""

    def __init__(self, space: spaces.Space[Any] | None = None) -> None:
        self.observation_space = spaces.Box(-1, 1, (N_ACTIONS,), np.float32) if space is None else space
        self.action_space = spaces.Discrete(N_ACTIONS)

    def _look(self) -> Any:
        if self.observation_space.shape != (N_ACTIONS,):
            return self.observation_space.sample()
        self.seen = self.np_random.uniform(-1, 1, N_ACTIONS).astype(np.float32)
        return self.seen

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.age = 0
        return self._look(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        right = self.observation_space.shape == (N_ACTIONS,) and int(action) == int(self.seen.argmax())
        self.age += 1
        return self._look(), float(right), self.age == 8, False, {}


def largest(n_envs: int = 2, space: spaces.Space[Any] | None = None) -> VecEnv:
    return make_vec_env(lambda: Largest(space), n_envs, seed=0)


def make_dqn(env: Any = None, **options: Any) -> DQN:
    defaults: dict[str, Any] = {
        "learning_starts": 20, "batch_size": 16, "train_freq": 2, "gradient_steps": 1, "gamma": 0.0,
        "learning_rate": 3e-3, "exploration_fraction": 0.2, "buffer_size": 2_000, "seed": 0, "device": "cpu",
        "policy_kwargs": {"net_arch": [16]},
    }  # fmt: skip
    return DQN("MlpPolicy", env or largest(), **(defaults | options))


def make_callback(students: Any = ((8,),), **options: Any) -> DistillCallback:
    defaults: dict[str, Any] = {
        "best_games": 4, "learning_starts": 32, "round_steps": 40, "batch_size": 16, "samples_per_step": 4, "seed": 1
    }  # fmt: skip
    return DistillCallback(students, **(defaults | options))


ALGORITHMS: dict[str, tuple[type[BaseAlgorithm], dict[str, Any]]] = {
    "DQN": (sb3.DQN, {"learning_starts": 20, "train_freq": 4, "batch_size": 8}),
    "QRDQN": (sb3_contrib.QRDQN, {"learning_starts": 20, "train_freq": 16, "batch_size": 4}),
    "PPO": (sb3.PPO, {"n_steps": 32, "batch_size": 16, "n_epochs": 1}),
    "A2C": (sb3.A2C, {"n_steps": 16}),
}


# ---- the teacher does not notice -------------------------------------------------------------------------------------


def trained(algorithm: str, callback: DistillCallback | None) -> tuple[BaseAlgorithm, list[Any]]:
    """A teacher, and the global random states that it leaves."""
    kind, options = ALGORITHMS[algorithm]
    model = kind("MlpPolicy", largest(), seed=0, device="cpu", policy_kwargs={"net_arch": [8]}, **options)
    model.learn(320, callback=callback)
    numpy = np.random.get_state(legacy=False)["state"]  # type: ignore[call-overload]
    actions = model.action_space.np_random.bit_generator.state
    return model, [numpy["key"].tolist(), numpy["pos"], torch.get_rng_state().tolist(), actions]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("labels", ["best", "current"])
def test_the_teacher_is_bit_for_bit_what_it_is_without_students(algorithm: str, labels: Any) -> None:
    alone, left_alone = trained(algorithm, None)
    callback = make_callback([[8], "teacher"], labels=labels)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the teacher's architecture is unknown")
        beside, left_beside = trained(algorithm, callback)
    assert callback.group.updates > 20
    for one, other in zip(alone.policy.parameters(), beside.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    assert left_beside == left_alone
    learned = [student.score_kind for student in callback.students.values()]
    assert learned == ["logits", "logits"]


# ---- what students learn ---------------------------------------------------------------------------------------------


def agreements(student: PolicyDistillation, teacher: Any, n_states: int = 400) -> np.ndarray:
    """In which of these states both act alike."""
    states = torch.rand(n_states, N_ACTIONS, generator=torch.Generator().manual_seed(5)) * 2 - 1
    return (student.student_scores(states).argmax(dim=1) == teacher(states).argmax(dim=1)).double().numpy()


def test_students_keep_the_q_values_of_a_dqn_and_an_actor_is_refused_before_it_learns(tmp_path: Path) -> None:
    callback = make_callback([[16]], labels="current", objective="policy_kl_q", samples_per_step=16)
    model = make_dqn().learn(1_200, callback=callback)
    (student,) = callback.students.values()
    assert student.score_kind == "q_values"
    path = callback.save_students(tmp_path)["16"]
    states = torch.rand(200, N_ACTIONS, generator=torch.Generator().manual_seed(5)) * 2 - 1
    with torch.no_grad():
        taught, kept = model.q_net(states), DQN.load(path, device="cpu").q_net(states)
    assert (kept - taught).abs().mean() < 0.5 * taught.std()
    actor = sb3.PPO("MlpPolicy", largest(), n_steps=32, batch_size=16, device="cpu")
    with pytest.raises(ValueError, match="policy_kl_q keeps Q-values, and the teacher gives logits"):
        actor.learn(64, callback=make_callback(objective="policy_kl_q"))
    assert actor.num_timesteps == 0


def test_students_learn_what_their_teacher_learns() -> None:
    untrained = make_callback([[16], [8]])
    model = make_dqn()
    with pytest.warns(UserWarning, match="the students made no update"):
        model.learn(20, callback=untrained)
    callback = make_callback([[16], [8]], batch_size=32, samples_per_step=16)
    model.learn(2_000, callback=callback, reset_num_timesteps=False)
    teacher = as_teacher(model)
    assert callback.labels.best > 8 / 3, "better than chance"
    for name, student in callback.students.items():
        gained = agreements(student, teacher) - agreements(untrained.students[name], teacher)
        assert gained.mean() > 0
        assert permutation_p(gained, generator=np.random.default_rng(0)) < 0.001, gained.mean()


@pytest.mark.parametrize("sizes", [["net3", "net2"], {"small": "net3", "own": Size((4, 4, 4), 8)}])
def test_students_of_frames_are_saved_as_zips_that_stock_dqn_opens(sizes: Any, tmp_path: Path) -> None:
    env = Squares(n_envs=2)
    options = {"buffer_size": 200, "learning_starts": 8, "batch_size": 4, "train_freq": 8, "seed": 0, "device": "cpu"}
    model = DQN("CnnPolicy", env, exploration_fraction=0.1, **options)
    callback = make_callback(sizes, labels="current", batch_size=8, learning_starts=16)
    model.learn(96, callback=callback)
    assert list(callback.students) == (list(sizes) if isinstance(sizes, dict) else sizes)
    seen = torch.from_numpy(env.reset())
    for name, path in callback.save_students(tmp_path / "made").items():
        student = callback.students[name]
        assert student.widths == (
            SIZES[sizes[name]] if name == "small" else student.size if name == "own" else SIZES[name]
        )
        stock = DQN.load(path, device="cpu")
        with torch.no_grad():
            torch.testing.assert_close(stock.q_net(seen), student.student_scores(seen), rtol=1e-3, atol=1e-4)
        assert as_teacher(path).kind == "logits"
        assert stock.num_timesteps == 96, "the teacher's steps when it learned last"
        assert PolicyDistillation.load(path, env=env, teacher=model, device="cpu")._n_updates == callback.group.updates


def test_two_students_of_one_size_begin_differently_and_see_the_same_batches() -> None:
    callback = make_callback([[8], [8]])
    model = make_dqn()
    model.learn(400, callback=callback)
    one, other = callback.students.values()
    assert list(callback.students) == ["8", "8_2"]
    assert torch.equal(one.learner.order.get_state(), other.learner.order.get_state())
    assert not torch.equal(one.student.q_net[0].weight, other.student.q_net[0].weight)


def test_a_batch_is_labelled_once_for_all_students() -> None:
    model = make_dqn()
    model.learn(60)
    asked: list[int] = []

    def scores(observations: torch.Tensor) -> torch.Tensor:
        asked.append(len(observations))
        return observations

    source = SharedBatches(InReplay(model.replay_buffer, model.device), as_teacher(scores))  # type: ignore[arg-type]
    drawn = [list(source.batches(3, 5, torch.Generator().manual_seed(0))) for _ in range(2)]
    assert sum(asked) == 15
    kept = {tuple(row) for row in model.replay_buffer.observations[:30].reshape(-1, N_ACTIONS).tolist()}  # type: ignore[union-attr]
    for (seen, targets), (again, _) in zip(*drawn, strict=True):
        assert seen is again
        assert torch.equal(seen, targets)
        assert {tuple(row) for row in seen.tolist()} <= kept
    list(source.batches(3, 5, torch.Generator().manual_seed(1)))
    assert sum(asked) == 30


def test_a_round_of_many_updates_is_made_in_pieces_that_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    learn = group_module.Group.learn

    def note(group: Any, source: SharedBatches, n_updates: int, step: int, remaining: float) -> None:
        learn(group, source, n_updates, step, remaining)
        held.append(len(source._made))

    monkeypatch.setattr(group_module.Group, "learn", note)
    monkeypatch.setattr("polydistill_agents.distillation.online.seen.HELD_AT_ONCE", 3 * 16 * N_ACTIONS * 4)
    callback = make_callback(labels="current", round_steps=32)
    make_dqn().learn(64, callback=callback)
    assert held == [3, 3, 2, 3, 3, 2]
    assert callback.group.updates == callback.students["8"]._n_updates == 16


def test_a_student_may_go_on_in_games_of_its_own() -> None:
    callback = make_callback(labels="current")
    make_dqn().learn(80, callback=callback)
    student = callback.students["8"]
    made = student._n_updates
    student.set_env(largest())
    student.learning_starts = 32
    student.learn(400)
    assert student._n_updates == made + 400 * 4 // 16


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(5),
        spaces.MultiDiscrete([3, 4]),
        spaces.Box(0, 255, (3, 8, 8), np.uint8),
        spaces.Dict({"speed": spaces.Box(-9, 9, (2,), np.float32), "place": spaces.Discrete(4)}),
    ],
    ids=["a place", "places", "a small image", "a table"],
)
@pytest.mark.parametrize("algorithm", ["DQN", "PPO"])
def test_students_see_observations_as_the_environment_shows_them(space: spaces.Space[Any], algorithm: str) -> None:
    env = largest(2, space)
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    kind, options = ALGORITHMS[algorithm]
    model = kind(policy, env, seed=0, device="cpu", policy_kwargs={"net_arch": [4]}, **options)
    callback = make_callback(labels="current")
    model.learn(192, callback=callback)
    assert callback.group.updates > 0
    assert callback._seen is not None
    gathered = callback._seen.gather(torch.arange(6))
    parts = gathered.items() if isinstance(gathered, dict) else [("", gathered)]
    for name, part in parts:
        own = space[name] if isinstance(space, spaces.Dict) else space
        assert all(own.contains(row if own.shape else row.item()) for row in part.numpy())


def test_rollouts_are_kept_beyond_the_update_that_forgets_them() -> None:
    model = sb3.A2C("MlpPolicy", largest(), n_steps=4, seed=0, device="cpu")
    callback = make_callback(labels="current", rollout_states=80)
    model.learn(160, callback=callback)
    assert isinstance(callback._seen, InRollouts)
    assert len(callback._seen) == 80
    last = model.rollout_buffer.observations  # flat since its update: game by game
    kept = callback._seen.gather(torch.arange(72, 80)).numpy().reshape(4, 2, N_ACTIONS)
    assert np.array_equal(np.asarray(last).reshape(2, 4, N_ACTIONS).swapaxes(0, 1), kept)


# ---- who labels ------------------------------------------------------------------------------------------------------


def test_the_best_teacher_stays_until_it_is_beaten_and_what_learns_does_not_change_it() -> None:
    model = make_dqn()
    model.learn(60)
    labels = Labels("best", 2, "float32")

    def play(*returns: float) -> Any:
        labels.watch(model, [{"episode": {"r": one}} for one in returns] + [{}])
        return labels.choose(model, model.num_timesteps)

    assert play(3.0) is None
    first = play(5.0)
    assert (labels.best, first) == (4.0, labels.teacher)
    seen = torch.rand(4, N_ACTIONS)
    before = first(seen)
    model.learn(60, reset_num_timesteps=False)
    assert torch.equal(first(seen), before)
    assert not torch.equal(model.q_net(seen), before)
    assert play(3.0, 5.0) is first, "equal is not better"
    assert play(5.0) is not first
    assert (labels.best, labels.at_step) == (5.0, 120)
    saved = labels.state()
    assert play(9.0) is not None
    labels.load_state(saved, model)  # back, in the same place
    assert labels.state()["returns"] == saved["returns"] == [5.0, 5.0]
    assert (labels.best, labels.at_step) == (5.0, 120)


def test_games_that_chance_played_say_nothing_of_a_teacher() -> None:
    model = make_dqn(exploration_fraction=1.0)
    labels = Labels("best", 1, "float32")
    game = [{"episode": {"r": 9.0}}]
    labels.watch(model, game)
    assert labels.choose(model, 0) is None, "it has learned nothing yet"
    model.learn(60)
    model.exploration_rate = 0.5
    labels.watch(model, game)
    assert labels.choose(model, 60) is None
    model.exploration_rate = 0.1
    labels.watch(model, game)
    assert labels.choose(model, 60) is not None


def test_a_score_of_ones_own_says_who_is_best_and_draws_curves(tmp_path: Path) -> None:
    scores = iter([1.0, -1.0, 3.0, -1.0, 2.0, -1.0, 4.0, -1.0])  # teacher and student, in turn
    model = make_dqn()
    model.set_logger(configure(str(tmp_path), ["tensorboard"]))
    callback = make_callback(labels="best_score", score=lambda agent: next(scores), score_every=80, log_every=1)
    taken = []
    offer = callback.labels.offer

    def note(model: Any, score: float, step: int) -> None:
        offer(model, score, step)
        taken.append((step, callback.labels.at_step, callback.labels.best))

    callback.labels.offer = note  # type: ignore[method-assign]
    model.learn(240, callback=callback)
    assert taken == [(0, 0, 1.0), (80, 80, 3.0), (160, 80, 3.0), (240, 240, 4.0)]
    tags = {role: EventAccumulator(str(tmp_path / role)).Reload() for role in ("teacher", "8")}
    curve = [(point.step, point.value) for point in tags["teacher"].Scalars("eval/mean_reward")]
    assert curve == [(0, 1.0), (80, 3.0), (160, 2.0), (240, 4.0)]
    assert [point.step for point in tags["8"].Scalars("eval/mean_reward")] == [0, 80, 160, 240]
    written = set(tags["8"].Tags()["scalars"])
    assert {"distill/loss", "distill/replay_agreement", "distill/replay_regret", "distill/label_score"} <= written


def test_the_temperature_of_q_values_is_measured_again_as_their_teacher_changes(monkeypatch: Any) -> None:
    monkeypatch.setattr(group_module, "TEMPERED_EVERY", 100)
    callback = make_callback([[8], [4]], labels="current")
    model = make_dqn()
    model.learn(80, callback=callback)
    first = {student.temperature for student in callback.students.values()}
    assert len(first) == 1
    model.learn(400, callback=callback, reset_num_timesteps=False)
    later = {student.lesson.temperature for student in callback.students.values()}
    assert len(later) == 1
    assert later != first
    given = make_callback(labels="current", temperature=0.5)
    model.learn(80, callback=given, reset_num_timesteps=False)
    assert given.students["8"].lesson.temperature == 0.5


# ---- stopped and gone on with ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["best", "current"])
@pytest.mark.parametrize("seed", [1, None])
def test_students_go_on_from_their_state_as_if_nobody_had_stopped_them(labels: Any, seed: int | None) -> None:
    weights = []
    numbers = np.random.get_state()
    for stopped in (False, True):
        np.random.set_state(numbers)
        model = make_dqn()
        callback = make_callback([[8], [4]], labels=labels, seed=9 if seed is None and not stopped else seed)
        if stopped and seed is None:
            callback.seed = 9
        model.learn(260, callback=callback)
        if stopped:
            buffer = io.BytesIO()
            torch.save(callback.state(), buffer)
            buffer.seek(0)
            callback = make_callback([[8], [4]], labels=labels, seed=seed)
            callback.load_state(torch.load(buffer, weights_only=True))
        model.learn(260, callback=callback, reset_num_timesteps=False)
        weights.append({name: student.learner.state() for name, student in callback.students.items()})
        assert callback.group.updates > 60
    for name, state in weights[0].items():
        assert torch.equal(state["order"], weights[1][name]["order"])
        for key, value in state["weights"].items():
            assert torch.equal(value, weights[1][name]["weights"][key]), (name, key)


@pytest.mark.parametrize("reset", [True, False])
def test_learning_again_goes_on_and_owes_nothing_for_steps_that_nobody_watched(reset: bool) -> None:
    callback = make_callback(labels="current")
    model = make_dqn()
    model.learn(200, callback=callback)
    first = callback.group.updates
    model.learn(200, reset_num_timesteps=False)
    model.learn(200, callback=callback, reset_num_timesteps=reset)
    assert callback.group.updates - first == 200 * 4 / 16
    assert callback.students["8"]._n_updates == callback.group.updates


def test_a_state_of_other_students_is_refused() -> None:
    model = make_dqn()
    callback = make_callback([[8]], labels="current")
    model.learn(80, callback=callback)
    other = make_callback([[4]], labels="current")
    other.load_state(callback.state())
    with pytest.raises(ValueError, match=r"students: the state is of 8, this callback teaches 4"):
        model.learn(80, callback=other)


def test_a_student_that_goes_wrong_stops_alone() -> None:
    callback = make_callback([[8], [4]], labels="current")
    model = make_dqn()
    model.learn(120, callback=callback)
    made = callback.group.updates
    with torch.no_grad():
        callback.students["8"].student.q_net[0].weight.fill_(float("nan"))
    with pytest.warns(UserWarning, match="student 8 stops learning, and stays as it was before: the loss policy_kl is"):
        model.learn(120, callback=callback, reset_num_timesteps=False)
    assert callback.group.stopped == ["8"]
    assert callback.students["8"]._n_updates == made
    assert callback.students["4"]._n_updates == callback.group.updates > made


# ---- what cannot work ------------------------------------------------------------------------------------------------


def of_gym(
    kind: type[BaseAlgorithm], env: Any, policy: str = "MlpPolicy", **options: Any
) -> Callable[[], BaseAlgorithm]:
    return lambda: kind(policy, env() if callable(env) else env, device="cpu", **options)


class Masked(Largest):
    """With masks of actions, all of which are allowed."""

    def action_masks(self) -> Any:
        return np.ones(N_ACTIONS, dtype=bool)


REFUSED: dict[str, tuple[Callable[[], BaseAlgorithm], dict[str, Any], str]] = {
    "continuous actions": (
        of_gym(sb3.SAC, "Pendulum-v1"),
        {},
        r"SAC acts in Box\(.*\), and students need discrete actions: DistillCallback is for DQN, QRDQN, PPO and A2C",
    ),
    "a student": (
        lambda: PolicyDistillation(
            "MlpPolicy", largest(), lambda x: x, policy_kwargs={"net_arch": [8]}, temperature=1.0, device="cpu"
        ),
        {},
        "PolicyDistillation has neither a replay nor rollouts that students could learn from",
    ),
    "memory": (
        of_gym(sb3_contrib.RecurrentPPO, largest, "MlpLstmPolicy"),
        {},
        "RecurrentPPO remembers earlier steps.*: distil the finished model with PolicyDistillation",
    ),
    "masks": (of_gym(sb3_contrib.MaskablePPO, Masked), {}, "MaskablePPO learns with masks of actions"),
    "moving statistics": (
        of_gym(sb3.PPO, lambda: VecNormalize(largest())),
        {},
        r"PPO hold observations of VecNormalize, whose statistics still move: use VecNormalize\(norm_obs=False\)",
    ),
    "no returns": (
        of_gym(sb3.PPO, lambda: DummyVecEnv([Largest])),
        {},
        "labels='best' needs the returns of the games: wrap the environment in VecMonitor",
    ),
    "frames": (
        of_gym(sb3.PPO, largest),
        {"students": "net1"},
        r"students: net1 is of frames; for observations \(3,\) float32 give widths, as \[64, 64\]",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_model_that_cannot_teach_is_refused_before_it_learns(what: str) -> None:
    make, options, message = REFUSED[what]
    model = make()
    with pytest.raises(ValueError, match=message) as raised:
        model.learn(100, callback=make_callback(**options))
    assert "\n" not in str(raised.value)
    assert model.num_timesteps == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"students": []}, "students is empty: name at least one"),
        ({"students": ["net4"]}, r"students: unknown 'net4'; did you mean net\d\?"),
        ({"students": [{}]}, r"students: each is one of nature, net1, .*, or widths as \[64, 64\], got \{\}"),
        ({"students": {"../a": "net1"}}, "students: '../a' is no name for a file"),
        ({"labels": "worst"}, "unknown labels .worst. .there are best, best_score, current."),
        ({"labels": "best_score"}, "labels='best_score' needs a function score="),
        ({"score": 3}, "score must be a function from an agent to its mean score"),
        ({"samples_per_step": 0}, "samples_per_step must be positive"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"best_games": 0}, "best_games must be a whole number of at least 1"),
        ({"averaging": 1}, "averaging is a share of the updates"),
        ({"objective": "cwtm"}, "objective cwtm is one for classifiers"),
        ({"temperature": -1}, "temperature must be positive"),
        ({"learning_rate": 0}, "learning_rate must be positive"),
        ({"precision": "float8"}, "precision"),
    ],
)
def test_an_argument_that_cannot_work_is_refused_by_its_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_callback(**options)


def test_students_are_not_taught_another_game() -> None:
    callback = make_callback(labels="current")
    make_dqn().learn(80, callback=callback)
    other = DQN("MlpPolicy", "CartPole-v1", device="cpu")
    with pytest.raises(Exception, match=r"sees \(4,\) float32, the environment shows \(3,\) float32"):
        other.learn(80, callback=callback)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"best_games": 500}, "games have ended after the teacher's exploration; play more steps, lower best_games"),
        (
            {"labels": "current", "learning_starts": 1_500},
            "the teacher has seen 200 of learning_starts=1,500 observations",
        ),
        ({"labels": "current", "round_steps": 300}, "play more steps, or lower round_steps=300"),
    ],
)
def test_students_that_learned_nothing_say_why(options: dict[str, Any], why: str) -> None:
    with pytest.warns(UserWarning, match=f"the students made no update: .*{why}"):
        make_dqn().learn(200, callback=make_callback(**options))


def test_names_of_students() -> None:
    assert name_students("net1") == {"net1": "net1"}
    assert name_students([64, 64]) == {"64x64": [64, 64]}
    assert list(name_students(["teacher", Size((4, 4, 4), 8), [32], [32]])) == ["teacher", "4x4x4x8", "32", "32_2"]


def test_learning_stops_where_nobody_has_begun() -> None:
    with pytest.raises(ValueError, match="the students are built when learning begins"):
        make_callback().state()
    with pytest.raises(ValueError, match="give a function score="):
        make_callback().score_all()
