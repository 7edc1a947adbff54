"""What a student costs: counted by hand, measured in turns, kept while nothing has changed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from polydistill.errors import UserError
from polydistill_agents.export.runtime import OnnxAgent
from polydistill_agents.files.compact import write_student
from polydistill_agents.lineage.compression import loaders, weighing
from polydistill_agents.lineage.compression.answer import notes
from polydistill_agents.lineage.compression.loaders import BATCHES, LOADERS, measure
from polydistill_agents.lineage.compression.weighing import Weighed, count_multiply_adds, weigh
from polydistill_agents.networks.nature import SIZES, Size, multiply_adds
from polydistill_agents.teachers import Teacher, as_teacher
from tests.agents.files.test_spaces import make_model
from tests.agents.samples import make_network

NUMBERS = spaces.Box(-1, 1, (4,), np.float32)
FILES = LOADERS[:2]  # those of a run's own files


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "ROUND_SECONDS", 0.0)
    monkeypatch.setattr(loaders, "ROUNDS", 3)


@pytest.fixture
def no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making one takes seconds."""
    monkeypatch.setattr(weighing, "tell_absent", lambda _: {"onnxruntime": "not here"})


def test_multiply_adds_are_those_of_the_layers() -> None:
    numbers = as_teacher(make_model("DQN", NUMBERS, "MlpPolicy", net_arch=[8, 5]))
    assert count_multiply_adds(numbers) == 4 * 8 + 8 * 5 + 5 * 3
    frames = as_teacher(make_network("net3", 6))
    assert count_multiply_adds(frames) == multiply_adds(SIZES["net3"]) + 64 * 6
    remembers = as_teacher(make_model("RecurrentPPO", NUMBERS, "MlpLstmPolicy", lstm_hidden_size=2, net_arch=[]))
    assert count_multiply_adds(remembers) > 0


def test_all_have_their_turn_in_each_round_and_the_threads_come_back() -> None:
    turns: list[tuple[str, int]] = []

    def work(name: str) -> None:
        turns.append((name, torch.get_num_threads()))

    torch.set_num_threads(2)
    try:
        taken = measure({name: lambda name=name: work(name) for name in "abc"})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert [name for name, _ in turns] == ["a", "a", "b", "b", "c", "c", *"abcabcabc"]
    assert {threads for _, threads in turns} == {1}
    assert set(taken) == {"a", "b", "c"}


def test_a_time_is_the_processors() -> None:
    def wait() -> None:
        time.sleep(0.05)

    def think() -> None:
        end = time.process_time() + 0.01
        while time.process_time() < end:
            pass

    taken = measure({"wait": wait, "think": think})
    assert taken["wait"] < 0.01 <= taken["think"]


def weigh_numbers(out: Path, *students: str, teacher: Teacher | None = None) -> Weighed:
    teacher = teacher or as_teacher(make_model("DQN", NUMBERS, "MlpPolicy", net_arch=[8]))
    return weigh(out, teacher, {name: out / name for name in students})


@pytest.mark.usefixtures("no_graphs")
def test_what_was_found_is_kept_until_an_agent_or_the_loaders_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, width in (("small", 2), ("wide", 16)):
        for ending in ("zip", "safetensors"):
            model = make_model("DQN", NUMBERS, "MlpPolicy", net_arch=[width])
            write_student(tmp_path / f"{name}.{ending}", model.q_net)
    first = weigh_numbers(tmp_path, "small", "wide")
    assert {name: one.parameters for name, one in first.students.items()} == {"small": 19, "wide": 131}
    assert first.teacher.n_bytes[".safetensors"] == (tmp_path / "teacher" / "teacher.safetensors").stat().st_size
    for one in (first.teacher, *first.students.values()):
        assert set(one.seconds) == {loader.name for loader in FILES}
        assert all(one.seconds_of("DQN.load", batch) > 0 for batch in BATCHES)

    monkeypatch.setattr(weighing, "measure", lambda works: dict.fromkeys(works, 1.0))
    assert weigh_numbers(tmp_path, "small", "wide") == first
    others = as_teacher(make_model("DQN", NUMBERS, "MlpPolicy", net_arch=[7]))
    again = weigh_numbers(tmp_path, "small", "wide", teacher=others)
    assert as_teacher(tmp_path / "teacher" / "teacher.safetensors").network.net_arch == [7], "not the earlier one's"
    assert again.students["small"].seconds["as_teacher"] == (1.0, 1.0 / 64), "for each of a batch"
    assert weigh_numbers(tmp_path, "small", teacher=others) != again
    monkeypatch.setattr(weighing, "LOADERS", LOADERS[1:2])
    assert set(weigh_numbers(tmp_path, "small", teacher=others).students["small"].seconds) == {"as_teacher"}
    (tmp_path / "sizes.json").write_text(json.dumps({"sha256": 1}))
    assert weigh_numbers(tmp_path, "small", teacher=others).students["small"].parameters == 19


@pytest.mark.usefixtures("no_graphs")
def test_what_no_stock_class_holds_has_no_time_of_dqn_load(tmp_path: Path) -> None:
    write_student(tmp_path / "wide.safetensors", make_network(Size((33, 4, 4), 4)))
    wide = weigh(tmp_path, as_teacher(make_network("net3")), {"wide": tmp_path / "wide"}).students["wide"]
    assert (set(wide.seconds), set(wide.n_bytes)) == ({"as_teacher"}, {".safetensors"})
    assert wide.seconds_of("DQN.load", 1) is None

    quantiles = as_teacher(make_model("QRDQN", NUMBERS, "MlpPolicy", net_arch=[8]))
    (tmp_path / "other").mkdir()
    teacher = weigh_numbers(tmp_path / "other", teacher=quantiles).teacher
    assert (set(teacher.seconds), teacher.n_bytes) == ({"as_teacher"}, {})


# ---- the ONNX form ---------------------------------------------------------------------------------------------


@pytest.fixture
def onnx() -> loaders.Loader:
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    return LOADERS[-1]


@pytest.mark.parametrize("frames", [False, True], ids=["numbers", "frames"])
def test_the_graph_decides_as_its_network_does(tmp_path: Path, onnx: loaders.Loader, frames: bool) -> None:
    network = make_network("net3") if frames else make_model("DQN", NUMBERS, "MlpPolicy", net_arch=[8]).q_net
    onnx.write(tmp_path / "a.onnx", network, "q_values")
    seen = loaders.observe(network.observation_space, 64)
    expected = loaders.decide_by(as_teacher(network))(seen)
    assert onnx.open(tmp_path / "a.onnx")(seen).tolist() == expected.tolist()
    assert frames or len(set(expected.tolist())) > 1, "of random frames an untrained network thinks alike"


def test_graphs_are_the_sweeps_own_and_none_that_lies_there_is_opened(tmp_path: Path, onnx: loaders.Loader) -> None:
    write_student(tmp_path / "small.zip", make_model("DQN", NUMBERS, "MlpPolicy", net_arch=[2]).q_net)
    (tmp_path / "small.onnx").write_bytes(b"the user's own export")
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "small.onnx").write_bytes(b"of a stranger")
    found = weigh_numbers(tmp_path, "small")
    assert found.students["small"].n_bytes[".onnx"] == (tmp_path / "exported" / "small.onnx").stat().st_size > 100
    assert found.teacher.n_bytes[".onnx"] == (tmp_path / "exported" / "teacher.onnx").stat().st_size
    assert (tmp_path / "small.onnx").read_bytes() == b"the user's own export"


def test_without_the_extra_a_line_says_so_and_with_it_later_all_is_measured(
    tmp_path: Path, onnx: loaders.Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_student(tmp_path / "small.zip", make_model("DQN", NUMBERS, "MlpPolicy", net_arch=[2]).q_net)
    with monkeypatch.context() as patch:
        patch.setattr("polydistill._environment._missing", lambda names: [*{"onnxruntime"} & {*names}])
        without = weigh_numbers(tmp_path, "small")
        assert weigh_numbers(tmp_path, "small") == without
    assert without.students["small"].seconds_of("onnxruntime", 1) is None
    assert not (tmp_path / "exported").exists()
    (line,) = [line for line in notes([], without) if "onnxruntime" in line]
    assert line == (
        "No times of onnxruntime: this needs the extra export (onnxruntime not found): pip install "
        "'polydistill[export]'."
    )
    whole = weigh_numbers(tmp_path, "small")
    assert whole.students["small"].seconds_of("onnxruntime", 1) > 0
    assert (whole.absent, notes([], whole)) == ({}, [each for each in notes([], without) if each != line])
    monkeypatch.setattr("polydistill._environment._missing", lambda names: [*{"onnxruntime"} & {*names}])
    assert weigh_numbers(tmp_path, "small") == whole, "what was measured is shown anywhere"


def test_a_runtime_that_computes_something_else_is_refused_and_a_network_that_is_no_graph_has_no_times(
    tmp_path: Path, onnx: loaders.Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = OnnxAgent.score
    with monkeypatch.context() as patch:
        patch.setattr(OnnxAgent, "score", lambda *given: score(*given) + 0.1)
        with pytest.raises(UserError, match="the runtime computes something else: its scores of 2 states differ"):
            weigh_numbers(tmp_path)
    assert not (tmp_path / "exported" / "teacher.onnx").exists()

    def fail(*given: object) -> bytes:
        raise UserError("torch cannot export this network")

    monkeypatch.setattr(loaders, "make_graph", fail)
    assert weigh_numbers(tmp_path).teacher.seconds_of("onnxruntime", 1) is None
