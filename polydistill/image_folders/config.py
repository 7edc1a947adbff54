"""What decides a lineage of classifiers of a folder of pictures: frozen dataclasses and their ranges."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from polydistill.config.fields import check_fields
from polydistill.device import MOST_THREADS, Device, WithFloat16, resolve_machine
from polydistill.errors import require_at_least, require_at_most
from polydistill.image_folders.inspection import Broken, Check
from polydistill.image_folders.library import PREFIX
from polydistill.image_folders.networks import expectations, require_network
from polydistill.image_folders.pretrained import require_weights
from polydistill.image_folders.training import TrainingConfig
from polydistill.image_folders.transforms import AugmentationConfig, require_policy
from polydistill.learning.taught import TaughtConfig, TaughtLineage
from polydistill.lineage import LineageConfig
from polydistill.runs.checkpoint import CheckpointConfig

MOST_WORKERS = 256
LARGEST_SIDE = 4096


@dataclass(frozen=True)
class DataConfig:
    """Which pictures. Those of the test folder are seen once by each generation, when it is finished.

    Args:
        root: folder with a folder for learning and one for testing, in each of which every class has a folder of its
            pictures: train/<class>/*.jpg, val/<class>/*.jpg.
        train: name of the folder to learn from.
        test: name of the folder to be tested on.
        validation_images: drawn from the training pictures and held out, for a curve after every epoch, and for
            evaluation.selection best_val.
        image_size: pixels of the square pictures that the loader gives; 0: the larger of what the networks are given
            by image_size, or else what the student was made for.
        check: what is looked at in every file before the run begins: headers, whole (each is decoded), or none.
        broken: what becomes of pictures that cannot be decoded: refuse, or skip (they count for nothing).
        workers: processes that load and augment; 0: the run itself does. With another number other augmentations are
            drawn.
        crop: share of a test picture's shorter side that is kept, in (0, 1]; 0: as timm says of the student.
        interpolation: with which test pictures are resized: bilinear or bicubic; empty: as timm says of the student.
    """

    root: str
    train: str = "train"
    test: str = "val"
    validation_images: int = 0
    image_size: int = 0
    check: Check = "headers"
    broken: Broken = "refuse"
    workers: int = 2
    crop: float = 0.0
    interpolation: Literal["", "bilinear", "bicubic"] = ""

    def __post_init__(self) -> None:
        check_fields(self)
        require_at_least(0, self, "validation_images", "image_size", "workers", "crop")
        require_at_most(LARGEST_SIDE, self, "image_size")
        require_at_most(MOST_WORKERS, self, "workers")
        require_at_most(1, self, "crop")
        if not self.root:
            raise ValueError("root is empty: name the folder of the pictures")
        if self.train == self.test:
            raise ValueError(f"train and test are both {self.train}: a network is not tested on what it learned from")


@dataclass(frozen=True)
class TeacherConfig:
    """Generation 0, which learns from labels, unless it is given.

    Args:
        network: timm:<name>, like timm:resnet18 or timm:vit_small_patch16_224; or one of our own, like resnet-20.
        path: a file of weights of that network (.safetensors, a state dict or a checkpoint of timm, or of an earlier
            run, a path or hf://org/name) to take as generation 0; empty: train it.
        pretrained: take timm's own weights as generation 0; they are fetched from the Hugging Face Hub.
        classes: a file of the names of the teacher's classes in its order, a JSON list or one per line, where they are
            not the folder's: those of the folder are picked from its scores by name. Empty: they are the folder's.
        image_size: pixels to which pictures are resized for it; 0: data.image_size.
    """

    network: str = f"{PREFIX}resnet18"
    path: str = ""
    pretrained: bool = False
    classes: str = ""
    image_size: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        require_at_least(0, self, "image_size")
        require_at_most(LARGEST_SIDE, self, "image_size")
        if self.path and self.pretrained:
            raise ValueError("path and pretrained name two teachers: leave one out")
        if self.pretrained and not self.network.startswith(PREFIX):
            raise ValueError(f"pretrained is for networks of timm, and network is {self.network}")
        if self.classes and not self.given:
            raise ValueError("classes is of a teacher that is given, by path or pretrained, and this one is trained")

    @property
    def given(self) -> bool:
        """Whether generation 0 is there already."""
        return bool(self.path) or self.pretrained


@dataclass(frozen=True)
class StudentConfig(TaughtConfig):
    """Every later generation, and what it learns. An option that its objective does not have is refused.

    Args:
        network: a name as for the teacher, or teacher: the twin of its own teacher.
        permutation: of dkpp: fresh in every step; null: fresh, too.
        image_size: pixels to which pictures are resized for it; 0: data.image_size.
        repeat: number of the student among those of one teacher. Another number gives another initial network, data
            order, augmentation and permutation.
    """

    image_size: int = 0
    repeat: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(0, self, "image_size", "repeat")
        require_at_most(LARGEST_SIDE, self, "image_size")
        if self.permutation == "fixed":
            raise ValueError("permutation cannot be fixed here: choose fresh")


@dataclass(frozen=True)
class EvaluationConfig:
    """Whose weights are kept.

    Args:
        selection: last (of the last epoch), or best_val (of the epoch that was best on the validation pictures).
        patience: with best_val: end after so many epochs that were no better; null: train all epochs.
    """

    selection: Literal["last", "best_val"] = "last"
    patience: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.patience is not None:
            require_at_least(1, self, "patience")
            if self.selection != "best_val":
                raise ValueError("patience goes with selection best_val, whose best weights are kept")


@dataclass(frozen=True)
class ImagesConfig(TaughtLineage):
    """Train generations of classifiers of a folder of pictures, each taught by the one before.

    Args:
        seed: root of every random stream.
        device: auto, cpu or cuda.
        threads: processor threads of torch; 0: one for each core.
        precision: of the networks in training; auto: bfloat16 where the device has instructions for it. float16, with
            losses scaled by torch's GradScaler, is for GPUs that have no bfloat16.
        data: which pictures.
        augmentation: of the training pictures.
        teacher: generation 0.
        student: the others.
        training: how all of them learn.
        evaluation: whose weights are kept.
        lineage: how many generations.
        checkpoint: how often the run saves its state.
    """

    data: DataConfig
    seed: int = 0
    device: Device = "auto"
    threads: int = 0
    precision: WithFloat16 = "auto"
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
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
        if self.evaluation.selection == "best_val" and not self.data.validation_images:
            raise ValueError("evaluation.selection is best_val, but data.validation_images is 0")
        if self.augmentation.mixes:
            self._check_mixing()

    def _check_mixing(self) -> None:
        """Refuse what mixed pictures do not go with."""
        if self.training.batch_size % 2:
            raise ValueError(f"training.batch_size is {self.training.batch_size}: mixed pictures need an even one")
        if self.data.broken == "skip" and self.data.check != "whole":
            raise ValueError("data.broken skip does not go with mixed pictures unless data.check is whole")

    @property
    def side(self) -> int:
        """Pixels of the pictures that the loader gives."""
        given = max(self.teacher.image_size, self.student.image_size)
        return self.data.image_size or given or expectations(self.student_network).side

    @property
    def test_cut(self) -> tuple[float, str]:
        """Share of a test picture's shorter side that is kept, and the interpolation."""
        wants = expectations(self.student_network)
        return self.data.crop or wants.crop, self.data.interpolation or wants.interpolation

    def network_of(self, generation: int) -> tuple[str, int]:
        """The name of the network of ``generation``, and the pixels of the pictures that it takes."""
        if generation:
            return self.student_network, self.student.image_size or self.side
        return self.teacher.network, self.teacher.image_size or self.side

    def resolve(self, stored: Mapping[str, Any] | None = None) -> ImagesConfig:
        """The config with auto and 0 replaced by this machine's device, threads and precision.

        Args:
            stored: the config of the run that is continued; its values replace auto and 0.

        Raises:
            UserError: timm is missing, has no such network, or weights that cannot be fetched; or there is no such
                device.
        """
        for name in dict.fromkeys((self.teacher.network, self.student_network)):
            require_network(name)
        if self.teacher.pretrained and stored is None:  # a run that goes on may have them already
            require_weights(self.teacher.network)
        if self.augmentation.auto_augment:
            require_policy(self.augmentation.auto_augment)
        machine = resolve_machine(self.device, self.threads, self.precision, stored=stored)
        return dataclasses.replace(self, **machine)


def as_teacher(config: ImagesConfig) -> dict[str, Any]:
    """What must change in a config when the student of ``config`` teaches its run: dotted keys and their values."""
    own, (network, _) = config.teacher, config.network_of(1)
    keys: dict[str, Any] = {
        "network": network,
        "image_size": config.student.image_size,
        "classes": "",
        "pretrained": False,
    }
    found = {f"teacher.{key}": value for key, value in keys.items() if value != getattr(own, key)}
    if "teacher.image_size" in found:
        found["data.image_size"] = config.side  # it follows from the networks' sizes unless it is said
    return found


def as_base(base: ImagesConfig, arm: ImagesConfig) -> dict[str, Any]:
    """What must change in the config of an arm of a study for it to have the pictures and tests of ``base``.

    Where nobody says their size and cut, these follow from the student, who may be another in each arm.

    Args:
        base: what all arms share.
        arm: of the same study.

    Returns:
        dotted keys and their values; empty: pictures and tests are the same already.
    """
    (crop, interpolation), (own_crop, own_interpolation) = base.test_cut, arm.test_cut
    followed = {
        "data.image_size": (base.side, arm.side),
        "data.crop": (crop, own_crop),
        "data.interpolation": (interpolation, own_interpolation),
    }
    return {key: shared for key, (shared, own) in followed.items() if shared != own}
