"""A task knows its spaces without opening an environment, and makes environments as actions and protocol ask for."""

from __future__ import annotations

import pytest
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces

from polydistill.errors import UserError
from polydistill_agents.environments.atari import AtariVecEnv
from polydistill_agents.environments.protocols import PROTOCOLS, Protocol
from polydistill_agents.environments.task import open_task


@pytest.mark.parametrize(("game", "own"), [("pong", 6), ("breakout", 4), ("ms_pacman", 9), ("boxing", 18)])
def test_spaces_are_those_of_the_environment_and_asking_opens_none(game, own, monkeypatch):
    opened = []
    monkeypatch.setattr(AtariVecEnv, "__init__", lambda *_, **__: opened.append("environment"))
    task = open_task(game)
    told = task.observation_space, task.actions_of(own)
    assert task.action_counts == tuple(sorted({own, 18}))
    assert opened == []
    monkeypatch.undo()
    for n_actions in task.action_counts:
        env = task.make_env(1, seed=0, n_threads=1, n_actions=n_actions)
        assert (env.observation_space, env.action_space) == (told[0], spaces.Discrete(n_actions))
        assert env.reset().shape[1:] == told[0].shape
    assert told[1] == spaces.Discrete(own)


def test_frames_are_those_of_the_emulator():
    assert AtariVectorEnv("pong", 1, num_threads=1).single_observation_space == open_task("pong").observation_space


def test_an_agent_has_the_actions_that_it_scores_or_else_those_of_the_game():
    assert [open_task("pong").actions_of(n).n for n in (6, 18, 7)] == [6, 18, 6]


def test_a_game_that_uses_all_18_actions_is_made_as_with_its_own():
    recipe = open_task("boxing").make_env(1, seed=0, n_threads=1, n_actions=18).recipe()
    assert recipe == AtariVecEnv("boxing", 1, n_threads=1).recipe()


def test_games_to_learn_from_are_those_of_the_environment_itself():
    assert open_task("pong").make_env(2, seed=3, n_threads=1).recipe() == AtariVecEnv("pong", 2).recipe()


def test_an_environment_is_made_as_its_protocol_says(monkeypatch):
    made = {}

    class Recorder(AtariVecEnv):
        def __init__(self, game, n_envs, **options):
            made.update(options)

    monkeypatch.setattr("polydistill_agents.environments.task.AtariVecEnv", Recorder)
    protocol = Protocol(0.1, 7, 0.3, False, True, "test", max_frames=1234)
    open_task("pong").make_env(2, seed=9, n_threads=1, protocol=protocol)
    options = {
        "seed": 9, "n_threads": 1, "noop_max": 7, "repeat_action_probability": 0.3, "fire_on_reset": False,
        "fire_on_life_loss": True, "max_frames": 1234, "full_action_space": False,
    }  # fmt: skip
    assert made == options


def test_a_task_is_opened_by_any_name_of_its_game_and_knows_its_protocols():
    assert open_task("ALE/Pong-v5") == open_task("pong")
    assert open_task("pong").name == "pong"
    assert open_task("pong").protocol("zoo") is PROTOCOLS["zoo"]
    with pytest.raises(UserError, match="did you mean pong"):
        open_task("pongg")


# ------------------------------------------------------------------ normalised scores


def test_the_published_normalised_score_of_a_zoo_agent_is_found():
    # the rl-baselines3-zoo's DQN: 20.6 in Pong and 358 in Breakout, 1.17 and 12.4 times a human
    assert open_task("pong").human_normalized(20.6) == pytest.approx(1.17, abs=0.005)
    assert open_task("breakout").human_normalized(358) == pytest.approx(12.4, abs=0.05)


def test_a_student_of_negative_scores_is_measured_from_random_play():
    # 10.35 of the 20.7 points above random play; the plain ratio -10.35 / 0 does not exist
    assert open_task("pong").teacher_normalized(-10.35, 0.0) == pytest.approx(0.5)
    # better than its teacher although the ratio of the negative scores is below one
    assert open_task("pong").teacher_normalized(-5.0, -10.0) == pytest.approx(15.7 / 10.7)
    assert open_task("pong").teacher_normalized(-21.0, 14.0) < 0
    assert open_task("pong").teacher_normalized(16.3, 16.3) == 1.0


@pytest.mark.parametrize("teacher", [-20.7, -21.0])
def test_a_teacher_no_better_than_random_play_measures_nothing(teacher):
    assert open_task("pong").teacher_normalized(10.0, teacher) is None


def test_a_game_outside_the_table_has_no_normalised_score():
    tetris = open_task("tetris")
    assert (tetris.reference, tetris.human_normalized(1.0), tetris.teacher_normalized(1.0, 2.0)) == (None, None, None)
