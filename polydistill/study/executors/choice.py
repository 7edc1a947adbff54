"""Which executor a study asks for."""

from __future__ import annotations

from pathlib import Path

from polydistill._environment import EXTRAS, MissingExtra, require_extra
from polydistill.errors import UserError
from polydistill.study.config import StudyConfig
from polydistill.study.executors.interface import Executor
from polydistill.study.executors.local import LocalExecutor
from polydistill.study.executors.ray_cluster import RayExecutor
from polydistill.study.executors.slurm_queue import SlurmExecutor
from polydistill.study.plan import PLAN


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


def make_executor(config: StudyConfig, out: Path, workers: int) -> Executor:
    """The executor of a study in ``out``; it connects when it is entered, when ``plan.json`` is there.

    Args:
        config: of the study.
        out: folder of the study.
        workers: runs at once; 0: as many as a cluster has room for.
    """
    if config.executor == "ray":
        return RayExecutor(config.ray, out / PLAN, workers)
    if config.executor == "slurm":
        return SlurmExecutor(config.slurm, out, out / PLAN, workers)
    return LocalExecutor(workers)
