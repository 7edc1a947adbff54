"""Where an agent's file is: with or without .zip, in the home folder, in memory; a folder is refused with advice."""

from __future__ import annotations

import io
import os
import pathlib

import pytest
import torch
from stable_baselines3 import DQN

from polydistill.errors import UserError
from polydistill.provenance import weights_sha256
from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill_agents.files.sb3_zip import read_agent, write_dqn_zip
from polydistill_agents.networks.nature import SIZES
from polydistill_agents.teachers import as_teacher
from tests.agents.samples import make_network, refusal

SHA256 = weights_sha256(make_network().state_dict())


@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_the_zip_of_a_name_may_be_left_out_in_writing_and_in_reading(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    write_dqn_zip(kind("student"), make_network())
    assert os.listdir(tmp_path) == ["student.zip"]
    for name in ("student", "student.zip"):
        assert weights_sha256(as_teacher(kind(name)).network.state_dict()) == SHA256
        assert read_agent(kind(name)).where == "student.zip"
        assert weights_sha256(PolicyDistillation.load(kind(name), device="cpu").student.state_dict()) == SHA256
    assert DQN.load("student", device="cpu").action_space.n == 6


def test_a_name_with_a_dot_is_kept_and_found_as_stable_baselines_does(tmp_path):
    write_dqn_zip(tmp_path / "student.v1", make_network())
    write_dqn_zip(tmp_path / "other.v1.zip", make_network())
    for name in ("student.v1", "other.v1"):
        assert weights_sha256(as_teacher(tmp_path / name).network.state_dict()) == SHA256
        DQN.load(tmp_path / name, device="cpu")


def test_a_folder_beside_the_zip_of_the_same_name_is_not_in_the_way(tmp_path):
    write_dqn_zip(tmp_path / "student.zip", make_network())
    (tmp_path / "student").mkdir()
    assert as_teacher(tmp_path / "student").size == SIZES["net3"]


def test_the_home_folder_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    PolicyDistillation.load(_written(tmp_path / "a.zip"), device="cpu").save("~/b")
    assert (tmp_path / "b.zip").is_file()
    assert as_teacher("~/b").size == as_teacher("~/a.zip").size == SIZES["net3"]
    assert refusal(as_teacher, "~nobody-of-that-name/a.zip") == "no such file: ~nobody-of-that-name/a.zip"


def _written(path):
    write_dqn_zip(path, make_network())
    return path


def test_an_agent_is_written_into_memory_and_read_out_of_it_wherever_it_stands(tmp_path):
    buffer = io.BytesIO()
    write_dqn_zip(buffer, make_network())  # it now stands at its end
    assert weights_sha256(as_teacher(buffer).network.state_dict()) == SHA256
    model = PolicyDistillation.load(buffer, device="cpu")
    again = io.BytesIO()
    model.save(again)
    assert DQN.load(again, device="cpu").action_space.n == 6
    with open(tmp_path / "a.zip", "wb") as stream:
        model.save(stream)
    with open(tmp_path / "a.zip", "rb") as stream:
        assert weights_sha256(as_teacher(stream).network.state_dict()) == SHA256
        assert not stream.closed


def test_a_stream_that_cannot_go_back_is_read_too(tmp_path):
    class Pipe(io.RawIOBase):
        def __init__(self, content):
            self.content = io.BytesIO(content)

        def readable(self):
            return True

        def read(self, size=-1):
            return self.content.read(size)

    assert as_teacher(Pipe(_written(tmp_path / "a.zip").read_bytes())).size == SIZES["net3"]


def test_files_opened_otherwise_than_for_bytes_are_one_line(tmp_path):
    path = _written(tmp_path / "a.zip")
    with open(path, encoding="latin-1") as stream:
        assert refusal(as_teacher, stream) == f"{path} is not opened for reading bytes: open it with 'rb'"
    assert refusal(as_teacher, io.StringIO("x")) == "the open file is not opened for reading bytes: open it with 'rb'"
    with open(tmp_path / "b.zip", "wb") as stream:
        assert "open it with 'rb'" in refusal(as_teacher, stream)
    with open(path, "rb") as stream, pytest.raises(UserError, match="open it with 'wb'"):
        write_dqn_zip(stream, make_network())
    assert "the open file is damaged or no Stable-Baselines3 zip" in refusal(as_teacher, io.BytesIO(b"abc"))
    assert "the open file has more than 536,870,912 bytes" in refusal(as_teacher, Large())


class Large(io.BytesIO):
    def seek(self, offset, whence=0):
        return 2**30


def test_a_run_folder_of_the_zoo_names_the_zip_that_is_meant(tmp_path):
    run = tmp_path / "PongNoFrameskip-v4_1"
    run.mkdir()
    assert refusal(as_teacher, run) == f"{run} is a folder, an agent's file is needed"
    _written(run / "PongNoFrameskip-v4.zip")
    assert refusal(as_teacher, run).endswith(f"did you mean {run / 'PongNoFrameskip-v4.zip'}?")
    _written(run / "best_model.zip")
    assert refusal(as_teacher, run).endswith(f"did you mean {run / 'best_model.zip'}? (it holds 2 zips)")


def test_what_a_file_holds_is_told_by_its_first_bytes_whatever_its_name(tmp_path):
    torch.save(make_network().state_dict(), tmp_path / "dqn.cleanrl_model")
    assert as_teacher(tmp_path / "dqn.cleanrl_model").size == SIZES["net3"]
    _written(tmp_path / "a.zip").rename(tmp_path / "agent.pt")
    assert as_teacher(tmp_path / "agent.pt").size == SIZES["net3"]


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_what_is_no_name_is_not_written(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is no name of a file to write"):
        write_dqn_zip(name, make_network())
    assert not list(tmp_path.iterdir())
