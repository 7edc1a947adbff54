"""What is trained is what is played, saved and loaded, for every kind of student; other kinds are refused by name."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from stable_baselines3.dqn.policies import CnnPolicy
from torch import nn

from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill_agents.networks.nature import SIZES, Size, build_network, size_of
from polydistill_agents.teachers import as_teacher
from tests.agents.distillation.squares import N_ACTIONS, SMALL, Squares, look, make

KINDS: dict[str, dict[str, Any]] = {
    "a stack of grey frames": {},
    "one grey frame": {"env": Squares(shape=(1, 36, 36))},
    "a colour image": {"env": Squares(shape=(3, 60, 44), slides=False)},
    "a stack of colours": {"env": Squares(shape=(12, 36, 36), slides=False)},
    "images with the colours last": {"env": "transposed"},
    "Q-values": {"objective": "policy_mse"},
    "another loss with an option": {"objective": "policy_huber", "objective_kwargs": {"delta": 0.5}},
    "as wide as Stable-Baselines3's": {"size": "nature"},
    "widths of one's own": {"size": ((4, 5, 6), 7)},
    "widths in policy_kwargs": {
        "size": None,
        "policy_kwargs": {"features_extractor_class": NatureCNN, "features_extractor_kwargs": {"features_dim": 8}},
    },
    "bfloat16": {"precision": "bfloat16"},
    "brightness from 0 to 255": {"policy_kwargs": {"normalize_images": False}},
    "a hidden layer more": {"policy_kwargs": {"net_arch": [8]}},
    "two hidden layers, Tanh": {"policy_kwargs": {"net_arch": [8, 5], "activation_fn": nn.Tanh}},
    "all at once": {
        "policy_kwargs": {"net_arch": (8,), "activation_fn": nn.ELU, "normalize_images": False},
        "env": Squares(shape=(3, 36, 36), slides=False),
        "objective": "policy_mse",
    },
    "another optimiser": {"policy_kwargs": {"optimizer_class": torch.optim.RMSprop, "optimizer_kwargs": {"eps": 1e-5}}},
}


class ColoursLast(Squares):
    """Observations of (height, width, planes), which Stable-Baselines3 transposes."""

    def __init__(self) -> None:
        super().__init__(shape=(3, 36, 36), slides=False)
        self.observation_space = spaces.Box(0, 255, (36, 36, 3), np.uint8)

    def _planes(self, stack: np.ndarray | None) -> np.ndarray:
        self.observation_space = spaces.Box(0, 255, (3, 36, 36), np.uint8)
        planes = super()._planes(stack)
        self.observation_space = spaces.Box(0, 255, (36, 36, 3), np.uint8)
        return planes.transpose(1, 2, 0)


def make_kind(kind: str) -> PolicyDistillation:
    options = {"env": Squares(), "learning_starts": 0, "batch_size": 8, "samples_per_step": 2.0}
    options |= KINDS[kind]
    if options["env"] == "transposed":
        options["env"] = ColoursLast()
    return make(**options)


@pytest.mark.parametrize("kind", KINDS)
def test_trained_played_saved_and_loaded_are_one_function(kind: str, tmp_path: Path) -> None:
    model = make_kind(kind)
    seen: list[np.ndarray] = []
    asked = model.teacher
    assert asked is not None
    model.lesson.teacher = as_teacher(lambda frames: (seen.append(frames.numpy().copy()), look(frames))[1])
    model.learn(48)
    assert model._n_updates == 12
    assert model.replay is not None
    observed, targets = model.replay.gather(torch.arange(48))
    np.testing.assert_array_equal(observed.numpy(), np.concatenate(seen))
    np.testing.assert_array_equal(targets.numpy(), look(observed).numpy())

    model.policy.optimizer.param_groups[0]["lr"] = 0.0
    _, trained = model.learner.update(observed, targets)
    assert trained.std(dim=0).min() > 0, "it sees something"
    tolerance = 0.05 if kind == "bfloat16" else 1e-4  # the convolutions' rounding, while it learns
    scale = trained.abs().max().item()

    model.save(tmp_path / "student")
    file = io.BytesIO()
    model.save(file)
    loaded, stock = PolicyDistillation.load(tmp_path / "student", device="cpu"), DQN.load(tmp_path / "student")
    with torch.no_grad():
        others = {
            "played": model.policy.q_net(observed),
            "evaluated": model.student_scores(observed),
            "loaded": loaded.student_scores(observed),
            "loaded, played": loaded.policy.q_net(observed),
            "loaded from memory": PolicyDistillation.load(file, device="cpu").student_scores(observed),
            "stock": stock.q_net(observed),
            "a teacher": as_teacher(model)(observed),
            "a teacher's file": as_teacher(tmp_path / "student.zip")(observed),
        }
    for name, scores in others.items():
        torch.testing.assert_close(scores, trained, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}")
    greedy = others["played"].argmax(dim=1).numpy()
    for agent in (model, loaded, stock):
        np.testing.assert_array_equal(agent.predict(observed.numpy(), deterministic=True)[0], greedy)
    assert size_of(loaded.student) == size_of(model.student)
    assert loaded.score_kind == model.score_kind == as_teacher(tmp_path / "student.zip").kind


def test_what_policy_kwargs_ask_for_is_what_is_built() -> None:
    network = make_kind("all at once").student
    assert network.normalize_images is False
    assert [type(layer) for layer in network.q_net] == [nn.Linear, nn.ELU, nn.Linear]
    assert [layer.weight.shape for layer in network.q_net[::2]] == [(8, 64), (3, 8)]
    assert size_of(make_kind("widths in policy_kwargs").student) == Size((32, 64, 64), 8)
    optimizer = make_kind("another optimiser").policy.optimizer
    assert (type(optimizer), optimizer.defaults["eps"]) == (torch.optim.RMSprop, 1e-5)


def test_a_state_goes_on_where_observations_do_not_slide_too() -> None:
    options = {"env": Squares(shape=(3, 36, 36), slides=False), "learning_starts": 0, "batch_size": 8}
    model, steps = make(**options), []

    class Keep(BaseCallback):
        def _on_step(self) -> bool:
            steps.append(model.last_step)
            return True

    model.learn(200, Keep())
    state = model.state()
    again = make(**options)
    again.continue_play(steps[0].observations, steps)
    again.load_state(state)
    again.set_logger(model.logger)
    for one in (model, again):
        one.train(5, 8)
    for name, weight in model.student.state_dict().items():
        assert torch.equal(weight, again.student.state_dict()[name]), name


def test_a_loaded_student_of_every_layer_learns_on(tmp_path: Path) -> None:
    model = make_kind("two hidden layers, Tanh").learn(16)
    model.save(tmp_path / "student.zip")
    policy_kwargs = {"optimizer_class": torch.optim.SGD, "net_arch": (8, 5)}
    options = {"teacher": look, "learning_starts": 0, "batch_size": 8, "policy_kwargs": policy_kwargs}
    loaded = PolicyDistillation.load(tmp_path / "student.zip", Squares(), "cpu", **options)
    assert type(loaded.policy.optimizer) is torch.optim.SGD
    before = loaded.student.state_dict()["q_net.4.weight"].clone()
    loaded.learn(16, reset_num_timesteps=False)
    assert not torch.equal(loaded.student.state_dict()["q_net.4.weight"], before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "net1"}, r"the file holds a student of size \(\(16, 16, 16\), 64\), not \(\(16, 32, 32\), 256\)"),
        ({"policy_kwargs": {"features_extractor_kwargs": {"features_dim": 8}}}, "the file holds a student of size"),
        ({"policy_kwargs": {"net_arch": [64]}}, r"policy_kwargs: net_arch is \[\] in the file, not \[64\]"),
        ({"policy_kwargs": {"normalize_images": False}}, "policy_kwargs: normalize_images is True in the file"),
    ],
)
def test_a_file_is_no_other_network_than_it_holds(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    make().save(tmp_path / "student.zip")
    with pytest.raises(ValueError, match=message):
        PolicyDistillation.load(tmp_path / "student.zip", device="cpu", **options)


class Squared(NatureCNN):
    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return super().forward(observations) ** 2


class OtherPolicy(CnnPolicy):
    pass


@pytest.mark.parametrize(
    ("policy_kwargs", "message"),
    [
        ({"features_extractor_class": Squared}, "features_extractor_class must be NatureCNN, got Squared"),
        ({"features_extractor_class": FlattenExtractor}, "features_extractor_class must be NatureCNN, got Flatten"),
        ({"features_extractor_kwargs": {"feature_dim": 8}}, "features_extractor_kwargs may hold .*, got 'feature_dim'"),
        ({"features_extractor_kwargs": {"features_dim": 8}}, "size is .*64.*, policy_kwargs ask for .*8.*: give one"),
        ({"features_extractor_class": NatureCNN}, "size is .*, policy_kwargs ask for .*: give one of them"),
        ({"net_arch": 64}, r"net_arch must be a list of widths, as \[256\], got 64"),
        ({"net_arch": {"pi": [64]}}, "net_arch must be a list of widths"),
        ({"net_arch": [0]}, "net_arch must be a list of widths"),
        ({"activation_fn": nn.PReLU}, "activation_fn must be one of torch.nn's ReLU, Tanh"),
        ({"activation_fn": "tanh"}, "activation_fn must be one of torch.nn's ReLU, Tanh"),
        ({"normalize_images": 1}, "normalize_images must be True or False, got 1"),
        ({"optimizer_class": torch.optim.LBFGS}, "optimizer_class make"),
        ({"optimizer_kwargs": {"epz": 1e-5}}, "optimizer_class and optimizer_kwargs make no step: .*epz"),
        ({"optimizer_kwargs": {"lr": 1e-5}}, "make no step: .*lr"),
        ({"n_quantiles": 50}, "unknown 'n_quantiles'"),
        ({"activation": nn.Tanh}, "unknown 'activation'; did you mean activation_fn"),
    ],
)
def test_what_the_student_would_not_be_is_refused_by_its_name(policy_kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        make(policy_kwargs=policy_kwargs)
    assert "\n" not in str(refused.value)


def test_policies_that_may_compute_anything_are_refused() -> None:
    for policy in (OtherPolicy, "CnnPolic"):
        with pytest.raises(ValueError, match="policy must be one of CnnPolicy, MlpPolicy, MultiInputPolicy"):
            PolicyDistillation(policy, Squares(), look, device="cpu")
    for known in ("CnnPolicy", CnnPolicy):
        assert PolicyDistillation(known, Squares(), None, size="net3", device="cpu").student is not None


def test_a_student_is_as_wide_as_a_teacher_that_no_zip_could_hold() -> None:
    wide = build_network(spaces.Box(0, 255, SMALL, np.uint8), N_ACTIONS, Size((64, 64, 64), 512))
    assert make(wide, env=Squares(), size=None).size == Size((64, 64, 64), 512)
    assert make(wide, env=Squares(), size="nature").size == SIZES["nature"]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Box(0.0, 1.0, (4, 36, 36), np.float32), "of uint8 from 0 to 255, not Box.*choose 'MlpPolicy'"),
        (spaces.Box(0, 255, (4, 36, 36), np.int16), "of uint8 from 0 to 255"),
        (spaces.Box(0, 1, (4, 36, 36), np.uint8), "of uint8 from 0 to 255"),
        (spaces.Box(0, 255, (36,), np.uint8), "choose 'MlpPolicy' for them"),
        (spaces.Discrete(5), "choose 'MlpPolicy' for them"),
        (spaces.Dict({"x": spaces.Discrete(5)}), "You must use `MultiInputPolicy`"),
        (spaces.Box(0, 255, (4, 30, 36), np.uint8), "at least 36 x 36"),
    ],
)
def test_observations_that_would_not_be_seen_as_they_are_are_refused(space: Any, message: str) -> None:
    env = Squares()
    env.observation_space = space
    with pytest.raises(ValueError, match=message):
        make(None, env=env)


def test_actions_that_do_not_count_from_zero_are_refused() -> None:
    for space in (spaces.Discrete(3, start=1), spaces.Box(-1.0, 1.0, (2,)), spaces.MultiDiscrete([2, 2])):
        env = Squares()
        env.action_space = space
        with pytest.raises(ValueError, match="actions must be discrete and count from 0"):
            make(None, env=env)


def test_frames_that_stable_baselines_stacks_slide_and_normalized_ones_are_refused() -> None:
    stacked = VecFrameStack(Squares(shape=(1, 36, 36)), 4)
    model = make(env=stacked, learning_starts=0).learn(96)
    assert model.replay is not None
    assert model.replay._frames_added == 96 + 3 * 4 * 2, "each frame once, and three more where the 8 games started"
    with pytest.raises(ValueError, match=r"env is wrapped in VecNormalize: give the environment inside, env\.venv"):
        make(env=VecNormalize(Squares()))
    make(env=VecNormalize(Squares(), norm_obs=False), learning_starts=0).learn(16)
