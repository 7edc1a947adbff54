"""A narrow student in the corner of Stable-Baselines3's wide network, and cut out of it again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.dqn.policies import QNetwork

from polydistill.errors import UserError
from polydistill_agents.files.inspection import convert_agent, inspect_agent
from polydistill_agents.files.sb3_zip import write_dqn_zip
from polydistill_agents.files.sources import read_network, read_stored_network
from polydistill_agents.lineage.student_file import read_student
from polydistill_agents.networks.corner import cut_padding
from polydistill_agents.networks.nature import SIZES, Size, compute_scores, size_of
from polydistill_agents.teachers import as_teacher
from tests.agents.samples import make_frames, make_network


def assert_equal(one: QNetwork, other: QNetwork) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("size", ["net1", "net2", "net3", "nature"])
def test_a_student_comes_out_of_its_zip_as_it_went_in(tmp_path: Path, size: str) -> None:
    network = make_network(size)
    write_dqn_zip(tmp_path / "a.zip", network)
    found, _ = read_network(tmp_path / "a.zip")
    stored = read_stored_network(tmp_path / "a.zip").network
    assert isinstance(found, QNetwork)
    assert isinstance(stored, QNetwork)
    assert_equal(found, network)
    assert size_of(stored).channels == SIZES["nature"].channels
    assert not found.training
    scores = [compute_scores(each, make_frames()) for each in (network, found, stored)]
    assert torch.equal(scores[0], scores[1])
    assert torch.allclose(scores[0], scores[2], atol=1e-5)


def test_only_channels_without_a_say_are_cut() -> None:
    network = make_network("nature")
    layers = network.features_extractor.cnn
    with torch.no_grad():
        layers[0].weight[30:] = 0  # and one of them has a bias
        layers[0].bias[30:] = torch.tensor([0.0, 0.5])
        layers[2].weight[60:] = 0
        layers[2].bias[60:] = 0
        layers[4].weight[5] = 0  # in the midst
        layers[4].bias[5] = 0
    narrow = cut_padding(network)
    assert isinstance(narrow, QNetwork)
    assert size_of(narrow) == Size((32, 60, 64), 512)
    assert torch.allclose(compute_scores(narrow, make_frames()), compute_scores(network, make_frames()), atol=1e-5)


def test_a_network_of_zeros_keeps_a_channel() -> None:
    network = make_network("net3")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    narrow = cut_padding(network)
    assert isinstance(narrow, QNetwork)
    assert size_of(narrow) == Size((1, 1, 1), 64)
    assert torch.equal(compute_scores(narrow, make_frames()), torch.zeros(4, 6))


def test_unscaled_pixels_stay_unscaled() -> None:
    network = make_network("net3")
    network.normalize_images = False
    with torch.no_grad():
        network.features_extractor.cnn[4].weight[-1] = 0
        network.features_extractor.cnn[4].bias[-1] = 0
    narrow = cut_padding(network)
    assert narrow is not network
    assert torch.allclose(compute_scores(narrow, make_frames()), compute_scores(network, make_frames()), rtol=1e-4)


def test_other_networks_stay_as_they_are(tmp_path: Path) -> None:
    space = spaces.Box(-1, 1, (3,), np.float32)
    model = DQN("MlpPolicy", None, buffer_size=1, device="cpu", _init_setup_model=False)  # type: ignore[arg-type]
    model.observation_space, model.action_space, model.n_envs = space, spaces.Discrete(2), 1
    model._setup_model()
    with torch.no_grad():
        model.q_net.q_net[0].weight[-8:] = 0
    assert cut_padding(model.q_net) is model.q_net


def test_the_inspection_tells_both_widths_and_a_converted_file_has_both(tmp_path: Path) -> None:
    write_dqn_zip(tmp_path / "a.zip", make_network("net3"))
    convert_agent(str(tmp_path / "a.zip"), tmp_path / "b.zip")
    for name in ("a.zip", "b.zip"):
        told = dict(inspect_agent(str(tmp_path / name)))
        assert told["network"].startswith("Nature-CNN 16-16-16, 64 ")
        assert told["stored as"].startswith("Nature-CNN 32-64-64, 64 ")
        assert told["stored as"].endswith("with channels of zeros")
        assert_equal(as_teacher(tmp_path / name).network, make_network("net3"))  # type: ignore[arg-type]


def test_a_student_is_read_in_the_widths_that_it_had(tmp_path: Path) -> None:
    network = make_network("net3")
    with torch.no_grad():
        network.features_extractor.cnn[4].weight[-1] = 0  # as if it had died in training
        network.features_extractor.cnn[4].bias[-1] = 0
    write_dqn_zip(tmp_path / "a.zip", network)
    assert_equal(read_student(tmp_path / "a.zip", SIZES["net3"]).network, network)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"a\.zip holds no student of the widths \(64, 64, 64\) and 64"):
        read_student(tmp_path / "a.zip", Size((64, 64, 64), 64))
