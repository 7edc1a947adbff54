"""docs/clusters.md says what there is: options, numbers, commands."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from polydistill.study.config import StudyConfig
from polydistill.study.executors.settings import RayConfig, SlurmConfig
from polydistill.study.runner import MOST_LOSSES, SEEN_SECONDS


@pytest.fixture
def page(root: Path) -> str:
    return (root / "docs" / "clusters.md").read_text(encoding="utf-8")


def test_every_option_on_the_page_is_one(page: str) -> None:
    named = set(re.findall(r"--(ray|slurm)\.(\w+)", page))
    fields = {
        (kind, field.name)
        for kind, config in (("ray", RayConfig), ("slurm", SlurmConfig))
        for field in dataclasses.fields(config)
    }
    assert named <= fields
    assert fields - named <= {("ray", "gpus"), ("slurm", "cluster")} | named
    kinds = typing.get_args(typing.get_type_hints(StudyConfig)["executor"])
    assert set(kinds) == set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE))


def test_its_numbers_are_the_defaults(page: str) -> None:
    assert f"At most {SlurmConfig().jobs} jobs are in the queue" in page
    assert f"is told {SlurmConfig().warning_seconds} seconds before" in page
    assert f"looks for them again for {SEEN_SECONDS:.0f} seconds" in page
    assert MOST_LOSSES + 1 == 6
    assert "A run that is lost six times counts as failed" in page


@pytest.mark.parametrize(
    ("config", "values", "why"),
    [
        (RayConfig, {"cpus": 0.0}, "cpus must be positive, got 0.0"),
        (RayConfig, {"gpus": 1.5}, "gpus is a part of one GPU or a whole number, got 1.5"),
        (RayConfig, {"address": "head"}, "address is auto, local, or host:port of the head, got 'head'"),
        (RayConfig, {"address": "ray://head:10001"}, "is of Ray's client; give host:port of the head"),
        (SlurmConfig, {"minutes": 1.0}, "minutes must be longer than warning_seconds"),
        (SlurmConfig, {"jobs": 0}, "jobs must be at least 1, got 0"),
        (SlurmConfig, {"cluster": "pbs"}, "cluster must be"),
        (SlurmConfig, {"minutes": float("nan")}, "minutes must be a finite number"),
    ],
)
def test_what_no_cluster_could_do_is_refused(config: type, values: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        config(**values)
