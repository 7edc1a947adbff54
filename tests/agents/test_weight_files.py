"""Plain tables of weights: read by a named architecture, refused without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import save_file

from agents.networks import SIZES, Size, build_network
from agents.sb3_zip import write_dqn_zip
from agents.teachers import as_teacher
from agents.teachers.architectures import ARCHITECTURES
from agents.teachers.files import split_source
from polydistill.errors import UserError

FRAMES = spaces.Box(0, 255, (4, 84, 84), np.uint8)


def make_network(size: Size = SIZES["net3"]):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_network(FRAMES, 6, size)


def observe() -> torch.Tensor:
    return torch.randint(0, 256, (8, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def refusal(source: str | Path) -> str:
    with pytest.raises(UserError) as error:
        as_teacher(source)
    assert str(error.value).isprintable()
    return str(error.value)


@pytest.mark.parametrize("ending", ["pth", "pt", "safetensors", "PTH"])
def test_a_table_of_weights_is_read_by_its_architecture(tmp_path, ending):
    network, path = make_network(), tmp_path / f"a.{ending}"
    if ending == "safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path)
    teacher = as_teacher(f"net3:{path}")
    with torch.no_grad():
        torch.testing.assert_close(teacher(observe()), network(observe()), rtol=1e-5, atol=1e-5)
    assert (teacher.kind, teacher.size) == ("q_values", SIZES["net3"])
    assert "needs the name of its architecture before it, as in nature:" in refusal(path)
    assert "those of net2 are ((16, 16, 16), 128)" in refusal(f"net2:{path}")
    assert "'features_extractor.cnn.0.bias' is no part of it" in refusal(f"acktr:{path}")


def test_a_file_of_safetensors_may_name_its_architecture_and_scores_itself(tmp_path):
    network, path = make_network(), tmp_path / "a.safetensors"
    save_file(network.state_dict(), path, {"architecture": "net3", "scores": "logits"})
    assert as_teacher(path).kind == "logits"
    save_file(network.state_dict(), path, {"architecture": "net3", "scores": "guesses"})
    assert "its scores are 'guesses', neither q_values nor logits" in refusal(path)
    save_file(network.state_dict(), path, {"architecture": "impala"})
    assert "known: nature, net1, net2, net3, acktr" in refusal(path)


@pytest.mark.parametrize("name", ["features_extractor.cnn.2.bias", "q_net.0.weight"])
def test_a_missing_layer_is_named(tmp_path, name):
    weights = make_network().state_dict()
    del weights[name]
    torch.save(weights, tmp_path / "a.pth")
    assert f"'{name}' is missing" in refusal(f"net3:{tmp_path / 'a.pth'}")


def test_a_checkpoint_of_more_than_weights_is_refused(tmp_path):
    torch.save({"model": make_network().state_dict(), "epoch": 3}, tmp_path / "a.pth")
    assert "something else than tensors: 'model' is no floating-point tensor" in refusal(f"net3:{tmp_path / 'a.pth'}")
    torch.save(make_network(), tmp_path / "b.pth")
    assert "it would import" in refusal(f"net3:{tmp_path / 'b.pth'}")


def test_a_zip_says_its_architecture_itself(tmp_path):
    write_dqn_zip(tmp_path / "a.zip", make_network())
    assert "a zip says its own" in refusal(f"nature:{tmp_path / 'a.zip'}")


def test_only_known_names_are_taken_off_a_path():
    assert split_source("acktr:a.pt") == ("acktr", "a.pt")
    assert split_source("nature:hf://org/name") == ("nature", "hf://org/name")
    for path in ("a.zip", "C:/a.zip", "hf://org/name", "https://x/y#sha256=z", "impala:a.pt"):
        assert split_source(path) == ("", path)


def test_every_architecture_says_what_it_reads_and_how_it_scores():
    for architecture in ARCHITECTURES.values():
        assert architecture.reads
        assert architecture.scores in ("q_values", "logits")
