"""The losses of distillation: pure functions of plain tensors, one value per sample.

Each takes the student's scores first and returns ``(batch,)``; the mean over the batch is the caller's, taken once.
The teacher's scores are detached inside, computation is in at least float32, and nothing waits for a GPU.
"""

from polydistill.losses.objectives import OBJECTIVES, Objective, get_objective
from polydistill.losses.policy import policy_huber, policy_kl, policy_mse, policy_nll

__all__ = [
    "OBJECTIVES",
    "Objective",
    "get_objective",
    "policy_huber",
    "policy_kl",
    "policy_mse",
    "policy_nll",
]
