"""Agents of every kind: what is rebuilt from shapes and plain text scores exactly as Stable-Baselines3's own model."""

from __future__ import annotations

import importlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.policies import BaseModel
from torch import nn

from polydistill.errors import UserError
from polydistill_agents.files.inspection import convert_agent
from polydistill_agents.files.sb3_zip import read_agent, rebuild_network, rebuild_scores, write_dqn_zip
from polydistill_agents.networks.quantiles import QuantileNetwork
from polydistill_agents.teachers import as_teacher
from tests.agents.samples import members_of, refusal

# Stable-Baselines3's own: it builds an extractor that it then does not use
pytestmark = pytest.mark.filterwarnings("ignore:Provided features_extractor will be ignored:UserWarning")

FRAMES = spaces.Box(0, 255, (2, 36, 36), np.uint8)
ATARI = spaces.Box(0, 255, (4, 84, 84), np.uint8)
VECTORS = spaces.Box(-1, 1, (2, 3), np.float32)
BYTES = spaces.Box(0, 255, (8,), np.uint8)
NARROW = {"features_extractor_kwargs": {"features_dim": 16}}


class Room(gym.Env[Any, Any]):
    """Spaces as given; observations are drawn from them."""

    def __init__(self, observation_space: spaces.Space[Any], n_actions: int = 3) -> None:
        self.observation_space, self.action_space = observation_space, spaces.Discrete(n_actions)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


def make_model(algorithm: str, space: spaces.Space[Any], policy: str = "", **kwargs: Any) -> Any:
    """A fresh model with weights that make it act differently from state to state."""
    if algorithm == "QRDQN":
        if importlib.util.find_spec("sb3_contrib") is None:
            pytest.skip("needs sb3-contrib, which is not installed")
        kind: Any = importlib.import_module("sb3_contrib").QRDQN
    else:
        kind = {"DQN": DQN, "PPO": PPO, "A2C": A2C}[algorithm]
    own = {"buffer_size": 1} if "DQN" in algorithm else {"n_steps": 8}
    own |= {"batch_size": 8} if algorithm == "PPO" else {}
    policy = policy or ("CnnPolicy" if len(space.shape or ()) == 3 else "MlpPolicy")
    model = kind(policy, Room(space), policy_kwargs=kwargs, device="cpu", seed=0, **own)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for name, parameter in model.policy.named_parameters():
            inputs = parameter[0].numel() if name.endswith("weight") else 100
            parameter.normal_(generator=generator).mul_(2.0 * inputs**-0.5)
    return model


def own_scores(model: Any, observations: torch.Tensor) -> torch.Tensor:
    """The scores as the model's own classes compute them."""
    policy = model.policy
    with torch.no_grad():
        if hasattr(policy, "quantile_net"):
            return policy.quantile_net(observations).mean(dim=1)
        if hasattr(policy, "q_net"):
            return policy.q_net(observations)
        features = BaseModel.extract_features(policy, observations, policy.pi_features_extractor)
        return policy.action_net(policy.mlp_extractor.forward_actor(features))


def observe(space: spaces.Space[Any], count: int = 32) -> np.ndarray:
    """Random observations, bytes from dark to bright."""
    space.seed(1)
    rows = np.stack([space.sample() for _ in range(count)])
    if rows.dtype == np.uint8:
        brightness = np.linspace(0, 1, count).reshape(-1, *[1] * (rows.ndim - 1))
        rows = (rows * brightness).astype(np.uint8)
    return rows


CASES = [
    ("DQN", VECTORS, {}),
    ("DQN", VECTORS, {"activation_fn": nn.Tanh}),
    ("DQN", VECTORS, {"activation_fn": nn.LeakyReLU, "net_arch": [5, 7, 9]}),
    ("DQN", VECTORS, {"activation_fn": nn.Mish}),
    ("DQN", VECTORS, {"activation_fn": nn.Softplus}),
    ("DQN", VECTORS, {"net_arch": []}),
    ("DQN", BYTES, {}),
    ("DQN", FRAMES, NARROW),
    ("DQN", FRAMES, {**NARROW, "net_arch": [6], "activation_fn": nn.ELU}),
    ("DQN", FRAMES, {**NARROW, "normalize_images": False}),
    ("DQN", ATARI, NARROW),
    ("QRDQN", VECTORS, {"n_quantiles": 7}),
    ("QRDQN", VECTORS, {"n_quantiles": 1, "activation_fn": nn.Tanh}),
    ("QRDQN", VECTORS, {"net_arch": [4]}),  # 200 quantiles
    ("QRDQN", FRAMES, {**NARROW, "n_quantiles": 3}),
    ("PPO", VECTORS, {}),
    ("PPO", VECTORS, {"activation_fn": nn.ReLU}),
    ("PPO", VECTORS, {"net_arch": {"pi": [5, 4], "vf": [9]}}),
    ("PPO", VECTORS, {"net_arch": []}),
    ("PPO", FRAMES, NARROW),
    ("PPO", FRAMES, {**NARROW, "share_features_extractor": False, "net_arch": [8]}),
    ("A2C", VECTORS, {}),
    ("A2C", VECTORS, {"activation_fn": nn.SiLU, "net_arch": {"pi": [3], "vf": []}}),
    ("A2C", FRAMES, NARROW),
]


@pytest.mark.parametrize(("algorithm", "space", "kwargs"), CASES)
def test_scores_and_actions_are_those_of_the_model_bit_for_bit(algorithm, space, kwargs, tmp_path):
    model = make_model(algorithm, space, **kwargs)
    model.save(tmp_path / "a.zip")
    agent = read_agent(tmp_path / "a.zip")
    network, observations = rebuild_scores(agent), observe(space)
    with torch.no_grad():
        scores = network(torch.from_numpy(observations))
    assert torch.equal(scores, own_scores(model, torch.from_numpy(observations)))
    actions, _ = model.predict(observations, deterministic=True)
    assert (scores.argmax(dim=1).numpy() == actions).all()
    assert scores.std(dim=0).min() > 1e-3, "it looks at what it sees"
    assert agent.score_kind == ("q_values" if "DQN" in algorithm else "logits")
    assert isinstance(network, QuantileNetwork) == (algorithm == "QRDQN")
    teacher = as_teacher(tmp_path / "a.zip")
    torch.testing.assert_close(teacher(torch.from_numpy(observations)), scores, rtol=1e-4, atol=1e-4)


def test_a_vector_policy_of_frames_divides_them_as_the_model_does(tmp_path):
    model = make_model("DQN", FRAMES, "MlpPolicy")
    model.save(tmp_path / "a.zip")
    observations = torch.from_numpy(observe(FRAMES))
    with torch.no_grad():
        scores = rebuild_scores(read_agent(tmp_path / "a.zip"))(observations)
    assert torch.equal(scores, own_scores(model, observations))


def test_tanh_taken_for_relu_would_score_otherwise(tmp_path):
    model = make_model("PPO", VECTORS)
    model.save(tmp_path / "tanh.zip")
    relu = changed(tmp_path / "tanh.zip", tmp_path / "relu.zip", policy_kwargs=activation("ReLU"))
    observations = torch.from_numpy(observe(VECTORS))
    with torch.no_grad():
        first, second = (rebuild_scores(read_agent(path))(observations) for path in (tmp_path / "tanh.zip", relu))
    assert (first - second).abs().max() > 0.01


def activation(name: str) -> dict[str, str]:
    return {":type:": "<class 'dict'>", "activation_fn": f"<class 'torch.nn.modules.activation.{name}'>"}


def changed(source: Path, target: Path, weights: Any = None, **fields: Any) -> Path:
    """``source`` with other fields in ``data`` (None: left out), or other weights."""
    members = members_of(source)
    data = {name: value for name, value in (json.loads(members["data"]) | fields).items() if value is not None}
    members["data"] = json.dumps(data).encode()
    if weights is not None:
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        members["policy.pth"] = buffer.getvalue()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(io.BytesIO(members_of(path)["policy.pth"]), weights_only=True))


def test_layers_that_actor_and_critic_shared_until_2022_come_first(tmp_path):
    make_model("PPO", VECTORS, net_arch=[5, 4]).save(tmp_path / "new.zip")
    renamed = {}
    for name, value in weights_of(tmp_path / "new.zip").items():
        for new, old in (("policy_net.0", "shared_net.0"), ("policy_net.2", "policy_net.0")):
            if f"mlp_extractor.{new}." in name:
                name = name.replace(new, old)
                break
        if not name.startswith(("mlp_extractor.value_net.", "pi_features", "vf_features")):
            renamed[name] = value
    old = changed(tmp_path / "new.zip", tmp_path / "old.zip", renamed)
    observations = torch.from_numpy(observe(VECTORS))
    with torch.no_grad():
        first, second = (rebuild_scores(read_agent(p))(observations) for p in (tmp_path / "new.zip", old))
    assert torch.equal(first, second)


def test_tensors_of_a_gpu_are_read_where_there_is_none(tmp_path):
    make_model("DQN", VECTORS).save(tmp_path / "cpu.zip")
    members = members_of(tmp_path / "cpu.zip")
    with zipfile.ZipFile(io.BytesIO(members["policy.pth"])) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    records["archive/data.pkl"] = records["archive/data.pkl"].replace(b"X\3\0\0\0cpu", b"X\6\0\0\0cuda:0")
    assert b"cuda:0" in records["archive/data.pkl"]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    with zipfile.ZipFile(tmp_path / "gpu.zip", "w") as archive:
        for name, content in (members | {"policy.pth": buffer.getvalue()}).items():
            archive.writestr(name, content)
    gpu, cpu = read_agent(tmp_path / "gpu.zip").weights, read_agent(tmp_path / "cpu.zip").weights
    assert all(value.device.type == "cpu" and torch.equal(value, cpu[name]) for name, value in gpu.items())


ZOO_AGENTS = ["dqn-CartPole-v1.zip", "qrdqn-CartPole-v1.zip", "ppo-CartPole-v1.zip"]


@pytest.fixture(params=ZOO_AGENTS)
def zoo_agent(request, root) -> Path:
    path: Path = root.parent / "shared" / "data" / "teachers" / request.param
    if not path.is_file():
        pytest.skip("needs the folder shared beside the clone")
    return path


def play_cart_pole(score: Any, games: int = 2) -> float:
    """Mean score of greedy play; 500 is the most."""
    env, total = gym.make("CartPole-v1"), 0.0
    for seed in range(games):
        observation, _ = env.reset(seed=seed)
        over = False
        while not over:
            action = int(score(torch.from_numpy(observation)[None]).argmax())
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
    return total / games


def test_zoo_agents_of_2021_that_stock_load_cannot_open_play_perfectly(zoo_agent):
    with pytest.raises(Exception, match=r"gym|sb3_contrib|Ran out of input|CUDA"):
        DQN.load(zoo_agent, device="cpu")
    assert play_cart_pole(as_teacher(zoo_agent)) == 500.0


def test_an_actor_of_atari_in_a_plain_table_scores_as_its_layers_say(root):
    path = root.parent / "shared" / "data" / "teachers" / "acktr-PongNoFrameskip-v4.pt"
    if not path.is_file():
        pytest.skip("needs the folder shared beside the clone")
    teacher, frames = as_teacher(f"acktr:{path}"), torch.from_numpy(observe(ATARI, 4))
    weights = torch.load(path, weights_only=True)
    x = frames.float() / 255.0
    for name, stride in (("conv1", 4), ("conv2", 2), ("conv3", 1)):
        x = nn.functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride).relu()
    x = (x.flatten(1) @ weights["fc.weight"].T + weights["fc.bias"]).relu()
    expected = x @ weights["actor.weight"].T + weights["actor.bias"]
    torch.testing.assert_close(teacher(frames), expected, rtol=1e-4, atol=1e-4)
    assert teacher.kind == "logits"
    assert teacher.size == ((32, 64, 32), 512)


# ------------------------------------------------------------------ as a DQN of today


@pytest.mark.parametrize(("algorithm", "space", "kwargs"), [case for case in CASES if case[0] != "DQN"])
def test_any_agent_becomes_a_dqn_that_stock_load_opens_and_that_acts_the_same(algorithm, space, kwargs, tmp_path):
    model = make_model(algorithm, space, **kwargs)
    model.save(tmp_path / "a.zip")
    agent = read_agent(tmp_path / "a.zip")
    network = rebuild_scores(agent)
    plain = network.averaged() if isinstance(network, QuantileNetwork) else network
    write_dqn_zip(tmp_path / "b.zip", plain, score_kind=agent.score_kind, steps=3)
    stock, observations = DQN.load(tmp_path / "b.zip", device="cpu"), observe(space)
    with torch.no_grad():
        scores = stock.q_net(torch.from_numpy(observations))
    torch.testing.assert_close(scores, own_scores(model, torch.from_numpy(observations)), rtol=1e-4, atol=1e-4)
    assert (
        stock.predict(observations, deterministic=True)[0] == model.predict(observations, deterministic=True)[0]
    ).all()
    assert (stock.num_timesteps, stock.polydistill) == (3, {"scores": agent.score_kind})
    assert as_teacher(tmp_path / "b.zip").kind == agent.score_kind


# ------------------------------------------------------------------ the bounds of observations

ODD = np.array([[0.1, -2.5, 1e-7], [3e5, -np.inf, 0.0]])
BOUNDED = [
    spaces.Box(-1, 1, (2, 3), np.float32),
    spaces.Box(ODD.astype(np.float32), np.full((2, 3), np.inf, np.float32), dtype=np.float32),
    spaces.Box(ODD, ODD + np.float64(0.7), dtype=np.float64),
    spaces.Box(-7, 2**40, (5,), np.int64),
    spaces.Box(np.int16([-3, 0]), np.int16([4, 9]), dtype=np.int16),
    spaces.Box(3, 250, (8,), np.uint8),
    spaces.Box(-2, 2, (1, 1500), np.float32),  # longer than what NumPy prints
    spaces.Box(-4, 4, (2, 5, 5), np.float32),
]


@pytest.mark.parametrize("space", BOUNDED, ids=lambda space: f"{space.dtype}{space.shape}")
@pytest.mark.parametrize("algorithm", ["DQN", "PPO"])
def test_a_converted_agent_has_the_bounds_of_its_environment_and_works_with_it(algorithm, space, tmp_path):
    make_model(algorithm, space, "MlpPolicy", net_arch=[4]).save(tmp_path / "a.zip")
    lines = convert_agent(tmp_path / "a.zip", tmp_path / "b")
    assert len(lines) == 1
    stock = DQN.load(tmp_path / "b", env=Room(space), device="cpu")  # it compares the spaces
    assert stock.observation_space == space
    stock.set_env(Room(space))
    np.testing.assert_array_equal(stock.observation_space.low, space.low)


@pytest.mark.parametrize(
    "space", [space for space in BOUNDED if space.shape != (1, 1500)], ids=lambda space: str(space.dtype)
)
def test_where_the_pickle_is_damaged_the_text_beside_it_tells_the_bounds(space, tmp_path):
    make_model("DQN", space, "MlpPolicy", net_arch=[4]).save(tmp_path / "whole.zip")
    given = json.loads(members_of(tmp_path / "whole.zip")["data"])["observation_space"]
    changed(tmp_path / "whole.zip", tmp_path / "a.zip", observation_space=given | {":serialized:": "no base64"})
    assert len(convert_agent(tmp_path / "a.zip", tmp_path / "b.zip")) == 1
    assert DQN.load(tmp_path / "b.zip", env=Room(space), device="cpu").observation_space == space


def test_bounds_of_the_largest_float_are_those_that_environments_write_today_as_infinite(tmp_path):
    most = np.finfo(np.float32).max
    space = spaces.Box(np.float32([-4.8, -most]), np.float32([4.8, most]))
    make_model("DQN", space, net_arch=[4]).save(tmp_path / "a.zip")
    convert_agent(tmp_path / "a.zip", tmp_path / "b.zip")
    expected = spaces.Box(np.float32([-4.8, -np.inf]), np.float32([4.8, np.inf]))
    assert DQN.load(tmp_path / "b.zip", device="cpu").observation_space == expected


@pytest.mark.parametrize(
    "text", ["[0. 1. ... 1. 1.]", "[0. 0.]", "[a b c d]", "[nan nan nan nan]", "", 3, None, "[5 5 5 5]"]
)
def test_bounds_that_are_not_told_come_from_an_environment_by_name(tmp_path, text):
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu").save(tmp_path / "whole.zip")
    given = json.loads(members_of(tmp_path / "whole.zip")["data"])["observation_space"]
    broken = given | {"low": text, ":serialized:": "gAR9lC4="}  # an empty table
    changed(tmp_path / "whole.zip", tmp_path / "a.zip", observation_space=broken)
    lines = convert_agent(tmp_path / "a.zip", tmp_path / "b.zip")
    assert "--env ID writes those of the gymnasium environment ID" in lines[1]
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        DQN.load(tmp_path / "b.zip", env=gym.make("CartPole-v1"), device="cpu")
    lines = convert_agent(tmp_path / "a.zip", tmp_path / "b.zip", "CartPole-v1")
    assert len(lines) == 1
    DQN.load(tmp_path / "b.zip", env=gym.make("CartPole-v1"), device="cpu")


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("CartPool-v1", "--env CartPool-v1: unknown environment 'CartPool-v1'; did you mean CartPole-v1"),
        ("MountainCar-v0", "the agent sees (4,) float32, the environment shows (2,) float32"),
        ("FrozenLake-v1", "--env FrozenLake-v1: "),
        ("Pendulum-v1", "--env Pendulum-v1: the actions of Pendulum-v1 are Box(1,) float32"),
        ("no.such.module:Env-v0", "--env no.such.module:Env-v0: "),
    ],
)
def test_an_environment_of_another_kind_is_one_line(tmp_path, env_id, message):
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu").save(tmp_path / "a.zip")
    with pytest.raises(UserError) as error:
        convert_agent(tmp_path / "a.zip", tmp_path / "b.zip", env_id)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "b.zip").exists()


# ------------------------------------------------------------------ refused


def scores_of(path: Path) -> Any:
    return rebuild_scores(read_agent(path))


@pytest.fixture(scope="module")
def quantiles(tmp_path_factory) -> Path:
    """A QR-DQN of two quantiles and three actions, without sb3-contrib."""
    folder = tmp_path_factory.mktemp("quantiles")
    make_model("DQN", VECTORS, net_arch=[4]).save(folder / "dqn.zip")
    weights = {name.replace("q_net", "quantile_net"): value for name, value in weights_of(folder / "dqn.zip").items()}
    for name in [name for name in weights if "quantile_net.2." in name]:
        weights[name] = torch.cat([weights[name], weights[name] + 1.0])
    policy = {":type:": "<class 'abc.ABCMeta'>", "__module__": "sb3_contrib.qrdqn.policies"}
    return changed(folder / "dqn.zip", folder / "qrdqn.zip", weights, policy_class=policy, n_quantiles=2)


def test_quantiles_are_averaged_for_each_action(quantiles):
    network = rebuild_scores(read_agent(quantiles))
    single = rebuild_scores(read_agent(quantiles.with_name("dqn.zip")))
    observations = torch.from_numpy(observe(VECTORS))
    with torch.no_grad():  # the second quantile's weights and biases are those of the first, plus 1
        hidden = nn.functional.relu(single.q_net[0](observations.flatten(1)))
        expected = single(observations) + 0.5 * (hidden.sum(dim=1, keepdim=True) + 1.0)
        torch.testing.assert_close(network(observations), expected)
        torch.testing.assert_close(network.averaged()(observations), expected)
    assert as_teacher(quantiles).kind == "q_values"


@pytest.mark.parametrize("count", [1, 3, 0, -2, 2.0, "2.0", None, True, "²", 10**9])
def test_quantiles_that_are_not_those_of_the_outputs_are_refused(quantiles, tmp_path, count):
    bad = tmp_path / "bad.zip"
    if count is None:
        assert "3 actions and 200 quantiles" in refusal(scores_of, changed(quantiles, bad, n_quantiles=None))
        return
    assert "quantiles" in refusal(scores_of, changed(quantiles, bad, n_quantiles=count))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("policy_class", {"__module__": "__main__"}, "its class is of '__main__'"),
        ("policy_class", {"__module__": "sb3_contrib.qrdqn.policies"}, "do not form a QR-DQN"),
        ("policy_class", {"__module__": "stable_baselines3.common.policies"}, "is no part of it"),
        ("policy_class", None, "only policies of DQN"),
        ("policy_class", ["DQN"], "only policies of DQN"),
        ("action_space", {":type:": "<class 'gymnasium.spaces.box.Box'>"}, "discrete actions"),
        ("action_space", {":type:": "<class 'gymnasium.spaces.discrete.Discrete'>", "n": 4}, "3 outputs"),
        ("action_space", {":type:": "<class 'gymnasium.spaces.discrete.Discrete'>", "n": "-3"}, "no count"),
        ("observation_space", {":type:": "<class 'gymnasium.spaces.dict.Dict'>"}, "(Dict) is not described"),
        ("observation_space", {":type:": "<class 'gymnasium.spaces.box.Box'>", "_shape": [7], "dtype": "float32"}, "7"),
        (
            "observation_space",
            {":type:": "<class 'gymnasium.spaces.box.Box'>", "_shape": [-6], "dtype": "int8"},
            "shape",
        ),
        *(
            (
                "observation_space",
                {":type:": "<class 'gymnasium.spaces.box.Box'>", "_shape": sizes, "dtype": "int8"},
                "larger",
            )
            for sizes in ([10**9], [10**309], [10**4000] * 3)  # more than a float, and than a line, holds
        ),
        (
            "observation_space",
            {":type:": "<class 'gymnasium.spaces.box.Box'>", "_shape": [6], "dtype": "O"},
            "type 'O'",
        ),
    ],
)
def test_what_data_says_otherwise_than_the_tensors_is_refused(tmp_path, field, value, message):
    make_model("DQN", VECTORS, net_arch=[4]).save(tmp_path / "a.zip")
    assert message in refusal(scores_of, changed(tmp_path / "a.zip", tmp_path / "bad.zip", **{field: value}))


def test_frames_of_which_nothing_tells_whether_they_are_pixels_are_refused(tmp_path):
    make_model("DQN", FRAMES, **NARROW).save(tmp_path / "a.zip")
    space = json.loads(members_of(tmp_path / "a.zip")["data"])["observation_space"] | {":serialized:": ""}
    good = changed(tmp_path / "a.zip", tmp_path / "good.zip", observation_space=space)
    assert scores_of(good).observation_space == FRAMES
    bad = changed(tmp_path / "a.zip", tmp_path / "bad.zip", observation_space=space | {"high": "[[[1 1 ... 1]]]"})
    assert "it is not told whether its frames are pixels" in refusal(scores_of, bad)
    tall = changed(tmp_path / "a.zip", tmp_path / "bad.zip", observation_space=space | {"_shape": [2, 36, 44]})
    assert "its frames are not 2 x 36 x 44" in refusal(scores_of, tall)


def test_agents_of_continuous_actions_are_refused(tmp_path):
    room = Room(VECTORS)
    room.action_space = spaces.Box(-1, 1, (2,))  # type: ignore[assignment]
    PPO("MlpPolicy", room, n_steps=8, batch_size=8, device="cpu").save(tmp_path / "a.zip")
    assert "discrete actions" in refusal(scores_of, tmp_path / "a.zip")


def test_a_student_is_not_continued_from_another_form(tmp_path):
    make_model("DQN", VECTORS).save(tmp_path / "a.zip")
    with pytest.raises(UserError, match="no Nature-CNN"):
        rebuild_network(read_agent(tmp_path / "a.zip"))


def test_an_online_and_a_target_network_of_other_shapes_are_refused(tmp_path):
    make_model("DQN", VECTORS, net_arch=[4]).save(tmp_path / "a.zip")
    weights = weights_of(tmp_path / "a.zip") | {"q_net_target.q_net.0.bias": torch.zeros(9)}
    assert "differ in shape" in refusal(scores_of, changed(tmp_path / "a.zip", tmp_path / "bad.zip", weights))
    lone = {name: value for name, value in weights.items() if not name.startswith("q_net_target.")}
    good = changed(tmp_path / "a.zip", tmp_path / "good.zip", lone)
    rebuild_scores(read_agent(good))
