"""Which executor a study asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from polydistill._environment import EXTRAS, MissingExtra, require_extra
from polydistill.errors import UserError
from polydistill.study.executors.interface import Executor
from polydistill.study.executors.local import LocalExecutor
from polydistill.study.executors.ray_cluster import RayExecutor
from polydistill.study.executors.settings import RayConfig, SlurmConfig
from polydistill.study.executors.slurm_queue import SlurmExecutor
from polydistill.study.plan import PLAN


class Choice(Protocol):
    """What is asked of a study's config."""

    @property
    def executor(self) -> str:
        """local, ray or slurm."""

    @property
    def ray(self) -> RayConfig:
        """Of ray."""

    @property
    def slurm(self) -> SlurmConfig:
        """Of slurm."""


def require_executor(name: str) -> None:
    """Check that what the executor needs is installed.

    Raises:
        UserError: it is not.
    """
    if name in EXTRAS:
        try:
            require_extra(name)
        except MissingExtra as error:
            raise UserError(str(error)) from error


def make_executor(choice: Choice, out: Path, workers: int) -> Executor:
    """The executor of a study in ``out``; it connects when it is entered, when ``plan.json`` is there.

    Args:
        choice: what the user says.
        out: folder of the study.
        workers: runs at once; 0: as many as a cluster has room for.
    """
    if choice.executor == "ray":
        return RayExecutor(choice.ray, out / PLAN, workers)
    if choice.executor == "slurm":
        return SlurmExecutor(choice.slurm, out, out / PLAN, workers)
    return LocalExecutor(workers)
