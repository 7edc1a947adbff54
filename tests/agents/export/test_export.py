"""The export of an agent: what is compared, measured and written, and what is refused."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from polydistill.errors import UserError
from polydistill_agents import export_agent, open_environment
from polydistill_agents.environments.evaluation import Evaluation
from polydistill_agents.environments.task import open_task
from polydistill_agents.export import checking, course
from polydistill_agents.export.checking import Comparison, States, compare, score_without_torch
from polydistill_agents.export.course import Target, refuse_other_scores
from polydistill_agents.export.forms import Form, judge
from polydistill_agents.export.latency import measure_latency
from polydistill_agents.export.preprocessing import before_graph
from polydistill_agents.teachers import Teacher, as_teacher

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PPO of CartPole that has not learned."""
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    file = tmp_path_factory.mktemp("agent") / "ppo.zip"
    PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0).save(file)
    return file


# ---- the whole way ---------------------------------------------------------------------------------------------


def test_an_export_plays_the_same_games_as_its_agent_and_its_card_tells_of_it(agent: Path, tmp_path: Path) -> None:
    exported = export_agent(agent, open_environment("CartPole-v1"), tmp_path / "a.onnx", int8=True, episodes=4)
    torchs, float32, int8 = exported.forms
    assert [form.name for form in exported.forms] == ["torch", "float32", "int8"]
    np.testing.assert_array_equal(float32.evaluation.scores, torchs.evaluation.scores)
    assert float32.evaluation.agreement == 1.0
    assert float32.comparison is not None
    assert float32.comparison.share < 1e-5
    assert int8.comparison is not None
    assert 0 < int8.comparison.share < 1, "int8 rounds"
    assert exported.verdict.startswith("int8 is ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.int8.onnx", "a.onnx", "a.onnx.json"]
    card = json.loads((tmp_path / "a.onnx.json").read_text(encoding="utf-8"))
    assert card == exported.told
    for name in ("float32", "int8"):
        file = tmp_path / card["files"][name]["name"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == card["files"][name]["sha256"]
        assert file.stat().st_size == card["files"][name]["bytes"]
    assert card["scores"] == "logits"
    assert card["inputs"] == [{"name": "observations", "dtype": "float32", "shape": ["batch", 4]}]
    assert card["output"] == {"name": "scores", "dtype": "float32", "shape": ["batch", 2]}
    assert card["evaluation"]["forms"]["float32"]["score_mean"] == torchs.evaluation.mean
    assert str(agent.parent) not in json.dumps(card)


def test_a_runtime_that_computes_something_else_is_refused_and_nothing_is_written(
    agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(content: bytes, observations: Any) -> Any:
        return score_without_torch(content, observations) + np.float32(0.01)

    monkeypatch.setattr(course, "score_without_torch", other)
    with pytest.raises(UserError, match=r"^the runtime computes something else: .*differ from torch's by up to 0.01"):
        export_agent(agent, open_environment("CartPole-v1"), tmp_path / "a.onnx", episodes=1)
    assert list(tmp_path.iterdir()) == []


# ---- without torch ---------------------------------------------------------------------------------------------


def test_in_the_other_process_torch_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    source = Path(checking.without_torch.__file__).read_text(encoding="utf-8")
    assert "import numpy as np" in source
    (tmp_path / "program.py").write_text(source.replace("import numpy as np", "import torch"), encoding="utf-8")
    monkeypatch.setattr(checking.without_torch, "__file__", str(tmp_path / "program.py"))
    with pytest.raises(UserError, match=r"^the exported file does not run without torch: .*import of torch halted"):
        score_without_torch(b"", np.zeros((1, 2), np.float32))


def test_a_cut_file_does_not_run(agent: Path) -> None:
    with pytest.raises(UserError, match=r"^the exported file does not run without torch: ") as error:
        score_without_torch(b"\x08\x0a\x12\x07pytor", np.zeros((1, 2), np.float32))
    assert str(error.value).isprintable()


# ---- what is compared ------------------------------------------------------------------------------------------


def test_a_comparison_tells_the_largest_difference_and_the_share_of_equal_actions() -> None:
    torchs = np.array([[1.0, -4.0], [2.0, 3.0]], np.float32)
    found = compare(np.array([[1.0, -4.5], [3.25, 3.0]], np.float32), torchs)
    assert found == Comparison(states=2, largest_difference=1.25, largest_score=4.0, agreement=0.5)
    assert found.share == 1.25 / 4
    assert compare(torchs, torchs).share == 0.0
    refuse_other_scores(found, 0.32)
    with pytest.raises(UserError, match=r"by up to 1.25, and 1.24 is allowed"):
        refuse_other_scores(found, 0.31)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_never_close_enough(value: float) -> None:
    with pytest.raises(UserError, match="by up to inf"):
        refuse_other_scores(compare(np.array([[value, 0.0]]), np.ones((1, 2))), 1e9)


def test_scores_of_another_shape_are_refused() -> None:
    with pytest.raises(UserError, match=r"^the runtime computes something else: scores \(1, 3\), torch \(1, 2\)"):
        compare(np.zeros((1, 3)), np.zeros((1, 2)))


def met(values: range) -> Any:
    """Games at once whose observations and scores are these numbers."""
    numbers = np.array(values, np.float32)[:, None]
    return SimpleNamespace(observations={"a": numbers}, scores=torch.from_numpy(numbers))


def test_the_states_that_are_kept_are_a_uniform_sample_with_their_own_scores() -> None:
    counts: Counter[int] = Counter()
    for seed in range(400):
        states = States(5, np.random.default_rng(seed))
        for start in range(0, 20, 4):
            states(met(range(start, start + 4)))
        seen: Any = states.observations
        assert len(states) == 5 == len(set(seen["a"].flat))
        np.testing.assert_array_equal(seen["a"], states.scores)
        counts.update(int(value) for value in states.scores.flat)
    assert set(counts) == set(range(20))
    assert all(60 < count < 145 for count in counts.values()), "each 100 times of 400, deviation 8.7"


# ---- what is measured ------------------------------------------------------------------------------------------


def test_latency_is_of_a_decision_and_a_call_that_was_interrupted_does_not_count() -> None:
    calls: list[tuple[str, int]] = []

    def quick(seen: Any) -> None:
        calls.append(("quick", len(seen)))
        time.sleep(0.3 if len(calls) == 9 else 0.0)  # in the first round that counts

    def slow(seen: Any) -> None:
        calls.append(("slow", len(seen)))
        time.sleep(0.02)

    found = measure_latency({"quick": quick, "slow": slow}, np.zeros((3, 2)), (2, 4), {2: 5, 4: 3})
    assert {rows for _, rows in calls} == {2, 4}, "states are repeated"
    assert [name for name, _ in calls[6:16]] == ["quick", "slow"] * 5, "one after the other"
    assert found["slow"][2] >= 10
    assert found["slow"][4] >= 5
    assert found["quick"][2] < found["slow"][2]


def form(name: str, scores: list[float], latency: dict[int, float]) -> Form:
    return Form(name, b"", Evaluation(np.array(scores), np.ones(len(scores), np.int64), None, 0.0), latency)


def test_int8_is_worth_it_unless_it_is_no_faster_or_clearly_worse() -> None:
    float32 = form("float32", [10.0, 20.0, 30.0, 40.0], {1: 1.0, 64: 0.5})
    same, worse = [11.0, 19.0, 31.0, 39.0], [5.0, 15.0, 25.0, 35.0]
    assert judge(float32, form("int8", same, {1: 0.5, 64: 0.1})) == (
        "int8 is 2 times as fast with 1 at once and 5 times as fast with 64 at once; its score less that of float32: "
        "-1 to 1 (95%)"
    )
    assert judge(float32, form("int8", same, {1: 0.5, 64: 0.6})) == (
        "int8 is not worth it here: with 64 at once it takes 0.6 ms a decision, float32 0.5 ms"
    )
    assert judge(float32, form("int8", worse, {1: 0.5, 64: 0.1})) == (
        "int8 is not worth it here: its score is lower by 5 to 5 (95% over the same games)"
    )


def test_what_must_be_done_before_the_graph_is_told() -> None:
    plain = as_teacher(torch.nn.Linear(4, 2))
    assert any("stacked, the newest last" in line for line in before_graph(open_task("pong"), plain))
    wrapped = open_environment("CartPole-v1", wrappers=["FrameStackObservation:4"])
    masked = Teacher(lambda observations: observations, masks=True)
    assert before_graph(wrapped, masked) == [
        "wrappers around the environment, the innermost first: FrameStackObservation:4",
        "the scores of actions that the environment's masks forbid are set to -inf before one is chosen",
    ]


# ---- where it is written ---------------------------------------------------------------------------------------


def test_files_that_are_there_are_never_written_over(tmp_path: Path) -> None:
    assert Target(tmp_path / "a.onnx", True).card == tmp_path / "a.onnx.json"
    for name in ("a.onnx", "a.int8.onnx", "a.onnx.json"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(UserError, match=f"{name} is there already"):
            Target(tmp_path / "a.onnx", True)
        (tmp_path / name).unlink()
    (tmp_path / "a.int8.onnx").write_text("mine")
    Target(tmp_path / "a.onnx", False)
