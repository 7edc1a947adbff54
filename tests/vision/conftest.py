"""The real images for the tests that want them, and small made-up ones in the official format for all others."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from polydistill.vision.images.data import write_made_up


@pytest.fixture(scope="session")
def real_cifar100(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the real CIFAR-100: POLYDISTILL_CIFAR100, or unpacked from ``shared`` beside the clone."""
    named = os.environ.get("POLYDISTILL_CIFAR100")
    if named:
        return Path(named)
    script = root.parent / "shared" / "data" / "unpack_cifar100.sh"
    if not script.is_file():
        pytest.skip("no real CIFAR-100: set POLYDISTILL_CIFAR100 to the folder of its binary release")
    folder = tmp_path_factory.mktemp("cifar100")
    subprocess.run(["sh", str(script), str(folder)], check=True, capture_output=True, timeout=300)
    return folder


@pytest.fixture(scope="session")
def made_up_cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 200 training and 100 test images in the format of CIFAR-10."""
    folder = tmp_path_factory.mktemp("made_up_10")
    write_made_up("cifar10", folder, 200, 100)
    return folder
