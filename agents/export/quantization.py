"""int8 instead of float32: static quantisation by onnxruntime's own tool.

Weights and what flows between layers become whole numbers of 8 bits; the ranges come from states of play, so that
nothing is measured while the agent acts. The last layer stays in float32: the best two actions of a DQN often differ by
less than a 256th of the range of its scores.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from polydistill.errors import UserError
from polydistill_agents.export.graph import feed_of
from polydistill_agents.export.quiet import quiet
from polydistill_agents.networks.observations import Arrays, count_rows, take

LAYERS = ("Conv", "Gemm", "MatMul")
BATCH = 64


class _Calibration:
    """The states, batch by batch, as the tool asks for them."""

    def __init__(self, observations: Arrays) -> None:
        starts = range(0, count_rows(observations), BATCH)
        self._batches = iter([feed_of(take(observations, slice(start, start + BATCH))) for start in starts])

    def get_next(self) -> dict[str, Any] | None:
        """The next batch; None after the last."""
        return next(self._batches, None)


def quantize(content: bytes, observations: Arrays) -> bytes:
    """An int8 file of the same scores, as nearly as int8 can.

    Args:
        content: of a float32 file from :func:`~polydistill_agents.export.graph.make_graph`.
        observations: states of play, whose ranges are taken.

    Raises:
        UserError: the network has one layer alone, which stays in float32.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    model = onnx.load_from_string(content)
    layers = [node for node in model.graph.node if node.op_type in LAYERS]
    if len(layers) < 2:
        raise UserError("int8: the network has one layer alone, and the last one stays in float32: leave --int8 out")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    with tempfile.TemporaryDirectory() as name, quiet():
        source, target = Path(name, "float32.onnx"), Path(name, "int8.onnx")
        source.write_bytes(content)
        quantize_static(
            source,
            target,
            _Calibration(observations),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(LAYERS),
            nodes_to_exclude=[layers[-1].name],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,  # weights of 7 bits: processors without VNNI add up 8 bits wrongly, where sums are large
        )
        made = onnx.load(target)
    del made.metadata_props[:]
    onnx.helper.set_model_props(made, metadata)
    return bytes(made.SerializeToString())
