"""The files of a run's students: a student that no zip holds is kept, taught from, shown and grown all the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from polydistill.errors import Interrupted, UserError
from polydistill.lineage import LineageConfig
from polydistill.provenance import weights_sha256
from polydistill_agents.commands.distil import show
from polydistill_agents.files.compact import write_student
from polydistill_agents.files.sb3_zip import write_dqn_zip
from polydistill_agents.lineage.agent_config import AgentConfig, AgentScoringConfig, AgentStudentConfig
from polydistill_agents.lineage.student_file import find_student, is_student, read_student
from polydistill_agents.networks.nature import SIZES, Size, build_network
from polydistill_agents.teachers import as_teacher
from tests.agents.environments import toys
from tests.agents.lineage.test_agent_runs import PLAY, config_of, distil
from tests.agents.samples import make_network
from tests.stop_signals import StopAt

WIDE = Size((33, 3, 3), 4)  # one channel more than stock's first convolution
FRAMES = toys.First.observation_space


def wide_config(folder: Path, generations: int) -> AgentConfig:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        write_dqn_zip(folder / "teacher.zip", build_network(FRAMES, 3, Size((2, 2, 2), 4)))
    return dataclasses.replace(
        config_of(str(folder / "teacher.zip"), "First-v3"),
        student=AgentStudentConfig(batch_size=16, samples_per_step=1, temperature=1.0, size="33x3x3x4"),
        play=dataclasses.replace(PLAY, steps=320),
        evaluation=AgentScoringConfig(episodes=2, curve_every_steps=0),
        lineage=LineageConfig(generations=generations),
    )


def test_a_lineage_of_students_wider_than_stock_is_stopped_grown_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = distil(tmp_path / "whole", wide_config(tmp_path, 2))
    distil(tmp_path / "run", wide_config(tmp_path, 1))
    files = {path.name for path in (tmp_path / "run").iterdir() if path.suffix in (".zip", ".safetensors")}
    assert files == {"student.safetensors"}
    with pytest.raises(Interrupted):
        distil(tmp_path / "run", wide_config(tmp_path, 2), StopAt(20))
    summary = distil(tmp_path / "run", wide_config(tmp_path, 2))
    hashes = [[one["sha256"] for one in told["generations"]] for told in (summary, expected)]
    assert hashes[0] == hashes[1]
    for name, sha256 in zip(("generation_1", "student"), hashes[0][1:], strict=True):
        student = as_teacher(tmp_path / "run" / f"{name}.safetensors")
        assert student.size == WIDE
        assert weights_sha256(student.network.state_dict()) == sha256
    show(summary, tmp_path / "run", wide=False)
    told = capsys.readouterr().out
    assert "student.safetensors (wider than DQN.load's networks: as_teacher opens it)" in told
    assert "DQN.load('" not in told


def test_a_student_that_stock_holds_has_both_files_of_one_network(tmp_path: Path) -> None:
    config = wide_config(tmp_path, 1)
    distil(tmp_path / "run", dataclasses.replace(config, student=dataclasses.replace(config.student, size="3x3x3x4")))
    both = [as_teacher(tmp_path / "run" / f"student.{ending}") for ending in ("zip", "safetensors")]
    first, second = (weights_sha256(one.network.state_dict()) for one in both)
    assert first == second
    assert both[0].kind == both[1].kind == "logits"
    assert find_student(tmp_path / "run" / "student").suffix == ".zip"
    assert all(is_student(tmp_path / "run" / f"student.{ending}") for ending in ("zip", "safetensors"))


def test_a_compact_file_of_other_widths_is_refused(tmp_path: Path) -> None:
    write_student(tmp_path / "a.safetensors", make_network("net3"))
    assert read_student(tmp_path / "a.safetensors", SIZES["net3"]).size == SIZES["net3"]
    with pytest.raises(UserError, match=r"holds no student of the widths \(16, 16, 16\) and 128"):
        read_student(tmp_path / "a.safetensors", SIZES["net2"])
