"""Finished runs that no training has made: small networks with a summary.json beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import DQN

from polydistill.hub.worlds import read_finished
from polydistill.modules.weights import save_weights
from polydistill.provenance import weights_sha256
from polydistill.vision.classifier import save_classifier
from polydistill.vision.images.data import Normalization
from polydistill.vision.networks import build_network
from polydistill_agents.files.compact import write_student
from polydistill_agents.files.sb3_zip import write_dqn_zip

KNOWN = {
    "schema": 1,
    "seed": 3,
    "device": "cpu",
    "hardware": {"cpu": "A processor", "cores": 2, "gpu": None},
    "versions": {"python": "3.11.7", "polydistill": "0.1.0"},
    "git": {"commit": "5" * 40, "dirty": False},
    "wall_seconds": 12.5,
    "throughput": {},
    "ensembles": [],
    "seconds": [1.0, 2.0],
}
NORMALIZATION = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def games(mean: float, **other: Any) -> dict[str, Any]:
    """Metrics of four games, two of them a point above the mean and two a point below."""
    scores = [mean - 1, mean + 1, mean - 1, mean + 1]
    known = {"score_mean": mean, "score_iqm": mean, "score_ci95": [mean - 1, mean + 1], "episodes": 4, "truncated": 0}
    known |= {"n_actions": 2, "game_actions": 2, "protocol": "own", "human_normalized": None, "scores": scores}
    return known | {"teacher_normalized": None, "teacher_normalized_ci95": None, "agreement": None} | other


def of_teacher(mean: float) -> dict[str, Any]:
    """The same beside a teacher."""
    return games(mean, teacher_normalized=0.9, teacher_normalized_ci95=[0.8, 1.0], agreement=0.75)


def agent_config(**other: Any) -> dict[str, Any]:
    """The config of a run in CartPole."""
    known: dict[str, Any] = {"env": "CartPole-v1", "env_package": "", "env_kwargs": [], "env_max_steps": 0}
    known |= {"wrappers": [], "teacher_wrappers": [], "seed": 3, "dataset": None, "save_dataset": None}
    known |= {"teacher": {"path": "/home/jane/agents/ppo.zip", "more": []}, "student": {"objective": "policy_kl"}}
    known |= {"play": {"steps": 2000}, "evaluation": {"episodes": 4, "play": "greedy"}, "lineage": {"generations": 1}}
    return known | other


def agent_run(out: Path, config: dict[str, Any] | None = None, scores: str = "logits", **other: Any) -> dict[str, Any]:
    """A student of CartPole in the folder ``out``; its summary."""
    out.mkdir(parents=True, exist_ok=True)
    model = DQN("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [4]}, seed=0, device="cpu", buffer_size=1)
    write_dqn_zip(out / "student.zip", model.q_net, score_kind=scores)
    write_student(out / "student.safetensors", model.q_net, score_kind=scores)
    random = {"random_mean": 20.0, "random_ci95": [18.0, 22.0], "random_scores": [18.0, 22.0, 18.0, 22.0]}
    sha256 = weights_sha256(model.q_net.state_dict())
    teacher = {"generation": 0, "sha256": "a" * 64, "teacher_sha256": None, "objective": None, "parameters": 4610}
    student = {
        "generation": 1,
        "sha256": sha256,
        "teacher_sha256": "a" * 64,
        "objective": "policy_kl",
        "parameters": 30,
    }
    generations = [teacher | {"metrics": games(100.0, **random)}, student | {"metrics": of_teacher(92.0)}]
    command = "python scripts/distill_agent.py --teacher.path /home/jane/agents/ppo.zip --env CartPole-v1 --out runs/x"
    told = {"kind": "agent", "command": command, "config": config or agent_config(), "generations": generations}
    return write_summary(out, KNOWN | told | other)


def classifier_run(out: Path, **of_data: Any) -> dict[str, Any]:
    """Two generations of a small classifier of CIFAR-10 in the folder ``out``; the summary."""
    out.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {"name": "cifar10", "root": "/home/jane/cifar", "official": True, "made_up": 0, "classes": 0}
    data |= {"validation_images": 0, "train_images": 0, "test_images": 0, "images_per_class": 0, **of_data}
    generations = []
    for number in (0, 1):
        torch.manual_seed(number)
        path, network = out / f"generation_{number}.safetensors", build_network("resnet-8", 10)
        card = save_classifier(path, network, "resnet-8", 10, NORMALIZATION, dataset="cifar10", generation=number)
        metrics = {"test_accuracy": 0.75 + number / 8, "test_nll": 1.0, "test_ece": 0.1, "val_accuracy": None}
        told = {"generation": number, "sha256": card["sha256"], "objective": "ban" if number else None}
        generations.append({**told, "parameters": 78_042, "metrics": metrics | {"agreement": 0.5 if number else None}})
    config = {"data": data, "teacher": {"network": "resnet-8", "path": ""}, "training": {"epochs": 3}}
    config |= {"student": {"network": "teacher", "objective": "ban"}, "evaluation": {"selection": "last"}}
    config |= {"lineage": {"generations": 1}}
    images = {part: {"images": count, "sha256": None} for part, count in (("train", 50_000), ("test", 10_000))}
    command = "python scripts/distill_cifar.py --data.root /home/jane/cifar --out /home/jane/runs/x"
    told = {"kind": "cifar", "command": command, "config": config, "data": images, "generations": generations}
    return write_summary(out, KNOWN | told)


def modules_run(out: Path) -> dict[str, Any]:
    """Two generations of somebody's own module in the folder ``out``; the summary."""
    out.mkdir(parents=True, exist_ok=True)
    generations = []
    for number in (0, 1):
        torch.manual_seed(number)
        module = torch.nn.Linear(4, 3)
        save_weights(out / f"generation_{number}.safetensors", module)
        metrics = {"test_accuracy": 0.75 + number / 8, "test_nll": 1.0, "test_ece": 0.1}
        metrics |= {"agreement": 0.5 if number else None, "kl": 0.25 if number else None}
        told = {
            "generation": number,
            "sha256": weights_sha256(module.state_dict()),
            "objective": "ban" if number else None,
        }
        generations.append({**told, "parameters": 15, "metrics": metrics})
    config = {"networks": {name: {"class": "Linear"} for name in ("generation_0", "students")}}
    config |= {"teacher": "", "epochs": 3, "seed": 3, "ema": 0.99, "lineage": {"generations": 1}}
    command = "'/home/jane/a secret project/train.py' --out /home/jane/runs/x"
    told = {"kind": "modules", "command": command, "config": config, "generations": generations}
    return write_summary(out, KNOWN | told)


def tasks_run(out: Path) -> dict[str, Any]:
    """One student of two CartPoles in the folder ``out``; the summary."""
    out.mkdir(parents=True, exist_ok=True)
    model = DQN("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [4]}, seed=0, device="cpu", buffer_size=1)
    names = {"light": [], "heavy": ["gravity=20"]}
    for name in names:
        write_dqn_zip(out / f"generation_1_{name}.zip", model.q_net)
    (out / "generation_1.safetensors").write_bytes(b"of both")
    tasks = {
        name: {"env": "CartPole-v1", "env_kwargs": options, "env_max_steps": 0, "teacher": f"/home/jane/{name}.zip"}
        for name, options in names.items()
    }
    shared = {key: agent_config()[key] for key in ("play", "evaluation", "student", "lineage")}
    first = {name: games(100.0, random_mean=20.0, sha256="b" * 64) for name in names}
    then = {name: of_teacher(mean) | {"percent_of_teacher": mean} for name, mean in (("light", 90.0), ("heavy", 80.0))}
    means = {"teacher_normalized_geometric_mean": 0.9, "percent_of_teacher_geometric_mean": 84.9}
    generations = [
        {"generation": 0, "sha256": "a" * 64, "objective": None, "parameters": 9000, "metrics": {"tasks": first}},
        {"generation": 1, "sha256": "c" * 64, "objective": "policy_kl", "parameters": 60, "metrics": {"tasks": then}},
    ]
    generations[1]["metrics"] |= means
    told = {"kind": "tasks", "command": "python scripts/distill_agent.py --config /home/jane/tasks.yaml"}
    return write_summary(out, KNOWN | told | {"config": {"tasks": tasks, **shared}, "generations": generations})


def teacher_run(out: Path) -> dict[str, Any]:
    """A teacher of Pong with one student beside it in the folder ``out``; what is read of it."""
    out.mkdir(parents=True, exist_ok=True)
    model = DQN("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [4]}, seed=0, device="cpu", buffer_size=1)
    for name in ("teacher", "net1"):
        write_dqn_zip(out / f"{name}.zip", model.q_net)
    played = {"protocol": "rusu", "episodes": 4, "score_ci95": [4.0, 6.0]}
    scored = {
        name: played | {"score_mean": mean, "scores": [mean - 1, mean + 1]} for name, mean in (("t", 5.0), ("s", 4.0))
    }
    student = {"student": "net1", "scores": "q_values", "sha256": "b" * 64, "teacher_normalized": 0.9}
    told = {"game": "pong", "command": "python scripts/train_teacher.py --out /home/jane/runs/x", "steps": 1000}
    told |= {"config": {"seed": 3}, "sha256": "a" * 64, "versions": KNOWN["versions"], "git": KNOWN["git"]}
    told |= {"evaluation": scored["t"], "students": [student | {"evaluation": scored["s"]}]}
    (out / "teacher.json").write_text(json.dumps(told))
    return read_finished(out)


def write_summary(out: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Write it; it comes back as it would be read."""
    text = json.dumps(summary)
    (out / "summary.json").write_text(text)
    found: dict[str, Any] = json.loads(text)
    return found
