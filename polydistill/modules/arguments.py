"""What a user says of a lineage of their own modules: checked once, before anything is built."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polydistill.errors import UserError, require_choice
from polydistill.learning.lesson import check_options
from polydistill.learning.schedules import MOST_STEPS_PER_LOG
from polydistill.losses import as_objective
from polydistill.losses.checks import check_fraction, check_integer, check_positive
from polydistill.losses.objectives import OwnObjective
from polydistill.modules.outputs import Output, Reading
from polydistill.modules.teacher_cache import TeacherCache
from polydistill.modules.trial import check_batches
from polydistill.streams import repeated_seed

Batches = Iterable[Any]
Build = Callable[[], nn.Module]
MakeScheduler = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
PRECISIONS = ("float32", "bfloat16", "float16")
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
LARGEST_SEED = 2**63 - 1


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD with rate 0.1 and Nesterov momentum 0.9."""
    return torch.optim.SGD(parameters, 0.1, 0.9, nesterov=True)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments of :class:`~polydistill.modules.domain.ModuleDomain`, which says what they are.

    Raises:
        TypeError: one is of another type.
        ValueError: one is out of range.
    """

    build: Build
    batches: Batches
    test: Batches
    epochs: int
    optimizer: MakeOptimizer = sgd
    objective: str | Callable[..., Tensor] = "ban"
    options: Mapping[str, Any] = field(default_factory=dict)
    classes: int | None = None
    seed: int = 0
    repeat: int = 0
    build_student: Build | None = None
    teacher: nn.Module | str | Path | None = None
    ignore_index: int | None = -100
    log_every_steps: int = 50
    device: str | torch.device | None = None
    precision: str = "float32"
    compile: bool = False
    parts: int = 1
    clip_norm: float | None = None
    scheduler: MakeScheduler | None = None
    schedule_by: Literal["epoch", "step"] = "epoch"
    validation: Batches | None = None
    keep_best: bool = False
    patience: int | None = None
    ema: float | None = None
    output: Output = None
    teacher_output: Output = None
    teacher_inputs: Callable[..., Any] | None = None
    teacher_cache: TeacherCache | None = None
    shard: bool | type[nn.Module] | tuple[type[nn.Module], ...] = False

    def __post_init__(self) -> None:
        self._check_functions()
        check_batches(self.batches, "batches")
        check_batches(self.test, "test")
        self._check_numbers()
        self._check_device()
        self._check_validation()
        if not isinstance(self.teacher, nn.Module | str | Path | None):
            raise TypeError(f"`teacher` must be a module or the path of a file, got a {type(self.teacher).__name__}")
        if not isinstance(self.teacher_cache, TeacherCache | None):
            raise TypeError(f"`teacher_cache` must be a folder or a TeacherCache, got {self.teacher_cache!r}")
        self._check_shard()
        self._check_outputs()
        self._check_objective()

    def _check_functions(self) -> None:
        for name in ("build", "build_student", "optimizer", "scheduler", "teacher_inputs"):
            function = getattr(self, name)
            if isinstance(function, nn.Module):
                advice = "lambda: Net(...); what you have trained is given as `teacher`"
                raise TypeError(f"`{name}` must be a function that makes a module, as {advice}; got a module")
            if not callable(function) and (function is not None or name in ("build", "optimizer")):
                raise TypeError(f"`{name}` must be a function, got a {type(function).__name__}")

    def _check_numbers(self) -> None:
        check_integer("epochs", self.epochs, 1)
        check_integer("log_every_steps", self.log_every_steps, 1, MOST_STEPS_PER_LOG)
        check_integer("seed", self.seed, 0, LARGEST_SEED)
        check_integer("repeat", self.repeat, 0, LARGEST_SEED)
        check_integer("parts", self.parts, 1)
        if self.clip_norm is not None:
            check_positive("clip_norm", self.clip_norm)
        if self.ema is not None:
            check_fraction("ema", self.ema, ends=False)
        require_choice("precision", self.precision, PRECISIONS)
        require_choice("schedule_by", self.schedule_by, ("epoch", "step"))
        if self.classes is not None:
            check_integer("classes", self.classes, 2)
        if self.ignore_index is not None:
            check_integer("ignore_index", self.ignore_index, -LARGEST_SEED, LARGEST_SEED)

    def _check_device(self) -> None:
        if self.device is None:
            return
        try:
            device = torch.device(self.device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"device is {self.device!r}: {str(error).partition('. ')[0]}") from None
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError("device is cuda, and torch finds no GPU here")

    def _check_shard(self) -> None:
        kinds = self.blocks
        if not isinstance(self.shard, bool) and not (
            kinds and all(isinstance(kind, type) and issubclass(kind, nn.Module) for kind in kinds)
        ):
            raise TypeError(f"`shard` must be True, or the classes of the blocks, as (Block,), got {self.shard!r}")
        if not self.shard:
            return
        if self.precision == "float16":
            raise ValueError("shard is for float32 and bfloat16: float16 scales the loss by what each process sees")
        if self.compile:
            raise ValueError("shard and compile do not go together: leave one of them out")
        if self.teacher_cache is not None:
            raise ValueError(
                "shard and teacher_cache do not go together: for the cache each process asks the teacher by itself, "
                "and a sharded one needs all"
            )

    @property
    def blocks(self) -> tuple[type[nn.Module], ...]:
        """Classes of the modules that are sharded as a whole; none: they are found."""
        if isinstance(self.shard, bool):
            return ()
        return self.shard if isinstance(self.shard, tuple) else (self.shard,)

    def _check_validation(self) -> None:
        if self.validation is None:
            if self.keep_best or self.patience is not None:
                raise ValueError("keep_best and patience go by the accuracy on `validation`, and there is none")
            return
        check_batches(self.validation, "validation")
        if self.patience is not None:
            check_integer("patience", self.patience, 1)
            if not self.keep_best:
                raise ValueError("patience ends a course after its best epoch, whose weights keep_best=True keeps")

    def _check_outputs(self) -> None:
        for name in ("output", "teacher_output"):
            value = getattr(self, name)
            if isinstance(value, bool) or not (value is None or isinstance(value, int | str) or callable(value)):
                raise TypeError(f"`{name}` must be an index, a key or a function of a network's output, got {value!r}")
        for name in ("teacher_output", "teacher_inputs"):
            if self.teacher is None and getattr(self, name) is not None:
                raise ValueError(f"`{name}` is for a teacher that is given, and there is no `teacher`")

    def seed_of(self, generation: int) -> int:
        """Root of the random streams of ``generation``, in building and in training."""
        return repeated_seed(self.seed, self.repeat if generation else 0)

    def reading(self, generation: int) -> Reading:
        """How the network of ``generation`` is asked for its scores."""
        if generation or self.teacher is None:
            return Reading(self.output)
        if self.teacher_output is None:
            return Reading(self.output, self.teacher_inputs)
        return Reading(self.teacher_output, self.teacher_inputs, "teacher_output")

    def _check_objective(self) -> None:
        objective = as_objective(self.objective)
        if not isinstance(objective, OwnObjective):
            check_options(objective.name, self.options)
            if self.options.get("permutation") == "fixed":
                raise ValueError("permutation cannot be fixed for batches whose samples have no numbers")
        if objective.needs_permutation and self.classes is None:
            raise ValueError(f"objective {objective.name} permutes classes: it must be told how many, by `classes`")
        if self.teacher_cache is not None:
            self.teacher_cache.require_objective(objective.name)

    @property
    def objective_name(self) -> str:
        """Of the students' objective."""
        return as_objective(self.objective).name
