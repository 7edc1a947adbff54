"""What docs/classifiers.md shows runs, and its numbers are those of the networks and of the paper."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

from polydistill.vision.networks import build_network
from polydistill.vision.networks.sharing import ROLES
from polydistill.vision.paper import paper_error

PAGE = Path(__file__).resolve().parent.parent / "docs" / "classifiers.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
FEW = [  # a tenth of the smoke run's images
    *("--data.name", "cifar10", "--data.made_up", "60", "--data.train_images", "0", "--data.test_images", "0"),
    *("--data.validation_images", "20", "--training.epochs", "1", "--training.batch_size", "20", "--threads", "1"),
]
ROW = re.compile(r"^\| `([\w.-]+)`.*?\| ([\d.]+)M.*?\| ([\d.]+)M \| ([\d.]+) \|$", re.MULTILINE)


def test_the_commands_run(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(root / "configs")
    (code,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    (tmp_path / "losses_of_mine.py").write_text(code)
    sys.modules.pop("losses_of_mine", None)
    torch.save({"state_dict": build_network("resnet-20", 10, seed=0).state_dict()}, tmp_path / "resnet20.th")
    threads = torch.get_num_threads()
    for command in (line for block in BLOCKS for line in block.replace("\\\n", "").splitlines()):
        program, script, *words = shlex.split(command)
        assert program == "python"
        few = [] if "--dry_run" in words else FEW
        runpy.run_path(str(root / script))["main"]([*words, *few])
    torch.set_num_threads(threads)
    summary = json.loads((tmp_path / "runs" / "wide" / "summary.json").read_text())
    assert summary["config"]["student"]["shared"] == ["first", "last"]
    assert len({generation["parameters"] for generation in summary["generations"]}) == 2
    summary = json.loads((tmp_path / "runs" / "resnet8_short" / "summary.json").read_text())
    assert summary["config"]["teacher"]["mean"] == [0.485, 0.456, 0.406]
    summary = json.loads((tmp_path / "runs" / "mine" / "summary.json").read_text())
    assert summary["config"]["student"]["objective_sha256"] == hashlib.sha256(code.encode()).hexdigest()


def test_its_sizes_are_those_of_the_networks_and_its_errors_the_papers() -> None:
    rows = ROW.findall(TEXT)
    assert len(rows) == 14
    for name, _, ours, error in rows:
        with torch.device("meta"):
            network = build_network(name, 100)
        numbers = sum(parameter.numel() for parameter in network.parameters())
        residual = "like" in name
        if residual:
            ends = (network.stem, network.head)
            numbers -= sum(parameter.numel() for layer in ends for parameter in layer.parameters())
        assert f"{numbers / 1e6:.1f}" == ours, name
        shared = ROLES if residual else ()
        generation = int(name != "densenet-90-60")
        assert paper_error("cifar100", "densenet-90-60", name, "ban", generation, shared) == float(error), name
