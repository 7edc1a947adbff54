"""How long agents take to decide, measured side by side.

Contract: in each round every agent is asked once, one after the other, and the median over the rounds counts. So a
machine that is busy for a while slows all of them alike, and a call that was interrupted does not count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from polydistill.device import one_thread
from polydistill_agents.networks.observations import Arrays, count_rows, take

BATCHES = (1, 64)
ROUNDS = {1: 300, 64: 40}
WARM_UP = 3  # calls before the first that counts


def measure_latency(
    agents: Mapping[str, Callable[[Any], object]],
    observations: Arrays,
    batches: Sequence[int] = BATCHES,
    rounds: Mapping[int, int] = ROUNDS,
) -> dict[str, dict[int, float]]:
    """Milliseconds per decision, ``{agent: {batch: milliseconds}}``, with one thread.

    Args:
        agents: functions of arrays ``(batch, ...)`` as they come from the environment.
        observations: states of play, one at least; they are repeated where a batch needs more.
        batches: decisions made at once.
        rounds: of each batch.
    """
    found: dict[str, dict[int, float]] = {name: {} for name in agents}
    with one_thread():
        for batch in batches:
            seen = take(observations, np.arange(batch) % count_rows(observations))
            for ask in agents.values():
                for _ in range(WARM_UP):
                    ask(seen)
            times: dict[str, list[float]] = {name: [] for name in agents}
            for _ in range(rounds[batch]):
                for name, ask in agents.items():
                    begun = time.perf_counter()
                    ask(seen)
                    times[name].append(time.perf_counter() - begun)
            for name, taken in times.items():
                found[name][batch] = 1000 * statistics.median(taken) / batch
    return found
