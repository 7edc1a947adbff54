"""Any gymnasium environment with discrete actions is a task; what cannot be one is a line that says why."""

from __future__ import annotations

from importlib.metadata import version

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecTransposeImage

from polydistill.errors import UserError
from polydistill_agents.environments import gym_names, gym_task
from polydistill_agents.environments.gym_task import GymTask, open_environment
from tests.agents.environments import toys

TOYS = "tests.agents.environments.toys"


def toy(name: str, **options) -> GymTask:
    return open_environment(f"{name}-v3", package=TOYS, **options)


def refusal(call, *args, **options) -> str:
    with pytest.raises(UserError) as refused:
        call(*args, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def first_steps(env, n=20, seed=0):
    """What the games show from a reset on, random actions given."""
    actions = np.random.default_rng(seed).integers(env.action_space.n, size=(n, env.num_envs))
    return [env.reset()] + [env.step(row)[0] for row in actions]


# ------------------------------------------------------------------ spaces


def test_cartpole_is_found_by_its_name_and_opened_when_first_asked(monkeypatch):
    made = []
    monkeypatch.setattr(
        gym, "make", lambda *args, make=gym.make, **options: (made.append(1), make(*args, **options))[1]
    )
    task = open_environment("CartPole-v1")
    assert made == []
    space = task.observation_space
    opened = len(made)
    assert space == gym.make("CartPole-v1").observation_space
    assert (task.action_counts, task.actions_of(2), task.reference) == ((2,), spaces.Discrete(2), None)
    assert opened + 1 == len(made) <= 3, "once and for all"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Toy", spaces.Box(-1.0, 1.0, (3,), np.float32)),
        ("Count", spaces.Discrete(6)),
        ("Large", spaces.Box(0, 255, (3, 40, 40), np.uint8)),
        ("First", spaces.Box(0, 255, (3, 40, 40), np.uint8)),
        ("Small", spaces.Box(0, 255, (1, 10, 10), np.uint8)),
    ],
)
def test_any_array_is_seen_and_images_have_their_channels_first(name, expected):
    task = toy(name)
    assert task.observation_space == expected
    observations = task.make_env(2, seed=0).reset()
    assert observations.shape == (2, *expected.shape)
    assert all(expected.contains(row) for row in observations)


def test_a_dict_is_seen_as_a_table_whose_images_have_their_channels_first():
    task = toy("Table")
    assert task.observation_space["eye"].shape == (3, 40, 40)
    table = task.make_env(2, seed=0).reset()
    shapes = {name: values.shape for name, values in table.items()}
    assert shapes == {"where": (2,), "speed": (2, 2), "eye": (2, 3, 40, 40), "bits": (2, 4)}


def test_a_dict_may_hold_images_of_both_kinds():
    task = toy("Eyes")
    table, space = task.make_env(2, seed=0).reset(), task.observation_space
    assert [values.shape for values in table.values()] == [(2, 3, 40, 40)] * 2
    assert {name: part.shape for name, part in space.items()} == {"first": (3, 40, 40), "last": (3, 40, 40)}
    lone = gym.make("Eyes-v3")
    env = task.make_env(1, seed=0)
    table = env.reset()
    plain, _ = lone.reset(seed=int(env.reset_seeds[0]))
    np.testing.assert_array_equal(table["first"][0], plain["first"])
    np.testing.assert_array_equal(table["last"][0], plain["last"].transpose(2, 0, 1))


@pytest.mark.parametrize("options", [{}, {"teacher_wrappers": ["TimeAwareObservation"]}])
def test_the_parts_of_a_table_stay_in_their_order(options, monkeypatch):
    """A network's features stand side by side in it, so that PolicyDistillation.load refuses another order."""
    monkeypatch.setattr(toys.Eyes, "observation_space", spaces.Dict([*toys.Eyes.observation_space.items()][::-1]))
    assert list(toy("Eyes", **options).observation_space) == ["last", "first"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Continuous", r"actions of Continuous-v3 are Box(2,) float32: a DQN takes Discrete actions alone"),
        ("Many", "are MultiDiscrete(2,): a DQN takes Discrete"),
        ("Switches", "are MultiBinary(3,): a DQN takes Discrete"),
        ("Shifted", "start at 1: Stable-Baselines3 counts from 0"),
        ("Nested", "its 'a' is a Dict in a Dict"),
        ("Words", "its 'mission' is Text"),
        ("Two", "they are Tuple"),
        ("Nothing", "they are Box(3, 0) float32, which holds nothing"),
        ("Scalar", "they are Box() float32, without an axis"),
    ],
)
def test_a_space_that_cannot_be_used_is_one_line_that_says_why(name, words):
    line = refusal(lambda: toy(name).observation_space)
    assert words in line
    assert "--wrappers" in line


# ------------------------------------------------------------------ names


def test_an_older_version_is_mapped_to_the_newest_with_a_notice(capsys):
    task = open_environment("Toy-v2", package=TOYS)
    assert task.name == "Toy-v3"
    assert capsys.readouterr().err == "notice: Toy-v2 is not registered: Toy-v3 is taken\n"
    assert open_environment("Toy-v1").name == "Toy-v1", "it is registered"
    assert open_environment("LunarLander-v2").name == "LunarLander-v3"
    assert capsys.readouterr().err.startswith("notice: LunarLander-v2 is not registered")


@pytest.mark.parametrize("name", ["Cartpole-v1", "CartPol-v1", "CartPole-v7"])
def test_an_unknown_name_is_one_line_with_the_nearest(name):
    assert "did you mean CartPole-v1?" in refusal(open_environment, name)


@pytest.mark.parametrize("name", ["", "-v1", "no/such/thing", "a b c", "Zzz-v0"])
def test_what_is_no_name_at_all_is_one_line(name):
    assert refusal(open_environment, name).startswith("unknown environment")


@pytest.mark.parametrize("name", ["ALE/Pong-v5", "PongNoFrameskip-v4", "Pong-v4", "pong"])
def test_a_game_of_atari_is_sent_to_its_script(name):
    assert "distill_atari.py --game pong (polydistill-atari)" in refusal(open_environment, name)


def test_an_environment_whose_package_is_missing_says_which(monkeypatch):
    monkeypatch.setattr(gym_names, "find_spec", lambda name: None)
    assert 'pip install "polydistill[minigrid]"' in refusal(open_environment, "MiniGrid-Empty-5x5-v9")

    def no_box(*args, **options):
        raise gym.error.DependencyNotInstalled('Box2D is not installed: pip install "gymnasium[box2d]"')

    monkeypatch.setattr(gym, "make", no_box)
    assert 'pip install "polydistill[box2d]"' in refusal(lambda: open_environment("LunarLander-v3").observation_space)


def test_a_module_that_an_environment_needs_is_named():
    line = refusal(lambda: open_environment("NeedsBox-v0", package=TOYS).observation_space)
    assert line == "NeedsBox-v0 needs the module tests.agents.environments.no_such_module, which is not installed"


def test_a_users_package_is_found_in_the_current_folder(tmp_path, monkeypatch):
    text = "import gymnasium\nfrom tests.agents.environments.toys import Toy\ngymnasium.register('Mine-v0', Toy)\n"
    (tmp_path / "my_own_envs.py").write_text(text)
    (tmp_path / "my_bad_envs.py").write_text("import json\n\n1 / 0")
    monkeypatch.chdir(tmp_path)
    assert open_environment("Mine-v0", package="my_own_envs").action_counts == (3,)
    named = open_environment("my_own_envs:Mine-v0")
    assert (named.name, named.package) == ("Mine-v0", "my_own_envs")
    assert open_environment("my_own_envs:Mine-v0", package="my_own_envs").package == "my_own_envs"
    both = refusal(open_environment, "my_own_envs:Mine-v0", package="json")  # a config stores one of them
    assert both == "env my_own_envs:Mine-v0 names the package my_own_envs, env_package is json: leave one of them out"
    line = refusal(open_environment, "Mine-v0", package="my_bad_envs")
    assert line == "env_package: my_bad_envs fails when imported: ZeroDivisionError: division by zero"
    assert "there is no module 'my_other_envs'" in refusal(open_environment, "Mine-v0", package="my_other_envs")


def test_options_of_the_environment_are_given_and_wrong_ones_are_one_line():
    assert toy("NotFinite", env_kwargs={"what": "reward"}).make_env(1, seed=0).recipe()["env_kwargs"] == {
        "what": "reward"
    }
    line = refusal(lambda: open_environment("CartPole-v1", env_kwargs={"wind": 3}).observation_space)
    assert line == "env_kwargs: CartPole-v1 has no option 'wind'"


# ------------------------------------------------------------------ seeds


@pytest.mark.parametrize("name", ["Toy", "Table", "Count", "Small"])
def test_equal_seeds_and_actions_show_the_same_over_resets_and_others_do_not(name):
    task = toy(name)
    one, same, other = (first_steps(task.make_env(2, seed=seed)) for seed in (3, 3, 4))
    assert str(one) == str(same) != str(other)


def test_every_full_reset_gives_each_game_a_fresh_seed():
    env = toy("Toy").make_env(3, seed=1)
    assert env.own_seed == 1
    seeds = [env.reset() is not None and env.reset_seeds.tolist() for _ in range(3)]
    assert len({seed for row in seeds for seed in row}) == 9
    env.seed(1)
    assert [env.reset() is not None and env.reset_seeds.tolist() for _ in range(3)] == seeds
    lone = gym.make("Toy-v3")
    env.seed(1)
    np.testing.assert_array_equal(env.reset()[2], lone.reset(seed=seeds[0][2])[0])


def test_the_recipe_holds_what_decides_the_games_in_plain_values():
    recipe = toy("Toy", wrappers=["TimeAwareObservation", "VecFrameStack:2"], max_steps=9).make_env(2, seed=0).recipe()
    assert recipe == {
        "environment": "Toy-v3", "gymnasium": gym.__version__, "package": TOYS, "env_kwargs": {}, "max_steps": 9,
        "wrappers": ["TimeAwareObservation", "VecFrameStack:2"], "n_envs": 2,
    }  # fmt: skip


# ------------------------------------------------------------------ games


def play(task, n_steps, n_envs=1):
    env = task.make_env(n_envs, seed=0)
    env.reset()
    return [env.step(np.ones(n_envs, dtype=np.int64)) for _ in range(n_steps)]


def test_whole_games_are_scored_unclipped():
    steps = play(toy("Toy"), 14)
    assert [step[2][0] for step in steps] == [False] * 6 + [True] + [False] * 6 + [True]
    episode = steps[6][3][0]["episode"]
    assert (episode["r"], episode["l"]) == (7.0, 7)
    assert "episode" not in steps[5][3][0]


def test_a_game_that_a_wrapper_cuts_is_scored_and_a_life_is_not():
    cut = play(toy("Toy", wrappers=[f"{TOYS}:cut_short"]), 3)[-1]
    assert (cut[2][0], cut[3][0]["episode"]["r"], cut[3][0]["episode"]["l"]) == (True, 3.0, 3)
    lives = play(toy("Toy", wrappers=[f"{TOYS}:one_life"]), 6)
    assert [bool(step[2][0]) for step in lives] == [False, True, False, False, False, True]
    assert "episode" not in lives[1][3][0], "the game goes on"
    assert lives[5][3][0]["episode"]["l"] == 7, "one step was made in the reset"


def test_a_game_that_ends_within_a_wrappers_reset_is_scored():
    steps = play(toy("Toy", wrappers=[f"{TOYS}:last_life"]), 12)
    assert [step[3][0].get("episode", {}).get("r") for step in steps] == [*[None] * 5, 7.0] * 2


def test_games_without_an_end_are_cut_and_it_is_said(monkeypatch):
    monkeypatch.setattr(gym_task, "LONGEST", 12)
    task = toy("Endless")
    assert task.notes == ["Endless-v3 is registered without a limit of steps: games are cut after 12 (env_max_steps)"]
    last = play(task, 12)[-1]
    assert last[3][0]["episode"]["l"] == 12
    assert last[3][0]["TimeLimit.truncated"] is True
    assert (toy("Endless", max_steps=4).longest, toy("Endless", max_steps=4).notes) == (4, [])
    limited = open_environment("Limited-v0", package=TOYS)
    assert (limited.longest, limited.notes, play(limited, 5)[-1][2][0]) == (5, [], True)
    assert open_environment("Limited-v0", max_steps=3).longest == 3


def test_max_steps_below_one_is_refused():
    with pytest.raises(ValueError, match="max_steps"):
        open_environment("CartPole-v1", max_steps=0)


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("Raises", {}, "Raises-v3: game 0 fails in step 9: KeyError: 'no such part'"),
        ("RaisesInReset", {}, "RaisesInReset-v3: game 0 fails in reset, after step 7: OSError: the simulator"),
        ("NotFinite", {}, "NotFinite-v3: game 0 gives an observation that is not finite (NaN or inf) in step 3"),
        ("NotFinite", {"env_kwargs": {"what": "reward"}},
         "NotFinite-v3: game 0 gives a reward that is not finite (NaN or inf) in step 3"),
        ("Beyond", {}, "Beyond-v3: game 0 gives an observation that its space does not hold in step 2"),
        ("Misshapen", {"env_kwargs": {"what": "shape"}},
         "Misshapen-v3: what it gives in step 2 is not what it announced: ValueError: could not broadcast input array "
         "from shape (4,) into shape (3,)"),
    ],
)  # fmt: skip
def test_an_environment_that_fails_in_the_middle_names_itself_the_game_and_the_step(name, options, line):
    assert refusal(play, toy(name, **options), 20) == line


@pytest.mark.parametrize("what", ["none", "words"])
def test_what_is_no_observation_is_one_line(what):
    assert refusal(play, toy("Misshapen", env_kwargs={"what": what}), 3).startswith("Misshapen-v3: ")


def test_the_game_that_fails_is_named():
    env = toy("NotFinite").make_env(3, seed=0)
    env.reset()
    env.venv.envs[2].unwrapped.clock = 2  # its next step is the third
    assert "NotFinite-v3: game 2 gives an observation" in refusal(env.step, np.zeros(3, dtype=int))


# ------------------------------------------------------------------ wrappers


def test_wrappers_are_named_and_stand_in_their_order():
    task = toy("Table", wrappers=["FlattenObservation", "VecFrameStack:3"])
    flat = spaces.flatdim(gym.make("Table-v3").observation_space)
    assert task.observation_space.shape == (3 * flat,)
    assert toy("Large", wrappers=["GrayscaleObservation", "FrameStackObservation:4"]).observation_space.shape == (
        4,
        40,
        40,
    )
    assert toy("Table", wrappers=["VecExtractDictObs:speed"]).observation_space.shape == (2,)


def test_a_stack_of_images_is_that_of_stable_baselines():
    env = toy("Large", wrappers=["VecFrameStack:4"]).make_env(1, seed=0)
    stock = VecTransposeImage(VecFrameStack(DummyVecEnv([lambda: gym.make("Large-v3")]), 4))
    ours = first_steps(env)
    stock.seed(int(env.reset_seeds[0]))
    for mine, theirs in zip(ours, first_steps(stock), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("wrapper", "words"),
    [
        ("VecFramestack:4", "did you mean VecFrameStack?"),
        ("FlatenObservation", "did you mean FlattenObservation?"),
        (f"{TOYS}:cut_shrt", "did you mean cut_short?"),
        ("no_such_wrappers:Foo", "there is no module 'no_such_wrappers'"),
        ("NumpyToTorch", "unknown wrapper 'NumpyToTorch'"),
        ("two\nlines:here", "the wrapper two lines:here: there is no module 'two lines'"),
        ("VecNormalize", "leave VecNormalize out: its statistics"),
        ("NormalizeObservation", "leave NormalizeObservation out: it learns"),
    ],
)
def test_an_unknown_wrapper_is_one_line_before_anything_is_made(wrapper, words):
    assert words in refusal(toy, "Toy", wrappers=[wrapper])


@pytest.mark.parametrize(
    ("wrapper", "words"),
    [
        (f"{TOYS}:broken", "broken fails: RuntimeError: no wrapper today"),
        (f"{TOYS}:nothing", "nothing must return a Env, it returns NoneType"),
        ("FrameStackObservation", "FrameStackObservation fails: TypeError"),
        ("VecFrameStack:many", "VecFrameStack:many fails"),
    ],
)
def test_a_wrapper_that_fails_is_one_line(wrapper, words):
    assert words in refusal(lambda: toy("Toy", wrappers=[wrapper]).observation_space)


def test_wrappers_of_one_game_stand_before_those_of_all():
    line = refusal(toy, "Toy", wrappers=["VecFrameStack:2", "FlattenObservation"])
    assert line.startswith("wrappers: VecFrameStack:2 wraps all games at once")


# ------------------------------------------------------------------ protocol


def test_the_protocol_is_the_environments_own():
    task = open_environment("CartPole-v1")
    rules = task.protocol("own")
    assert (rules.max_steps, rules.epsilon, rules.games_differ) == (500, 0.0, True)
    assert "under the protocol 'own' alone, not 'rusu'" in refusal(task.protocol, "rusu")
    assert "CartPole-v1 has 2 actions, not 3" in refusal(task.make_env, 1, seed=0, n_actions=3)


# ------------------------------------------------------------------ packages of others


def test_minigrid_is_registered_without_being_asked_and_its_words_need_a_wrapper():
    pytest.importorskip("minigrid")
    line = refusal(lambda: open_environment("MiniGrid-Empty-5x5-v0").observation_space)
    assert "its 'mission' is MissionSpace" in line
    assert "try --wrappers minigrid.wrappers:ImgObsWrapper, or minigrid.wrappers:FlatObsWrapper" in line
    seen = open_environment("MiniGrid-Empty-5x5-v0", wrappers=["minigrid.wrappers:ImgObsWrapper"])
    assert seen.observation_space.shape == (3, 7, 7)
    assert "did you mean MiniGrid-Empty-5x5-v0?" in refusal(open_environment, "MiniGrid-Empty-5x5-v9")


def test_lunar_lander_is_played():
    pytest.importorskip("Box2D")
    env = open_environment("LunarLander-v3").make_env(2, seed=0)
    assert env.reset().shape == (2, 8)
    assert env.recipe()["box2d"] == version("box2d")
