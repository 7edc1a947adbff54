"""What decides an ensemble of several runs, in every world: the run folders of its members, and the machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from polydistill.config.fields import check_fields
from polydistill.device import MOST_THREADS, Device, resolve_machine
from polydistill.errors import require_at_least, require_at_most
from polydistill.runs.folder import SEED


@dataclass(frozen=True)
class MembersConfig:
    """The members of an ensemble.

    Args:
        members: finished run folders, at least 2, each named from the folder of this run; {seed} stands for the seed.
            The network of the last generation of each is a member.
        seed: of the runs.
        device: auto, cpu or cuda.
        threads: processor threads; 0: as many as pay.
    """

    members: tuple[str, ...]
    seed: int = 0
    device: Device = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        require_at_least(0, self, "seed", "threads")
        require_at_most(MOST_THREADS, self, "threads")
        if len(set(self.members)) != len(self.members) or len(self.members) < 2:
            raise ValueError(f"members must be at least 2 run folders, each once, got {list(self.members)}")

    def resolve(self, stored: Mapping[str, Any] | None = None) -> Self:
        """The config with auto and 0 replaced by this machine's device and threads; ``stored`` as for a lineage.

        Raises:
            UserError: the device is missing.
        """
        machine = resolve_machine(self.device, self.threads, "float32", stored=stored)
        return dataclasses.replace(self, device=machine["device"], threads=machine["threads"])

    @property
    def names(self) -> list[str]:
        """Of the members, of this seed."""
        return [name.replace(SEED, str(self.seed)) for name in self.members]

    def folders(self, out: Path) -> list[Path]:
        """The run folders of the members of the run in ``out``."""
        return [out / name for name in self.names]
