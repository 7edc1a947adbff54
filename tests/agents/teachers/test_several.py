"""Masks of actions, and several teachers as one."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from polydistill.errors import UserError
from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill_agents.files.inspection import convert_agent, inspect_agent
from polydistill_agents.teachers import as_teacher, mask_scores
from tests.agents.samples import refusal

VECTOR = spaces.Box(-3, 3, (3,), np.float32)
SEEN = torch.linspace(-2, 2, 12).view(4, 3)
MASKS = np.array([[1, 0, 1], [1, 1, 1], [0, 0, 1], [1, 1, 0]], bool)


class Room(gym.Env[Any, Any]):
    """Vectors of noise; three actions."""

    def __init__(self, space: spaces.Space[Any] = VECTOR, n_actions: int = 3) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(n_actions)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}

    def action_masks(self) -> np.ndarray:
        return np.ones(3, bool)


class Doubled(FlattenExtractor):
    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        return 2.0 * super().forward(seen)


def ppo(seed: int = 0, env: Any = None, **kwargs: Any) -> PPO:
    env = Room() if env is None else env
    return PPO(
        "MlpPolicy",
        env,
        n_steps=8,
        batch_size=8,
        seed=seed,
        device="cpu",
        policy_kwargs={"ortho_init": False, **kwargs},
    )


def dqn(seed: int = 0, env: Any = None) -> DQN:
    return DQN("MlpPolicy", Room() if env is None else env, buffer_size=1, seed=seed, device="cpu")


# ------------------------------------------------------------------ masks


@pytest.mark.parametrize("kwargs", [{}, {"features_extractor_class": Doubled}])
def test_a_masked_target_is_the_masked_policy_of_sb3_contrib(kwargs, tmp_path):
    sb3_contrib = pytest.importorskip("sb3_contrib")
    kwargs = {"ortho_init": False, **kwargs}
    model = sb3_contrib.MaskablePPO("MlpPolicy", Room(), n_steps=8, batch_size=8, policy_kwargs=kwargs, device="cpu")
    with torch.no_grad():
        expected = model.policy.get_distribution(SEEN, MASKS).distribution.probs
    teacher = as_teacher(model)
    assert teacher.masks
    scores = mask_scores(teacher(SEEN), MASKS)
    assert bool((scores[torch.from_numpy(~MASKS)] == -torch.inf).all())
    torch.testing.assert_close(scores.softmax(dim=1), expected, rtol=1e-5, atol=1e-7)
    model.save(tmp_path / "a.zip")
    if len(kwargs) == 1:
        told = dict(inspect_agent(str(tmp_path / "a.zip")))
        assert told["algorithm"] == "MaskablePPO"
        assert told["masks"].startswith("it learned with the environment's masks")
        assert convert_agent(tmp_path / "a.zip", tmp_path / "b.zip")
        actions, _ = DQN.load(tmp_path / "b.zip", device="cpu").predict(SEEN.numpy(), deterministic=True)
        assert (actions == teacher(SEEN).argmax(dim=1).numpy()).all()
        assert not as_teacher(tmp_path / "b.zip").masks


def test_masks_that_do_not_fit_are_one_line():
    scores = torch.zeros(4, 3)
    assert "masks are (4, 2), the scores (4, 3)" in refusal(lambda masks: mask_scores(scores, masks), MASKS[:, :2])
    none = MASKS.copy()
    none[2] = False
    assert "no action at all in row 2 of its masks" in refusal(lambda masks: mask_scores(scores, masks), none)


# ------------------------------------------------------------------ several


def test_several_teachers_are_the_mean_of_their_policies(tmp_path):
    first, second = ppo(0), dqn(1)
    first.save(tmp_path / "a.zip")
    teacher = as_teacher([tmp_path / "a.zip", second, lambda seen: seen], temperatures=[1.0, 0.05, 0.5])
    with torch.no_grad():
        policies = [
            first.policy.get_distribution(SEEN).distribution.probs,
            (second.q_net(SEEN) / 0.05).softmax(dim=1),
            (SEEN / 0.5).softmax(dim=1),
        ]
    expected = (policies[0] + policies[1] + policies[2]) / 3
    scores = teacher(SEEN)
    torch.testing.assert_close(scores.exp(), expected, rtol=1e-5, atol=1e-7)
    assert scores.dtype == torch.float32
    assert (teacher.kind, teacher.has_memory, teacher.masks) == ("logits", False, False)
    teacher.check_fits(VECTOR, spaces.Discrete(3))
    assert teacher.observation_space == VECTOR
    assert as_teacher([first, second], temperatures=[1, 0.05]).network is not None


def test_a_student_takes_a_list_of_teachers_and_their_q_values_at_its_temperature():
    first, second = ppo(0), dqn(1)
    options: Any = {"policy_kwargs": {"net_arch": [8]}, "device": "cpu"}
    student = PolicyDistillation("MlpPolicy", Room(), [first, second], temperature=0.05, **options)
    expected = as_teacher([first, second], temperatures=[1.0, 0.05])(SEEN)
    assert torch.equal(student.teacher(SEEN), expected)
    assert student.lesson.options()["temperature"] == 1.0, "their mean is sharpened no further"
    with pytest.raises(UserError, match=r"teacher 2 gives Q-values: choose .* or one temperature of a student"):
        PolicyDistillation("MlpPolicy", Room(), [first, second], **options)


def test_a_policy_that_is_certain_stays_finite_and_a_masked_action_has_no_probability():
    sure = as_teacher([lambda seen: 1e4 * seen, lambda seen: -1e4 * seen], temperatures=[0.01, 0.01])
    assert bool(sure(SEEN).isfinite().all())
    masked = as_teacher([lambda seen: mask_scores(seen, MASKS)] * 2, temperatures=[1, 1])
    assert torch.equal(masked(SEEN) == -torch.inf, torch.from_numpy(~MASKS))


def test_one_that_remembers_is_led_through_its_games_among_others():
    sb3_contrib = pytest.importorskip("sb3_contrib")
    recurrent = sb3_contrib.RecurrentPPO("MlpLstmPolicy", Room(), n_steps=8, batch_size=8, device="cpu", seed=0)
    alone, plain = as_teacher(recurrent), as_teacher(ppo())
    both = as_teacher([plain, as_teacher(recurrent)])
    alone.begin(4)
    both.begin(4)
    for starts in ([True] * 4, [False] * 4, [False, True, False, False]):
        expected = (alone.label(SEEN, starts).softmax(dim=1) + plain(SEEN).softmax(dim=1)) / 2
        torch.testing.assert_close(both.label(SEEN, starts).exp(), expected)
    assert both.has_memory
    state = both.memory()
    expected = both.label(SEEN, [False] * 4)
    both.remember(state)
    assert torch.equal(both.label(SEEN, [False] * 4), expected)


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        (lambda: [], {}, "no teacher: the list of them is empty"),
        (lambda: [ppo(), dqn()], {}, "teacher 2 gives Q-values: choose the temperature of each"),
        (lambda: [ppo(), ppo()], {"temperatures": [1.0]}, "2 teachers need as many temperatures above 0, got [1.0]"),
        (lambda: [ppo(), ppo()], {"temperatures": [1.0, 0.0]}, "temperatures above 0, got [1.0, 0.0]"),
        (lambda: [ppo(), ppo(env=Room(n_actions=5))], {}, "teacher 1 scores 3 actions, teacher 2 scores 5"),
        (
            lambda: [ppo(), ppo(env=Room(spaces.Box(-1, 1, (8,), np.float32)))],
            {},
            "teacher 1 sees (3,) float32, teacher 2 sees (8,) float32",
        ),
        (lambda: [ppo(), None], {}, "NoneType"),
    ],
)
def test_teachers_that_do_not_fit_one_another_are_one_line(sources, options, message):
    assert message in refusal(lambda given: as_teacher(given, **options), sources())


def test_functions_of_several_numbers_of_actions_are_one_line():
    teacher = as_teacher([lambda seen: seen, lambda seen: seen[:, :2]], temperatures=[1, 1])
    with pytest.raises(UserError, match=r"several shapes: \(4, 3\), \(4, 2\)"):
        teacher(SEEN)


# ------------------------------------------------------------------ statistics


def test_the_statistics_of_raw_observations_are_told_of_vectors_alone(tmp_path):
    env = VecNormalize(DummyVecEnv([Room]), epsilon=0.25)
    model = ppo(env=env).learn(16)
    model.save(tmp_path / "a.zip")
    env.save(str(tmp_path / "vecnormalize.pkl"))
    for teacher in (as_teacher(model), as_teacher(tmp_path / "a.zip"), as_teacher([ppo(), model])):
        assert teacher.input_statistics is not None
        np.testing.assert_array_equal(teacher.input_statistics.mean, env.obs_rms.mean)
        np.testing.assert_array_equal(teacher.input_statistics.variance, env.obs_rms.var)
        assert teacher.input_statistics.epsilon == 0.25
    assert as_teacher(ppo()).input_statistics is None
    outer = VecNormalize(VecNormalize(DummyVecEnv([Room])))
    twice = ppo(env=outer).learn(16)
    np.testing.assert_array_equal(as_teacher(twice).input_statistics.mean, outer.venv.obs_rms.mean)  # type: ignore


def test_statistics_over_a_table_are_refused_in_one_line(tmp_path):
    table = spaces.Dict(a=VECTOR, b=spaces.Box(-1, 1, (2,), np.float32))
    env = VecNormalize(DummyVecEnv([lambda: Room(table)]))
    model = PPO("MultiInputPolicy", env, n_steps=8, batch_size=8, device="cpu").learn(8)
    assert "VecNormalize over a table of observations (Dict)" in refusal(as_teacher, model)
    model.save(tmp_path / "a.zip")
    env.save(str(tmp_path / "vecnormalize.pkl"))
    assert "only a VecNormalize of plain observations (Box) is read" in refusal(as_teacher, tmp_path / "a.zip")
