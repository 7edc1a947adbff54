"""Which students a sweep has: what a user may write, what it makes of a teacher, and what it refuses in one line."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from polydistill.errors import UserError
from polydistill_agents.lineage.agent_config import AgentConfig, AgentStudentConfig, AgentTeacherConfig
from polydistill_agents.lineage.compression.config import CompressionConfig, SweptTeacherConfig
from polydistill_agents.lineage.compression.sizes import Swept, choose_sizes
from polydistill_agents.lineage.config import StudentConfig
from polydistill_agents.networks.nature import SIZES, Size, name_size, read_size
from polydistill_agents.teachers import Teacher, as_teacher
from tests.agents.files.test_spaces import TABLE, make_model
from tests.agents.samples import FRAMES, make_network

NUMBERS = spaces.Box(-1, 1, (4,), np.float32)


def teacher_of(space: spaces.Space[Any], policy: str = "MlpPolicy", **kwargs: Any) -> Teacher:
    return as_teacher(make_model("DQN", space, policy, **kwargs))


def sizes_of(teacher: Teacher, *wanted: str, space: spaces.Space[Any] = NUMBERS, n_actions: int = 3) -> list[Swept]:
    return choose_sizes(wanted, teacher, space, n_actions, "CartPole-v1")


def layers(*widths: int) -> int:
    """Weights and biases of linear layers."""
    return sum(inputs * outputs + outputs for inputs, outputs in pairwise(widths))


def test_the_default_sizes_of_numbers_are_fractions_of_the_teachers_widths() -> None:
    found = sizes_of(teacher_of(NUMBERS, net_arch=[32, 16]))
    assert [swept.name for swept in found] == ["twin", "16x8", "8x4", "4x2"]
    assert [dict(swept.keys) for swept in found] == [
        {}, {"student.net_arch": [16, 8]}, {"student.net_arch": [8, 4]}, {"student.net_arch": [4, 2]},
    ]  # fmt: skip
    widths = [(4, 32, 16, 3), (4, 16, 8, 3), (4, 8, 4, 3), (4, 4, 2, 3)]
    assert [swept.parameters for swept in found] == [layers(*one) for one in widths]


def test_the_default_sizes_of_frames_are_those_of_the_paper_that_are_smaller() -> None:
    found = sizes_of(as_teacher(make_network("nature", 18)), space=FRAMES, n_actions=18)
    assert [(swept.name, swept.parameters) for swept in found] == [
        ("twin", 1_693_362), ("net1", 427_874), ("net2", 113_346), ("net3", 61_954),
    ]  # fmt: skip
    small = sizes_of(as_teacher(make_network("net2")), space=FRAMES, n_actions=6)
    assert [swept.name for swept in small] == ["twin", "net3"]
    tiny = sizes_of(as_teacher(make_network(Size((8, 8, 8), 8))), space=FRAMES, n_actions=6)
    assert [swept.name for swept in tiny] == ["twin", "4x4x4x4", "2x2x2x2", "1x1x1x1"]


def test_sizes_that_fall_together_are_there_once_by_default_and_refused_where_they_were_named() -> None:
    teacher = teacher_of(NUMBERS, net_arch=[4])
    assert [swept.name for swept in sizes_of(teacher)] == ["twin", "2", "1"], "an eighth of 4 units is one, too"
    with pytest.raises(UserError, match="sizes: teacher and 4 are the same network: leave one of them out"):
        sizes_of(teacher, "teacher", "4")


def test_any_widths_may_be_named_and_the_largest_comes_first() -> None:
    found = sizes_of(teacher_of(NUMBERS, net_arch=[8]), "2", "16x4x4", "1/2")
    assert [swept.name for swept in found] == ["16x4x4", "4", "2"], "larger than the teacher is allowed"
    frames = sizes_of(as_teacher(make_network("nature")), "8x8x8x16", "1/2", "48x64x64x8", space=FRAMES, n_actions=6)
    assert [dict(swept.keys)["student.size"] for swept in frames] == ["net1", "48x64x64x8", "8x8x8x16"]
    table = sizes_of(teacher_of(TABLE, "MultiInputPolicy", net_arch=[8]), "1/4", space=TABLE)
    assert dict(table[0].keys) == {"student.net_arch": [2]}


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        ("net1", r"sizes: 'net1' is of frames, and CartPole-v1 shows \(4,\) float32: give the widths of linear layers"),
        ("8x0", "sizes: '8x0': CartPole-v1 shows"),
        ("1/0", "sizes: '1/0': CartPole-v1 shows"),
        ("tiny", "sizes: 'tiny': CartPole-v1 shows"),
    ],
)
def test_what_is_no_size_of_numbers_is_one_line(wanted: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        sizes_of(teacher_of(NUMBERS, net_arch=[8]), wanted)


@pytest.mark.parametrize("wanted", ["32x32", "net9", "8x8x8", "0x8x8x8"])
def test_what_is_no_size_of_frames_is_one_line(wanted: str) -> None:
    with pytest.raises(UserError, match=f"sizes: unknown size '{wanted}'.*as 8x16x16x64.*a fraction of the teacher's"):
        sizes_of(as_teacher(make_network("nature")), wanted, space=FRAMES, n_actions=6)


def test_a_fraction_of_no_hidden_layer_is_refused() -> None:
    with pytest.raises(UserError, match="sizes: 1/2 is a fraction of hidden layers, and the teacher has none"):
        sizes_of(teacher_of(NUMBERS, net_arch=[]), "1/2")


# ------------------------------------------------------------------ of one run


@pytest.mark.parametrize("size", [*SIZES.values(), Size((8, 16, 16), 64), Size((48, 64, 64), 512)])
def test_a_size_is_read_as_it_is_named(size: Size) -> None:
    assert read_size(name_size(size)) == size


@pytest.mark.parametrize("size", ["net9", "8x8x8", "8x8x8x0", "8x8x8x8x8", "", "8x8x8x100000"])
def test_a_config_with_a_size_that_is_none_is_refused(size: str) -> None:
    for config in (StudentConfig, AgentStudentConfig):
        with pytest.raises(ValueError, match="unknown size"):
            config(size=size)


def test_a_size_of_frames_is_refused_where_there_are_none() -> None:
    line = r"student.size is of a Nature-CNN of frames, and CartPole-v1 shows \(4,\) float32: .*--student.net_arch"
    with pytest.raises(ValueError, match=line):
        AgentConfig("CartPole-v1", teacher=AgentTeacherConfig("a.zip"), student=AgentStudentConfig(size="net3"))


# ------------------------------------------------------------------ of the sweep

MINE = SweptTeacherConfig("a.zip")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"game": "pong", "env": "CartPole-v1", "teacher": MINE}, "game pong and env CartPole-v1 are both there"),
        ({"env": "CartPole-v1"}, r"teacher.path is needed: the file of the agent that teaches \(--teacher.path"),
        ({"keep": 0.0}, "keep is a share of the teacher's score, above 0 and at most 1, got 0.0"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"settings": {"student": {"size": "net3"}}}, "settings: student.size cannot be set: --sizes says it"),
        ({"settings": {"teacher.more": ["a.zip"]}}, "settings: teacher.more cannot be set: a sweep has one teacher"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_by_name(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        CompressionConfig(**options)


def test_a_sweep_is_a_study_whose_arms_are_sizes() -> None:
    config = CompressionConfig(env="CartPole-v1", teacher=MINE, settings={"play": {"steps": 640}})
    study = config.study({"twin": {}, "8": {"student.net_arch": [8]}})
    assert study.settings == {"env": "CartPole-v1", "teacher.path": "a.zip", "play.steps": 640}
    assert (study.world, study.chosen_seeds, study.pairs) == ("agent", (0,), ())
    assert CompressionConfig().study({"net3": {"student.size": "net3"}}).settings == {"game": "pong"}
