"""A program that trains modules of its own in a run folder, for crashes.py and for a test that kills it.

python tests/crashes/own_modules.py OUT EPOCHS           augmented inputs, dropout, batch norm, a mean of the weights
python tests/crashes/own_modules.py OUT EPOCHS cached    inputs that repeat, a teacher's scores in OUT/scores
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from polydistill.modules import ModuleDomain, TeacherCache
from polydistill.runs.checkpoint import CheckpointConfig

CLASSES, SIZE = 10, 32


def clouds(n: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(n)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    centres = torch.randn(CLASSES, SIZE, generator=torch.Generator().manual_seed(0))
    return TensorDataset(centres[labels] + 2 * torch.randn(n, SIZE, generator=generator), labels)


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Samples with noise that is drawn each time."""

    def __init__(self, n: int) -> None:
        self.data = clouds(n)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, label = self.data[index]
        return inputs + 0.1 * torch.randn(SIZE), label


def build() -> nn.Module:
    hidden = nn.Linear(SIZE, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1)
    return nn.Sequential(*hidden, nn.Linear(64, CLASSES))


def main(out: Path, epochs: int, *, cached: bool) -> None:
    torch.set_num_threads(1)
    own: dict[str, Any] = {"objective": "ban_l", "ema": 0.99, "clip_norm": 1.0}
    if cached:
        cache = TeacherCache(out / "scores", top_k=3, dtype="float16")
        own = {"objective": "hinton_kd", "teacher_cache": cache, "parts": 2}
    domain = ModuleDomain(
        build,
        DataLoader(clouds(2000) if cached else Augmented(2000), 32, shuffle=True),
        DataLoader(clouds(500), 500),
        validation=DataLoader(clouds(300), 300),
        keep_best=True,
        epochs=epochs,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, 0.003),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs),
        log_every_steps=7,
        **own,
    )
    for _ in domain.distill(2, run=out, checkpoint=CheckpointConfig(every_seconds=1.0)):
        pass


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), cached=sys.argv[3:] == ["cached"])
