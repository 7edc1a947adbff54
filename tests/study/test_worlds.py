"""The worlds of studies: what their table names is there."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from polydistill._environment import COMMANDS, REPORTS, WORLDS
from polydistill.config.parsing import read_config
from polydistill.errors import UserError
from polydistill.study import worlds
from polydistill.study.arms import make_plan
from polydistill.study.config import StudyConfig
from polydistill.study.records import METRICS
from polydistill.study.worlds import open_world


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_has_a_config_a_script_a_command_and_a_report(name: str) -> None:
    world = open_world(name)
    given = {"teacher.path": "a.zip"} if name == "agent" else {}
    settings = {"env": "CartPole-v1", **given} if name == "agent" else {}
    config = read_config(world.config_class, None, {"threads": 1, "device": "cpu", **settings}, world.default)
    assert config.resolve().threads == 1
    assert config.lineage.generations >= 1
    assert world.command[0] == sys.executable
    assert Path(world.command[1]).is_file()
    assert f"polydistill-{name}" in COMMANDS
    assert name in REPORTS
    assert WORLDS[name].metric in METRICS


@pytest.mark.parametrize("name", ["agent", "atari"])
def test_a_plan_names_a_key_that_is_younger_than_its_world_only_where_it_is_used(name: str) -> None:
    settings = {"env": "CartPole-v1", "teacher.path": "a.zip"} if name == "agent" else {}
    arms = {"kl": {}, "null": {"student.repeat": 1}}
    plan = make_plan(StudyConfig(world=name, settings=settings, arms=arms), open_world(name), None)
    assert "repeat" not in plan.arm("kl").config["student"]
    assert "repeat" not in plan.base["student"]
    assert plan.arm("null").config["student"]["repeat"] == 1


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("pong", "b4ea363681fa80ef013a6b80f22137335b03997f4e9b08789b2fa36df77e7105"),
        ("control_cartpole", "5d0bdc10fa8c914aaedfa81b878539012c50250a5022360305bf8943393eac01"),
        ("small_data", "d89530a3724357fd1b84fc44cbe9b6f66f69bcb978c7c90e3a939b45e3099c26"),
    ],
)
def test_the_plan_of_a_published_study_keeps_its_hash(name: str, sha256: str, root: Path) -> None:
    file = root / "configs" / "study" / f"{name}.yaml"
    config = read_config(StudyConfig, file, {})
    machine = {"device": "cpu"} | ({} if config.world == "agent" else {"precision": "float32"})
    config = dataclasses.replace(config, settings=config.settings | machine)
    plan = make_plan(config, open_world(config.world), file)
    assert dataclasses.replace(plan, commit=None).sha256 == sha256


def test_an_installation_without_scripts_calls_what_the_console_command_calls(
    tmp_path: Path, monkeypatch, run_python
) -> None:
    monkeypatch.setattr(worlds, "CLONE", tmp_path)
    interpreter, *words = open_world("cifar").command
    done = run_python(*words, "--help")
    assert interpreter == sys.executable
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: polydistill-cifar [--flag value ...]")


def test_a_world_whose_extra_is_not_installed_is_one_line(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(UserError, match="this needs the extra vision"):
        open_world("cifar")
