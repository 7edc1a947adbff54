"""distill_images.py under torchrun: two processes make the students that one makes; the first keeps the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from polydistill.provenance import weights_sha256
from tests.image_folders.samples import Script

PROGRAM = Path(__file__).parent / "sharing.py"

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


def share(words: list[str]) -> subprocess.CompletedProcess[str]:
    """The same command with two processes."""
    environment = os.environ | {"PYTHONPATH": str(PROGRAM.parents[2]), "GLOO_SOCKET_IFNAME": "lo"}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(PROGRAM)]
    return subprocess.run([*start, *words], env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("more", [(), ("--training.shard", "true", "--training.ema", "0.9")], ids=["shared", "sharded"])
def test_two_processes_make_one_run(script: Script, words: list[str], tmp_path: Path, more: tuple[str, ...]) -> None:
    words = [*words, *more]
    words = [word.replace("timm:test_resnet", "timm:test_vit") for word in words]  # no batch norm: exact but for sums
    assert script(*words).code == 0
    words[words.index("--out") + 1] = str(tmp_path / "shared")
    done = share(words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("generation 1") == 1, "one process speaks"
    assert ("sharded build" in done.stderr) == bool(more)
    found = [json.loads((tmp_path / name / "summary.json").read_text())["generations"] for name in ("run", "shared")]
    for one, two in zip(*found, strict=True):
        assert one["metrics"]["test_nll"] == pytest.approx(two["metrics"]["test_nll"], abs=1e-3)
    for name in ("generation_0.json", "generation_1.json"):  # the card names the weights of the file
        card = json.loads((tmp_path / "shared" / name).read_text())
        assert card["sha256"] == weights_sha256(load_file((tmp_path / "shared" / name).with_suffix(".safetensors")))
    again = share(words)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count("generation 1") == 1, "a finished run is shown"
