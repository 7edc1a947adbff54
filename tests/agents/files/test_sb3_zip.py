"""Zips of Stable-Baselines3: nothing in them is executed, and ours are opened by stock ``DQN.load``."""

from __future__ import annotations

import base64
import io
import json
import pickle
import random
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.dqn.policies import QNetwork

from polydistill.errors import UserError
from polydistill.provenance import weights_sha256
from polydistill_agents.files.sb3_zip import how_to_go_on, read_agent, rebuild_network, write_dqn_zip
from polydistill_agents.networks.nature import SIZES, Size, compute_scores
from tests.agents.samples import make_frames, make_network, members_of, refusal


@pytest.fixture(scope="module")
def small_zip(tmp_path_factory) -> Path:
    """A zip of 1.3 MB: net3."""
    path = tmp_path_factory.mktemp("zips") / "net3.zip"
    write_dqn_zip(path, make_network(size=SIZES["net3"]), score_kind="logits", steps=1000)
    return path


def rewritten(source: Path, target: Path, compression: int = zipfile.ZIP_STORED, **changed: bytes | None) -> Path:
    """``source`` with members changed or (None) left out; ``policy_pth`` stands for ``policy.pth``."""
    members = members_of(source) | {name.replace("_pth", ".pth"): value for name, value in changed.items()}
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, value in members.items():
            if value is not None:
                archive.writestr(name, value)
    return target


def with_weights(source: Path, target: Path, change) -> Path:
    weights = torch.load(io.BytesIO(members_of(source)["policy.pth"]), weights_only=True)
    buffer = io.BytesIO()
    torch.save(change(dict(weights)), buffer)
    return rewritten(source, target, policy_pth=buffer.getvalue())


def with_data(source: Path, target: Path, **changed) -> Path:
    data = json.loads(members_of(source)["data"]) | changed
    return rewritten(source, target, data=json.dumps(data).encode())


def open_network(path: Path):
    return rebuild_network(read_agent(path))


def refused(path: Path) -> str:
    """The one line with which the file is refused."""
    line = refusal(open_network, path)
    assert str(path) in line
    return line


def network_or_line(path: Path) -> QNetwork | str:
    try:
        return open_network(path)
    except UserError as error:
        return str(error)


class Marker:
    """A harmless proof of concept: whoever unpickles it creates an empty file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


# ------------------------------------------------------------------ reading


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_payload_in_data_is_not_executed_where_stock_load_executes_it(small_zip, tmp_path):
    marker = tmp_path / "executed"
    payload = {":type:": "<class 'dict'>", ":serialized:": base64.b64encode(pickle.dumps(Marker(marker))).decode()}
    bad = with_data(small_zip, tmp_path / "bad.zip", lr_schedule=payload, payload=payload)
    open_network(bad)
    assert not marker.exists()
    DQN.load(bad, device="cpu")
    assert marker.exists(), "the proof of concept works: stock Stable-Baselines3 executed it"


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("as_torch_zip", [True, False])
def test_a_payload_in_the_weights_is_refused_and_not_executed(small_zip, tmp_path, as_torch_zip):
    marker = tmp_path / "executed"
    buffer = io.BytesIO()
    torch.save({"q_net.q_net.0.weight": Marker(marker)}, buffer, _use_new_zipfile_serialization=as_torch_zip)
    bad = rewritten(small_zip, tmp_path / "bad.zip", policy_pth=buffer.getvalue())
    line = refused(bad)
    assert ("something else than tensors: it would import" if as_torch_zip else "no file of torch.save") in line
    assert "weights_only" not in line, "torch's advice would be to open it all the same"
    assert not marker.exists()
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert marker.exists(), "the proof of concept works"


def test_reading_and_writing_use_no_global_generator(small_zip, tmp_path):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    random_state = random.getstate()
    write_dqn_zip(tmp_path / "again.zip", open_network(small_zip))
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert random.getstate() == random_state


def test_a_missing_file_a_folder_and_another_file_are_one_line(tmp_path):
    assert "no such file" in refused(tmp_path / "none.zip")
    assert "folder" in refused(tmp_path)
    text = tmp_path / "text.zip"
    text.write_text("no zip")
    assert "no Stable-Baselines3 zip" in refused(text)
    empty = tmp_path / "empty.zip"
    empty.write_bytes(b"")
    assert "no Stable-Baselines3 zip" in refused(empty)


@pytest.mark.parametrize("name", ["data", "policy_pth"])
def test_a_missing_member_is_named(small_zip, tmp_path, name):
    bad = rewritten(small_zip, tmp_path / "bad.zip", **{name: None})
    assert f"no member named {name.replace('_pth', '.pth')!r}" in refused(bad)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_doubled_member_is_refused(small_zip, tmp_path):
    bad = rewritten(small_zip, tmp_path / "bad.zip")
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr("data", b"{}")
    assert "2 members named 'data'" in refused(bad)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_one_line(small_zip, tmp_path, kept):
    content = small_zip.read_bytes()
    bad = tmp_path / "bad.zip"
    bad.write_bytes(content[: int(len(content) * kept)])
    refused(bad)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_byte_gives_the_same_network_or_one_line(small_zip, tmp_path, compression):
    sound = rewritten(small_zip, tmp_path / "sound.zip", compression)
    expected = weights_sha256(open_network(sound).state_dict())
    content, bad = sound.read_bytes(), tmp_path / "bad.zip"
    generator, refused = random.Random(0), 0
    for _ in range(60):
        position, value = generator.randrange(len(content)), generator.randrange(1, 256)
        bad.write_bytes(content[:position] + bytes([content[position] ^ value]) + content[position + 1 :])
        outcome = network_or_line(bad)
        if isinstance(outcome, str):
            assert "\n" not in outcome
            refused += 1
        else:
            assert weights_sha256(outcome.state_dict()) == expected
    assert refused > 30


def test_damaged_weights_behind_a_right_checksum_are_one_line(small_zip, tmp_path):
    weights = members_of(small_zip)["policy.pth"]
    generator = random.Random(1)
    # the pickle, the directory and the records' headers; in the middle lie numbers, of which any is a weight
    places = [*range(0, 1500, 7), *range(len(weights) - 3000, len(weights), 13)]
    outcomes = []
    for position in places:
        flipped = (
            weights[:position] + bytes([weights[position] ^ generator.randrange(1, 256)]) + weights[position + 1 :]
        )
        outcomes.append(network_or_line(rewritten(small_zip, tmp_path / "bad.zip", policy_pth=flipped)))
    lines = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert len(lines) > len(outcomes) / 4
    assert not any("\n" in line for line in lines)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"\xff\xfe", b"{", b"[" * 100_000, b'{"a": ' * 100_000, b"9" * 10_000]
)
def test_data_that_is_no_table_is_one_line(small_zip, tmp_path, data):
    refused(rewritten(small_zip, tmp_path / "bad.zip", data=data))


def test_a_member_that_claims_to_be_huge_is_not_unpacked(small_zip, tmp_path):
    bad = rewritten(small_zip, tmp_path / "bad.zip", zipfile.ZIP_DEFLATED, data=b" " * (65 * 2**20))
    assert bad.stat().st_size < 3 * 2**20
    assert "more than" in refused(bad)


def test_a_small_storage_that_pretends_to_be_huge_is_refused(small_zip, tmp_path):
    huge = torch.zeros(1).expand(10**6, 10**6)
    bad = with_weights(small_zip, tmp_path / "bad.zip", lambda weights: weights | {"q_net.q_net.0.weight": huge})
    assert "does not lie dense" in refused(bad)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(small_zip, tmp_path, value):
    def spoil(weights):
        weights["q_net.q_net.0.weight"] = weights["q_net.q_net.0.weight"].clone()
        weights["q_net.q_net.0.weight"][0, 0] = value
        return weights

    assert "'q_net.q_net.0.weight' holds NaN" in refused(with_weights(small_zip, tmp_path / "bad.zip", spoil))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("q_net.features_extractor.cnn.0.weight", torch.zeros(32, 4, 8, 7)),
        ("q_net.features_extractor.cnn.0.weight", torch.zeros(32, 4)),
        ("q_net.features_extractor.cnn.2.weight", torch.zeros(64, 31, 4, 4)),
        ("q_net.features_extractor.cnn.4.weight", torch.zeros(10**7, 1, 1, 1)),
        ("q_net.features_extractor.linear.0.weight", torch.zeros(64, 3135)),
        ("q_net.features_extractor.linear.0.bias", torch.zeros(63)),
        ("q_net.q_net.0.weight", torch.zeros(6, 65)),
        ("q_net.q_net.0.weight", torch.zeros(0, 64)),
        ("q_net.q_net.0.weight", torch.zeros(6, 64, dtype=torch.int64)),
        ("q_net.q_net.0.weight", torch.zeros(6, 64).to_sparse()),
        ("q_net.q_net.0.weight", [1.0]),
        ("q_net.q_net.2.weight", torch.zeros(6, 6)),
        (7, torch.zeros(6, 6)),
    ],
)
def test_tensors_that_form_no_nature_cnn_are_one_line(small_zip, tmp_path, name, value):
    line = refused(with_weights(small_zip, tmp_path / "bad.zip", lambda weights: weights | {name: value}))
    assert len(line) < 500


def test_a_stack_of_absurd_height_is_refused_before_memory_is_taken_for_it(small_zip, tmp_path):
    first = {"q_net.features_extractor.cnn.0.weight": torch.zeros(16, 100_000, 1, 1)}
    assert "100000 channels in" in refused(with_weights(small_zip, tmp_path / "bad.zip", lambda w: w | first))


@pytest.mark.parametrize("name", ["features_extractor.cnn.2.weight", "features_extractor.cnn.2.bias", "q_net.0.bias"])
def test_a_missing_tensor_is_named(small_zip, tmp_path, name):
    def remove(weights):
        del weights["q_net." + name]
        return weights

    assert name in refused(with_weights(small_zip, tmp_path / "bad.zip", remove))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"activation_fn": "<class 'torch.nn.modules.activation.RReLU'>"},
        {"activation_fn": "<class '__main__.ReLU'>"},
        {"activation_fn": "functools.partial(<class 'torch.nn.modules.activation.LeakyReLU'>, 0.2)"},
        {"activation_fn": None},
        {"features_extractor_class": "<class 'somewhere.ImpalaCNN'>"},
        {"features_extractor_class": "<class 'stable_baselines3.common.torch_layers.CombinedExtractor'>"},
        {"features_extractor_kwargs": {"channels": [1, 2, 3]}},
        {"normalize_images": "yes"},
        {"dueling": True},
    ],
)
def test_what_the_shapes_do_not_show_is_refused(small_zip, tmp_path, kwargs):
    value = {":type:": "<class 'dict'>", ":serialized:": "bm90IG9wZW5lZA==", **kwargs}
    refused(with_data(small_zip, tmp_path / "bad.zip", policy_kwargs=value))


@pytest.mark.parametrize(
    "kwargs",
    [
        None,
        {},
        {"activation_fn": "<class 'torch.nn.modules.activation.ReLU'>", "normalize_images": True},
        {"activation_fn": "<class 'torch.nn.modules.activation.Tanh'>"},  # one linear layer: nothing to activate
        {"normalize_images": False},
        {"features_extractor_class": "<class 'stable_baselines3.common.torch_layers.NatureCNN'>"},
    ],
)
def test_policy_kwargs_of_a_nature_cnn_are_read(small_zip, tmp_path, kwargs):
    assert open_network(with_data(small_zip, tmp_path / "good.zip", policy_kwargs=kwargs))


def test_half_precision_weights_are_read_as_float32(small_zip, tmp_path):
    half = with_weights(small_zip, tmp_path / "half.zip", lambda weights: {k: v.half() for k, v in weights.items()})
    exact, coarse = open_network(small_zip).state_dict(), open_network(half).state_dict()
    for name, value in coarse.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, exact[name].half().float())


def test_what_is_read_is_a_network_of_its_own_in_eval_mode(small_zip):
    agent = read_agent(small_zip)
    first, second = rebuild_network(agent), rebuild_network(agent)
    assert not first.training
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in first.parameters())
    storages = [value.data_ptr() for network in (first, second) for value in network.state_dict().values()]
    assert len(set(storages)) == len(storages)


# ------------------------------------------------------------------ writing


def test_a_written_zip_is_under_8_mb_and_has_the_members_of_a_stock_one(tmp_path):
    ours, stock = tmp_path / "ours.zip", tmp_path / "stock.zip"
    write_dqn_zip(ours, make_network(SIZES["nature"], 18))
    assert ours.stat().st_size < 8e6
    DQN("MlpPolicy", "CartPole-v1", buffer_size=1, device="cpu").save(stock)
    assert set(members_of(ours)) == set(members_of(stock))


def test_online_and_target_network_share_one_storage(small_zip):
    weights = read_agent(small_zip).weights
    for name, value in weights.items():
        if name.startswith("q_net."):
            assert weights[name.replace("q_net.", "q_net_target.", 1)].data_ptr() == value.data_ptr()
    assert len(weights) == 20


def test_plain_json_says_the_kind_of_scores_the_steps_and_no_seed(small_zip):
    data = json.loads(members_of(small_zip)["data"])
    assert data["polydistill"] == {"scores": "logits"}
    assert data["num_timesteps"] == 1000
    assert data["seed"] is None
    assert data["buffer_size"] == 10_000
    assert data["learning_starts"] == 1_000
    assert data["exploration_rate"] == 0.05
    assert data["_last_obs"] is None
    assert data["tensorboard_log"] is None
    for name in ("observation_space", "action_space"):
        assert data[name]["_np_random"] in (None, "None"), "no random state is stored"
    assert read_agent(small_zip).score_kind == "logits"


def test_a_written_zip_refers_to_no_class_of_ours(small_zip):
    members = members_of(small_zip)
    pickles = [
        base64.b64decode(value[":serialized:"])
        for value in json.loads(members["data"]).values()
        if isinstance(value, dict) and ":serialized:" in value
    ]
    assert len(pickles) > 4
    for content in [*pickles, members["policy.pth"], members["policy.optimizer.pth"], members["pytorch_variables.pth"]]:
        assert b"agents" not in content
        assert b"polydistill" not in content


@pytest.mark.parametrize("kind", ["policy", {"scores": "policy"}, {"scores": ["logits"]}, {}, None])
def test_an_unknown_kind_of_scores_counts_as_q_values(small_zip, tmp_path, kind):
    assert read_agent(with_data(small_zip, tmp_path / "other.zip", polydistill=kind)).score_kind == "q_values"


@pytest.mark.parametrize("size", SIZES)
def test_a_network_of_any_size_has_the_same_scores_in_stock_stable_baselines(tmp_path, size):
    network, frames = make_network(size=SIZES[size]), make_frames()
    write_dqn_zip(tmp_path / "a.zip", network)
    stock = DQN.load(tmp_path / "a.zip", device="cpu")
    with torch.no_grad():
        expected = network(frames)
        torch.testing.assert_close(stock.q_net(frames), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(stock.q_net_target(frames), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            compute_scores(open_network(tmp_path / "a.zip"), frames), expected, rtol=1e-5, atol=1e-6
        )


def test_a_nature_cnn_comes_back_bit_for_bit(tmp_path):
    network = make_network("nature")
    write_dqn_zip(tmp_path / "a.zip", network)
    assert weights_sha256(open_network(tmp_path / "a.zip").state_dict()) == weights_sha256(network.state_dict())


def test_a_network_of_raw_pixels_says_so_to_stock_stable_baselines(tmp_path):
    network = make_network(size=SIZES["net3"])
    network.normalize_images = False
    write_dqn_zip(tmp_path / "a.zip", network)
    stock = DQN.load(tmp_path / "a.zip", device="cpu")
    frames = make_frames()
    torch.testing.assert_close(stock.q_net(frames), network(frames), rtol=1e-5, atol=1e-3)


def test_writing_replaces_the_file_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(b"old")
    write_dqn_zip(path, make_network(size=SIZES["net3"]))
    assert [file.name for file in tmp_path.iterdir()] == ["a.zip"]
    open_network(path)


@pytest.mark.parametrize(
    ("size", "score_kind", "match"),
    [
        (Size((33, 64, 64), 64), "q_values", "do not fit"),
        (Size((16, 16, 16), 64), "policy", "must be one of"),
    ],
)
def test_what_stock_stable_baselines_could_not_open_is_not_written(tmp_path, size, score_kind, match):
    with pytest.raises(ValueError, match=match):
        write_dqn_zip(tmp_path / "a.zip", make_network(size=size), score_kind=score_kind)
    assert not list(tmp_path.iterdir())


PLAY_WITHOUT_US = """
import importlib.abc, sys
import numpy as np

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("agents", "polydistill"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
for name in ("agents", "polydistill"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} can be imported")

import ale_py, torch
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack

path, frames, scores, again = sys.argv[1:]
env = VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=1, seed=0), 4)
model = DQN.load(path, env=env, device="cpu")
with torch.no_grad():
    np.save(scores, model.q_net(torch.from_numpy(np.load(frames))).numpy())
observation = model.get_env().reset()
for _ in range(20):
    action, _ = model.predict(observation, deterministic=True)
    observation, *_ = model.get_env().step(action)
model.learn(8)
model.save(again)
"""


def test_stock_stable_baselines_opens_plays_and_saves_where_we_are_not_installed(run_python, tmp_path):
    network, frames = make_network(size=SIZES["net2"]), make_frames()
    paths = [tmp_path / name for name in ("student.zip", "frames.npy", "scores.npy", "again.zip")]
    write_dqn_zip(paths[0], network, score_kind="logits", steps=5)
    np.save(paths[1], frames.numpy())
    done = run_python("-c", PLAY_WITHOUT_US, *map(str, paths))
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        np.testing.assert_allclose(np.load(paths[2]), network(frames).numpy(), rtol=1e-5, atol=1e-6)
    again = read_agent(paths[3])
    assert again.score_kind == "logits", "the kind of scores outlives a stock save"
    original = read_agent(paths[0])
    assert weights_sha256(again.weights) == weights_sha256(original.weights)


# ------------------------------------------------------------------ learning on in stock Stable-Baselines3


class Corridor(gym.Env):
    """Eight cells; right is good; bounds that no other environment has."""

    observation_space = spaces.Box(np.float32([-0.25, 0.0]), np.float32([1.0, np.inf]))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell, self.steps = 0, 0
        return self.observe(), {}

    def step(self, action):
        self.cell, self.steps = max(self.cell + 2 * int(action) - 1, -2), self.steps + 1
        return self.observe(), float(action), self.cell == 8, self.steps == 20, {}

    def observe(self):
        return np.float32([self.cell / 8, self.steps / 20])


def make_vector_zip(path):
    model = DQN("MlpPolicy", Corridor(), policy_kwargs={"net_arch": [16]}, seed=0, device="cpu", buffer_size=1)
    write_dqn_zip(path, model.q_net, steps=5_000_000)
    return model.q_net


def test_stock_stable_baselines_learns_on_with_a_buffer_of_many_steps(tmp_path):
    make_vector_zip(tmp_path / "a.zip")
    model = DQN.load(tmp_path / "a.zip", env=Corridor(), device="cpu")
    before = weights_sha256(model.q_net.state_dict())
    model.learn(1_200)
    assert model.replay_buffer.size() == 1_200
    assert len(np.unique(model.replay_buffer.observations[:1_200], axis=0)) > 50
    assert model._n_updates == 50, "every 4 of the 200 steps after the first 1,000"
    assert weights_sha256(model.q_net.state_dict()) != before
    assert model.exploration_rate == 0.05
    larger = DQN.load(tmp_path / "a.zip", env=Corridor(), buffer_size=20_000, device="cpu")
    assert larger.replay_buffer.buffer_size == 20_000


def test_playing_takes_no_memory_for_the_buffer(small_zip, run_python):
    code = """
import sys
from stable_baselines3 import DQN
def resident(): return int(open("/proc/self/statm").read().split()[1]) * 4096
DQN.load(sys.argv[1], device="cpu")
before = resident()
model = DQN.load(sys.argv[1], device="cpu")
assert model.replay_buffer.observations.nbytes > 250 * 2**20
print(resident() - before)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    done = run_python("-c", code, str(small_zip))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 50 * 2**20


def test_the_line_that_people_read_is_python_that_learns_on(tmp_path):
    make_vector_zip(tmp_path / "a.zip")
    line = how_to_go_on(tmp_path / "a.zip", "q_values")
    what, _, code = line.partition(": ")
    assert what == "to continue training in Stable-Baselines3"
    model = eval(code.replace("1_000_000", "8"), {"DQN": DQN, "env": Corridor()})
    assert (model.num_timesteps, model.buffer_size) == (8, 100_000)


def test_of_logits_the_line_says_that_temporal_differences_must_not_go_on():
    line = how_to_go_on("a.zip", "logits")
    assert line == "a.zip gives logits, not Q-values: play it with DQN.load, and do not call DQN.learn"
    assert "learn(" not in line
