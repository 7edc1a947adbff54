"""What a user says of the place where runs are executed; :mod:`~polydistill.study.executors.choice` opens it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from polydistill.config.fields import check_fields
from polydistill.errors import require_at_least


@dataclass(frozen=True)
class RayConfig:
    """A Ray cluster.

    Args:
        address: host:port of its head, as `ray start` prints it; auto: the cluster that this computer is part of;
            local: one of this computer alone, for as long as the study runs.
        cpus: of one run; Ray runs as many at once as fit.
        gpus: of one run, also a part of one, like 0.25; runs need --settings.device cuda, too.
        memory_gib: of one run; 0: it is not counted.
    """

    address: str = "auto"
    cpus: float = 1.0
    gpus: float = 0.0
    memory_gib: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        require_at_least(0, self, "gpus", "memory_gib")
        if self.cpus <= 0:
            raise ValueError(f"cpus must be positive, got {self.cpus}")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus is a part of one GPU or a whole number, got {self.gpus}")
        host, colon, port = self.address.rpartition(":")
        if self.address not in {"auto", "local"} and not (host and colon and port.isdigit()):
            raise ValueError(f"address is auto, local, or host:port of the head, got {self.address!r}")
        if "://" in self.address:
            raise ValueError(
                f"address {self.address!r} is of Ray's client; give host:port of the head, on a computer of the cluster"
            )


@dataclass(frozen=True)
class SlurmConfig:
    """A queue, through submitit.

    Args:
        cluster: slurm: that of this computer; local: processes of this computer with the same limit of time.
        partition: of Slurm; empty: its default.
        minutes: of one job. A run that needs more saves, is put into the queue again, and goes on.
        timeouts: how many times that may happen to a job.
        warning_seconds: before the limit, in which a run saves.
        jobs: in the queue or running at once.
        cpus: of one run.
        gpus: of one run; runs need --settings.device cuda, too.
        memory_gib: of one run; 0: Slurm's default.
        options: further ones of sbatch, like {account: me, constraint: a100}.
    """

    cluster: Literal["slurm", "local"] = "slurm"
    partition: str = ""
    minutes: float = 60.0
    timeouts: int = 20
    warning_seconds: int = 90
    jobs: int = 100
    cpus: int = 1
    gpus: int = 0
    memory_gib: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        require_at_least(0, self, "timeouts", "gpus", "memory_gib")
        require_at_least(1, self, "cpus", "jobs", "warning_seconds")
        if self.minutes * 60 <= self.warning_seconds:
            raise ValueError(
                f"minutes must be longer than warning_seconds ({self.warning_seconds}), got {self.minutes:g} minutes"
            )
