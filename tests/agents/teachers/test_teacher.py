"""Anything as a teacher: frozen, outside the graph, in float32, of its own storage; refused where it does not fit."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.dqn.policies import QNetwork
from torch import nn

from polydistill.errors import UserError
from polydistill.provenance import weights_sha256
from polydistill_agents.files.sb3_zip import write_dqn_zip
from polydistill_agents.networks.nature import SIZES
from polydistill_agents.teachers import as_teacher
from tests.agents.samples import FRAMES, make_frames, make_network, refusal

SIX = spaces.Discrete(6)


class Screen(gym.Env):
    """Frames of noise, with spaces as given."""

    def __init__(self, observation_space: spaces.Space = FRAMES, action_space: spaces.Space = SIX) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def make_model(algorithm: str, observation_space=FRAMES, action_space=SIX):
    policy = "CnnPolicy" if len(observation_space.shape) == 3 else "MlpPolicy"
    env, policy_kwargs = Screen(observation_space, action_space), {"features_extractor_kwargs": {"features_dim": 32}}
    if policy == "MlpPolicy":
        policy_kwargs = {}
    if algorithm == "DQN":
        return DQN(policy, env, buffer_size=1, policy_kwargs=policy_kwargs, device="cpu")
    return {"PPO": PPO, "A2C": A2C}[algorithm](policy, env, n_steps=64, policy_kwargs=policy_kwargs, device="cpu")


def bare(frames: torch.Tensor) -> torch.Tensor:
    return frames[:, 0, 0, :6].double()


@pytest.fixture(params=["zip", "DQN", "PPO", "A2C", "QNetwork", "module", "function"])
def source(request, tmp_path):
    match request.param:
        case "zip":
            write_dqn_zip(tmp_path / "teacher.zip", make_network())
            return tmp_path / "teacher.zip"
        case "QNetwork":
            return make_network()
        case "module":
            return nn.Sequential(Scale(), nn.Flatten(), nn.Linear(4 * 84 * 84, 6), nn.Dropout(0.5))
        case "function":
            return bare
        case algorithm:
            return make_model(algorithm)


class Scale(nn.Module):
    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.float() / 255.0


def test_any_source_gives_float32_scores_of_its_own_outside_the_graph(source):
    teacher, frames = as_teacher(source), make_frames(3, seed=1)
    kept = frames.clone()
    teacher.check_fits(FRAMES, SIX)
    scores = teacher(frames)
    assert scores.shape == (3, 6)
    assert scores.dtype == torch.float32
    assert not scores.requires_grad
    assert scores.grad_fn is None
    assert torch.equal(frames, kept)
    assert torch.equal(teacher(frames), scores), "no dropout: it is in eval mode"
    for row in range(3):
        torch.testing.assert_close(teacher(frames[row : row + 1])[0], scores[row], rtol=1e-4, atol=1e-5)


def test_any_network_is_frozen_and_stays_in_eval_mode_whoever_switches_it_on(source):
    teacher = as_teacher(source)
    if teacher.network is None:
        assert source is bare
        return
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    assert not teacher.network.training
    teacher.network.train()
    teacher(make_frames(3, seed=1))
    assert not any(module.training for module in teacher.network.modules())
    next(iter(teacher.network.children())).train()
    teacher(make_frames(3, seed=1))
    assert not any(module.training for module in teacher.network.modules())


def module_of(source) -> nn.Module | None:
    return getattr(source, "policy", source if isinstance(source, nn.Module) else None)


def test_training_the_source_on_moves_nothing_in_the_teacher_and_is_not_hindered(source):
    teacher, frames = as_teacher(source), make_frames(3, seed=1)
    module = module_of(source)
    if module is None:
        return
    before, sha256 = teacher(frames), weights_sha256(teacher.network.state_dict())
    own = {parameter.data_ptr() for parameter in teacher.network.parameters()}
    assert not own & {parameter.data_ptr() for parameter in module.parameters()}
    assert any(parameter.requires_grad for parameter in module.parameters()), "the source itself is not frozen"
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 1.0
    assert torch.equal(teacher(frames), before)
    assert weights_sha256(teacher.network.state_dict()) == sha256


def test_a_function_of_weights_that_learn_is_asked_outside_of_their_graph():
    weight = torch.ones(6, requires_grad=True)
    teacher = as_teacher(lambda frames: bare(frames) * weight)
    assert (bare(make_frames(3, seed=1)) * weight).requires_grad
    assert not teacher(make_frames(3, seed=1)).requires_grad


def test_scores_of_a_dqn_are_its_q_values(tmp_path):
    model, frames = make_model("DQN"), make_frames(3, seed=1)
    teacher = as_teacher(model)
    assert teacher.kind == "q_values"
    with torch.no_grad():
        torch.testing.assert_close(teacher(frames), model.q_net(frames), rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "stock.zip")
    assert torch.equal(as_teacher(tmp_path / "stock.zip")(frames), teacher(frames)), "path or model, the same teacher"
    assert as_teacher(str(tmp_path / "stock.zip")).size == teacher.size == SIZES["nature"]._replace(hidden=32)


@pytest.mark.parametrize("algorithm", ["PPO", "A2C"])
def test_scores_of_an_actor_critic_are_the_logits_of_its_policy(algorithm):
    model, frames = make_model(algorithm), make_frames(3, seed=1)
    teacher = as_teacher(model)
    assert teacher.kind == "logits"
    with torch.no_grad():
        actions = torch.arange(6).repeat(3)
        _, log_probability, _ = model.policy.evaluate_actions(frames.repeat_interleave(6, dim=0), actions)
    torch.testing.assert_close(teacher(frames).log_softmax(1).flatten(), log_probability, rtol=1e-4, atol=1e-5)


def test_scores_of_a_quantile_network_are_the_means_over_its_quantiles():
    class QuantilePolicy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quantile_net = nn.Sequential(
                Scale(), nn.Flatten(), nn.Linear(4 * 84 * 84, 5 * 6), nn.Unflatten(1, (5, 6))
            )

    class QuantileModel(BaseAlgorithm):  # sb3-contrib's QR-DQN in what matters here
        def __init__(self) -> None:
            self.action_space, self.policy, self.env = SIX, QuantilePolicy(), None
            self._last_original_obs = None

        def _setup_model(self) -> None: ...

        def learn(self, *args, **kwargs): ...

    model, frames = QuantileModel(), make_frames(3, seed=1)
    teacher = as_teacher(model)
    assert teacher.kind == "q_values"
    with torch.no_grad():
        quantiles = model.policy.quantile_net(frames)
    expected = torch.stack([quantiles[:, :, action].sum(1) / 5 for action in range(6)], dim=1)
    torch.testing.assert_close(teacher(frames), expected)


@pytest.mark.parametrize("kind", ["q_values", "logits"])
def test_the_kind_of_scores_is_remembered_by_a_file_and_by_a_loaded_model(tmp_path, kind):
    write_dqn_zip(tmp_path / "a.zip", make_network(), score_kind=kind)
    assert as_teacher(tmp_path / "a.zip").kind == kind
    assert as_teacher(DQN.load(tmp_path / "a.zip", device="cpu")).kind == kind
    assert as_teacher(bare, kind=kind).kind == kind
    assert as_teacher(make_network(), kind=kind).kind == kind


def test_a_kind_that_does_not_exist_or_is_known_already_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be one of"):
        as_teacher(bare, kind="policy")
    with pytest.raises(TypeError, match="knows its own kind"):
        as_teacher(make_model("DQN"), kind="logits")


def test_a_teacher_stays_the_same_teacher():
    teacher = as_teacher(bare)
    assert as_teacher(teacher) is teacher


def test_an_outer_autocast_does_not_lower_the_precision_of_a_teacher():
    network = nn.Sequential(Scale(), nn.Flatten(), nn.Linear(4 * 84 * 84, 6))
    for source in (network, make_model("PPO"), make_model("DQN")):
        teacher, frames = as_teacher(source), make_frames(3, seed=1)
        with torch.autocast("cpu", torch.bfloat16):
            inside = teacher(frames)
        assert torch.equal(inside, teacher(frames))


def test_an_extractor_of_the_same_names_and_another_function_is_not_taken_for_a_nature_cnn():
    class Squared(NatureCNN):
        def forward(self, observations):
            return super().forward(observations) ** 2

    model = DQN("CnnPolicy", Screen(), buffer_size=1, device="cpu", policy_kwargs={"features_extractor_class": Squared})
    teacher, frames = as_teacher(model), make_frames(3, seed=1)
    assert teacher.size is None
    with torch.no_grad():
        torch.testing.assert_close(teacher(frames), model.q_net(frames))


# ------------------------------------------------------------------ what does not fit


def fit(source) -> None:
    as_teacher(source).check_fits(FRAMES, SIX)


@pytest.mark.parametrize("algorithm", ["DQN", "PPO"])
def test_a_teacher_of_other_actions_is_told_both_counts(algorithm):
    model = make_model(algorithm, action_space=spaces.Discrete(18))
    assert "scores 18 actions, the environment has 6" in refusal(fit, model)


@pytest.mark.parametrize("algorithm", ["DQN", "PPO", "A2C"])
def test_a_teacher_of_vectors_is_told_both_shapes(algorithm):
    vectors = spaces.Box(-1, 1, (4,), np.float32)
    line = refusal(fit, make_model(algorithm, vectors, spaces.Discrete(2)))
    assert "the teacher sees (4,) float32, the environment shows (4, 84, 84) uint8" in line


def test_a_teacher_of_another_stack_or_of_scaled_pixels_is_told_both():
    line = refusal(fit, make_model("DQN", spaces.Box(0, 255, (1, 84, 84), np.uint8)))
    assert (
        "sees (1, 84, 84) uint8, the environment shows (4, 84, 84) uint8: another number of frames is stacked" in line
    )
    scaled = QNetwork(
        spaces.Box(0, 1, FRAMES.shape, np.float32), SIX, NatureCNN(FRAMES), 512, [], normalize_images=False
    )
    line = refusal(fit, scaled)
    assert "sees (4, 84, 84) float32, the environment shows (4, 84, 84) uint8: are they scaled otherwise?" in line


def test_a_model_of_continuous_actions_is_refused():
    with pytest.raises(UserError, match="discrete actions"):
        as_teacher(make_model("PPO", action_space=spaces.Box(-1, 1, (2,), np.float32)))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda frames: frames[0, 0, 0, :6].float(), r"one row of scores per observation, gave \(6,\) for 2"),
        (lambda frames: frames[:1, 0, 0, :6].float(), r"one row of scores per observation, gave \(1, 6\) for 2"),
        (lambda frames: frames[:, 0, 0, :6].numpy(), "AttributeError"),
        (lambda frames: None, "AttributeError"),
        (lambda frames: frames[:, 9, 0, :6].float(), "IndexError"),
        (lambda frames: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda frames: torch.full((len(frames), 6), float("nan")), "not numbers"),
        (nn.Linear(3, 6), "RuntimeError"),
    ],
)
def test_a_function_that_does_not_score_frames_is_one_line(function, message):
    with pytest.raises(UserError, match=message) as error:
        as_teacher(function).check_fits(FRAMES, SIX)
    assert "\n" not in str(error.value)


def test_a_masked_action_of_minus_infinity_fits():
    def masked(frames):
        scores = bare(frames)
        scores[:, 2] = -torch.inf
        return scores

    as_teacher(masked).check_fits(FRAMES, SIX)


@pytest.mark.parametrize("source", [None, 3, {}])
def test_what_is_no_teacher_at_all_is_named(source):
    with pytest.raises(UserError, match=type(source).__name__):
        as_teacher(source)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        as_teacher(tmp_path / "none.zip")


@pytest.mark.parametrize("name", ["dqn-CartPole-v1.zip", "qrdqn-CartPole-v1.zip", "ppo-CartPole-v1.zip"])
def test_zoo_files_of_vector_observations_do_not_fit_a_game(root, name):
    path = root.parent / "shared" / "data" / "teachers" / name
    if not path.is_file():
        pytest.skip("needs the folder shared beside the clone")
    assert "the teacher sees (4,) float32, the environment shows (4, 84, 84) uint8" in refusal(fit, path)


def test_an_environment_without_discrete_actions_is_refused():
    with pytest.raises(UserError, match="a teacher needs discrete actions, the environment has Box"):
        as_teacher(bare).check_fits(FRAMES, spaces.Box(0, 1, (2,)))


def test_a_function_is_asked_with_observations_of_the_environment_whatever_they_are():
    for space in (spaces.Discrete(3), spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(1, 2, (2, 2)))):
        with pytest.raises(
            UserError, match=r"the teacher fails on observations (Discrete\(3\)|\{a: Discrete\(3\), b: )"
        ):
            as_teacher(bare).check_fits(space, SIX)
    table = as_teacher(lambda seen: seen["b"].flatten(1)[:, :2] + seen["a"][:, None])
    table.check_fits(spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(1, 2, (2, 2))), spaces.Discrete(2))


VECTORS = spaces.Box(-1, 1, (4,), np.float32)


@pytest.mark.parametrize(
    ("taught", "seen", "message"),
    [
        (VECTORS, spaces.Box(-1, 1, (8,), np.float32), "sees (4,) float32, the environment shows (8,) float32"),
        (VECTORS, spaces.Box(-9, 9, (4,), np.float64), ""),
        (VECTORS, spaces.Box(-9, 9, (4,), np.int32), "shows (4,) int32: are they scaled otherwise?"),
        (spaces.Discrete(3), spaces.Discrete(4), "sees Discrete(3), the environment shows Discrete(4)"),
        (spaces.Discrete(3), spaces.MultiBinary(3), "sees Discrete(3), the environment shows MultiBinary(3)"),
        (spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([3, 2]), "shows MultiDiscrete([3 2])"),
        (spaces.MultiBinary(3), spaces.MultiBinary(3), ""),
        (
            spaces.Dict(a=VECTORS, b=spaces.Discrete(2)),
            spaces.Dict(a=VECTORS, c=spaces.Discrete(2)),
            "shows {a: (4,) float32, c: Discrete(2)}: b is missing: c is new to the teacher",
        ),
        (spaces.Dict(a=VECTORS), spaces.Dict(a=spaces.Box(-1, 1, (4,), np.float64)), ""),
        (spaces.Dict(a=VECTORS), VECTORS, "sees {a: (4,) float32}, the environment shows (4,) float32"),
    ],
)
def test_what_a_teacher_sees_and_what_an_environment_shows_is_told_in_words_and_shapes(taught, seen, message):
    policy = "MultiInputPolicy" if isinstance(taught, spaces.Dict) else "MlpPolicy"
    teacher = as_teacher(DQN(policy, Screen(taught), buffer_size=1, device="cpu"))
    if not message:
        teacher.check_fits(seen, SIX)
        return
    assert message in refusal(lambda space: teacher.check_fits(space, SIX), seen)


def test_channels_that_stand_elsewhere_are_named():
    teacher = as_teacher(make_model("DQN", spaces.Box(0, 255, (3, 40, 44), np.uint8)))
    last = spaces.Box(0, 255, (40, 44, 3), np.uint8)
    assert "VecTransposeImage moves them" in refusal(lambda space: teacher.check_fits(space, SIX), last)


@pytest.mark.gpu
def test_a_bare_function_is_asked_on_the_device_it_was_moved_to():
    weight = torch.ones(84, 6, device="cuda")
    teacher = as_teacher(lambda frames: frames[:, 0, 0].float() @ weight).to("cuda")
    teacher.check_fits(FRAMES, SIX)
