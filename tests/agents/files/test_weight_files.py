"""Plain tables of weights: recognised by their shapes, whatever their names; what is not known is listed."""

from __future__ import annotations

import shutil
import zipfile

import gymnasium as gym
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import save_file
from stable_baselines3 import A2C, DQN, PPO
from torch import nn

from polydistill_agents.files.inspection import convert_agent, inspect_agent
from polydistill_agents.files.sb3_zip import write_dqn_zip
from polydistill_agents.files.sources import split_source
from polydistill_agents.networks.nature import SIZES, Size
from polydistill_agents.teachers import as_teacher
from tests.agents.samples import FRAMES, make_frames, make_network, refusal


def observe() -> torch.Tensor:
    return make_frames(8, seed=1)


@pytest.mark.parametrize("ending", ["pth", "pt", "safetensors", "PTH", "cleanrl_model"])
def test_a_table_of_weights_is_read_with_and_without_its_architecture(tmp_path, ending):
    network, path = make_network(), tmp_path / f"a.{ending}"
    if ending == "safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path)
    for word, kind in (("net3:", "q_values"), ("", "q_values"), ("acktr:", "logits")):
        teacher = as_teacher(f"{word}{path}")
        with torch.no_grad():
            torch.testing.assert_close(teacher(observe()), network(observe()), rtol=1e-5, atol=1e-5)
        assert (teacher.kind, teacher.size) == (kind, SIZES["net3"])
    assert "those of net2 are ((16, 16, 16), 128)" in refusal(as_teacher, f"net2:{path}")


def test_a_file_of_safetensors_may_name_its_architecture_and_scores_itself(tmp_path):
    network, path = make_network(), tmp_path / "a.safetensors"
    save_file(network.state_dict(), path, {"architecture": "net3", "scores": "logits"})
    assert as_teacher(path).kind == "logits"
    save_file(network.state_dict(), path, {"scores": "logits"})
    assert as_teacher(path).kind == "logits"
    save_file(network.state_dict(), path, {"architecture": "net3", "scores": "guesses"})
    assert "its scores are 'guesses', neither q_values nor logits" in refusal(as_teacher, path)
    save_file(network.state_dict(), path, {"architecture": "impala"})
    assert "'impala' is not known (known: nature, net1, net2, net3, acktr)" in refusal(as_teacher, path)


# ------------------------------------------------------------------ recognised by shapes

SHAPES = ((32, 4, 8, 8), (64, 32, 4, 4), (32, 64, 3, 3), (20, 32 * 49), (6, 20), (1, 20))
GENERATIONS = {  # pytorch-a2c-ppo-acktr: names of three convolutions, hidden layer, actor, critic
    "conv1": ("conv1", "conv2", "conv3", "fc", "actor", "critic"),
    "2017": ("conv1", "conv2", "conv3", "linear1", "dist.linear", "critic_linear"),
    "2018": ("base.conv1", "base.conv2", "base.conv3", "base.linear1", "dist.linear", "base.critic_linear"),
    "today": ("base.main.0", "base.main.2", "base.main.4", "base.main.7", "dist.linear", "base.critic_linear"),
    "a prefix": tuple(f"advantage_actor_critic.{part}" for part in ("1", "2", "3", "4", "actor", "critic")),
    "CleanRL PPO": ("network.0", "network.2", "network.4", "network.7", "actor", "critic"),
    "one's own, of two GPUs": tuple(
        f"module.{name}" for name in ("c1", "c2", "c3", "body", "head.policy", "head.value")
    ),
}
VALUES = {
    "CleanRL DQN": ("network.0", "network.2", "network.4", "network.7", "network.9"),
    "pfrl": ("0.layers.0", "0.layers.1", "0.layers.2", "0.output", "1"),
    "no names": ("0", "2", "4", "7", "9"),
}


def table(names: tuple[str, ...], outputs: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in zip(names, SHAPES, strict=False):
        rows = outputs if shape == (6, 20) else shape[0]
        weights[f"{name}.weight"] = torch.randn((rows, *shape[1:]), generator=generator) * 0.05
        weights[f"{name}.bias"] = torch.randn(rows, generator=generator)
    return weights


def compute(weights: dict[str, torch.Tensor], names: tuple[str, ...]) -> torch.Tensor:
    """The head's scores, by the layers one after another."""
    x = observe().float() / 255.0
    for name, stride in zip(names[:3], (4, 2, 1), strict=True):
        x = nn.functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride).relu()
    x = (x.flatten(1) @ weights[f"{names[3]}.weight"].T + weights[f"{names[3]}.bias"]).relu()
    return x @ weights[f"{names[4]}.weight"].T + weights[f"{names[4]}.bias"]


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("word", ["", "acktr:"])
def test_an_actor_critic_is_recognised_whatever_its_names_and_their_order(tmp_path, generation, word):
    names = GENERATIONS[generation]
    weights = table(names)
    backwards = dict(reversed(weights.items()))
    torch.save(weights, tmp_path / "a.pt")
    save_file(backwards, tmp_path / "b.safetensors")
    for file in ("a.pt", "b.safetensors"):
        teacher = as_teacher(f"{word}{tmp_path / file}")
        torch.testing.assert_close(teacher(observe()), compute(weights, names), rtol=1e-4, atol=1e-4)
        assert (teacher.kind, teacher.size) == ("logits", Size((32, 64, 32), 20))
    assert "gives logits, those of nature are Q-values" in refusal(as_teacher, f"nature:{tmp_path / 'a.pt'}")


def test_biases_that_kfac_has_split_off_are_put_back(tmp_path):
    names = GENERATIONS["2018"]
    weights = table(names)
    split = {}
    for key, value in weights.items():
        layer, _, part = key.rpartition(".")
        split[f"{layer}.module.weight" if part == "weight" else f"{layer}.add_bias._bias"] = (
            value if part == "weight" else value[:, None]
        )
    torch.save(split, tmp_path / "a.pt")
    torch.testing.assert_close(as_teacher(tmp_path / "a.pt")(observe()), compute(weights, names), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("names", VALUES.values(), ids=VALUES)
def test_a_single_head_is_taken_for_q_values_and_that_is_said(tmp_path, names):
    weights, path = table(names), tmp_path / "dqn.cleanrl_model"
    torch.save(weights | {f"target_network.{key}": value + 1 for key, value in weights.items()}, path)
    with pytest.warns(UserWarning, match="its one head is taken for Q-values; acktr:.* says that it gives logits"):
        teacher = as_teacher(path)
    torch.testing.assert_close(teacher(observe()), compute(weights, names), rtol=1e-4, atol=1e-4)
    assert teacher.kind == "q_values"
    assert as_teacher(f"acktr:{path}").kind == "logits"


class Screen(gym.Env):
    observation_space, action_space = FRAMES, spaces.Discrete(6)

    def reset(self, *, seed=None, options=None):
        return FRAMES.sample(), {}


@pytest.mark.parametrize("algorithm", ["DQN", "PPO", "A2C"])
@pytest.mark.parametrize("share", [True, False])
def test_a_state_dict_of_stable_baselines_is_read_as_its_zip_is(tmp_path, algorithm, share):
    kwargs = {"features_extractor_kwargs": {"features_dim": 16}}
    if algorithm == "DQN":
        model = DQN("CnnPolicy", Screen(), buffer_size=1, policy_kwargs=kwargs, device="cpu")
        torch.save(model.q_net.state_dict(), tmp_path / "q_net.pth")
    else:
        kwargs["share_features_extractor"] = share
        model = {"PPO": PPO, "A2C": A2C}[algorithm](
            "CnnPolicy", Screen(), n_steps=64, policy_kwargs=kwargs, device="cpu"
        )
    model.save(tmp_path / "a.zip")
    torch.save(model.policy.state_dict(), tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path / "unzipped")
    (tmp_path / "lone").mkdir()
    shutil.copy(tmp_path / "unzipped" / "policy.pth", tmp_path / "lone")
    whole = as_teacher(tmp_path / "a.zip")
    for path in ("a.pth", "lone/policy.pth", "unzipped/policy.pth", "unzipped", "q_net.pth"):
        if path == "q_net.pth" and algorithm != "DQN":
            continue
        teacher = as_teacher(tmp_path / path)
        assert torch.equal(teacher(observe()), whole(observe())), path
        assert (teacher.kind, teacher.size) == (whole.kind, whole.size)


def test_an_unzipped_agent_of_vectors_is_read_with_its_data_and_refused_without(tmp_path):
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu")
    model.save(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path / "unzipped")
    seen = torch.randn(5, 4)
    for path in ("unzipped", "unzipped/policy.pth"):
        assert torch.equal(as_teacher(tmp_path / path)(seen), as_teacher(tmp_path / "a.zip")(seen))
        assert dict(inspect_agent(str(tmp_path / path)))["algorithm"] == "PPO"
    (tmp_path / "unzipped" / "data").unlink()
    assert "do not tell the activation between its linear layers" in refusal(
        as_teacher, tmp_path / "unzipped" / "policy.pth"
    )


def without(layer: str, part: str = "weight"):
    return lambda weights: weights.pop(f"{layer}.{part}")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("conv2", "bias"), "'conv2' lacks its bias"),
        (without("fc", "weight"), "'fc' lacks its weight"),
        (
            lambda weights: weights.update({"obs_rms.mean": torch.zeros(4)}),
            "'obs_rms.mean' is neither a weight nor a bias",
        ),
        (lambda weights: weights.update({"gru.weight_ih_l0": torch.zeros(4)}), "neither a weight nor a bias"),
        (
            lambda weights: weights.update({f"a.{k}": v for k, v in table(("conv2",)).items()}),
            "a convolution 8 x 8 is there 2",
        ),
        (lambda weights: weights.update({"conv1.weight": torch.zeros(32, 4, 5, 5)}), "a convolution 8 x 8 is there 0"),
        (
            lambda weights: weights.update({"fc.weight": torch.zeros(20, 32 * 50)}),
            "a linear layer of 1568 inputs is there 0",
        ),
        (
            lambda weights: weights.update({"x.weight": torch.zeros(4, 20), "x.bias": torch.zeros(4)}),
            "a head of 20 inputs",
        ),
        (
            lambda weights: weights.update({"x.weight": torch.zeros(4, 3), "x.bias": torch.zeros(4)}),
            "'x' is no part of it",
        ),
        (
            lambda weights: weights.update({"actor.weight": torch.zeros(306, 20), "actor.bias": torch.zeros(306)}),
            "306 outputs are more than 18 actions",
        ),
        (lambda weights: weights.update({"conv2.weight": torch.zeros(64, 31, 4, 4)}), "size mismatch"),
        (
            lambda weights: [
                weights.update({f"advantage.{part}": weights.pop(f"actor.{part}")}) for part in ("weight", "bias")
            ],
            "'advantage' gives advantages: a dueling network is not known",
        ),
        (lambda weights: weights.update({"quantile_net.x": torch.zeros(4)}), "how many quantiles"),
    ],
)
def test_what_is_not_recognised_lists_what_was_found_and_what_is_expected(tmp_path, change, reason):
    weights = table(GENERATIONS["conv1"])
    change(weights)
    torch.save(weights, tmp_path / "a.pt")
    line = refusal(as_teacher, tmp_path / "a.pt")
    assert reason in line
    assert "; found: " in line
    assert "(512, 3136), and a head (actions, 512)" in line
    assert len(line) < 1200


def test_a_checkpoint_of_more_than_weights_is_refused(tmp_path):
    torch.save({"model": make_network().state_dict(), "epoch": 3}, tmp_path / "a.pth")
    assert "something else than tensors: 'model' is no floating-point tensor" in refusal(
        as_teacher, f"net3:{tmp_path / 'a.pth'}"
    )
    torch.save(make_network(), tmp_path / "b.pth")
    assert "it would import" in refusal(as_teacher, f"net3:{tmp_path / 'b.pth'}")


def test_a_zip_says_its_architecture_itself(tmp_path):
    write_dqn_zip(tmp_path / "a.zip", make_network())
    assert "a zip says its own" in refusal(as_teacher, f"nature:{tmp_path / 'a.zip'}")


def test_only_known_names_are_taken_off_a_path():
    assert split_source("acktr:a.pt") == ("acktr", "a.pt")
    assert split_source("nature:hf://org/name") == ("nature", "hf://org/name")
    for path in ("a.zip", "C:/a.zip", "hf://org/name", "https://x/y#sha256=z", "impala:a.pt"):
        assert split_source(path) == ("", path)


def test_the_inspection_and_the_conversion_say_how_a_single_head_is_taken_instead_of_warning(tmp_path):
    path = tmp_path / "dqn.cleanrl_model"
    torch.save(table(VALUES["CleanRL DQN"]), path)
    told = dict(inspect_agent(str(path)))
    assert told["scores"] == "q-values"
    assert told["note"].startswith(f"{path}: its one head is taken for Q-values")
    assert any("its one head is taken for Q-values" in line for line in convert_agent(path, tmp_path / "a.zip"))
    assert len(convert_agent(f"acktr:{path}", tmp_path / "a.zip")) == 1
