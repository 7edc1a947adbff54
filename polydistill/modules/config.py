"""What decides a run of one's own modules, in plain values: what its config.yaml holds, and is compared by.

Modules, data and optimisers are code, which no file holds. What can be known of them is described here, so that a
folder is not continued with another network, another rate or another number of batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from polydistill.learning.sharded import own_class
from polydistill.lineage import LineageConfig
from polydistill.modules.schedule import Schedule
from polydistill.modules.trial import try_optimizer
from polydistill.modules.workshop import Workshop
from polydistill.provenance import weights_sha256
from polydistill.runs.checkpoint import CheckpointConfig

MAY_GROW = ("lineage.generations",)


@dataclass(frozen=True)
class ModuleConfig:
    """A run of one's own modules.

    Args:
        seed: root of every random stream.
        repeat: number of the student among those of one teacher.
        epochs: of each generation.
        log_every_steps: steps between two points of the training curves.
        device: to which the networks are moved; empty: they stay where they are built.
        precision: of the networks in training.
        compile: whether torch.compile is used.
        parts: in which each batch is computed.
        clip_norm: largest norm of the gradient, or null.
        scheduler: class and settings of the rate's schedule; empty: the rate stays.
        keep_best: whether the epoch counts that is best on the validation batches.
        patience: epochs without a better one after which a course ends, or null.
        ema: decay of the mean of the weights that is kept, or null.
        output: which element of a network's output holds its scores, see :func:`describe_choice`; or null.
        teacher_output: the same of a teacher that was given.
        teacher_inputs: what such a teacher sees instead of the batches' inputs, or null.
        teacher_cache: in which form a teacher's scores are kept; empty: they are not.
        objective: of the students.
        options: of the objective.
        ignore_index: label of what does not count, or null.
        networks: of generation 0 and of the students, see :func:`describe_network`.
        teacher: sha256 of the weights of a teacher that was given; empty: generation 0 is trained.
        optimizer: see :func:`describe_optimizer`.
        data: for learning and testing, see :func:`describe_batches`.
        lineage: how many generations.
        checkpoint: how often the run saves its state.
        shard: whether several processes keep the networks in pieces, and of which classes.
    """

    seed: int
    repeat: int
    epochs: int
    log_every_steps: int
    device: str
    precision: str
    compile: bool
    parts: int
    clip_norm: float | None
    scheduler: dict[str, Any]
    keep_best: bool
    patience: int | None
    ema: float | None
    output: int | str | None
    teacher_output: int | str | None
    teacher_inputs: str | None
    teacher_cache: dict[str, Any]
    objective: str
    options: dict[str, Any]
    ignore_index: int | None
    networks: dict[str, Any]
    teacher: str
    optimizer: dict[str, Any]
    data: dict[str, Any]
    lineage: LineageConfig = field(default_factory=LineageConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    shard: list[str] = field(default_factory=list)


def describe_run(workshop: Workshop, lineage: LineageConfig, checkpoint: CheckpointConfig) -> ModuleConfig:
    """What decides a run of what ``workshop`` makes.

    Raises:
        TypeError, ValueError: the optimiser or its schedule does not fit the student.
    """
    told, first, student = workshop.given, workshop.show(0), workshop.show(1)
    try_optimizer(student, told.optimizer, "the student", told.parts, told.precision)
    optimizer = told.optimizer(student.parameters())
    return ModuleConfig(
        seed=told.seed,
        repeat=told.repeat,
        epochs=told.epochs,
        log_every_steps=told.log_every_steps,
        device="" if told.device is None else str(told.device),
        precision=told.precision,
        compile=told.compile,
        parts=told.parts,
        clip_norm=told.clip_norm,
        scheduler=_describe_schedule(workshop.make_schedule(told.optimizer(student.parameters()))),
        keep_best=told.keep_best,
        patience=told.patience,
        ema=told.ema,
        output=describe_choice(told.output),
        teacher_output=describe_choice(told.teacher_output),
        teacher_inputs=describe_choice(told.teacher_inputs),
        teacher_cache={} if told.teacher_cache is None else told.teacher_cache.describe(),
        objective=told.objective_name,
        options=plain(told.options),
        ignore_index=told.ignore_index,
        networks={"generation_0": describe_network(first), "students": describe_network(student)},
        teacher="" if told.teacher is None else weights_sha256(first.state_dict()),
        optimizer=describe_optimizer(optimizer),
        data={
            "batches": describe_batches(told.batches),
            "test": describe_batches(told.test),
            "validation": describe_batches(told.validation),
        },
        lineage=lineage,
        checkpoint=checkpoint,
        shard=([kind.__name__ for kind in told.blocks] or ["found"]) if told.shard else [],
    )


def _describe_schedule(schedule: Schedule | None) -> dict[str, Any]:
    if schedule is None:
        return {}
    settings = {name: value for name, value in schedule.state().items() if not name.startswith("_")}
    return {"class": type(schedule.scheduler).__name__, "by": schedule.by, **plain(settings)}


def describe_choice(value: Any) -> Any:
    """An index, a key or None as it is; a function by its name."""
    if value is None or isinstance(value, int | str):
        return value
    return f"function {getattr(value, '__qualname__', type(value).__name__)}"


def describe_network(module: nn.Module) -> dict[str, Any]:
    """Its class, how many parameters it has, and a hash of the names and shapes of its weights."""
    shapes = sorted((name, tuple(tensor.shape)) for name, tensor in module.state_dict().items())
    return {
        "class": own_class(module).__name__,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "shapes": hashlib.sha256(repr(shapes).encode()).hexdigest()[:16],
    }


def describe_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """Its class, and of each group of parameters how many there are and the settings."""
    groups = {
        f"group_{number}": plain({**group, "params": len(group["params"])})
        for number, group in enumerate(optimizer.param_groups)
    }
    return {"class": type(optimizer).__name__, **groups}


def describe_batches(batches: object) -> dict[str, Any]:
    """How many batches an epoch has, and of a loader how many samples its data set; null where that is not known."""
    samples = batches.dataset if isinstance(batches, DataLoader) else None
    return {"batches": _count(batches), "samples": _count(samples)}


def plain(value: Any) -> Any:
    """``value`` in plain values; what is none is named by its class."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    return value if isinstance(value, bool | int | float | str | None) else f"a {type(value).__name__}"


def _count(things: object) -> int | None:
    try:
        return len(things)  # type: ignore[arg-type]
    except TypeError:
        return None
