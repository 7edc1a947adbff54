"""How many updates a student owes for the play that it has seen, and why it made none.

Contract: owed are ``samples_per_step / batch_size`` updates for each step that was played since the counters were set,
by ``reset_num_timesteps`` or by ``load``; what an agent had played or learned before is paid. They are due once the
replay holds ``learning_starts`` samples, those of the warm-up too; a full replay that holds fewer does.
"""

from __future__ import annotations

from typing import NamedTuple

from polydistill_agents.distillation.replay import Replay


class Dues(NamedTuple):
    """What is owed at one moment.

    Attributes:
        played: steps since the counters were set.
        made: updates since then.
        replay: what is learned from.
        learning_starts: samples in it before the first update.
        samples_per_step: that are learned from.
        batch_size: samples per update.
    """

    played: int
    made: int
    replay: Replay
    learning_starts: int
    samples_per_step: float
    batch_size: int

    @property
    def now(self) -> int:
        """Updates to make now."""
        return 0 if self._warming_up else max(int(self._owed), 0)

    @property
    def _warming_up(self) -> bool:
        return len(self.replay) < self.learning_starts and not self.replay.full

    @property
    def _owed(self) -> float:
        return self.played * self.samples_per_step / self.batch_size - self.made

    def explain_none(self, stopped: bool, train_freq: int) -> str:
        """Why a call of ``learn`` made none, and what to change.

        Args:
            stopped: whether a callback ended it.
            train_freq: of the model.
        """
        if self._warming_up:
            held = f"the replay holds {len(self.replay):,} samples of learning_starts={self.learning_starts:,}"
            return f"{held}; play more steps, or lower learning_starts"
        if stopped:
            return f"a callback stopped it within the first round; let it play more, or lower train_freq={train_freq}"
        owed = f"{self.played:,} steps owe {max(self._owed, 0.0):.2f} of an update"
        return f"{owed}; play more steps, raise samples_per_step, or lower batch_size"
