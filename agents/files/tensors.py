"""Files of weights, ``.pth`` and ``.safetensors``, as tables of tensors on the CPU: checked first, then read.

Contract: only plain, finite, dense floating-point tensors come out. ``torch.load`` with ``weights_only=True`` is the
second reader of a ``.pth``, never the first: :mod:`polydistill_agents.files.tensor_pickle` has seen every opcode, and
what torch gets is a fresh zip of exactly the records that were checked, so that no difference between two readers of
zips matters.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from polydistill.errors import UserError
from polydistill_agents.files.archive import open_zip, read_member, shown
from polydistill_agents.files.tensor_pickle import ITEM_BYTES, MAX_PICKLE_BYTES, Form, NotTensors, read_forms

MAX_WEIGHT_BYTES = 128 * 2**20  # a Nature-CNN has 7 MB, its twin as a target the same again
MAX_HEADER_BYTES = 2**20
SAFE_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


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
        records = {"data.pkl": description, "version": b"3\n", "byteorder": b"little"}
        for storage in {form.storage for form in forms.values()}:
            record = read_member(archive, f"{root}data/{storage.key}", MAX_WEIGHT_BYTES, where)
            if len(record) != storage.length * ITEM_BYTES[storage.dtype]:
                raise UserError(f"{where}: {storage.length} {storage.dtype} do not make {len(record)} bytes")
            records[f"data/{storage.key}"] = record
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in list(records):
            archive.writestr(f"archive/{name}", records.pop(name))
    buffer.seek(0)
    try:
        weights = torch.load(buffer, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's own message would propose to open it all the same
        raise UserError(f"{where} holds something else than tensors") from None
    _check_agreement(weights, forms, where)
    return check_weights(weights, where)


def read_safetensors(content: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a ``.safetensors`` file, and the text of its ``__metadata__``.

    Raises:
        UserError: it holds something else than plain, finite floating-point tensors without gaps or overlaps.
        Exception: nearly any, for a damaged file.
    """
    length = int.from_bytes(content[:8], "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, len(content) - 8):
        raise UserError(f"{where} is no file of safetensors: a header of {length:,} bytes")
    header = json.loads(content[8 : 8 + length].decode("utf-8"), object_pairs_hook=lambda pairs: _unique(pairs, where))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise UserError(f"{where}: its metadata are no table of texts")
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
        if entry["dtype"] not in SAFE_DTYPES:
            raise UserError(f"{where}: {shown(name)} is {shown(entry['dtype'])}, no floating-point tensor")
        size = SAFE_DTYPES[entry["dtype"]]
        for axis in entry["shape"]:
            if type(axis) is not int or not 0 <= axis < 2**40:
                raise UserError(f"{where}: {shown(name)} has a negative or absurd size")
            size *= axis
        if entry["data_offsets"] != [end, end + size]:
            raise UserError(f"{where}: the bytes of {shown(name)} are not where its shape puts them")
        end += size
    if end != len(content) - 8 - length:
        raise UserError(f"{where}: {end:,} bytes of tensors, the file has {len(content) - 8 - length:,}")
    return check_weights(load_safetensors(content), where), metadata


def check_weights(weights: dict[Any, Any], where: str) -> dict[str, Tensor]:
    """Refuse all but plain, finite, floating-point tensors of ``MAX_WEIGHT_BYTES`` together, each alias counted.

    Raises:
        UserError: naming the tensor.
    """
    n_bytes = 0
    for name, value in weights.items():
        plain = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        if not isinstance(name, str) or not plain or not value.is_floating_point() or value.numel() == 0:
            raise UserError(f"{where}: {shown(name)} is no floating-point tensor")
        n_bytes += value.numel() * value.element_size()
        if n_bytes > MAX_WEIGHT_BYTES:
            raise UserError(f"{where}: its tensors have more than {MAX_WEIGHT_BYTES:,} bytes")
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"{where}: {shown(name)} holds NaN or infinite weights")
    return weights


def _check_agreement(weights: Any, forms: dict[str, Form], where: str) -> None:
    """What torch has read is what was announced."""
    if not isinstance(weights, dict) or list(weights) != list(forms):
        raise UserError(f"{where}: torch reads other tensors than its description announces")
    for name, form in forms.items():
        value = weights[name]
        seen = (str(value.dtype), value.storage_offset(), tuple(value.shape), tuple(value.stride()))
        if seen != (f"torch.{form.storage.dtype}", form.offset, form.shape, form.stride):
            raise UserError(f"{where}: torch reads {shown(name)} otherwise than its description announces")


def _unique(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise UserError(f"{where}: its header names something twice")
    return table
