"""From an agent to its ONNX file: made, compared without torch, played, timed; only then it is written.

Nothing is written unless the runtime computes what torch computes. All forms of the agent play the same games: equal
seeds, protocol, and number of games at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from polydistill._environment import require_extra
from polydistill.disk import atomic_write
from polydistill.errors import UserError
from polydistill.provenance import weights_sha256
from polydistill.runs import Progress
from polydistill.streams import numpy_stream
from polydistill_agents.environments.evaluation import Compared, Evaluation, evaluate
from polydistill_agents.environments.task import Task
from polydistill_agents.export.card import Played, make_card, write_card
from polydistill_agents.export.checking import Comparison, States, compare, score_without_torch
from polydistill_agents.export.forms import Form, judge
from polydistill_agents.export.graph import check_exportable, make_graph
from polydistill_agents.export.latency import measure_latency
from polydistill_agents.export.quantization import quantize
from polydistill_agents.export.runtime import OnnxAgent
from polydistill_agents.networks.kinds import ScoreFunction
from polydistill_agents.networks.observations import Arrays, take, to_tensors
from polydistill_agents.teachers import Source, as_teacher

ENDING = ".onnx"
STATES = 1024  # of play, that are kept to compare and to calibrate
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Exported:
    """What was written, and what was measured.

    Attributes:
        forms: torch, float32, and int8 where it was asked for.
        files: of the forms but the first.
        card: the JSON file beside them.
        verdict: a sentence on int8; empty without.
        told: what the card holds.
    """

    forms: list[Form]
    files: list[Path]
    card: Path
    verdict: str
    told: dict[str, Any] = field(repr=False)


class Target:
    """The files of an export: the graph, its int8 twin, and the card. None of them may be there.

    Args:
        out: of the graph, ending in .onnx.
        int8: whether there is a twin.

    Raises:
        UserError: another ending, a folder that is missing, a file that is there already.
    """

    def __init__(self, out: str | Path, int8: bool) -> None:
        path = Path(out).expanduser()
        if path.suffix.lower() != ENDING:
            raise UserError(f"--out must be a file that ends in {ENDING}, got {str(out)!r}")
        if not path.parent.is_dir():
            raise UserError(f"there is no folder {path.parent} for --out")
        self.graphs = [path, *([path.with_suffix(f".int8{ENDING}")] if int8 else [])]
        self.card = path.with_name(f"{path.name}.json")
        for file in (*self.graphs, self.card):
            if file.exists():
                raise UserError(f"{file} is there already: choose another --out, or remove it")


def export_agent(
    source: Source,
    task: Task,
    out: str | Path,
    *,
    int8: bool = False,
    protocol: str | None = None,
    episodes: int = 30,
    seed: int = 0,
    play: str = "protocol",
    temperature: float = 0.01,
    states: int = STATES,
    tolerance: float = TOLERANCE,
    n_threads: int = 0,
    progress: bool = False,
) -> Exported:
    """Write an agent as an ONNX file, with a card beside it.

    Args:
        source: as :func:`~polydistill_agents.teachers.as_teacher` takes it: one network, without a memory.
        task: what it plays: :func:`~polydistill_agents.environments.task.open_task`, or
            :func:`~polydistill_agents.environments.gym_task.open_environment`.
        out: new file, ending in .onnx; the card is ``OUT.json``.
        int8: also write ``NAME.int8.onnx``.
        protocol: that it is scored under; None: the task's first.
        episodes: games of each form.
        seed: of the games.
        play: as :func:`~polydistill_agents.environments.evaluation.evaluate` takes it.
        temperature: of Q-values, where they are sampled.
        states: of the agent's own play that are compared at most, >= 1.
        tolerance: the largest difference of a score that is allowed, as a share of the largest score.
        n_threads: of the emulator.
        progress: show how far the games are.

    Raises:
        MissingExtra: the extra export is not installed.
        UserError: the agent cannot be exported, or does not fit the task; a file is there already; the runtime computes
            something else.
    """
    require_extra("export")
    target = Target(out, int8)
    teacher = as_teacher(source).to("cpu")
    network = check_exportable(teacher)
    teacher.count_actions(task)
    metadata = {"scores": teacher.kind, "task": task.name, "sha256": weights_sha256(network.state_dict())}
    contents = {"float32": make_graph(teacher, task.observation_space, metadata)}

    def score(name: str, agent: ScoreFunction, look: Callable[[Compared], None] | None = None) -> Evaluation:
        with Progress(f"{name} plays", episodes, "games") if progress else nullcontext() as bar:
            return evaluate(
                agent,
                task,
                protocol=protocol,
                episodes=episodes,
                seed=seed,
                n_threads=n_threads,
                reference=teacher,
                on_step=None if bar is None else lambda games: bar.advance(games - bar.done),
                play=play,
                temperature=temperature,
                masked=teacher.masks,
                on_compared=look,
            )

    met = States(states, numpy_stream(seed, "export"))
    played = {"torch": score("torch", teacher, met)}
    seen, expected = met.observations, met.scores
    compared = {"float32": compare(score_without_torch(contents["float32"], seen), expected)}
    refuse_other_scores(compared["float32"], tolerance)
    if int8:
        calibrating, others = slice(0, None, 2), slice(min(1, len(met) - 1), None, 2)
        contents["int8"] = quantize(contents["float32"], take(seen, calibrating))
        compared["int8"] = compare(score_without_torch(contents["int8"], take(seen, others)), expected[others])
    agents = {name: OnnxAgent(content, teacher.kind) for name, content in contents.items()}
    played |= {name: score(name, agent) for name, agent in agents.items()}

    def by_torch(arrays: Arrays) -> torch.Tensor:
        return teacher(to_tensors(arrays, "cpu"))

    latency = measure_latency({"torch": by_torch, **{name: agent.score for name, agent in agents.items()}}, seen)
    forms = [
        Form(name, contents.get(name, b""), games, latency[name], compared.get(name)) for name, games in played.items()
    ]
    verdict = judge(forms[1], forms[2], seed) if int8 else ""
    rules = Played(task, protocol or task.default_protocol, episodes, seed)
    card = make_card(teacher, rules, forms, target.graphs, verdict)
    for form, file in zip(forms[1:], target.graphs, strict=True):
        atomic_write(file, form.content)
    write_card(target.card, card)
    return Exported(forms, target.graphs, target.card, verdict, card)


def refuse_other_scores(found: Comparison, tolerance: float) -> None:
    """Check that a runtime's scores are torch's.

    Raises:
        UserError: the largest difference is above ``tolerance`` of the largest score.
    """
    if not found.share <= tolerance:
        raise UserError(
            f"the runtime computes something else: its scores of {found.states} states differ from torch's by up to "
            f"{found.largest_difference:.3g}, and {tolerance * found.largest_score:.3g} is allowed ({tolerance:g} of "
            f"the largest score): nothing was written"
        )
