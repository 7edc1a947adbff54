"""Teacher and student see one environment through wrappers of their own, also through ones with a memory."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from polydistill.errors import UserError
from polydistill.lineage import LineageConfig
from polydistill_agents import PolicyDistillation
from polydistill_agents.environments.evaluation import evaluate
from polydistill_agents.environments.gym_task import open_environment
from polydistill_agents.environments.recording import first_difference
from polydistill_agents.environments.views import view_of
from polydistill_agents.lineage.agent_config import AgentConfig, AgentTeacherConfig
from tests.agents.environments import toys

TOYS = toys.__name__


def toy(name, **options):
    return open_environment(f"{name}-v3", package=TOYS, **options)


def play(env, n=20):
    actions = np.random.default_rng(0).integers(3, size=(n, env.num_envs))
    yield env.reset()
    for row in actions:
        yield env.step(row)[0]


@pytest.mark.parametrize(
    ("name", "student", "teacher"),
    [
        ("Toy", (), ("FrameStackObservation:3",)),
        ("Toy", ("TimeAwareObservation",), ("FrameStackObservation:2", "FlattenObservation")),
        ("Large", ("GrayscaleObservation", "FrameStackObservation:4"), ("FlattenObservation",)),
        ("Table", ("FlattenObservation",), ("TimeAwareObservation",)),
        ("Small", ("FlattenObservation",), ("FrameStackObservation:2",)),
    ],
)
def test_each_view_is_that_of_an_environment_with_its_wrappers_alone(name, student, teacher):
    both = toy(name, wrappers=student, teacher_wrappers=teacher)
    env, shown = both.make_env(2, seed=5), {"student": [], "teacher": []}
    for seen in play(env):
        shown["student"].append(seen)
        shown["teacher"].append(env.teacher_view)
    assert env.observation_space == both.observation_space
    assert env.teacher_space == both.for_teacher().observation_space
    for who, wrappers in (("student", student), ("teacher", teacher)):
        alone = toy(name, wrappers=wrappers)
        assert {"student": both, "teacher": both.for_teacher()}[who].observation_space == alone.observation_space
        for mine, theirs in zip(shown[who], play(alone.make_env(2, seed=5)), strict=True):
            assert str(mine) == str(theirs)


def test_games_are_scored_and_repeat_themselves_as_with_one_view():
    task = toy("Toy", teacher_wrappers=["FrameStackObservation:2"])
    assert toy("Toy").for_teacher() == toy("Toy")
    assert toy("Toy").make_env(1, seed=0).teacher_view is None
    assert first_difference(task, seed=0, steps=20) is None
    assert task.make_env(1, seed=0).recipe()["teacher_wrappers"] == ["FrameStackObservation:2"]


def test_agents_are_asked_about_their_own_views():
    shapes = {}

    def looking(who):
        def agent(seen):
            shapes[who] = tuple(seen.shape[1:])
            return torch.tensor([0.0, 1.0, 0.0]).expand(len(seen), 3)

        return agent

    task = toy("Toy", teacher_wrappers=["FrameStackObservation:2"])
    result = evaluate(looking("student"), task, episodes=2, reference=looking("teacher"))
    assert (result.scores.tolist(), result.agreement) == ([7.0, 7.0], 1.0)
    assert shapes == {"student": (3,), "teacher": (2, 3)}


def test_a_student_that_skips_steps_leaves_none_out_of_its_teachers_view():
    task = toy("Large", wrappers=["MaxAndSkipObservation:2"], teacher_wrappers=["FrameStackObservation:2"])
    env = task.make_env(1, seed=5)
    env.reset()
    env.step(np.zeros(1, dtype=int))
    stack = env.teacher_view[0]
    game = gym.make("Large-v3")
    game.reset(seed=int(env.reset_seeds[0]))
    frames = [game.step(0)[0] for _ in range(2)]
    np.testing.assert_array_equal(stack, np.stack(frames))


def test_a_wrapper_of_the_teacher_that_plays_is_one_line():
    env = toy("Large", teacher_wrappers=["MaxAndSkipObservation:2"]).make_env(1, seed=0)
    env.reset()
    with pytest.raises(UserError, match=r"Large-v3: game 0 fails in step 1: .*the teacher's wrappers may change what"):
        env.step(np.zeros(1, dtype=int))


@pytest.mark.parametrize(
    "options",
    [
        {"wrappers": ["VecFrameStack:2"], "teacher_wrappers": ["FlattenObservation"]},
        {"teacher_wrappers": ["VecFrameStack:2"]},
    ],
)
def test_a_wrapper_of_all_games_cannot_be_one_views(options):
    with pytest.raises(UserError, match="VecFrameStack:2 wraps both views alike: give each its own"):
        toy("Toy", **options).make_env(1, seed=0)


@pytest.mark.parametrize(
    ("name", "words"),
    [("Words", "its 'student.mission' is Text"), ("Nested", "its 'student.a' is a Dict in a Dict")],
)
def test_a_view_that_cannot_be_used_is_one_line(name, words):
    task = toy(name, teacher_wrappers=["FlattenObservation"])
    with pytest.raises(UserError, match=words):
        task.make_env(1, seed=0)


def test_views_of_tables_keep_their_names():
    space = spaces.Dict(
        {"student": spaces.Discrete(2), "teacher.a": spaces.Discrete(3), "teacher.b": spaces.Discrete(4)}
    )
    assert view_of(space, "student") == spaces.Discrete(2)
    assert view_of(space, "teacher") == spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Discrete(4)})
    assert view_of({"student": 1, "teacher.a": 2}, "teacher") == {"a": 2}


def test_the_last_observation_of_a_game_is_the_students():
    env = toy("Toy", wrappers=["TimeAwareObservation"], teacher_wrappers=["FlattenObservation"]).make_env(1, seed=0)
    env.reset()
    infos = [env.step(np.zeros(1, dtype=int))[3][0] for _ in range(7)]
    assert infos[-1]["terminal_observation"].shape == env.observation_space.shape == (4,)


def test_a_student_is_taught_by_one_that_sees_more():
    """The teacher answers by what it alone sees, the last action's effect; the student's scores are of its own view."""
    env = toy("Toy", teacher_wrappers=["FrameStackObservation:2"]).make_env(2, seed=0)
    seen = set()

    def teacher(stack):
        seen.add(tuple(stack.shape[1:]))
        return stack[:, 1].float() * 5

    model = PolicyDistillation(
        "MlpPolicy", env, teacher=teacher, size=None, policy_kwargs={"net_arch": [16]}, learning_starts=16,
        batch_size=16, buffer_size=512, train_freq=8, temperature=1.0, seed=0, device="cpu",
    )  # fmt: skip
    model.learn(512)
    assert seen == {(2, 3)}
    assert model.observation_space.shape == (3,)
    states = torch.rand(256, 3) * 2 - 1
    agreed = (model.student_scores(states).argmax(dim=1) == states.argmax(dim=1)).float().mean()
    assert agreed > 0.85, "the newest frame is what the student sees"


def test_a_lineage_of_several_generations_has_one_view():
    options = {"env": "Toy-v3", "env_package": TOYS, "teacher_wrappers": ("FlattenObservation",)}
    teacher = AgentTeacherConfig(path="a.zip")
    assert AgentConfig(**options, teacher=teacher).task.teacher_wrappers == ("FlattenObservation",)
    with pytest.raises(ValueError, match=r"teacher_wrappers need lineage\.generations = 1"):
        AgentConfig(**options, teacher=teacher, lineage=LineageConfig(2))
