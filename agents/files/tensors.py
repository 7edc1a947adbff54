"""Files of weights, ``.pth`` and ``.safetensors``, as tables of tensors on the CPU: checked first, then read.

Contract: only plain, finite, dense floating-point tensors come out. Nothing unpickles a ``.pth``: the tensors are built
from the forms that :mod:`polydistill_agents.files.tensor_pickle` has read and checked. A header of safetensors is
checked by safetensors.
"""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from polydistill.errors import UserError
from polydistill_agents.files.archive import open_zip, read_member, shown
from polydistill_agents.files.tensor_pickle import (
    ITEM_BYTES,
    MAX_AXES,
    MAX_PICKLE_BYTES,
    NotTensors,
    Storage,
    read_forms,
)

MAX_WEIGHT_BYTES = 128 * 2**20  # a Nature-CNN has 7 MB, its twin as a target the same again
MAX_HEADER_BYTES = 2**20
DTYPES = {name: getattr(torch, name) for name in ITEM_BYTES}


def read_torch(content: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a file written by ``torch.save(state_dict)`` (torch 1.6 and later), mapped to the CPU.

    Args:
        content: the file, at most ``MAX_WEIGHT_BYTES``.
        where: its name, for the refusal.

    Raises:
        UserError: it holds something else than plain, finite floating-point tensors.
        Exception: nearly any, for a damaged file.
    """
    if not content.startswith(b"PK"):
        raise UserError(f"{where} is no file of torch.save (1.6 or later)")
    with open_zip(io.BytesIO(content), where) as archive:
        roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.split("/")[-1] == "data.pkl"]
        if len(roots) != 1 or any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise UserError(f"{where} is no file of torch.save (1.6 or later)")
        root = roots[0]
        if (
            f"{root}byteorder" in archive.namelist()
            and read_member(archive, f"{root}byteorder", 16, where) != b"little"
        ):
            raise UserError(f"{where}: its numbers are not little-endian")
        try:
            description = read_member(archive, f"{root}data.pkl", MAX_PICKLE_BYTES, where)
            forms = read_forms(description)
        except NotTensors as error:
            raise UserError(f"{where} holds something else than tensors: {error}") from None
        storages: dict[Storage, torch.UntypedStorage] = {}
        for storage in {form.storage for form in forms.values()}:
            record = read_member(archive, f"{root}data/{storage.key}", MAX_WEIGHT_BYTES, where)
            if len(record) != storage.length * ITEM_BYTES[storage.dtype]:
                raise UserError(f"{where}: {storage.length} {storage.dtype} do not make {len(record)} bytes")
            storages[storage] = torch.tensor(np.frombuffer(record, np.uint8)).untyped_storage()
    weights = {}
    for name, form in forms.items():
        tensor = torch.empty(0, dtype=DTYPES[form.storage.dtype])
        weights[name] = tensor.set_(storages[form.storage], form.offset, form.shape, form.stride)
    return _checked(weights, where)


def read_safetensors(content: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a ``.safetensors`` file, and the text of its ``__metadata__``.

    Raises:
        UserError: it holds something else than plain, finite floating-point tensors without gaps or overlaps.
        Exception: nearly any, for a damaged file.
    """
    length = int.from_bytes(content[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise UserError(f"{where} is no file of safetensors: a header of {length:,} bytes")
    weights = load_safetensors(content)  # offsets, sizes, types and texts are as the format has them, or it raises
    header = json.loads(content[8 : 8 + length], object_pairs_hook=lambda pairs: _unique(pairs, where))
    return _checked(weights, where), header.get("__metadata__") or {}


def _checked(weights: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Refuse all but finite floating-point tensors of ``MAX_WEIGHT_BYTES`` together, each alias counted.

    Raises:
        UserError: naming the tensor.
    """
    n_bytes = 0
    for name, value in weights.items():
        if value.dtype not in DTYPES.values() or value.numel() == 0:
            raise UserError(f"{where}: {shown(name)} is no floating-point tensor")
        if value.dim() > MAX_AXES:
            raise UserError(f"{where}: {shown(name)} has {value.dim():,} axes, more than {MAX_AXES}")
        n_bytes += value.numel() * value.element_size()
        if n_bytes > MAX_WEIGHT_BYTES:
            raise UserError(f"{where}: its tensors have more than {MAX_WEIGHT_BYTES:,} bytes")
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"{where}: {shown(name)} holds NaN or infinite weights")
    return weights


def _unique(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise UserError(f"{where}: its header names something twice")
    return table
