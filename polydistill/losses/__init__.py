"""The losses of distillation: pure functions of plain tensors, one value per sample.

Each takes the student's scores first and returns ``(batch,)``; the caller takes the mean over the batch, once.
The teacher's scores are detached inside, computation is in at least float32, and nothing waits for a GPU. The two sides
may be of different floating types: a teacher cached in float16, or a student under autocast, needs no cast.
"""

from polydistill.losses.activations import activation_l2
from polydistill.losses.backend import current_backend, use_backend
from polydistill.losses.batch_normalized import cwtm, uniform_confidence
from polydistill.losses.classification import ban, ban_l, cross_entropy, hinton_kd
from polydistill.losses.decoupled import dkd
from polydistill.losses.divergences import jsd, reverse_kl
from polydistill.losses.examination.doctor import Report, doctor
from polydistill.losses.examination.findings import Finding
from polydistill.losses.gradients import Diagnostics, GradientShares, diagnostics, gradient_shares
from polydistill.losses.objectives import OBJECTIVES, Objective, as_objective, check_options, get_objective
from polydistill.losses.one_pass import ValueAndGrad, loss_with_diagnostics, value_and_grad
from polydistill.losses.options import Option
from polydistill.losses.permuted import dkpp, draw_permutation, fix_permutation
from polydistill.losses.policy import policy_huber, policy_kl, policy_kl_q, policy_mse, policy_nll
from polydistill.losses.standardized import logit_standardized_kd
from polydistill.losses.teachers import average_quantiles, mean_of_teachers, propose_temperature
from polydistill.losses.top_k import TopK, keep_top_k, top_k_kd, top_k_kl

__all__ = [
    "OBJECTIVES",
    "Diagnostics",
    "Finding",
    "GradientShares",
    "Objective",
    "Option",
    "Report",
    "TopK",
    "ValueAndGrad",
    "activation_l2",
    "as_objective",
    "average_quantiles",
    "ban",
    "ban_l",
    "check_options",
    "cross_entropy",
    "current_backend",
    "cwtm",
    "diagnostics",
    "dkd",
    "dkpp",
    "doctor",
    "draw_permutation",
    "fix_permutation",
    "get_objective",
    "gradient_shares",
    "hinton_kd",
    "jsd",
    "keep_top_k",
    "logit_standardized_kd",
    "loss_with_diagnostics",
    "mean_of_teachers",
    "policy_huber",
    "policy_kl",
    "policy_kl_q",
    "policy_mse",
    "policy_nll",
    "propose_temperature",
    "reverse_kl",
    "top_k_kd",
    "top_k_kl",
    "uniform_confidence",
    "use_backend",
    "value_and_grad",
]
