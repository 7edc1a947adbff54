"""An agent's network as an ONNX graph: from observations as they come from the environment to scores.

What Stable-Baselines3 does to observations before its first layer (pixels over 255, one-hot, flat) is in the graph, and
so are the statistics of a VecNormalize. Contract: a graph is self-contained bytes. They name no path of this machine,
and use operators of the standard alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from gymnasium import spaces
from torch import Tensor, nn

from polydistill.errors import UserError, printable
from polydistill_agents.export.quiet import quiet
from polydistill_agents.networks.observations import example, leaves, to_tensors
from polydistill_agents.teachers import Teacher
from polydistill_agents.teachers.several import MeanTeacher

INPUT, OUTPUT, BATCH = "observations", "scores", "batch"


class Input(NamedTuple):
    """An input of a graph.

    Attributes:
        name: ``observations``, or of a part of a ``Dict`` ``observations.PART``.
        dtype: numpy's name of it, like ``uint8``.
        shape: of one observation.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


def inputs_of(space: spaces.Space[Any]) -> list[Input]:
    """The inputs of a graph for observations of ``space``.

    Example:
        >>> import numpy as np
        >>> inputs_of(spaces.Dict(view=spaces.Box(0, 255, (4, 84, 84), np.uint8), door=spaces.Discrete(3)))[0]
        Input(name='observations.door', dtype='int64', shape=())
    """
    return [Input(name, str(part.dtype), part.shape[1:]) for name, part in feed_of(example(space, 1)).items()]


def feed_of(observations: Any) -> dict[str, Any]:
    """Arrays or tensors by the names of a graph's inputs."""
    if isinstance(observations, Mapping):
        return {f"{INPUT}.{key}": value for key, value in sorted(observations.items())}
    return {INPUT: observations}


class _Scores(nn.Module):
    """A network that takes the parts of a ``Dict`` one by one.

    Args:
        network: from observations to scores.
        keys: of the parts, in order; None: there is one array.
    """

    def __init__(self, network: nn.Module, keys: list[str] | None) -> None:
        super().__init__()
        self.network, self.keys = network, keys

    def forward(self, *parts: Tensor) -> Tensor:
        """``(batch, ...)`` each to ``(batch, actions)`` float32."""
        seen: Any = parts[0] if self.keys is None else dict(zip(self.keys, parts, strict=True))
        return cast(Tensor, self.network(seen)).float()


def check_exportable(teacher: Teacher) -> nn.Module:
    """The network that is written.

    Raises:
        UserError: the agent has a memory, is an ensemble, or a function of which no network is known.
    """
    if teacher.has_memory:
        raise UserError(
            "an agent with a memory (RecurrentPPO) cannot be exported: its scores hang on the steps before, "
            "and a graph sees one observation; distil it first, then export the student"
        )
    if isinstance(teacher, MeanTeacher):
        raise UserError("several agents are no single network: export each of them, or distil them into one student")
    if teacher.network is None:
        raise UserError("a function cannot be exported: there is no network whose layers could be written")
    return teacher.network


def make_graph(teacher: Teacher, space: spaces.Space[Any], metadata: Mapping[str, str]) -> bytes:
    """The content of an ONNX file.

    Args:
        teacher: whose network is written; on the CPU.
        space: of the observations, in the types in which the environment gives them.
        metadata: what the file tells about itself.

    Returns:
        A graph from :func:`inputs_of` ``space``, each ``(batch, ...)``, to ``scores``, ``(batch, actions)`` float32,
        for any batch >= 1.

    Raises:
        UserError: it cannot be exported, or torch fails to.
    """
    network = check_exportable(teacher)
    keys = sorted(space) if isinstance(space, spaces.Dict) else None
    parts = tuple(leaves(to_tensors(example(space, 2), "cpu")))  # two rows: of one, the batch would be a constant
    names = [given.name for given in inputs_of(space)]
    batch = torch.export.Dim(BATCH)
    try:
        with quiet():
            program = torch.onnx.export(
                _Scores(network, keys).eval(),
                parts,
                input_names=names,
                output_names=[OUTPUT],
                dynamic_shapes=(tuple({0: batch} for _ in parts),),
                dynamo=True,
                verbose=False,
            )
        model = cast(Any, program).model_proto
    except Exception as error:  # the network may be any code
        cause = error.__cause__ or error  # torch's own error tells the steps of its exporter
        reason = next((printable(line.strip()) for line in str(cause).splitlines() if line.strip()), "")
        raise UserError(f"torch cannot export this network: {type(cause).__name__}: {reason}") from error
    return _finish(model, metadata)


def _finish(model: Any, metadata: Mapping[str, str]) -> bytes:
    """Without the notes of the exporter, which name files of this machine, and with ours."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        del part.metadata_props[:]
        part.ClearField("doc_string")
    for given in (*graph.input, *graph.output):
        given.type.tensor_type.shape.dim[0].dim_param = BATCH
    for name, value in metadata.items():
        model.metadata_props.add(key=name, value=value)
    return cast(bytes, model.SerializeToString())
