"""What decides a teacher's training, and whether a folder holds it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from polydistill.config.fields import check_fields
from polydistill.config.plain_yaml import dump_yaml, to_mapping
from polydistill.device import MOST_THREADS, Device, Precision, resolve_machine
from polydistill.disk import atomic_write, disk_errors
from polydistill.errors import UserError, require_at_least, require_at_most
from polydistill.runs import Standing, examine_folder
from polydistill.runs.folder import is_off
from polydistill.runs.lock import FolderLock
from polydistill.runs.space import require_room
from polydistill_agents.environments.task import AtariTask, open_task
from polydistill_agents.networks.nature import SIZES, multiply_adds

DISK_BYTES = 150_000_000  # three checkpoints of two networks and two moments of Adam, the zip, the curves


@dataclass(frozen=True)
class TeacherTrainingConfig:
    """What decides a teacher's training; the defaults are for Pong on two cores.

    Args:
        game: ROM id of ale-py.
        steps: agent steps to train for (1 step = 4 frames); may grow when a run is continued.
        seed: root of every random stream.
        device: auto, cpu or cuda.
        threads: processor threads of torch and of the emulator; 0: as many as it may use and its work is worth.
        precision: of the convolutions and the hidden layer, float32 or bfloat16; auto: bfloat16 where the processor
            computes in it. The last layer and the weights stay in float32: the gaps between Q-values are smaller than
            bfloat16's three digits.
        n_envs: games played at once; one update follows each step of all of them.
        learning_rate: of Adam.
        cooldown_steps: steps at the end over which the learning rate falls linearly to zero.
        batch_size: transitions per update; batch_size / n_envs samples are learned from per step.
        buffer_size: transitions kept; each takes 56 KiB.
        learning_starts: steps of random play before the first update (also the refill when continuing).
        n_steps: rewards summed before bootstrapping.
        gamma: discount per step.
        target_update_steps: agent steps between copies to the target network.
        exploration_steps: steps over which epsilon falls from 1 to exploration_final.
        exploration_final: epsilon afterwards.
        checkpoint_steps: steps between checkpoints.
        episodes: games for the score of the finished teacher, under the protocol rusu.
    """

    game: str = "pong"
    steps: int = 1_200_000
    seed: int = 0
    device: Device = "auto"
    threads: int = 0
    precision: Precision = "auto"
    n_envs: int = 8
    learning_rate: float = 2e-4
    cooldown_steps: int = 80_000
    batch_size: int = 64
    buffer_size: int = 100_000
    learning_starts: int = 10_000
    n_steps: int = 3
    gamma: float = 0.99
    target_update_steps: int = 2_000
    exploration_steps: int = 80_000
    exploration_final: float = 0.05  # as in the protocol rusu, so that the agent learns to live with it
    checkpoint_steps: int = 25_000
    episodes: int = 30

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "game", open_task(self.game).name)
        counts = ("steps", "n_envs", "batch_size", "buffer_size", "n_steps", "target_update_steps", "checkpoint_steps")
        require_at_least(1, self, *counts, "exploration_steps", "episodes")
        require_at_least(0, self, "seed", "threads", "learning_starts", "cooldown_steps")
        require_at_most(MOST_THREADS, self, "threads")
        require_at_most(2**32 - 1, self, "seed")  # NumPy's, which Stable-Baselines3 seeds too
        for name in ("exploration_final", "gamma"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.learning_starts >= self.steps:
            raise ValueError(
                f"learning_starts = {self.learning_starts:,} steps of random play leave none of steps = {self.steps:,} "
                "to learn in: lower learning_starts, or raise steps"
            )

    @property
    def task(self) -> AtariTask:
        """What the teacher learns."""
        return open_task(self.game)

    def resolve(self, stored: Mapping[str, Any] | None = None) -> Self:
        """The config with device, threads and precision of this machine in the place of auto and 0.

        Args:
            stored: the config of the training that is continued, whose words are kept.

        Raises:
            UserError: the device is not there.
        """
        step = 4 * self.batch_size * multiply_adds(SIZES["nature"])  # there, back, and once more for the target
        machine = resolve_machine(self.device, self.threads, self.precision, stored=stored, step=step)
        return dataclasses.replace(self, **machine)


def open_folder(config: TeacherTrainingConfig, out: Path) -> FolderLock:
    """Make the run folder, or check that the one that is there belongs to ``config``; the lock on it.

    Raises:
        UserError: it holds another run, or something that is none, or cannot be written, or has no room, or another
            process works in it.
    """
    check_folder(config, out)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(out)
    check_folder(config, out)  # another process may just have begun in it
    require_room(out, DISK_BYTES)
    atomic_write(out / "config.yaml", dump_yaml(to_mapping(config)).encode())
    return lock


def check_folder(config: TeacherTrainingConfig, out: Path) -> Standing:
    """What the folder is to ``config``; writes nothing.

    Raises:
        UserError: it holds another run, or something that is none.
    """
    if any((out / "checkpoints").glob("step_*.zip")):
        raise UserError(f"{out} was begun by an older version, whose checkpoints are not read; give --out another")
    return examine_folder(out, to_mapping(config), may_grow=("steps",))


def finished_card(config: TeacherTrainingConfig, out: Path) -> dict[str, Any] | None:
    """The card of the teacher in ``out``, if it is there and was trained as ``config`` says; else None.

    Args:
        config: device, threads and precision may be those of the folder's own config, whatever this machine has.
        out: a folder of :func:`open_folder`, or none.
    """
    try:
        card: dict[str, Any] = json.loads((out / "teacher.json").read_text(encoding="utf-8"))
        score = card["evaluation"]
        whole = all(name in score for name in ("score_mean", "score_ci95", "episodes"))
        same = _is_of(card["config"], to_mapping(config))
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return card if whole and same and (out / "teacher.zip").is_file() else None


def _is_of(stored: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether both configs are one; what an earlier version did not know is off there."""
    newer = {name for name in here.keys() - stored.keys() if is_off(here[name])}
    return dict(stored) == {name: value for name, value in here.items() if name not in newer}
