"""inspect_agent.py as a user runs it: what is inside, what would be executed, a clean zip, a score."""

from __future__ import annotations

import base64
import json
import pickle
import subprocess
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO

from polydistill_agents.files.pickle_globals import find_globals
from polydistill_agents.files.sb3_zip import write_dqn_zip
from polydistill_agents.networks.nature import SIZES, Size, build_network
from tests.fuzz.mutations import Payload
from tests.fuzz.seeds import make_seeds, pack, unpack

Inspect = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def inspect(inside: Inspect) -> Inspect:
    """``inspect_agent.py ...`` in this process."""
    return partial(inside, "inspect_agent.py")


def told(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """``what -> text`` of the lines."""
    pairs = (line.split("  ", 1) for line in done.stdout.splitlines() if "  " in line)
    return {what: text.strip() for what, text in pairs}


def test_it_tells_what_is_inside_what_would_be_executed_and_executes_nothing(inspect: Inspect, tmp_path: Path) -> None:
    marker, members = tmp_path / "executed", unpack(make_seeds()["qrdqn.zip"])
    data = json.loads(members["data"])
    data["_last_obs"] = {":serialized:": base64.b64encode(pickle.dumps(Payload(marker))).decode()}
    (tmp_path / "agent.zip").write_bytes(pack(members | {"data": json.dumps(data).encode()}))
    done = inspect("agent.zip", "--convert", "clean.zip")
    assert done.returncode == 0, done.stderr
    lines = told(done)
    assert lines["algorithm"] == "QR-DQN"
    assert lines["observation space"] == "gymnasium.spaces.box.Box, shape [3], dtype float32"
    assert lines["action space"].startswith("gymnasium.spaces.discrete.Discrete, n 3")
    assert lines["network"] == "vectors of 3 > 4 > 3 actions (ReLU), the mean of 2 quantiles; 46 parameters"
    assert (lines["scores"], lines["steps"]) == ("q-values", "0")
    assert "Stable-Baselines3: " in lines["versions"]
    assert lines["pickled _last_obs"] == "posix.mknod"
    assert lines["unusual globals"] == "posix.mknod in _last_obs (never loaded here; DQN.load would execute them)"
    assert not marker.exists()
    assert (
        "\nsaved: clean.zip (stable_baselines3.DQN.load opens it)\nto continue training in Stable-Baselines3: DQN.load("
        in done.stdout
    )
    clean_space = DQN.load(tmp_path / "clean.zip", device="cpu").observation_space
    assert clean_space == spaces.Box(-1, 1, (3,), np.float32), "the true bounds"
    assert DQN.load(tmp_path / "clean.zip", device="cpu").action_space.n == 3
    clean = told(inspect("clean.zip"))
    assert clean["algorithm"] == "DQN"
    assert clean["unusual globals"] == "none"


def test_it_tells_what_it_can_of_a_network_that_is_not_read(inspect: Inspect, tmp_path: Path) -> None:
    members = unpack(make_seeds()["ppo.zip"])
    data = json.loads(members["data"]) | {"policy_class": {"__module__": "sb3_contrib.ppo_recurrent.policies"}}
    (tmp_path / "agent.zip").write_bytes(pack(members | {"data": json.dumps(data).encode()}))
    done = inspect("agent.zip")
    assert done.returncode == 0
    assert told(done)["network"].startswith("not read: only policies of DQN, QR-DQN, PPO, A2C, TRPO, ")
    converted = inspect("agent.zip", "--convert", "clean.zip")
    assert converted.returncode == 2
    assert converted.stderr.startswith("error: ")
    assert not (tmp_path / "clean.zip").exists()


def test_it_plays_in_a_process_of_its_own(root: Path, run_python: Inspect, tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_dqn_zip(tmp_path / "a.zip", build_network(spaces.Box(0, 255, (4, 84, 84), np.uint8), 18, SIZES["net3"]))
    script = str(root / "scripts" / "inspect_agent.py")
    done = run_python(script, "a.zip", "--evaluate", "pong", "--episodes", "1")
    assert done.returncode == 0, done.stderr
    assert "pong, 1 full game, protocol rusu: mean -" in done.stdout
    assert "(95% over games: -)" in done.stdout
    assert "note: a.zip: all 18 actions of the joystick, where pong uses 6" in done.stdout


def test_it_plays_an_environment_of_gymnasium(inspect: Inspect, tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu", seed=0).save(tmp_path / "a.zip")
    done = inspect("a.zip", "--evaluate", "CartPole-v1", "--episodes", "3")
    assert done.returncode == 0, done.stderr
    assert "\nCartPole-v1, 3 full games, protocol own: mean " in done.stdout
    other = inspect("a.zip", "--evaluate", "Acrobot-v1")
    assert other.returncode == 2
    assert other.stderr.startswith("error: the teacher sees (4,) float32, the environment shows (6,) float32: was it ")
    assert other.stderr.count("\n") == 1


def test_what_cannot_be_a_dqn_is_one_line(inspect: Inspect, tmp_path: Path) -> None:
    network = build_network(spaces.Box(0, 255, (4, 84, 84), np.uint8), 6, Size((64, 64, 64), 64))
    layers = dict(zip(list(OrderedDict.fromkeys(n.rpartition(".")[0] for n in network.state_dict())),
                      ("conv1", "conv2", "conv3", "fc", "actor"), strict=True))  # fmt: skip
    named = {f"{layers[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": v for n, v in network.state_dict().items()}
    torch.save(named, tmp_path / "wide.pth")
    done = inspect("acktr:wide.pth", "--convert", "clean.zip")
    assert done.returncode == 2
    assert done.stderr == (
        "error: acktr:wide.pth cannot be a DQN of Stable-Baselines3: "
        "channels (64, 64, 64) do not fit Stable-Baselines3's NatureCNN (32, 64, 64)\n"
    )
    assert told(done)["network"].startswith("Nature-CNN 64-64-64, 64 > 6 actions")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--file is needed"),
        (["missing.zip"], "no such file: missing.zip"),
        (["http://x/a.zip"], "https:// or hf:// only"),
        (["a.zip", "--convert", "no/such/a.zip"], "no folder no/such"),
        (["a.zip", "--env", "CartPole-v1"], "env is for convert"),
        (["a.zip", "--evaluate", "pongg"], "did you mean pong"),
        (["a.zip", "--evaluate", "CartPool-v1"], "did you mean CartPole-v1"),
    ],
)
def test_a_wrong_word_is_one_line(inspect: Inspect, words: list[str], message: str) -> None:
    done = inspect(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_help_teaches_by_examples(inspect: Inspect) -> None:
    done = inspect("--help")
    assert done.returncode == 0
    for word in ("--convert clean.zip", "acktr:pong.pt", "hf://", "--evaluate pong", "never loaded"):
        assert word in done.stdout


# ------------------------------------------------------------------ globals by disassembly


@pytest.mark.parametrize("protocol", range(6))
def test_globals_are_found_at_every_protocol(protocol: int) -> None:
    value = [OrderedDict, print, OrderedDict, {"a": np.float64}, "os", "system", OrderedDict]
    found = find_globals(pickle.dumps(value, protocol))
    names = {name.replace("__builtin__.", "builtins.") for name in found.names}  # its name until protocol 2
    assert names == {"collections.OrderedDict", "builtins.print", "numpy.float64"}
    assert found.complete


def test_globals_that_are_hidden_in_the_memo_or_damaged_are_told() -> None:
    hidden = b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93."
    assert find_globals(hidden).names == ("os.system",)
    assert find_globals(b"(ios\nsystem\n.").names == ("os.system",)
    computed = b"\x80\x04\x8c\x02os\x85\x8c\x06system\x93."
    assert find_globals(computed).names == ("?.system",)
    cut = find_globals(b"\x80\x02cos\nsystem\nX\xff\xff")
    assert (cut.names, cut.complete) == (("os.system",), False)


def test_a_pickle_of_megabytes_is_looked_at_in_bounded_time() -> None:
    started = time.process_time()
    found = find_globals(b"\x80\x02" + b"}" * 5_000_000 + b".")
    assert not found.complete
    assert time.process_time() - started < 3.0
