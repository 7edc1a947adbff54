"""A network from another module, or from a file of weights for a module that is built first; such a file, written.

Contract: opening a file runs no code from it, and a file that does not fit is refused in one line with the names
that are missing, unexpected or of another shape.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from polydistill.disk import atomic_write
from polydistill.errors import UserError, list_first
from polydistill.learning.sharded import as_whole, weights_as_pieces
from polydistill.modules.batches import float_types

AVERAGED = ("state_dict_ema", "model_ema", "ema")  # under which training scripts store averages of the weights
NESTED = (*AVERAGED, "state_dict", "model_state_dict", "model", "net")  # and the weights; the first that fits counts
N_AVERAGED = "n_averaged"  # how many torch's AveragedModel has averaged, beside the weights
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
DEEPEST = 4  # levels of a file at which its weights may lie


class Found(NamedTuple):
    """Weights in a file.

    Attributes:
        weights: by name.
        averages: the entry of :data:`AVERAGED` that they are; empty: they are no averages.
    """

    weights: dict[str, Tensor]
    averages: str


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The weights of a file, see :func:`find_weights`."""
    return find_weights(path).weights


def find_weights(path: str | Path) -> Found:
    """The weights of a ``.safetensors`` file, or of one that ``torch.save(module.state_dict(), path)`` wrote.

    Where a training script has put averages of the weights beside them, as timm and torchvision do, the averages.

    Raises:
        UserError: it is not there, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return _find_weights(found, path)


def save_weights(path: Path | None, module: nn.Module) -> None:
    """Write what ``module.state_dict()`` holds to ``path``, a ``.safetensors`` file.

    Args:
        path: None: nothing is written. All processes of a sharded module call this, so that its weights are whole.
        module: any.

    Raises:
        UserError: the disk refused.
        TypeError: it holds something else than tensors.
    """
    from safetensors.torch import save

    whole = as_whole(dict(module.state_dict()), keep=path is not None)
    if path is None:
        return
    weights = {}
    for name, value in whole.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} in the state of the module is a {type(value).__name__}: only tensors can be kept")
        weights[name] = value.detach().cpu().contiguous().clone()  # a file holds weights that are shared twice
    atomic_write(path, save(weights))


def as_written(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """``module``, in the float type of ``weights`` where they have one alone: that of a teacher that was cast up."""
    floats = float_types(weights)
    return module.to(floats.pop()) if len(floats) == 1 else module


def fit_weights(
    module: nn.Module, weights: Mapping[str, Tensor], path: str | Path, what: str = "the module that build() makes"
) -> None:
    """Load the weights into the module.

    Args:
        module: changed in place; under ``DistributedDataParallel`` or ``torch.compile`` too.
        weights: of its names and shapes. A prefix of all names, as the name under which a larger module holds it, does
            not count where the names fit without it.
        path: where they come from, for the error.
        what: the module is, for the error.

    Raises:
        UserError: names or shapes are others than the module's.
    """
    module = _unwrap(module)
    own = module.state_dict()
    if not own.keys() & weights.keys():
        bare = {name.partition(".")[2]: tensor for name, tensor in weights.items()}
        if len({name.partition(".")[0] for name in weights}) == 1 and bare.keys() <= own.keys():
            weights = bare
    there = {tensor.data_ptr() for name, tensor in own.items() if name in weights} - {0}
    tied = {name: id(parameter) for name, parameter in module.named_parameters(remove_duplicate=False)}
    there |= {tied[name] for name in weights if name in tied}  # pieces of sharded weights have no address
    missing = [
        name for name, tensor in own.items() if name not in weights and not {tensor.data_ptr(), tied.get(name)} & there
    ]
    shapes = {name: (tuple(weights[name].shape), tuple(own[name].shape)) for name in own if name in weights}
    other = [f"{name} {found} for {wanted}" for name, (found, wanted) in shapes.items() if found != wanted]
    whole = [name for name in shapes if own[name].is_floating_point() and _is_quantized(weights[name])]
    if whole:
        raise UserError(f"{path} is quantised ({list_first(whole)}): store the weights as floats")
    faults = {"missing": missing, "unexpected": [name for name in weights if name not in own], "shapes": other}
    if any(faults.values()):
        told = "; ".join(f"{what} {list_first(names)}" for what, names in faults.items() if names)
        raise UserError(f"{path} does not fit {what}: {told}")
    weights = weights_as_pieces(weights, module)
    module.load_state_dict(weights, strict=False)  # what is missing lies in the memory of what is there


def copy_module(module: nn.Module) -> nn.Module:
    """A copy of its own, without ``DistributedDataParallel`` around it.

    Raises:
        ValueError: it holds what cannot be copied.
    """
    if isinstance(module, DistributedDataParallel):
        module = module.module
    held = [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    # what a forward pass has left in it, as weight norm does, torch refuses to copy with its graph
    known: dict[int, Any] = {id(value): value.detach().clone() for value in held if not value.is_leaf}
    try:
        with torch.no_grad():  # TorchScript would copy with a graph
            return copy.deepcopy(module, known)
    except Exception as error:
        raise ValueError(f"`teacher` cannot be copied, give the path of a file of its weights: {error}") from error


def cast_up(module: nn.Module, batch: Any) -> nn.Module:
    """``module``, in the float type of the inputs of ``batch`` where its own is a shorter one, as float16 is."""
    inputs, own = float_types(batch), float_types(list(module.parameters()))
    if inputs and own and max(dtype.itemsize for dtype in own) < min(dtype.itemsize for dtype in inputs):
        return module.to(max(inputs, key=lambda dtype: dtype.itemsize))
    return module


def _unwrap(module: nn.Module) -> nn.Module:
    """What ``DistributedDataParallel`` and ``torch.compile`` are around."""
    inner = module.module if isinstance(module, DistributedDataParallel) else getattr(module, "_orig_mod", None)
    return _unwrap(inner) if isinstance(inner, nn.Module) else module


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise UserError(f"{path} is read by safetensors, which is not installed: pip install safetensors") from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file, or damaged: {error}") from error


def _read_torch(path: Path) -> Any:
    try:
        # the arguments of a training script, which timm stores beside the weights: values, no code
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever a foreign or damaged pickle makes of torch.load
        raise UserError(
            f"{path} is damaged, or holds more than weights: store them by torch.save(module.state_dict(), path)"
        ) from error


def _find_weights(found: Any, path: Path) -> Found:
    weights, averages = _open(found, DEEPEST) or Found({}, "")
    if averages:
        weights.pop(N_AVERAGED, None)
    if not weights:
        raise UserError(f"{path} holds no weights by name: store them by torch.save(module.state_dict(), path)")
    while prefix := next((each for each in PREFIXES if all(name.startswith(each) for name in weights)), ""):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return Found(weights, averages)


def _open(found: Any, levels: int) -> Found | None:
    """The weights in what a file holds, at most so many levels down; None: there are none."""
    if not levels or not isinstance(found, Mapping) or not found:
        return None
    if all(isinstance(value, Tensor) for value in found.values()):
        return Found(dict(found), "")
    for name in NESTED:
        inner = _open(found.get(name), levels - 1)
        if inner is not None:
            return Found(inner.weights, name if name in AVERAGED else inner.averages)
    return None


def _is_quantized(tensor: Tensor) -> bool:
    """Whether its numbers mean something only with a scale: whole numbers, or floats of 8 bits."""
    return not tensor.is_floating_point() or tensor.dtype.itemsize == 1
