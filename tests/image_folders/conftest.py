"""timm beside a torchvision that was made for another torch, and a small folder of pictures."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from polydistill.image_folders.pretrained import require_weights
from tests.image_folders.samples import NETWORK, Done, Script, write_pictures
from tests.operators import define_operators

define_operators()


@pytest.fixture(autouse=True)
def timm_is_there() -> None:
    """Skip, visibly, where the extra is not installed."""
    if find_spec("timm") is None:
        pytest.skip("the extra timm is not installed")


@pytest.fixture(autouse=True)
def nobody_has_asked_the_hub() -> Iterator[None]:
    """No test is told what the Hub of another test answered."""
    require_weights.cache_clear()
    yield
    require_weights.cache_clear()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of 3 classes: 12 pictures of each to learn from, 6 to be tested on."""
    write_pictures(tmp_path / "pictures" / "train", 12)
    write_pictures(tmp_path / "pictures" / "val", 6, seed=1)
    return tmp_path / "pictures"


@pytest.fixture
def words(pictures: Path, tmp_path: Path) -> list[str]:
    """Words for a run of seconds."""
    text = (
        f"--teacher.network {NETWORK} --data.image_size 32 --data.workers 0 --training.epochs 2 "
        "--training.batch_size 8 --training.log_every_steps 2 --device cpu --threads 1 --precision float32"
    )
    return [*text.split(), "--data.root", str(pictures), "--out", str(tmp_path / "run")]


@pytest.fixture
def script(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Script]:
    """Run the script in this process, in an empty folder; what workers say is heard too."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()

    def run(*words: object) -> Done:
        capfd.readouterr()
        try:
            runpy.run_path(str(root / "scripts" / "distill_images.py"))["main"]([str(word) for word in words])
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        return Done(code, *capfd.readouterr())

    yield run
    torch.set_num_threads(threads)
