"""polydistill_agents.files.multitask_file: a student of several tasks in one file, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load, save
from torch import nn

from polydistill.errors import UserError
from polydistill_agents.files.multitask_file import CARD, read_multitask, write_multitask
from polydistill_agents.files.tensors import read_safetensors
from polydistill_agents.networks.architecture import Architecture
from polydistill_agents.networks.multitask import MultitaskNetwork
from polydistill_agents.networks.nature import Size, compute_scores
from tests.agents.samples import FRAMES, make_frames, make_network, refusal

KINDS = {"a": "logits", "b": "q_values"}
NUMBERS = spaces.Box(-1.0, 1.0, (3,), np.float32)
TORSOS = {
    "frames": (FRAMES, Architecture(Size((4, 4, 4), 16), None, (), nn.ReLU)),
    "numbers": (NUMBERS, Architecture(None, None, (6,), nn.Tanh)),
}


def write(path: Path, kind: str = "frames", outputs: Any = None) -> MultitaskNetwork:
    space, torso = TORSOS[kind]
    network = MultitaskNetwork(space, {"a": 3, "b": 2}, torso, (8,), outputs)
    write_multitask(path, network, KINDS)
    return network


@pytest.mark.parametrize("kind", list(TORSOS))
@pytest.mark.parametrize("outputs", [None, {"a": (0, 3, 4), "b": (1, 0)}])
def test_a_student_comes_back_as_it_was_written(kind: str, outputs: Any, tmp_path: Path) -> None:
    network = write(tmp_path / "student.safetensors", kind, outputs)
    found = read_multitask(tmp_path / "student.safetensors", TORSOS[kind][0])
    assert found.kinds == KINDS
    assert (found.network.actions, found.network.outputs) == (network.actions, network.outputs)
    assert found.network.torso == network.torso
    assert all(map(torch.equal, found.network.state_dict().values(), network.state_dict().values()))


def test_equal_students_give_equal_files(tmp_path: Path) -> None:
    network = write(tmp_path / "one.safetensors")
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    write_multitask(tmp_path / "other.safetensors", network, KINDS)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()


def changed(path: Path, **card: Any) -> Path:
    """A file with another card."""
    write(path)
    content = path.read_bytes()
    _, says = read_safetensors(content, "")
    path.write_bytes(save(load(content), {CARD: json.dumps(json.loads(says[CARD]) | card)}))
    return path


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"actions": {"a": 10**12, "b": 2}}, "its weights are not those of the network that it names"),
        ({"controller": [10**12]}, "its weights are not those of the network that it names"),
        ({"scores": {"a": "points"}}, "its scores are neither q_values nor logits"),
        ({"activation": "os.system"}, "student of several tasks"),
        ({"size": 3}, "student of several tasks"),
        ({"actions": None}, "student of several tasks"),
    ],
)
def test_a_card_that_lies_is_refused_in_one_line(card: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = changed(tmp_path / "student.safetensors", **card)
    assert message in refusal(lambda place: read_multitask(place, FRAMES), path)


def test_another_file_and_other_observations_are_refused(tmp_path: Path) -> None:
    (tmp_path / "plain.safetensors").write_bytes(save(make_network().state_dict()))
    with pytest.raises(UserError, match="holds no student of several tasks"):
        read_multitask(tmp_path / "plain.safetensors", FRAMES)
    write(tmp_path / "student.safetensors", "numbers")
    with pytest.raises(UserError, match="its weights are not those of the network"):
        read_multitask(tmp_path / "student.safetensors", spaces.Box(-1.0, 1.0, (4,), np.float32))


def test_what_is_read_computes_in_the_layout_in_which_it_learned(tmp_path: Path) -> None:
    network = write(tmp_path / "student.safetensors").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = read_multitask(tmp_path / "student.safetensors", FRAMES).network
    assert torch.equal(compute_scores(found.of("a"), make_frames()), compute_scores(network.of("a"), make_frames()))
    assert found.features.cnn[2].weight.is_contiguous(memory_format=torch.channels_last)
