"""Modules whose weights, gradients and optimiser states lie in pieces, one in each process of a run: torch's FSDP.

Contract: what leaves such a module, as a checkpoint, a file of weights or a hash, is whole, and what comes back is cut
into pieces again; so both are those of a module that is not sharded. To make something whole all processes meet: all of
them call what says so, in the same order.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from polydistill.errors import list_first

Blocks = tuple[type[nn.Module], ...]
Value = TypeVar("Value")


def shard(module: nn.Module, device: torch.device, blocks: Blocks, name: str) -> None:
    """Divide the module, which is changed in place, among all processes.

    The weights of a block are whole while it computes, and those of the next one. Gradients are summed over the
    processes.

    Args:
        module: the same in all processes; on the CPU it may be larger than the memory of ``device``.
        device: where its pieces are to be.
        blocks: the outermost modules of these classes are blocks; none: each item of the outermost ``ModuleList`` and
            ``Sequential``. All processes must call them in the same order.
        name: of the argument that the module comes from, for errors.

    Raises:
        ValueError: it cannot be divided so.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    found = find_blocks(module, blocks)
    if blocks and not found:
        kinds = " or ".join(kind.__name__ for kind in blocks)
        raise ValueError(f"the module of `{name}` has no {kinds} with weights, as `shard` says")
    _check_groups(module, found, name)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for tensor in (*module.parameters(), *module.buffers()):  # FSDP takes no others
        tensor.data = tensor.data.contiguous()
    try:
        for part in (*found, module):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    except (ValueError, NotImplementedError) as error:  # a parameter without dimensions, for one
        why = str(error).partition("\n")[0]
        raise ValueError(f"the module of `{name}` cannot be sharded: {why}") from error
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # the loss is divided by the size of the whole batch already
    module.register_forward_hook(_require_seen)


def find_blocks(module: nn.Module, blocks: Blocks) -> list[nn.Module]:
    """Those of :func:`shard`, in order; without the module itself, and without what has no parameters."""
    found: list[nn.Module] = []
    listed = not blocks and isinstance(module, nn.ModuleList | nn.Sequential)
    for child in module.children():
        if (listed and not _is_bare(child)) or isinstance(child, blocks):
            found += [child] if any(True for _ in child.parameters()) else []
        else:
            found += find_blocks(child, blocks)
    return list(dict.fromkeys(found))  # one may be in two lists


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class AtOnce(NamedTuple):
    """How much of a module's weights :func:`shard` makes whole at once, each of 1.

    Attributes:
        rest: what is in no block.
        neighbours: the two largest blocks that follow each other: while one computes, the other is gathered.
        largest: path of the largest block; empty: there is none.
    """

    rest: float
    neighbours: float
    largest: str


def share_at_once(module: nn.Module, blocks: Blocks) -> AtOnce:
    """What :class:`AtOnce` says of a module, divided or not."""
    found = find_blocks(module, blocks)
    sizes, total = [_size(block) for block in found], max(1, _size(module))
    pairs = [size + after for size, after in itertools.pairwise([*sizes, 0])]
    largest = found[sizes.index(max(sizes))] if found else module
    path = next(path for path, part in module.named_modules() if part is largest)
    return AtOnce((total - sum(sizes)) / total, max(pairs, default=0) / total, path)


def _is_bare(module: nn.Module) -> bool:
    """Whether it only holds others, and is never called."""
    return isinstance(module, nn.ModuleList | nn.ModuleDict) and type(module).forward is nn.Module.forward


def _check_groups(module: nn.Module, blocks: list[nn.Module], name: str) -> None:
    """Refuse what FSDP cannot divide into the blocks and the rest.

    Raises:
        ValueError: a parameter is in two of them, or some of one group that learn are of another float type.
    """
    numbers = {id(block): number for number, block in enumerate(blocks)}
    starts = {f"{path}.": numbers.get(id(part)) for path, part in module.named_modules(remove_duplicate=False) if path}
    owners: dict[int, set[int | None]] = {}
    types: dict[int | None, set[torch.dtype]] = {}
    for path, parameter in module.named_parameters(remove_duplicate=False):
        within = {number for start, number in starts.items() if number is not None and path.startswith(start)}
        owner = min(within, default=None)
        owners.setdefault(id(parameter), set()).add(owner)
        if parameter.requires_grad:
            types.setdefault(owner, set()).add(parameter.dtype)
    twice = [path for path, parameter in module.named_parameters() if len(owners[id(parameter)]) > 1]
    if twice:
        raise ValueError(
            f"the module of `{name}` cannot be sharded so: {list_first(twice)} would be in two blocks; name the "
            "classes of larger ones, as shard=(Block,)"
        )
    mixed = next((kinds for kinds in types.values() if len(kinds) > 1), None)
    if mixed is not None:
        kinds = " and ".join(sorted(map(str, mixed)))
        raise ValueError(f"the module of `{name}` cannot be sharded: weights of one block that learn are {kinds}")


def _require_seen(module: nn.Module, inputs: Any, output: Any) -> None:
    """Refuse an output in which FSDP finds no tensor: it would not see that the backward pass begins."""
    if not _holds_tensor(output):
        raise TypeError(
            f"with shard a module must give tensors, or tuples, lists or mappings of them, not {type(output).__name__}"
        )


def _holds_tensor(output: Any) -> bool:
    if isinstance(output, Mapping):
        return any(map(_holds_tensor, output.values()))
    if isinstance(output, list | tuple):
        return any(map(_holds_tensor, output))
    return isinstance(output, Tensor)


def is_sharded(module: nn.Module) -> bool:
    """Whether its weights lie in pieces."""
    return any(is_piece(parameter) for parameter in module.parameters())


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class that its author gave it: a sharded module has one of FSDP's, made from it."""
    if not is_sharded(module):
        return type(module)
    from torch.distributed.fsdp import FSDPModule

    kinds = (kind for kind in type(module).__mro__ if issubclass(kind, nn.Module))
    return next(kind for kind in kinds if not issubclass(kind, FSDPModule))


def is_piece(tensor: object) -> bool:
    """Whether this process has a part of the tensor alone."""
    return hasattr(tensor, "full_tensor")


def piece_of(tensor: Tensor) -> Tensor:
    """What this process has of it, which may have no elements; of any other tensor itself."""
    local: Tensor = tensor.to_local() if is_piece(tensor) else tensor  # type: ignore[attr-defined]
    return local


def as_whole(value: Value, *, keep: bool = True) -> Value:
    """``value`` with whole tensors, on the CPU, for pieces; all processes call this.

    Args:
        value: a tensor, or dictionaries, lists and tuples of them; anything else stays as it is.
        keep: False: this process needs them not, and gets empty ones.
    """
    found: Any = value
    if is_piece(value):
        found = value.full_tensor().detach()  # type: ignore[attr-defined]
        found = found.cpu() if keep else found.new_empty(0, device="cpu")
    elif isinstance(value, dict):
        found = {key: as_whole(entry, keep=keep) for key, entry in value.items()}
    elif type(value) in (list, tuple):
        found = type(value)(as_whole(entry, keep=keep) for entry in value)  # type: ignore[attr-defined, call-arg]
    return found  # type: ignore[no-any-return]


def as_pieces(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that is whole in all processes, divided as ``like`` is; where that is no piece, itself."""
    if not is_piece(like) or is_piece(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]


def weights_as_pieces(weights: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Weights of ``module`` by name, divided as it is; what it does not have stays as it is."""
    own = module.state_dict()
    return {name: as_pieces(tensor, own.get(name, tensor)) for name, tensor in weights.items()}


def optimizer_state_as_pieces(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A ``state_dict`` of ``optimizer`` whose tensors are whole, divided as its parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def divide(value: Any, parameter: Tensor) -> Any:
        fits = isinstance(value, Tensor) and value.shape == parameter.shape
        return as_pieces(value, parameter) if fits else value

    divided = {
        number: {key: divide(value, parameters[number]) for key, value in of_parameter.items()}
        for number, of_parameter in state["state"].items()
    }
    return {**state, "state": divided}


def require_dividable(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimiser whose state could not be divided again, see :func:`optimizer_state_as_pieces`.

    Raises:
        ValueError: it keeps pieces of another shape than that of their parameter.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if is_piece(value) and value.shape != parameter.shape:
                raise ValueError(
                    f"{type(optimizer).__name__} keeps {key} in another shape than that of its parameter, which a "
                    "sharded run could not continue from: choose another optimiser, as AdamW"
                )
