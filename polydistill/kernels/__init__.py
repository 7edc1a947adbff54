"""The losses as fused Triton kernels: one pass over both sides' scores gives loss, gradient and diagnostics.

``polydistill.losses`` chooses between these and its plain formulas (:mod:`polydistill.losses.backend`); nothing else
should call them. Device code is in :mod:`polydistill.kernels.device`. :mod:`polydistill.kernels.plan` maps losses to
kernels, :mod:`polydistill.kernels.launch` launches them, and :mod:`polydistill.kernels.autograd` makes them functions
of autograd, ``torch.func`` and ``torch.compile``.

Triton is imported at the first launch, not before.
"""

from polydistill.kernels import numbers
from polydistill.kernels.autograd import confidence, fused_diagnosis, fused_gradient, fused_loss
from polydistill.kernels.launch import Rows

__all__ = ["Rows", "confidence", "fused_diagnosis", "fused_gradient", "fused_loss", "numbers"]
