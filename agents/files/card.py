"""The card that lies beside an agent's file: what is known of it, as JSON of the same name."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

MAX_CARD_BYTES = 2**20


def card_score(agent: Path, sha256: str, protocol: str) -> float | None:
    """The mean score that a card promises; None where there is no card, or it is of another agent or protocol.

    Args:
        agent: path of the agent's file; the card is ``agent.json`` beside ``agent.zip``.
        sha256: of the agent's weights, see :func:`polydistill.provenance.weights_sha256`.
        protocol: under which it is to be scored.
    """
    card: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        file = agent.with_suffix(".json")
        if file.is_file() and file.stat().st_size <= MAX_CARD_BYTES:  # a pipe would be waited for
            card = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(card, dict) or card.get("sha256") != sha256:
        return None
    scored = card.get("evaluation")
    if not isinstance(scored, dict) or scored.get("protocol") != protocol:
        return None
    mean = scored.get("score_mean")
    if isinstance(mean, bool) or not isinstance(mean, int | float):
        return None
    with contextlib.suppress(OverflowError):  # a whole number beyond all floats
        return float(mean) if math.isfinite(mean) else None
    return None
