"""An agent's network as an ONNX graph: the scores of torch, for every kind of observations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from torch import Tensor

from polydistill.errors import UserError
from polydistill_agents.export.graph import check_exportable, inputs_of, make_graph
from polydistill_agents.export.preprocessing import in_graph
from polydistill_agents.networks.normalized import Normalized, Statistics
from polydistill_agents.networks.observations import to_tensors
from polydistill_agents.teachers import Teacher, as_teacher
from tests.agents.environments import toys

onnx = pytest.importorskip("onnx", reason="needs the extra export")
pytest.importorskip("onnxruntime", reason="needs the extra export")
pytestmark = pytest.mark.usefixtures("one_thread")

Table = toys.seen(
    observation_space=spaces.Dict(
        {
            "view": spaces.Box(0, 255, (3, 40, 40), np.uint8),
            "speed": spaces.Box(-9.0, 9.0, (2, 3), np.float64),
            "where": spaces.Discrete(5),
            "doors": spaces.MultiDiscrete([2, 3]),
            "bits": spaces.MultiBinary(4),
        }
    )
)


def normalized() -> Teacher:
    space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    inner = as_teacher(PPO("MlpPolicy", toys.Toy(), device="cpu", seed=0)).network
    assert inner is not None
    statistics = Statistics(np.array([3.0, -1.0, 0.5]), np.array([0.01, 4.0, 1.0]), clip=2.0, epsilon=1e-8)
    return as_teacher(Normalized(inner, statistics, space), kind="logits")


AGENTS: dict[str, Any] = {
    "a Dict": lambda: as_teacher(PPO("MultiInputPolicy", Table(), device="cpu", seed=0)),
    "pixels": lambda: as_teacher(DQN("CnnPolicy", toys.First(), device="cpu", seed=0, buffer_size=10)),
    "quantiles": lambda: as_teacher(sb3_contrib.QRDQN("MlpPolicy", toys.Count(), device="cpu", seed=0, buffer_size=9)),
    "statistics": normalized,
}


@pytest.mark.parametrize("name", AGENTS)
def test_a_graph_gives_torchs_scores_for_any_batch(name: str) -> None:
    from polydistill_agents.export.runtime import OnnxAgent

    teacher = AGENTS[name]()
    space = teacher.observation_space
    space.seed(0)
    content = make_graph(teacher, space, {"scores": teacher.kind})
    agent = OnnxAgent(content, teacher.kind)
    for rows in (1, 2, 5):
        states = [space.sample() for _ in range(rows)]
        seen: Any = np.stack(states) if name != "a Dict" else {k: np.stack([s[k] for s in states]) for k in states[0]}
        expected = teacher(to_tensors(seen, "cpu"))
        assert expected.std() > 1e-4, "states are told apart"
        torch.testing.assert_close(agent(to_tensors(seen, "cpu")), expected, rtol=1e-5, atol=1e-6)
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.key: entry.value for entry in model.metadata_props} == {"scores": teacher.kind}
    assert [given.name for given in model.graph.input] == [given.name for given in inputs_of(space)]
    assert {entry.domain for entry in model.opset_import} == {""}, "operators of the standard alone"
    clone = str(Path(__file__).resolve().parents[3])
    assert clone.encode() not in content, "no path of this machine"
    assert b".py" not in content
    assert all(weight.data_location == onnx.TensorProto.DEFAULT for weight in model.graph.initializer)


def test_inputs_are_named_after_the_parts_of_a_dict_and_have_the_environments_types() -> None:
    told = [tuple(given) for given in inputs_of(Table.observation_space)]
    assert told == [
        ("observations.bits", "int8", (4,)),
        ("observations.doors", "int64", (2,)),
        ("observations.speed", "float64", (2, 3)),
        ("observations.view", "uint8", (3, 40, 40)),
        ("observations.where", "int64", ()),
    ]


def test_what_the_graph_does_is_told_in_words() -> None:
    network = PPO("MultiInputPolicy", Table(), device="cpu").policy
    assert in_graph(network, Table.observation_space) == [
        "observations.doors: one-hot of 2 + 3",
        "observations.view: pixels over 255",
        "observations.where: one-hot of 5",
    ]
    teacher = normalized()
    assert in_graph(teacher.network, teacher.observation_space) == [
        "observations: minus the mean, over the deviation of the agent's VecNormalize, clipped at 2"
    ]


def of_remembering() -> Teacher:
    return as_teacher(sb3_contrib.RecurrentPPO("MlpLstmPolicy", toys.Toy(), device="cpu"))


def of_several() -> Teacher:
    one = as_teacher(PPO("MlpPolicy", toys.Toy(), device="cpu"))
    return as_teacher([one, one])


def of_function() -> Teacher:
    return as_teacher(lambda observations: torch.zeros(len(observations), 3))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (of_remembering, "an agent with a memory (RecurrentPPO) cannot be exported"),
        (of_several, "several agents are no single network"),
        (of_function, "a function cannot be exported"),
    ],
)
def test_what_is_no_single_network_of_one_observation_is_refused(make: Any, says: str) -> None:
    with pytest.raises(UserError) as error:
        check_exportable(make())
    assert str(error.value).startswith(says)
    assert str(error.value).isprintable()


class Odd(torch.nn.Module):
    """Code that torch cannot export: what it does hangs on a value."""

    def forward(self, observations: Tensor) -> Tensor:
        return observations[:, :2] if float(observations.sum()) > 3 else -observations[:, :2]


def test_a_network_that_torch_cannot_export_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"^torch cannot export this network: GuardOn") as error:
        make_graph(as_teacher(Odd()), spaces.Box(-1, 1, (3,), np.float32), {})
    assert str(error.value).isprintable()
    assert capsys.readouterr().err == ""
