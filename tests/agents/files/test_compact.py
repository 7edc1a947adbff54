"""Compact files of students, and the narrow networks that stock Stable-Baselines3 builds by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors import safe_open
from safetensors.torch import save_file
from stable_baselines3 import DQN

from polydistill.errors import UserError
from polydistill.provenance import weights_sha256
from polydistill_agents import PolicyDistillation, as_teacher
from polydistill_agents.files.compact import CARD, write_student
from polydistill_agents.files.plain_spaces import space_from_plain, space_to_plain
from polydistill_agents.files.policies import policy_of
from polydistill_agents.networks.nature import SIZES, Size, compute_scores, count_parameters
from polydistill_agents.networks.observations import to_tensors
from tests.agents.files.test_spaces import SPACES, TABLE, make_model, observe, own_scores
from tests.agents.samples import FRAMES, make_frames, make_network, refusal

WIDE = Size((48, 64, 64), 32)
NUMBERS = spaces.Box(np.array([-1.0, -np.inf], np.float32), np.array([1.0, np.inf], np.float32))


@pytest.mark.parametrize("kind", SPACES)
def test_a_file_gives_back_the_network_whatever_it_sees(kind: str, tmp_path: Path) -> None:
    space, policy, kwargs = SPACES[kind]
    model = make_model("DQN", space, policy, **kwargs)
    write_student(tmp_path / "a.safetensors", model.q_net, score_kind="logits")
    found = as_teacher(tmp_path / "a.safetensors")
    assert found.kind == "logits"
    assert found.observation_space == space
    seen = observe(space)
    torch.testing.assert_close(found(to_tensors(seen, "cpu")), own_scores(model, seen), rtol=1e-5, atol=1e-5)
    assert weights_sha256(found.network.state_dict()) == weights_sha256(model.q_net.state_dict())


@pytest.mark.parametrize("size", [SIZES["net3"], Size((1, 2, 3), 4), WIDE])
def test_a_nature_cnn_of_any_widths_takes_four_bytes_for_each_weight(size: Size, tmp_path: Path) -> None:
    network = make_network(size)
    write_student(tmp_path / "a.safetensors", network)
    found = as_teacher(tmp_path / "a.safetensors")
    assert found.size == size
    assert torch.equal(found(make_frames()), compute_scores(network, make_frames()))
    assert (tmp_path / "a.safetensors").stat().st_size < 4 * count_parameters(network) + 2_000


NARROW: dict[str, tuple[spaces.Space[Any], str, dict[str, Any], int]] = {
    "one narrow layer": (NUMBERS, "MlpPolicy", {"net_arch": [3]}, 2 * 3 + 3 + 3 * 3 + 3),
    "layers of two widths": (NUMBERS, "MlpPolicy", {"net_arch": [5, 2]}, 2 * 5 + 5 + 5 * 2 + 2 + 2 * 3 + 3),
    "no hidden layer": (NUMBERS, "MlpPolicy", {"net_arch": []}, 2 * 3 + 3),
    "few hidden units behind stock's convolutions": (
        FRAMES, "CnnPolicy", {"features_extractor_kwargs": {"features_dim": 8}},
        (8224 + 32832 + 36928) + 3136 * 8 + 8 + 8 * 3 + 3,
    ),
    "parts of a table": (
        TABLE, "MultiInputPolicy", {"features_extractor_kwargs": {"cnn_output_dim": 4}, "net_arch": [6]},
        (3 * 64 * 32 + 32) + (32 * 16 * 64 + 64) + (64 * 9 * 64 + 64) + (64 * 4 + 4) + (4 + 4 + 5 + 3 + 7) * 6 + 6 + 21,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", NARROW)
def test_a_zip_is_as_narrow_as_stock_classes_can_be(kind: str, tmp_path: Path) -> None:
    space, policy, kwargs, parameters = NARROW[kind]
    model = make_model("DQN", space, policy, **kwargs)
    assert policy_of(model.q_net).kwargs == kwargs
    write_student(tmp_path / "a.zip", model.q_net)
    opened = DQN.load(tmp_path / "a.zip", device="cpu")
    assert count_parameters(opened.q_net) == count_parameters(model.q_net) == parameters
    seen = observe(space)
    assert torch.equal(own_scores(opened, seen), own_scores(model, seen))


def test_few_channels_are_padded_in_a_zip_alone(tmp_path: Path) -> None:
    network = make_network("net3")
    for ending in ("zip", "safetensors"):
        write_student(tmp_path / f"a.{ending}", network)
        assert count_parameters(as_teacher(tmp_path / f"a.{ending}").network) == 61_174
    assert count_parameters(DQN.load(tmp_path / "a.zip", device="cpu").q_net) == 279_142
    assert (tmp_path / "a.safetensors").stat().st_size < (tmp_path / "a.zip").stat().st_size / 4


def test_a_student_wider_than_stock_has_a_compact_file_alone(tmp_path: Path) -> None:
    student = PolicyDistillation("CnnPolicy", None, None, size=WIDE, device="cpu", _init_setup_model=False)
    student.observation_space, student.action_space, student.n_envs = FRAMES, spaces.Discrete(6), 1
    student._setup_model()
    with pytest.raises(ValueError, match=r"do not fit Stable-Baselines3's NatureCNN .*: give it a name that ends in"):
        student.save(tmp_path / "a.zip")
    student.num_timesteps, student._n_updates = 640, 7
    student.save(tmp_path / "a.safetensors")
    loaded = PolicyDistillation.load(tmp_path / "a.safetensors", device="cpu")
    assert (loaded.num_timesteps, loaded._n_updates, loaded.score_kind) == (640, 7, student.score_kind)
    assert torch.equal(loaded.student_scores(make_frames()), student.student_scores(make_frames()))


@pytest.mark.parametrize("space", [NUMBERS, TABLE, FRAMES, spaces.MultiBinary([2, 3]), spaces.Discrete(4)])
def test_a_space_is_written_down_as_plain_json_and_read_back(space: spaces.Space[Any]) -> None:
    plain = json.loads(json.dumps(space_to_plain(space), allow_nan=False))
    assert space_from_plain(plain) == space
    if isinstance(space, spaces.Dict):
        assert list(space_from_plain(plain)) == list(space), "the features stand side by side in this order"


def rewritten(path: Path, **changed: Any) -> Path:
    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        card = json.loads(file.metadata()[CARD])
    save_file(weights, path.with_name("bad.safetensors"), {CARD: json.dumps(card | changed)})
    return path.with_name("bad.safetensors")


@pytest.mark.parametrize(
    "changed",
    [
        {"scores": "probabilities"},
        {"activation": "os.system"},
        {"normalize_images": "yes"},
        {"counters": None},
        {"observations": None},
        {"observations": {"kind": "Graph"}},
        {"observations": {"kind": "Discrete", "n": 2**40}},
        {"observations": {"kind": "Discrete", "n": 7}},
        {"observations": {"kind": "Box", "shape": [2**20, 2**20], "dtype": "uint8", "low": 0, "high": 1}},
        {"observations": {"kind": "Box", "shape": [4], "dtype": "object", "low": 0, "high": 1}},
        {"observations": {"kind": "Box", "shape": [2], "dtype": "float32", "low": [0, 0, 0], "high": 1}},
        {"observations": {"kind": "Dict", "parts": {"a": {"kind": "Dict", "parts": {}}}}},
    ],
)
def test_a_card_that_lies_is_one_line(changed: dict[str, Any], tmp_path: Path) -> None:
    model = make_model("DQN", NUMBERS, "MlpPolicy", net_arch=[4])
    write_student(tmp_path / "a.safetensors", model.q_net)
    assert as_teacher(tmp_path / "a.safetensors")
    assert "bad.safetensors is damaged or no file of weights" in refusal(
        as_teacher, rewritten(tmp_path / "a.safetensors", **changed)
    )


def test_a_student_says_its_own_architecture(tmp_path: Path) -> None:
    write_student(tmp_path / "a.safetensors", make_network("net3"))
    with pytest.raises(UserError, match="it is a student, which says its own architecture"):
        as_teacher(f"nature:{tmp_path / 'a.safetensors'}")
