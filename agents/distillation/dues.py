"""How many updates a student owes for the play that it has seen, and why it made none.

Contract: owed are ``samples_per_step / batch_size`` updates for each step that this object played since its counters
were set, by ``reset_num_timesteps`` or by ``load``; what an agent had played or learned before is paid. They are due
once the replay holds ``learning_starts`` samples, those of the warm-up too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polydistill_agents.distillation.algorithm import PolicyDistillation


def clear_dues(model: PolicyDistillation) -> None:
    """Count from here: nothing is owed."""
    model._played, model._updates_at_zero = 0, model._n_updates


def updates_due(model: PolicyDistillation) -> int:
    """Updates to make now."""
    return 0 if is_warming_up(model) else max(int(_owed(model)), 0)


def is_warming_up(model: PolicyDistillation) -> bool:
    """Whether the replay holds too few samples to learn from; a full one does not."""
    assert model.replay is not None
    return len(model.replay) < model.learning_starts and not model.replay.full


def _owed(model: PolicyDistillation) -> float:
    made = model._n_updates - model._updates_at_zero
    return model._played * model.samples_per_step / model.batch_size - made


def explain_no_update(model: PolicyDistillation, stopped: bool) -> str:
    """Why a call of ``learn`` made none, and what to change.

    Args:
        model: after the call.
        stopped: whether a callback ended it.
    """
    assert model.replay is not None
    if is_warming_up(model):
        held = f"the replay holds {len(model.replay):,} samples of learning_starts={model.learning_starts:,}"
        return f"{held}; play more steps, or lower learning_starts"
    if stopped:
        return f"a callback stopped it within the first round; let it play more, or lower train_freq={model.train_freq}"
    owed = f"{model._played:,} steps owe {max(_owed(model), 0.0):.2f} of an update"
    return f"{owed}; play more steps, raise samples_per_step, or lower batch_size"
