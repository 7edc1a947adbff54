"""An exported agent as onnxruntime computes it, asked as any agent is; only files that this project has just written.

Contract: an ONNX file of strangers is opened nowhere, and so no graph of theirs, nor a file that it names, is read.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polydistill_agents.export.graph import OUTPUT, feed_of
from polydistill_agents.networks.observations import Arrays, Tensors, each


class OnnxAgent:
    """Scores from a graph, on one thread of the CPU: what :func:`~polydistill_agents.environments.evaluate` plays.

    Args:
        content: of the file.
        kind: of the scores, "q_values" or "logits".
    """

    def __init__(self, content: bytes, kind: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        self.kind = kind
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def score(self, observations: Arrays) -> NDArray[np.float32]:
        """Scores ``(batch, actions)`` of observations as they come from the environment."""
        (scores,) = self._session.run([OUTPUT], feed_of(observations))
        return cast(NDArray[np.float32], scores)

    def __call__(self, observations: Tensors) -> Tensor:
        """The same of tensors on the CPU."""
        arrays: Any = each(lambda value: value.numpy(), observations)
        return torch.from_numpy(self.score(arrays))
