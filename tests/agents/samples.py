"""What tests of agents ask for: networks and frames that a seed decides, the members of a zip, and lines of refusal."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.dqn.policies import QNetwork

from polydistill.errors import UserError
from polydistill_agents.networks.nature import SIZES, Size, build_network

FRAMES = spaces.Box(0, 255, (4, 84, 84), np.uint8)


def make_network(size: str | Size = "net3", n_actions: int = 6, seed: int = 0) -> QNetwork:
    """A network with the initial weights of ``seed``; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(FRAMES, n_actions, SIZES[size] if isinstance(size, str) else size)


def make_frames(batch: int = 4, seed: int = 0) -> torch.Tensor:
    """``(batch, 4, 84, 84)`` uint8 of noise."""
    return torch.randint(0, 256, (batch, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def members_of(path: Path) -> dict[str, bytes]:
    """What a zip holds, by name."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def refusal(read: Callable[[Any], object], source: Any) -> str:
    """The one printable line with which ``read`` refuses ``source``."""
    with pytest.raises(UserError) as error:
        read(source)
    assert str(error.value).isprintable()
    return str(error.value)
