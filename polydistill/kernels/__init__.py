"""The losses as fused Triton kernels: one pass over both sides' scores gives loss, gradient and diagnostics.

``polydistill.losses`` chooses between these and its plain formulas (:mod:`polydistill.losses.backend`); nothing else
should call them. Device code is in :mod:`polydistill.kernels.device`, which kernel computes what in
:mod:`polydistill.kernels.plan`, its launch in :mod:`polydistill.kernels.launch`, and what autograd, ``torch.func`` and
``torch.compile`` need in :mod:`polydistill.kernels.autograd`.

Triton is imported at the first launch, not before.
"""

from polydistill.kernels import numbers
from polydistill.kernels.autograd import confidence, fused_diagnosis, fused_gradient, fused_loss
from polydistill.kernels.launch import Rows

__all__ = ["Rows", "confidence", "fused_diagnosis", "fused_gradient", "fused_loss", "numbers"]
