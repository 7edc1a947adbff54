"""Where a loss stopped being finite: the first bad update of a round, its batch, and the student before it.

Looking at every loss would make a GPU wait at every update. Instead a round is judged at its end; where it is bad it is
gone through again from its beginning, slowly, up to the first update whose loss is not finite, or that leaves weights
that are not: the loss of the update behind it would only show what this one did.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from polydistill.learning.rewind import NonFiniteError
from polydistill_agents.distillation.state import load_weights_state, weights_state

if TYPE_CHECKING:
    from polydistill_agents.distillation.algorithm import PolicyDistillation


def all_finite(model: PolicyDistillation) -> Tensor:
    """Whether every weight of the student is: one bool on its device, which is not waited for."""
    return torch.stack([weight.isfinite().all() for weight in model.student.parameters()]).all()


def find_nonfinite_update(
    model: PolicyDistillation, before: Mapping[str, Any], n_updates: int, batch_size: int
) -> NonFiniteError:
    """Go again through a round that ended badly; the model is left as it was before the first bad update.

    Args:
        model: its replay holds what it held.
        before: :func:`polydistill_agents.distillation.state.weights_state` at the beginning of the round.
        n_updates: of the round.
        batch_size: samples of each.
    """
    assert model.replay is not None
    load_weights_state(model, before)
    model.policy.set_training_mode(True)
    for observations, targets in model.replay.batches(n_updates, batch_size, model._order):
        kept = weights_state(model)
        loss, _ = model.update(observations, targets)
        if not bool(loss.isfinite() & all_finite(model)):
            load_weights_state(model, kept)
            break
        model._n_updates += 1
    else:  # on a GPU the same round may round differently: then all of it is to blame
        load_weights_state(model, before)
        loss = torch.tensor(float("nan"))
    model.policy.set_training_mode(False)
    name, generation, value = model.objective, model.generation, float(loss)
    what = f"the loss {name} is {value}" if not np.isfinite(value) else f"the loss {name} leads to infinite weights"
    where = f"generation {generation} at step {model.num_timesteps:,}, update {model._n_updates + 1:,}"
    return NonFiniteError(f"{what}: {where}", {"observations": observations, "targets": targets, "loss": value})
