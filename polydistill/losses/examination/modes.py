"""Training and evaluation mode: where they matter, and how to call a network without changing it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from polydistill.losses.examination.findings import Finding
from polydistill.losses.outputs import logits_of

ScoreFunction = Callable[[Any], Any]


@contextlib.contextmanager
def modes_kept(*networks: ScoreFunction) -> Iterator[None]:
    """Hold all networks in evaluation mode, so that calling them does not change batch statistics."""
    modules = [module for network in networks if isinstance(network, nn.Module) for module in network.modules()]
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


@contextlib.contextmanager
def random_streams_kept(device: torch.device) -> Iterator[None]:
    """Restore torch's random streams, the CPU's and the device's, afterwards."""
    devices = [device.index if device.index is not None else torch.cuda.current_device()] if is_cuda(device) else []
    with torch.random.fork_rng(devices=devices):
        yield


def is_cuda(device: torch.device) -> bool:
    return device.type == "cuda"


def examine_teachers_mode(teacher: nn.Module, inputs: Any) -> Iterator[Finding]:
    """A teacher in training mode is wrong if that changes its scores."""
    training = [(name, module) for name, module in teacher.named_modules() if module.training]
    if not training:
        return
    named = [name or "the teacher" for name, module in training if depends_on_mode(module)]
    if named:
        text = f"the teacher is in training mode ({named[0]}): its scores change with each call; call teacher.eval()"
        yield Finding("wrong", text)
        return
    differs = _outputs_differ(teacher, inputs, training=False) if _has_foreign(teacher) else False
    if differs:
        text = "the teacher is in training mode, and its scores are others than in evaluation mode: call teacher.eval()"
        yield Finding("wrong", text)
    elif differs is None:
        text = "the teacher is in training mode, and cannot be copied to try whether that matters: call teacher.eval()"
        yield Finding("cannot tell", text)
    else:
        yield Finding("fine", "the teacher is in training mode, and nothing in it depends on the mode")


def examine_students_mode(student: nn.Module, inputs: Any) -> Iterator[Finding]:
    """A student in evaluation mode is suspicious if training mode would change its scores."""
    if student.training:
        return
    known = any(depends_on_mode(module) and not module.training for module in student.modules())
    if known or (_has_foreign(student) and _outputs_differ(student, inputs, training=True) is not False):
        yield Finding("suspicious", "the student is in evaluation mode: call student.train() before learning")


def depends_on_mode(module: nn.Module) -> bool:
    """Whether a module of torch's own gives other outputs in training mode than in evaluation mode."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0.0
    if isinstance(module, nn.modules.batchnorm._NormBase):  # without statistics it looks at the batch in both modes
        return module.track_running_stats
    if isinstance(module, nn.RReLU):
        return module.lower != module.upper
    if isinstance(module, nn.RNNBase):
        return module.dropout > 0.0 and module.num_layers > 1
    return isinstance(module, nn.MultiheadAttention) and module.dropout > 0.0


def _has_foreign(network: nn.Module) -> bool:
    """Whether a module is not torch's own: its behaviour must be tried."""
    return any(not type(module).__module__.startswith("torch.nn.modules") for module in network.modules())


def _outputs_differ(network: nn.Module, inputs: Any, *, training: bool) -> bool | None:
    """Whether a copy's scores differ from call to call, or in the given mode; None where it cannot be tried."""
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    try:
        with random_streams_kept(device), torch.no_grad():
            twin = copy.deepcopy(network)
            found = [_clone(twin, inputs), _clone(twin, inputs), _clone(twin.train(training), inputs)]
            found.append(_clone(twin, inputs))
    except Exception:  # a user's network may fail in any way, copied, or in a mode that it was not meant for
        return None
    return not all(torch.allclose(found[0], other, equal_nan=True) for other in found[1:])


def _clone(network: nn.Module, inputs: Any) -> Tensor:
    return logits_of(network(inputs)).clone()
