"""A program that trains modules of its own, as torchrun starts it; test_torchrun.py starts it, and calls it alone.

usage: sharing.py OUT, with a mapping of names to options as JSON in LESSONS
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from polydistill.modules import ModuleDomain
from polydistill.runs.checkpoint import CheckpointConfig

LABELS = torch.arange(44) % 4
INPUTS = torch.randn(44, 5, 6, generator=torch.Generator().manual_seed(0)) + LABELS.view(-1, 1, 1)
RAGGED = LABELS.view(-1, 1).repeat(1, 5).masked_fill(torch.arange(5) > torch.arange(44).view(-1, 1) % 7, -100)
DATA = TensorDataset(INPUTS.double(), RAGGED)
TEST = [(INPUTS.double(), RAGGED)]


class Net(nn.Module):
    """Without batch norm and dropout, in float64: processes differ by the order of sums alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(x)
        return scores


class Drawing(Net):
    """With batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(8, 4)).double()


def make(name: str, **options: Any) -> ModuleDomain:
    batches: Any = DataLoader(DATA, 7, shuffle=True)  # shares of 3 and 4; the last batch has 2 samples
    if name == "sampler":
        batches = DataLoader(DATA, 7, sampler=DistributedSampler(DATA))
    if name == "other":
        rank = int(os.environ.get("RANK", "0"))
        batches = [(INPUTS.double() + rank, RAGGED)]
    if "lbfgs" in name:  # of batches that change, its memory makes rounding grow
        batches = [(INPUTS.double(), RAGGED)]
        search = "strong_wolfe" if "searching" in name else None
        options["optimizer"] = lambda parameters: torch.optim.LBFGS(parameters, 0.2, max_iter=4, line_search_fn=search)
    else:
        options["optimizer"] = lambda parameters: torch.optim.SGD(parameters, 0.2, momentum=0.9)
    build = Drawing if name.startswith("drawing") else Net
    return ModuleDomain(build, batches, TEST, **{"epochs": 2, "classes": 4, "log_every_steps": 3, **options})


def learn(name: str, options: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """Hashes, metrics and weights of a generation and its student."""
    found = list(make(name, **options).distill(1, run=out, checkpoint=CheckpointConfig(every_steps=3)))
    return {
        "hashes": [one.sha256 for one in found],
        "metrics": [one.metrics for one in found],
        "weights": [dict(one.member.state_dict()) for one in found],
    }


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    results: dict[str, Any] = {}
    for name, options in json.loads(os.environ["LESSONS"]).items():
        kept = options.pop("kept", None)
        try:
            results[name] = learn(name, options, folder / kept if kept else None)
        except ValueError as error:
            results[name] = str(error)
    torch.save(results, folder / f"rank_{rank}.pt")
