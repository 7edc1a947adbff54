"""Agents of every space of observations that Stable-Baselines3 knows: read, written, and scored as by its own model."""

from __future__ import annotations

import base64
import io
import json
import pickle
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.dqn.policies import QNetwork
from torch import nn

from polydistill.errors import UserError
from polydistill.provenance import weights_sha256
from polydistill_agents.files.inspection import convert_agent, inspect_agent
from polydistill_agents.files.sb3_spaces import describe_space
from polydistill_agents.files.sb3_zip import read_agent, rebuild_scores, write_dqn_zip
from polydistill_agents.networks.observations import each, take, to_tensors
from polydistill_agents.networks.quantiles import QuantileNetwork
from polydistill_agents.teachers import as_teacher
from tests.agents.samples import members_of, refusal
from tests.fuzz.seeds import described

sb3_contrib = pytest.importorskip("sb3_contrib")

pytestmark = pytest.mark.filterwarnings("ignore:Provided features_extractor will be ignored:UserWarning")

VECTOR = spaces.Box(-1, 1, (3,), np.float32)
COLOURS = spaces.Box(0, 255, (3, 40, 36), np.uint8)
TABLE = spaces.Dict(
    OrderedDict(  # an order that is not the alphabet's: the features stand side by side in it
        where=spaces.Box(-2, 2, (2, 2), np.float64),
        camera=COLOURS,
        key=spaces.Discrete(5),
        buttons=spaces.MultiBinary(3),
        gears=spaces.MultiDiscrete([3, 4]),
    )
)
SMALL = spaces.Dict(goal=VECTOR, room=spaces.Discrete(4))
FLOATS = spaces.Dict(camera=spaces.Box(0, 1, (2, 36, 36), np.float32), speed=VECTOR)
NARROW = {"features_extractor_kwargs": {"cnn_output_dim": 8}}
SPACES = {
    "Discrete": (spaces.Discrete(6), "MlpPolicy", {}),
    "MultiDiscrete": (spaces.MultiDiscrete([3, 2, 5]), "MlpPolicy", {"activation_fn": nn.Tanh}),
    "MultiBinary": (spaces.MultiBinary(7), "MlpPolicy", {"net_arch": [5]}),
    "MultiBinary of rows": (spaces.MultiBinary([2, 3]), "MlpPolicy", {}),
    "colours": (COLOURS, "CnnPolicy", {"features_extractor_kwargs": {"features_dim": 8}, "net_arch": [6]}),
    "grey": (
        spaces.Box(0, 255, (1, 64, 48), np.uint8),
        "CnnPolicy",
        {"features_extractor_kwargs": {"features_dim": 8}},
    ),
    "small image": (spaces.Box(0, 255, (3, 7, 7), np.uint8), "MlpPolicy", {}),
    "bytes that are no pixels": (spaces.Box(0, 10, (7, 7, 3), np.uint8), "MlpPolicy", {}),
    "scaled image": (
        spaces.Box(0, 1, (2, 36, 36), np.float32),
        "CnnPolicy",
        {"normalize_images": False, "features_extractor_kwargs": {"features_dim": 8, "normalized_image": True}},
    ),
    "four axes": (spaces.Box(-1, 1, (2, 2, 2, 3), np.float32), "MlpPolicy", {}),
    "long rows": (spaces.Box(-1, 1, (600, 2, 2), np.float32), "MlpPolicy", {"net_arch": [4]}),
    "float64": (spaces.Box(-3, 3, (4,), np.float64), "MlpPolicy", {}),
    "table": (TABLE, "MultiInputPolicy", {**NARROW, "net_arch": [9]}),
    "table without images": (SMALL, "MultiInputPolicy", {"activation_fn": nn.ELU}),
    "table of scaled images": (
        FLOATS,
        "MultiInputPolicy",
        {"features_extractor_kwargs": {"cnn_output_dim": 8, "normalized_image": True}, "normalize_images": False},
    ),
}
ALGORITHMS = ("DQN", "QRDQN", "PPO", "A2C", "TRPO", "MaskablePPO")


class Room(gym.Env[Any, Any]):
    """Observations drawn from a space; three actions."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}

    def action_masks(self) -> np.ndarray:
        return np.ones(3, bool)


def make_model(algorithm: str, space: spaces.Space[Any], policy: str, **kwargs: Any) -> Any:
    """A fresh model, whose weights make it act differently from state to state."""
    own: dict[str, Any] = {"n_steps": 8} | ({"batch_size": 8} if "PPO" in algorithm or algorithm == "TRPO" else {})
    if "DQN" in algorithm:
        own = {"buffer_size": 50, "learning_starts": 2, "batch_size": 4}
    kind = {"DQN": DQN, "PPO": PPO, "A2C": A2C}.get(algorithm) or getattr(sb3_contrib, algorithm)
    if algorithm == "QRDQN":
        kwargs = kwargs | {"n_quantiles": 3}
    model = kind(policy, Room(space), policy_kwargs=kwargs, device="cpu", seed=0, **own)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.policy.named_parameters():
            inputs = parameter[0].numel() if name.endswith("weight") else 100
            parameter.normal_(generator=generator).mul_(2.0 * inputs**-0.5)
    return model


def observe(space: spaces.Space[Any], count: int = 12) -> Any:
    """Random observations as a VecEnv gives them."""
    space.seed(1)
    rows = [space.sample() for _ in range(count)]
    if isinstance(space, spaces.Dict):
        return {name: np.stack([np.asarray(row[name]) for row in rows]) for name in space}
    return np.stack([np.asarray(row) for row in rows])


def own_scores(model: Any, observations: Any) -> torch.Tensor:
    """As the model's own classes compute them."""
    policy, seen = model.policy, to_tensors(observations, "cpu")
    with torch.no_grad():
        if hasattr(policy, "quantile_net"):
            return policy.quantile_net(seen).mean(dim=1)
        if hasattr(policy, "q_net"):
            return policy.q_net(seen)
        features = BaseModel.extract_features(policy, seen, policy.pi_features_extractor)
        return policy.action_net(policy.mlp_extractor.forward_actor(features))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", SPACES)
def test_a_zip_and_its_model_score_as_the_models_own_classes(algorithm, name, tmp_path):
    space, policy, kwargs = SPACES[name]
    model, observations = make_model(algorithm, space, policy, **kwargs), observe(space)
    model.save(tmp_path / "a.zip")
    expected, seen = own_scores(model, observations), to_tensors(observations, "cpu")
    first, second = as_teacher(tmp_path / "a.zip"), as_teacher(model)
    for teacher in (first, second):
        with torch.no_grad():
            torch.testing.assert_close(teacher.network(seen), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(teacher(seen), expected, rtol=1e-5, atol=1e-5)  # pixels by compute_scores
        assert teacher.kind == ("q_values" if "DQN" in algorithm else "logits")
        assert teacher.masks == (algorithm == "MaskablePPO")
        teacher.check_fits(space, spaces.Discrete(3))
    assert weights_sha256(first.network.state_dict()) == weights_sha256(second.network.state_dict())
    assert (first(seen).argmax(dim=1).numpy() == model.predict(observations, deterministic=True)[0]).all()
    assert expected.std(dim=0).min() > 1e-3, "it looks at what it sees"
    assert describe_space(described(space), "a.zip") == (space, True)


WRITTEN = [("DQN", name) for name in SPACES] + [("QRDQN", "table"), ("PPO", "Discrete"), ("PPO", "table")]


@pytest.mark.parametrize(("algorithm", "name"), WRITTEN)
def test_what_is_read_is_written_as_a_dqn_that_stock_load_plays_and_goes_on_with(algorithm, name, tmp_path):
    space, policy, kwargs = SPACES[name]
    model, observations = make_model(algorithm, space, policy, **kwargs), observe(space)
    model.save(tmp_path / "a.zip")
    network = rebuild_scores(read_agent(tmp_path / "a.zip"))
    plain = network.averaged() if isinstance(network, QuantileNetwork) else network
    assert type(plain) is QNetwork
    write_dqn_zip(tmp_path / "b.zip", plain)
    stock = DQN.load(tmp_path / "b.zip", env=Room(space), device="cpu", buffer_size=50, learning_starts=2)
    assert stock.observation_space == space
    if isinstance(space, spaces.Dict):
        assert list(stock.observation_space) == list(space)
    with torch.no_grad():
        scores = stock.q_net(to_tensors(observations, "cpu"))
    torch.testing.assert_close(scores, own_scores(model, observations), rtol=1e-5, atol=1e-5)
    played, _ = stock.predict(take(observations, slice(0, 4)), deterministic=True)
    assert (played == model.predict(take(observations, slice(0, 4)), deterministic=True)[0]).all()
    stock.learn(12)
    assert stock._n_updates > 0
    assert stock.policy_class.__name__ == {"MlpPolicy": "DQNPolicy"}.get(policy, policy)


def test_images_of_channels_last_are_stored_channels_first(tmp_path):
    last = spaces.Dict(camera=spaces.Box(0, 255, (40, 36, 3), np.uint8), speed=VECTOR)
    model = make_model("DQN", last, "MultiInputPolicy", **NARROW)
    model.save(tmp_path / "a.zip")
    teacher = as_teacher(tmp_path / "a.zip")
    assert teacher.observation_space["camera"].shape == (3, 40, 36)
    observations = observe(last)
    seen = observations | {"camera": observations["camera"].transpose(0, 3, 1, 2)}
    scores = teacher(to_tensors(seen, "cpu"))
    assert (scores.argmax(dim=1).numpy() == model.predict(observations, deterministic=True)[0]).all()
    line = refusal(lambda space: teacher.check_fits(space, spaces.Discrete(3)), last)
    assert "(40, 36, 3)" in line
    assert convert_agent(tmp_path / "a.zip", tmp_path / "b.zip")
    DQN.load(tmp_path / "b.zip", env=Room(last), device="cpu")


@pytest.mark.parametrize("name", ["Discrete", "table", "colours"])
def test_the_inspection_tells_what_a_network_sees(name, tmp_path):
    space, policy, kwargs = SPACES[name]
    make_model("PPO", space, policy, **kwargs).save(tmp_path / "a.zip")
    told = dict(inspect_agent(str(tmp_path / "a.zip")))
    assert told["network"].startswith({
        "Discrete": "vectors of 6 > 64 > 64 > 3 actions (Tanh); ",
        "table": "where: values, camera: Nature-CNN 32-64-64, 8, key: values, buttons: values, gears: values "
        "(27 in all) > 9 > 3 actions (Tanh); ",
        "colours": "Nature-CNN 32-64-64, 8 > 6 > 3 actions (Tanh); ",
    }[name])  # fmt: skip
    assert told["observation space"].startswith({
        "Discrete": "gymnasium.spaces.discrete.Discrete, n 6", "table": "gymnasium.spaces.dict.Dict, spaces {'where': ",
        "colours": "gymnasium.spaces.box.Box, shape [3, 40, 36], dtype uint8",
    }[name])  # fmt: skip


# ------------------------------------------------------------------ gym, before gymnasium


class OldSpace:
    """What a space of gym 0.21 is to pickle: a class of that name, and its attributes."""

    def __init__(self, module: str, name: str, **attributes: Any) -> None:
        self.module, self.name, self.attributes = module, name, attributes


def old(space: spaces.Space[Any]) -> OldSpace:
    """As gym 0.21 kept it: no start, a Python number n, tables in an OrderedDict, generators of NumPy."""
    kind, common = type(space).__name__, {"_np_random": None}
    module = {"MultiDiscrete": "multi_discrete", "MultiBinary": "multi_binary"}.get(kind, kind.lower())
    if isinstance(space, spaces.Dict):
        parts = OrderedDict((name, old(part)) for name, part in space.items())
        return OldSpace(f"gym.spaces.{module}", kind, spaces=parts, _shape=None, dtype=None, **common)
    own: dict[str, Any] = {"_shape": space.shape, "dtype": space.dtype}
    if isinstance(space, spaces.Box):
        own |= {"low": space.low, "high": space.high, "bounded_below": np.isfinite(space.low)}
    elif isinstance(space, spaces.MultiDiscrete):
        own |= {"nvec": space.nvec}
    else:
        own |= {"n": int(space.n) if isinstance(space, spaces.Discrete) else space.n}
    return OldSpace(f"gym.spaces.{module}", kind, **own, **common)


def by_hand(thing: Any) -> bytes:
    """A pickle of classes that are not installed: class, no arguments, state, build."""

    def body(value: Any) -> bytes:
        if isinstance(value, OldSpace):
            name = b"c" + f"{value.module}\n{value.name}\n".encode()
            return name + b")\x81" + body(value.attributes) + b"b"
        if isinstance(value, OrderedDict):
            return b"ccollections\nOrderedDict\n)R" + items(value)
        if isinstance(value, dict):
            return b"}" + items(value)
        return pickle.dumps(value, 3)[2:-1]  # one after the other, each with a memo of its own

    def items(table: dict[str, Any]) -> bytes:
        return b"(" + b"".join(body(key) + body(value) for key, value in table.items()) + b"u"

    return b"\x80\x03" + body(thing) + b"."


def test_a_shape_of_numpys_numbers_is_a_shape():
    """As in ``Box(-1, 1, (np.prod(other.shape),))`` with gym."""
    thing = OldSpace("gym.spaces.box", "Box", _shape=(np.int64(3),), low=VECTOR.low, high=VECTOR.high, dtype=None)
    given = {":type:": "<class 'gym.spaces.box.Box'>", "_shape": "(3,)"}
    found = describe_space(given | {":serialized:": base64.b64encode(by_hand(thing)).decode()}, "old.zip")
    assert found == (VECTOR, True)


@pytest.mark.parametrize("space", [TABLE, SMALL, spaces.Discrete(6), spaces.MultiDiscrete([3, 9]), COLOURS, VECTOR,
                                   spaces.MultiBinary(4)], ids=str)  # fmt: skip
def test_spaces_of_gym_are_read_where_gym_is_not_installed(space):
    thing = old(space)
    content = by_hand(thing)
    text = {name: value if type(value) in (int, list) else str(value) for name, value in thing.attributes.items()}
    given = {":type:": f"<class '{thing.module}.{thing.name}'>", ":serialized:": base64.b64encode(content).decode()}
    found, told = describe_space(given | text | {"_shape": list(space.shape or ())}, "old.zip")
    assert told
    assert found == space
    if isinstance(space, spaces.Dict):
        assert list(found) == list(space)


# ------------------------------------------------------------------ refused


def told_of(space: spaces.Space[Any], **changed: Any) -> Any:
    return described(space) | changed


def describe_line(given: Any) -> str:
    return refusal(lambda one: describe_space(one, "a.zip"), given)


def test_where_the_pickle_is_damaged_the_text_tells_all_but_a_table():
    damaged = {":serialized:": "no base64"}
    for space in (spaces.Discrete(6), spaces.MultiDiscrete([3, 9]), spaces.MultiBinary(4), COLOURS):
        assert describe_space(told_of(space, **damaged), "a.zip") == (space, True)
    assert "its table of observations (Dict) is not described" in describe_line(told_of(SMALL, **damaged))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Tuple([VECTOR, VECTOR]), "observations of kind 'gymnasium.spaces.tuple.Tuple' are not read"),
        (spaces.Dict(a=spaces.Dict(b=VECTOR)), "a.zip: 'a': observations of kind 'gymnasium.spaces.dict.Dict'"),
        (spaces.Text(5), "observations of kind"),
        (spaces.Discrete(4, start=2), "counted from another number than 0"),
        (spaces.Dict(a=spaces.Discrete(4, start=-1)), "a.zip: 'a': observations that are counted from another"),
        (spaces.Discrete(2**30), "1073741824 values are not read"),
        (spaces.MultiDiscrete([[2, 3], [4, 5]]), "observations of 0 values are not read"),
        (spaces.Dict(), "is not described"),
        (spaces.Dict({3: VECTOR}), "is not described"),
        (spaces.Box(-1, 1, (), np.float32), "observations of shape '()' are not read"),
    ],
    ids=str,
)
def test_spaces_that_no_network_sees_are_one_line(space, message):
    assert message in describe_line(described(space))


def test_one_large_part_that_stands_in_a_table_many_times_is_refused_before_it_takes_memory():
    large = spaces.Box(-1, 1, (2**18,), np.float32)
    given = described(spaces.Dict({str(number): large for number in range(200)}))
    assert len(given[":serialized:"]) < 2**22, "it stands there once"
    assert "its table of observations (Dict) is larger than what is read" in describe_line(given)


@pytest.mark.parametrize(
    ("kind", "name", "within"),
    [("box.Box", "_shape", b""), ("discrete.Discrete", "start", b""), ("discrete.Discrete", "start", b"0}Nh\x00s")],
)
def test_a_row_that_holds_another_twice_and_so_on_never_becomes_text(kind, name, within):
    """Of sixty such pairs the text would fill any memory; of these twenty it is 8 MB."""
    key = b"X" + len(name).to_bytes(4, "little") + name.encode()
    pairs = b")\x85q\x00" + b"h\x00\x86q\x00" * 20 + within
    name_of_it = f"cgymnasium.spaces.{kind}\n".replace(".Box", "\nBox").replace(".Discrete", "\nDiscrete").encode()
    content = b"\x80\x02" + name_of_it + b")\x81}" + b"X\x01\x00\x00\x00nK\x03s" + key + pairs + b"sb."
    given = {":type:": f"<class 'gymnasium.spaces.{kind}'>", ":serialized:": base64.b64encode(content).decode()}
    tracemalloc.start()
    try:
        assert "are not read" in describe_line(given)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def changed(source: Path, target: Path, weights: Any = None, **fields: Any) -> Path:
    """``source`` with other fields or weights."""
    members = members_of(source)
    members["data"] = json.dumps(json.loads(members["data"]) | fields).encode()
    if weights is not None:
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        members["policy.pth"] = buffer.getvalue()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (spaces.Dict(goal=VECTOR, room=spaces.Discrete(7)), "give 10 features, the first linear layer has 7 inputs"),
        (VECTOR, "observations (3,) float32 give 3 features, the first linear layer has 7 inputs"),
        (spaces.Dict(goal=VECTOR), "observations {goal: (3,) float32} give 3 features"),
    ],
)
def test_weights_of_another_space_are_one_line(tmp_path, other, message):
    make_model("DQN", SMALL, "MultiInputPolicy").save(tmp_path / "a.zip")
    bad = changed(tmp_path / "a.zip", tmp_path / "bad.zip", observation_space=described(other))
    assert message in refusal(as_teacher, bad)


def test_cameras_that_are_not_of_their_space_are_one_line(tmp_path):
    both = spaces.Dict(left=COLOURS, right=COLOURS)
    make_model("DQN", both, "MultiInputPolicy", **NARROW).save(tmp_path / "a.zip")
    weights = dict(torch.load(io.BytesIO(members_of(tmp_path / "a.zip")["policy.pth"]), weights_only=True))
    widened = each(lambda value: value, weights)
    for net in ("q_net", "q_net_target"):
        name = f"{net}.features_extractor.extractors.right.linear.0.weight"
        widened[name] = torch.cat([weights[name]] * 2)
    line = refusal(as_teacher, changed(tmp_path / "a.zip", tmp_path / "wide.zip", widened))
    assert "Nature-CNNs are of several widths [8, 16]" in line
    vectors = described(spaces.Dict(left=COLOURS, right=VECTOR))
    line = refusal(as_teacher, changed(tmp_path / "a.zip", tmp_path / "flat.zip", observation_space=vectors))
    assert "right: observations (3,) float32 are no frames for convolutions" in line


def test_an_extractor_of_ones_own_is_named(tmp_path):
    make_model("PPO", SMALL, "MultiInputPolicy", activation_fn=nn.ReLU).save(tmp_path / "a.zip")
    kwargs = {":type:": "<class 'dict'>", "features_extractor_class": "<class '__main__.Mine'>"}
    bad = changed(tmp_path / "a.zip", tmp_path / "bad.zip", policy_kwargs=kwargs)
    with pytest.raises(UserError, match=r"only Stable-Baselines3's own extractors are read, it has .*Mine"):
        as_teacher(bad)
