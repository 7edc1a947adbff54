"""The card of an exported agent, ``NAME.onnx.json``: what is needed to run the file, and what was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from polydistill.disk import atomic_write
from polydistill.provenance import git_state, hardware, versions, weights_sha256
from polydistill_agents.environments.atari import PACKAGES
from polydistill_agents.environments.task import AtariTask, Task
from polydistill_agents.export.forms import Form
from polydistill_agents.export.graph import BATCH, OUTPUT, check_exportable, inputs_of
from polydistill_agents.export.preprocessing import before_graph, in_graph
from polydistill_agents.networks.nature import count_parameters
from polydistill_agents.teachers import Teacher


class Played(NamedTuple):
    """How the forms of an agent were scored.

    Attributes:
        task: that was played.
        protocol: its name.
        episodes: games of each form.
        seed: of the games.
    """

    task: Task
    protocol: str
    episodes: int
    seed: int


def make_card(
    teacher: Teacher, played: Played, forms: Sequence[Form], files: Sequence[Path], verdict: str
) -> dict[str, Any]:
    """What the card holds, as plain values.

    Args:
        teacher: that was exported.
        played: how it was scored.
        forms: torch first, then those that are files.
        files: of the latter.
        verdict: on int8; empty without.
    """
    network, task = check_exportable(teacher), played.task
    space = task.observation_space
    n_actions = forms[0].evaluation.n_actions
    inputs = [given._asdict() | {"shape": [BATCH, *given.shape]} for given in inputs_of(space)]
    return {
        "schema": 1,
        "agent": {"sha256": weights_sha256(network.state_dict()), "parameters": count_parameters(network)},
        ("game" if isinstance(task, AtariTask) else "environment"): task.name,
        "scores": teacher.kind,
        "inputs": inputs,
        "output": {"name": OUTPUT, "dtype": "float32", "shape": [BATCH, n_actions]},
        "in_graph": in_graph(network, space),
        "before_graph": before_graph(task, teacher),
        "evaluation": {
            "protocol": played.protocol,
            "episodes": played.episodes,
            "seed": played.seed,
            "forms": {form.name: _scores(form, played.seed) for form in forms},
        },
        "files": {form.name: _file(form, path) for form, path in zip(forms[1:], files, strict=True)},
        "int8": verdict,
        "hardware": hardware(),
        "git": git_state(),
        "versions": versions(*PACKAGES, "onnx", "onnxruntime", "onnxscript"),
    }


def write_card(path: Path, card: dict[str, Any]) -> None:
    """Write it, whole or not at all."""
    atomic_write(path, (json.dumps(card, indent=2) + "\n").encode())


def _scores(form: Form, seed: int) -> dict[str, Any]:
    interval = form.evaluation.interval(seed)
    return {
        "score_mean": form.evaluation.mean,
        "score_ci95": None if interval is None else list(interval),
        "agreement": form.evaluation.agreement if form.content else None,
        "milliseconds_per_decision": {str(batch): value for batch, value in form.latency.items()},
    }


def _file(form: Form, path: Path) -> dict[str, Any]:
    assert form.comparison is not None
    return {
        "name": path.name,
        "bytes": len(form.content),
        "sha256": form.sha256,
        "beside_torch": form.comparison._asdict(),
    }
