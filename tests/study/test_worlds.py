"""The worlds of studies: what their table names is there."""

from __future__ import annotations

import dataclasses
import sys
from importlib.util import find_spec
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
from tests.operators import define_operators

FLOAT32 = {"device": "cpu", "precision": "float32"}
CARTPOLE = {"device": "cpu", "env": "CartPole-v1", "teacher.path": "a.zip"}
NEEDED = {"agent": {"env": "CartPole-v1", "teacher.path": "a.zip"}, "images": {"data.root": "pictures"}}


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_has_a_config_a_script_a_command_and_a_report(name: str) -> None:
    if name == "images":
        if find_spec("timm") is None:
            pytest.skip("the extra timm is not installed")
        define_operators()
    world = open_world(name)
    settings = NEEDED.get(name, {})
    config = read_config(world.config_class, None, {"threads": 1, "device": "cpu", **settings}, world.default)
    assert config.resolve().threads == 1
    assert config.lineage.generations >= 1
    assert world.command[0] == sys.executable
    assert Path(world.command[1]).is_file()
    assert f"polydistill-{name}" in COMMANDS
    assert name in REPORTS
    assert WORLDS[name].metric in METRICS


def test_a_plan_of_cifar_names_a_teachers_normalisation_only_where_it_is_given() -> None:
    world = open_world("cifar")
    arms = {"kl": {}, "other": {"student.repeat": 1}}
    plan = make_plan(StudyConfig(world="cifar", settings=FLOAT32, arms=arms), world, None)
    assert not {"mean", "std"} & plan.base["teacher"].keys()
    given = {"teacher.path": "a.pt", "teacher.mean": [0.5, 0.5, 0.5], "teacher.std": [0.2, 0.2, 0.2]}
    plan = make_plan(StudyConfig(world="cifar", settings=FLOAT32 | given, arms=arms), world, None)
    assert (plan.base["teacher"]["mean"], plan.base["teacher"]["std"]) == ([0.5] * 3, [0.2] * 3)


@pytest.mark.parametrize("name", ["agent", "atari"])
def test_a_plan_names_a_key_that_is_younger_than_its_world_only_where_it_is_used(name: str) -> None:
    settings = {"env": "CartPole-v1", "teacher.path": "a.zip"} if name == "agent" else {}
    arms = {"kl": {}, "null": {"student.repeat": 1}}
    plan = make_plan(StudyConfig(world=name, settings=settings, arms=arms), open_world(name), None)
    assert "repeat" not in plan.arm("kl").config["student"]
    assert "repeat" not in plan.base["student"]
    assert plan.arm("null").config["student"]["repeat"] == 1
    assert "dataset" not in plan.base
    config = StudyConfig(world=name, settings=settings | {"dataset": "a"}, arms=arms)
    plan = make_plan(config, open_world(name), None)
    assert plan.base["dataset"] == "a"


@pytest.mark.parametrize(
    ("name", "settings", "sha256"),
    [
        ("agent", CARTPOLE, "8d194adda3c03c0038141b12fc8d5d54e6c1a12a5f5916246e924cb8e184e9ec"),
        ("atari", FLOAT32, "809d63c4975928824b02d4397234d442f6140bb34c5e0d1e37d1a3154864dc65"),
        ("cifar", FLOAT32, "a74e3c2dbefafd9c2091f8dc40cebb9282ad1bd5c9e2629e06a881039e7e799b"),
    ],
)
def test_a_plan_has_the_hash_that_earlier_versions_gave_it(name: str, settings: dict[str, str], sha256: str) -> None:
    arms = {"one": {}, "other": {"student.repeat": 1}}
    plan = make_plan(StudyConfig(world=name, settings=settings, arms=arms), open_world(name), None)
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
