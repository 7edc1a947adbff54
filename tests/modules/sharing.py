"""A program that trains modules of its own, as torchrun starts it; test_torchrun.py starts it, and calls it alone.

usage: sharing.py OUT, with a mapping of names to options as JSON in LESSONS

Beside the options of ModuleDomain a lesson may have "kept", the folder of its run below OUT, and "goes_on", the lesson
from whose folder it goes on, at the checkpoint before the last.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from polydistill.errors import UserError
from polydistill.learning.sharded import as_whole, piece_of
from polydistill.modules import ModuleDomain, TeacherCache
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


class Tied(Net):
    """With weights that two blocks share, and more of them outside."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)).double()
        self.more[1].weight = self.layers[2].weight

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.more(self.layers(x))
        return scores


class TiedWithin(Net):
    """Whose weights are tied outside its blocks, and which draws them in evaluation as well."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(6, 6, bias=False).double()
        self.again = nn.Linear(6, 6, bias=False).double()
        self.again.weight = self.into.weight

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.again(self.into(x)))


class Scores:
    """What FSDP does not look into."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Opaque(Net):
    def forward(self, x: Tensor) -> Scores:  # type: ignore[override]
        return Scores(super().forward(x))


class Unseeded(Net):
    """From a generator of its own: other weights in each process."""

    def __init__(self) -> None:
        super().__init__()
        weights = self.layers[0].weight
        weights.data = torch.from_numpy(np.random.default_rng().normal(size=weights.shape))


class PrintedOtherwise(Net):
    """With the same weights in each process."""

    def load(self) -> PrintedOtherwise:
        self.load_state_dict({name: torch.zeros_like(value) for name, value in self.state_dict().items()})
        return self

    def extra_repr(self) -> str:
        return f"of process {os.environ.get('RANK')}"


def make(name: str, cache: Path | None, **options: Any) -> ModuleDomain:
    batches: Any = DataLoader(DATA, 7, shuffle=True)  # shares of 3 and 4; the last batch has 2 samples
    if name == "sampler":
        batches = DataLoader(DATA, 7, sampler=DistributedSampler(DATA))
    if name.startswith("other"):
        rank = int(os.environ.get("RANK", "0"))
        batches = [(INPUTS.double() + rank, RAGGED)]
    if name == "nan cached":
        assert cache is not None
        cache = cache.with_name("scores of nan")
        batches = [(INPUTS[:22].double(), RAGGED[:22]), (INPUTS[22:].double() * torch.nan, RAGGED[22:])]
    if "lbfgs" in name:  # of batches that change, its memory makes rounding grow
        batches = [(INPUTS.double(), RAGGED)]
        search = "strong_wolfe" if "searching" in name else None
        options["optimizer"] = lambda parameters: torch.optim.LBFGS(parameters, 0.2, max_iter=4, line_search_fn=search)
    else:
        options["optimizer"] = lambda parameters: torch.optim.SGD(parameters, 0.2, momentum=0.9)
    if "cached" in name:
        assert cache is not None
        options["teacher_cache"] = TeacherCache(cache, top_k=2)
    if name == "other file":
        assert cache is not None
        rank = int(os.environ.get("RANK", "0"))
        options["teacher"] = cache.with_name(f"other_{rank}.pt")
        torch.save({key: torch.ones_like(one) + rank for key, one in Net().state_dict().items()}, options["teacher"])
    if name == "tied within":
        assert cache is not None
        weights = TiedWithin().state_dict()
        options["teacher"] = cache.with_name(f"tied_{os.environ.get('RANK')}.pt")
        torch.save({key: torch.ones_like(tensor) for key, tensor in weights.items() if key != "again.weight"},
                   options["teacher"])  # fmt: skip
        options["optimizer"] = lambda parameters: torch.optim.AdamW(parameters, 0.01)
        options |= {"validation": TEST, "keep_best": True, "patience": 2}
    if name in ("other cached", "nan cached"):
        torch.manual_seed(0)
        options["teacher"] = Net()
    if name == "unseeded teacher":
        options["teacher"] = Unseeded()
    if name == "printed otherwise":
        assert cache is not None
        options |= {"teacher": PrintedOtherwise().load(), "teacher_cache": cache}
    if "whole batches" in name:
        batches = [(INPUTS.double(), RAGGED)] * 2
    if options.get("shard") == "Tanh":
        options["shard"] = nn.Tanh
    if name == "nan sharded":
        batches = [(INPUTS.double(), RAGGED)] * 3 + [(INPUTS.double() * torch.inf, RAGGED)]
    builds = {"drawing": Drawing, "unseeded build": Unseeded, "tied": Tied}
    builds |= {"tied within": TiedWithin, "opaque": Opaque}
    build = builds.get(name.split(",")[0], Net)
    return ModuleDomain(build, batches, TEST, **{"epochs": 2, "classes": 4, "log_every_steps": 3, **options})


def learn(name: str, options: dict[str, Any], out: Path | None, cache: Path | None = None) -> dict[str, Any]:
    """Hashes, metrics and weights of a generation and its student."""
    found = list(make(name, cache, **options).distill(1, run=out, checkpoint=CheckpointConfig(every_steps=3)))
    return {
        "hashes": [one.sha256 for one in found],
        "metrics": [one.metrics for one in found],
        "weights": [as_whole(dict(one.member.state_dict())) for one in found],
        "held": sum(piece_of(parameter).numel() for parameter in found[0].member.parameters()),
    }


def build_wrapped() -> nn.Module:
    return DistributedDataParallel(nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)))


def learn_wrapped(folder: Path, rank: int) -> dict[str, Any]:
    """Hashes of generations whose modules DistributedDataParallel wraps: of a lineage, of one with a teacher that is
    given, and of one with the file of a teacher; and what is said to a run folder. The program connects its processes
    itself."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    labels = torch.arange(12) % 3
    inputs = torch.randn(12, 2, generator=torch.Generator().manual_seed(rank)) + labels.unsqueeze(1) + rank
    batches = [(inputs, labels)] * 3  # others in each process: so are the running statistics of batch norm
    test = [(torch.ones(6, 2), labels[:6])]
    domain = ModuleDomain(build_wrapped, batches, test, epochs=2)
    found = list(domain.distill(2))
    given = ModuleDomain(build_wrapped, batches, test, epochs=1, teacher=found[0].member)
    taught = list(given.distill(1))
    path = folder / f"wrapped_{rank}.pt"
    torch.save(found[0].member.state_dict(), path)
    taught.append(next(ModuleDomain(build_wrapped, batches, test, epochs=1, teacher=path).distill(1)))
    told = ""
    try:
        next(domain.distill(1, run=folder / "wrapped"))
    except UserError as error:
        told = str(error)
    dist.destroy_process_group()
    return {"hashes": [one.sha256 for one in (*found, *taught)], "told": told}


def stop_before_the_last_checkpoint(run: Path, out: Path) -> None:
    """A copy of a finished run, as it was when it was saved the last time but one."""
    if dist.get_rank() == 0:
        shutil.copytree(run, out)
        (out / "summary.json").unlink()
        states = sorted((out / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime)
        assert len(states) >= 2
        states[-1].unlink()
    dist.barrier()


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    results: dict[str, Any] = {"wrapped": learn_wrapped(folder, rank)}
    for name, options in json.loads(os.environ["LESSONS"]).items():
        kept, before = options.pop("kept", None), options.pop("goes_on", None)
        out = folder / kept if kept else None
        if before is not None:
            assert out is not None
            stop_before_the_last_checkpoint(folder / before, out)
        try:
            results[name] = learn(name, options, out, folder / "scores")
        except (TypeError, ValueError, FloatingPointError, UserError) as error:
            results[name] = str(error)
    torch.save(results, folder / f"rank_{rank}.pt")
