"""Small pictures, and what a run of the script says of itself."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

NETWORK = "timm:test_resnet"  # timm's smallest
CLASSES = ("class 2", "class 10", "müll")  # in this order


class Done(NamedTuple):
    code: int
    out: str
    err: str


Script = Callable[..., Done]


def write_pictures(folder: Path, n: int, *, side: int = 24, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> None:
    """``n`` pictures of each class, which has a colour of its own, with noise on it."""
    generator = np.random.default_rng(seed)
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        colour = 200 * np.array(colorsys.hsv_to_rgb(index / len(classes), 0.7, 1.0))
        for number in range(n):
            noise = generator.normal(0, 40, (side, side + 4, 3))
            Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(folder / name / f"{number}.jpg")


def refused(done: Done) -> str:
    """The one line of an error."""
    assert done.code == 2, done
    told = ("learns:", "is tested:", " takes up to ", "other work is running", "looks at", "left out:")
    lines = [line for line in done.err.splitlines() if line.strip() and not any(words in line for words in told)]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]
