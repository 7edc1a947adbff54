"""What decides a lineage of classifiers: frozen dataclasses, their ranges, and how "auto" is resolved.

A published row is one file in ``configs/cifar``; the defaults here are the born-again paper's recipe for WRN-28-1,
except that 5,000 training images are held out for validation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, ParamSpec

from polydistill.config.fields import check_fields
from polydistill.device import MOST_THREADS, Device, Precision, resolve_machine
from polydistill.errors import UserError, require_at_least, require_at_most
from polydistill.learning.own_objective import try_own
from polydistill.learning.schedules import TrainingConfig
from polydistill.learning.taught import TWIN, TaughtConfig, TaughtLineage
from polydistill.lineage import LineageConfig
from polydistill.lineage.ensembles import growing_ensembles
from polydistill.losses.objectives import OwnObjective
from polydistill.runs.checkpoint import CheckpointConfig
from polydistill.streams import repeated_seed
from polydistill.vision.cost import BACKWARD, count_cost
from polydistill.vision.images.data import DataConfig, Normalization
from polydistill.vision.networks import check_name
from polydistill.vision.networks.sharing import Role, check_same_states, check_sharing

P = ParamSpec("P")


@dataclass(frozen=True)
class TeacherConfig:
    """Generation 0, which learns from labels.

    Args:
        network: like wrn-28-1, wrn-28-10, densenet-90-60, resnet-20, imagenet-resnet-18, preact-110.
        path: a file of weights to take as generation 0: of an earlier run, or of public code, a path or hf://org/name;
            empty: train it.
        label_smoothing: share of the label spread over all classes, in [0, 1).
        mean: of the pixels that the teacher of path was trained on, in [0, 1] for each channel, where that is not the
            data set's, like [0.485, 0.456, 0.406]; null: what its card says, or the data set's.
        std: the same of their standard deviation, like [0.229, 0.224, 0.225].
    """

    network: str = "wrn-28-1"
    path: str = ""
    label_smoothing: float = 0.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_name(self.network)
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")
        if self.path and self.label_smoothing:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, but the teacher of path is not trained here")
        self._check_normalization()

    def _check_normalization(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std are given together, or neither")
        if self.mean is not None and not self.path:
            raise ValueError("mean and std are of the teacher of path: one that is trained here sees the data set's")
        for name, least in (("mean", 0.0), ("std", 1e-3)):
            values = getattr(self, name)
            if values is not None and not (len(values) == 3 and least <= min(values) and max(values) <= 1):
                raise ValueError(
                    f"{name} must be 3 numbers from {least:g} to 1, of pixels in [0, 1] (divide by 255), got "
                    f"{list(values)}"
                )

    @property
    def normalization(self) -> Normalization | None:
        """Of the pixels that the teacher of path was trained on, where it is given."""
        if self.mean is None or self.std is None:
            return None
        (a, b, c), (d, e, f) = self.mean, self.std
        return Normalization((a, b, c), (d, e, f))


@dataclass(frozen=True)
class StudentConfig(TaughtConfig):
    """Every later generation, and what it learns. An option that its objective does not have is refused.

    Args:
        network: a name as for the teacher, or teacher: the twin of its own teacher.
        shared: layers copied from the teacher and frozen, of first and last, like [first, last]; their shapes must be
            the same.
        activation_weight: weight, beside any objective, of the squared distance between the hidden states of student
            and teacher at the end of each stage, whose shapes must be the same; null: 0.
        repeat: number of the student among those of one teacher. Another number gives another initial network, data
            order, augmentation and permutation.
        epochs: of the students, with their schedule stretched over them; null: as many as training.epochs. A student of
            labels alone gets the joint budget of teacher and student with twice those.
    """

    shared: tuple[Role, ...] = ()
    activation_weight: float | None = None
    repeat: int = 0
    epochs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network != TWIN:
            check_name(self.network)
        require_at_least(0, self, "repeat")
        if self.activation_weight is not None:
            require_at_least(0, self, "activation_weight")
        if self.epochs is not None:
            require_at_least(1, self, "epochs")


def _require(field: str, check: Callable[P, None], *given: P.args, **options: P.kwargs) -> None:
    """Do a check; where it refuses, the message begins with the field."""
    try:
        check(*given, **options)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


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
        check_fields(self)
        require_at_least(0, self, "every_epochs")
        if self.selection == "best_val" and not self.every_epochs:
            raise ValueError("selection best_val needs every_epochs of at least 1")
        for members in self.ensembles or ():
            if len(set(members)) != len(members) or len(members) < 2 or min(members) < 0:
                raise ValueError(
                    f"ensembles: an ensemble has at least 2 members, each once, from 0 on; got {list(members)}"
                )

    def chosen_ensembles(self, generations: int) -> list[tuple[int, ...]]:
        """The members of each ensemble of a lineage with ``generations`` students."""
        if self.ensembles is not None:
            return [tuple(members) for members in self.ensembles]
        if generations == 1:
            return [(0, 1)]
        return growing_ensembles(generations)


@dataclass(frozen=True)
class CifarConfig(TaughtLineage):
    """Train generations of classifiers, each taught by the one before.

    Args:
        seed: root of every random stream.
        device: auto, cpu or cuda.
        threads: processor threads of torch in each process; 0: as many as pay for its work.
        precision: of convolutions in training; auto: bfloat16 where the device has instructions for it.
        data: which images.
        teacher: generation 0.
        student: the others.
        training: how all of them learn.
        evaluation: how all are measured.
        lineage: how many generations.
        checkpoint: how often the run saves its state.
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
        check_fields(self)
        require_at_least(0, self, "seed", "threads")
        require_at_most(MOST_THREADS, self, "threads")
        self._check_networks()
        objective = self.student.find_objective()
        if isinstance(objective, OwnObjective):
            try_own(objective, self.data.n_classes, self.student.options())
        self._check_evaluation()
        images, batch_size = self.data.images_to_learn, self.training.batch_size
        if images is not None and batch_size > images:
            raise ValueError(f"training.batch_size is {batch_size:,}, but there are {images:,} training images")

    def _check_networks(self) -> None:
        """Refuse students that cannot have, or cannot be compared with, what is inside of their teacher."""
        pair = (self.student_network, self.teacher.network)
        if self.student.shared:
            _require("student.shared", check_sharing, *pair, self.student.shared, self.data.n_classes)
        if self.student.activation_weight:
            _require("student.activation_weight", check_same_states, *pair)

    def _check_evaluation(self) -> None:
        """Refuse what cannot be measured with these data and generations."""
        evaluation = self.evaluation
        if not self.data.validation_images:
            if evaluation.selection == "best_val":
                raise ValueError("evaluation.selection is best_val, but data.validation_images is 0")
            if evaluation.every_epochs > 1:
                raise ValueError(
                    f"evaluation.every_epochs is {evaluation.every_epochs:,}, but data.validation_images is 0: there "
                    "is nothing to validate on"
                )
        for members in evaluation.ensembles or ():
            if max(members) > self.lineage.generations:
                raise ValueError(
                    f"evaluation.ensembles names generation {max(members)}, the last is {self.lineage.generations}"
                )

    def training_of(self, generation: int) -> TrainingConfig:
        """How ``generation`` is trained: students may have epochs of their own."""
        epochs = self.student.epochs if generation else None
        return self.training if epochs is None else dataclasses.replace(self.training, epochs=epochs)

    def stream_seed(self, generation: int) -> int:
        """Root of the random streams of ``generation``: the seed, or of a student repeated another for each number."""
        return repeated_seed(self.seed, self.student.repeat if generation else 0)

    def check_processes(self, size: int) -> None:
        """Refuse what ``size`` processes cannot do on the device of the config, which is resolved.

        Raises:
            UserError: batch norm cannot be synchronised between processes on a CPU.
        """
        if self.training.sync_batchnorm and size > 1 and self.device == "cpu":
            raise UserError("training.sync_batchnorm works on GPUs only: choose --training.sync_batchnorm false")

    def resolve(self, stored: Mapping[str, Any] | None = None) -> CifarConfig:
        """The config with auto and 0 replaced by this machine's device, threads and precision.

        Args:
            stored: the config of the run that is continued; its values replace auto and 0.

        Raises:
            UserError: the device is missing, or cannot do what the config wants.
        """
        work: dict[str, float] = {}
        if not self.threads:  # counted for generation 0, which arms of one study share
            image = (1 + BACKWARD) * count_cost(self.teacher.network, self.data.n_classes).operations / 2
            work = {"step": self.training.batch_size * image}
            work["run"] = self.training.epochs * self.data.expected_images * image
        machine = resolve_machine(self.device, self.threads, self.precision, stored=stored, **work)
        resolved = dataclasses.replace(self, **machine)
        if self.training.capture == "on" and resolved.device == "cpu":
            raise UserError(
                "training.capture is on, but device is cpu, which has no CUDA graphs; choose --training.capture auto"
            )
        return resolved
