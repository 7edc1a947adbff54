"""polydistill_agents.networks.multitask: a torso with a head for each task, and what a task has of it alone."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from torch import nn

from polydistill_agents.environments.games import count_actions, joystick_actions
from polydistill_agents.files.sb3_zip import write_dqn_zip
from polydistill_agents.networks.architecture import Architecture
from polydistill_agents.networks.beginning import begin_multitask
from polydistill_agents.networks.multitask import TORSOS, MultitaskNetwork
from polydistill_agents.networks.nature import Size, compute_scores, count_parameters
from polydistill_agents.networks.scoring import scoring_of

FRAMES = spaces.Box(0, 255, (4, 84, 84), np.uint8)
NUMBERS = spaces.Box(-9.0, 9.0, (5,), np.float32)
NARROW = Architecture(Size((4, 4, 4), 16), None, (), nn.ReLU)
VECTORS = Architecture(None, None, (12,), nn.Tanh)
PAPER = ("beam_rider", "breakout", "enduro", "freeway", "ms_pacman", "pong", "qbert", "seaquest", "space_invaders",
         "riverraid")  # fmt: skip


def frames(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (n, 4, 84, 84), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def numbers(n: int, seed: int = 0) -> torch.Tensor:
    return 5 + 3 * torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


def test_both_networks_of_the_paper_have_its_numbers_of_parameters() -> None:
    # Rusu et al. (2016): three games, and ten; the paper counts Freeway's and Pong's actions as 3
    three = MultitaskNetwork(FRAMES, {"freeway": 3, "pong": 3, "qbert": 6}, _torso("nature"))
    actions = {name: count_actions(name) for name in PAPER} | {"pong": 3}
    ten = MultitaskNetwork(FRAMES, actions, _torso("wide"))
    assert sum(actions.values()) == 85
    assert count_parameters(three) == 1_882_668
    assert count_parameters(ten) == 6_756_721


def _torso(name: str) -> Architecture:
    return Architecture(TORSOS[name], None, (), nn.ReLU)


def test_a_task_learns_the_torso_and_its_own_head_alone() -> None:
    network = MultitaskNetwork(FRAMES, {"a": 3, "b": 2}, NARROW, (8,))
    compute_scores(network.of("a"), frames(2)).sum().backward()
    assert network.of("a").features_extractor is network.of("b").features_extractor
    assert all(weight.grad is not None for weight in [*network.features.parameters(), *network.heads["a"].parameters()])
    assert all(weight.grad is None for weight in network.heads["b"].parameters())


def test_its_state_holds_each_weight_once() -> None:
    network = MultitaskNetwork(FRAMES, {"a": 3, "b": 2}, NARROW, (8,))
    held = [value.numel() for value in network.state_dict().values()]
    assert sum(held) == count_parameters(network)
    other = MultitaskNetwork(FRAMES, {"a": 3, "b": 2}, NARROW, (8,))
    other.load_state_dict(network.state_dict())
    assert torch.equal(compute_scores(other.of("b"), frames(2)), compute_scores(network.of("b"), frames(2)))


def test_a_copy_shares_its_torso_within_itself_and_nothing_with_the_original() -> None:
    network = MultitaskNetwork(FRAMES, {"a": 3, "b": 2}, NARROW, (8,))
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.features.cnn[0].bias.add_(1.0)
    assert not torch.equal(compute_scores(other.of("a"), frames(2)), compute_scores(network.of("a"), frames(2)))
    assert other.of("a").features_extractor is other.of("b").features_extractor is other.features


@pytest.mark.parametrize("one_head", [False, True])
def test_stock_dqn_plays_every_task_from_its_own_zip(one_head: bool, tmp_path: Path) -> None:
    outputs = {"a": (0, 3, 4), "b": (0, 1)} if one_head else None
    network = MultitaskNetwork(FRAMES, {"a": 3, "b": 2}, NARROW, (8,), outputs)
    for task in ("a", "b"):
        write_dqn_zip(tmp_path / f"{task}.zip", network.alone(task), score_kind="logits")
        model = DQN.load(tmp_path / f"{task}.zip", device="cpu")
        ours = compute_scores(network.of(task), frames(6))
        with torch.no_grad():
            torch.testing.assert_close(model.q_net(frames(6)), ours)
        assert model.action_space.n == len(ours[0])


def test_numbers_are_seen_through_one_scale_which_the_zip_of_a_task_holds_too(tmp_path: Path) -> None:
    network = MultitaskNetwork(NUMBERS, {"a": 3, "b": 2}, VECTORS, (8,))
    begin_multitask(network, {"a": numbers(64), "b": numbers(64, seed=1)}, torch.Generator())
    assert network.features.inputs.shift.mean() == pytest.approx(5.0, abs=0.5)
    write_dqn_zip(tmp_path / "b.zip", network.alone("b"))
    model = DQN.load(tmp_path / "b.zip", device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(model.q_net(numbers(6)), scoring_of(network.of("b"))(network.of("b"), numbers(6)))


def test_one_head_gives_each_task_its_outputs_in_the_order_of_its_actions() -> None:
    outputs = {name: joystick_actions(name) for name in ("pong", "breakout")}
    assert outputs["breakout"] == (0, 1, 3, 4)  # NOOP, FIRE, RIGHT, LEFT
    network = MultitaskNetwork(FRAMES, {"pong": 6, "breakout": 4}, NARROW, (8,), outputs)
    pong, breakout = (compute_scores(network.of(name), frames(3)) for name in outputs)
    assert torch.equal(breakout, pong[:, :4]), "Pong has these four first, and two more"
    assert network.heads["all"][-1].out_features == 13


def test_a_head_begins_uniform_and_its_layers_see_deviation_one_over_the_states_of_its_own_task() -> None:
    network = MultitaskNetwork(FRAMES, {"a": 3, "b": 2}, NARROW, (8,))
    seen = {"a": frames(32) // 2, "b": 128 + frames(32, seed=1) // 2}
    begin_multitask(network, seen, torch.Generator())
    for task, states in seen.items():
        with torch.no_grad():
            features = network.of(task).extract_features(states, network.features)
            inputs = network.heads[task][0](features)
            policy = compute_scores(network.of(task), states).softmax(dim=1)
        assert inputs.mean(0).abs().max() < 1e-4
        assert inputs.std(0).sub(1).abs().max() < 1e-3
        assert (policy - 1 / len(policy[0])).abs().max() < 0.02


def test_outputs_that_are_not_as_many_as_the_actions_are_refused() -> None:
    with pytest.raises(ValueError, match="a has 3 actions, and 2 outputs of the head"):
        MultitaskNetwork(FRAMES, {"a": 3}, NARROW, (8,), {"a": (0, 1)})
