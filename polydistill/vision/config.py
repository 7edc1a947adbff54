"""What decides a lineage of classifiers: frozen dataclasses, their ranges, and how "auto" is resolved.

A published row is one file in ``configs/cifar``; the defaults here are the born-again paper's recipe for WRN-28-1.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from polydistill.checkpoint import CheckpointConfig
from polydistill.device import Device, Precision, resolve_machine
from polydistill.errors import UserError, require_at_least, require_choice
from polydistill.lineage import LineageConfig
from polydistill.losses import OBJECTIVES
from polydistill.vision.data import DataConfig
from polydistill.vision.lesson import check_options
from polydistill.vision.networks import check_name
from polydistill.vision.schedules import TrainingConfig

TWIN = "teacher"  # as a student's network: the same as its teacher's


@dataclass(frozen=True)
class TeacherConfig:
    """Generation 0, which learns from labels.

    Args:
        network: like wrn-28-1, wrn-28-10, densenet-90-60, resnet-20, preact-110.
        path: a .safetensors file of an earlier run to take as generation 0; empty: train it.
        label_smoothing: share of the label spread over all classes, in [0, 1).
    """

    network: str = "wrn-28-1"
    path: str = ""
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_name(self.network)
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")


@dataclass(frozen=True)
class StudentConfig:
    """Every later generation, and what it learns.

    Args:
        network: a name as for the teacher, or teacher: the twin of its own teacher.
        objective: ban, ban_l, hinton_kd, cwtm, dkpp, uniform_confidence, cross_entropy (labels only), ...
        temperature: of an objective that has one; null: its default.
        label_weight: of an objective that has one; null: its default.
        teacher_weight: of an objective that has one; null: its default.
        label_smoothing: of cross_entropy; null: its default.
        permutation: of dkpp: fresh in every step, or fixed for each image; null: fresh.
    """

    network: str = TWIN
    objective: str = "ban"
    temperature: float | None = None
    label_weight: float | None = None
    teacher_weight: float | None = None
    label_smoothing: float | None = None
    permutation: Literal["fresh", "fixed"] | None = None

    def __post_init__(self) -> None:
        if self.network != TWIN:
            check_name(self.network)
        require_choice("objective", self.objective, OBJECTIVES)
        check_options(self.objective, self.options())

    def options(self) -> dict[str, float | str]:
        """The objective's options that are set."""
        names = ("temperature", "label_weight", "teacher_weight", "label_smoothing", "permutation")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class EvaluationConfig:
    """How generations are measured. The test set is touched once per generation.

    Args:
        selection: whose weights are kept: last (of the last epoch), or best_val (of the epoch that was best on the
            validation images).
        every_epochs: epochs between two points of the validation curve; 0: none.
        ensembles: members of each ensemble to measure, like [[1, 2], [0, 1, 2]]; null: students 1 to k for each k.
    """

    selection: Literal["last", "best_val"] = "last"
    every_epochs: int = 1
    ensembles: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        require_at_least(0, self, "every_epochs")
        if self.selection == "best_val" and not self.every_epochs:
            raise ValueError("selection best_val needs every_epochs of at least 1")
        for members in self.ensembles or ():
            if len(set(members)) != len(members) or len(members) < 2 or min(members) < 0:
                raise ValueError(f"an ensemble has at least 2 members, each once, from 0 on; got {list(members)}")

    def chosen_ensembles(self, generations: int) -> list[tuple[int, ...]]:
        """The members of each ensemble of a lineage with ``generations`` students."""
        if self.ensembles is not None:
            return [tuple(members) for members in self.ensembles]
        if generations == 1:
            return [(0, 1)]
        return [tuple(range(1, last + 1)) for last in range(2, generations + 1)]


@dataclass(frozen=True)
class CifarConfig:
    """Train generations of classifiers, each taught by the one before.

    Args:
        seed: root of every random stream.
        device: auto, cpu or cuda.
        threads: processor threads of torch in each process; 0: as many as there are cores for it.
        precision: of convolutions while learning; auto: bfloat16 where the processor computes in it.
        data: which images.
        teacher: generation 0.
        student: the others.
        training: how all of them learn.
        evaluation: how all are measured.
        lineage: how many generations.
        checkpoint: how often what the run needs to go on is saved.
    """

    seed: int = 0
    device: Device = "auto"
    threads: int = 0
    precision: Precision = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    lineage: LineageConfig = field(default_factory=LineageConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        require_at_least(0, self, "seed", "threads")
        if self.evaluation.selection == "best_val" and not self.data.validation_images:
            raise ValueError("evaluation.selection is best_val, but data.validation_images is 0")
        for members in self.evaluation.ensembles or ():
            if max(members) > self.lineage.generations:
                raise ValueError(
                    f"evaluation.ensembles names generation {max(members)}, the last is {self.lineage.generations}"
                )

    @property
    def student_network(self) -> str:
        """Architecture of the students."""
        return self.teacher.network if self.student.network == TWIN else self.student.network

    def check_processes(self, size: int) -> None:
        """Refuse what ``size`` processes cannot do on the device of the config, which is resolved.

        Raises:
            UserError: batch norm is to be synchronised between processes on a CPU.
        """
        if self.training.sync_batchnorm and size > 1 and self.device == "cpu":
            raise UserError("training.sync_batchnorm works on GPUs only: choose --training.sync_batchnorm false")

    def resolve(self) -> CifarConfig:
        """The config with device, threads and precision of this machine in the place of auto and 0.

        Raises:
            UserError: the device is not there.
        """
        return dataclasses.replace(self, **resolve_machine(self.device, self.threads, self.precision))
