"""Mutations that know the structure of a teacher's file: zips, JSON, pickles, tensors, headers of safetensors.

:func:`mutate` takes one to three of them, drawn from a generator. A file made so is mostly sound: checksums are right
and the rest opens, so that what is wrong reaches the code behind the first checks. Some carry a payload that would
create a marker file if anyone executed it.
"""

from __future__ import annotations

import base64
import copy
import io
import itertools
import json
import os
import pickle
import pickletools
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.seeds import Members, pack, torch_bytes, unpack

NAMES = [
    "/etc/x",
    "../x",
    "a/../../x",
    "C:\\x",
    "..\\x",
    "x\0y",
    "\u202edata",
    "data",
    "policy.pth",
    "a" * 5000,
    "",
    "é/",
]
NUMBERS = [0, -1, 1, 2, 7, 255, 2**15, 2**31 - 1, -(2**31), 2**40, 2**62, 2**70, 10**30, 10**309, 10**4000]
TEXTS = [
    *("", "\0", "a" * 10_000, "<class 'torch.nn.modules.activation.ReLU'>", "<class 'os.system'>", "NaN", "1e999"),
    *("stable_baselines3.dqn.policies", "sb3_contrib.qrdqn.policies", "stable_baselines3.common.policies", "\ud800"),
]
GLOBALS = [
    *("os system", "posix system", "builtins eval", "builtins getattr", "numpy.core.multiarray scalar", "x y z"),
    *("torch load", "torch FloatStorage", "torch LongStorage", "torch.storage _load_from_bytes"),
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch.serialization load"),
    "collections OrderedDict",
]
ODD_TYPES = (torch.complex64, torch.float8_e4m3fn)


class Payload:
    """Whoever unpickles it creates an empty file: a harmless proof of concept."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.marker),)


def mutate(name: str, content: bytes, rng: random.Random, marker: Path) -> tuple[bytes, str]:
    """A damaged copy, and the names of what was done to it.

    Args:
        name: of the kind, with its ending.
        content: a sound file.
        rng: decides everything.
        marker: file that a payload would create.
    """
    levels = LEVELS[Path(name).suffix]
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        level = rng.choice(levels)
        try:
            content = level(content, rng, marker)
            done.append(level.__name__)
        except Exception:  # an earlier one has broken, in whatever way, what this one would change
            continue
    return content, "+".join(done)


# ---- bytes, of any file


def flip_bytes(content: bytes, rng: random.Random, marker: Path) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        position = rng.choice((rng.randrange(len(changed)), rng.randrange(min(200, len(changed)))))
        changed[position] = rng.randrange(256)
    return bytes(changed)


def cut_or_grow(content: bytes, rng: random.Random, marker: Path) -> bytes:
    start, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    junk = rng.randbytes(rng.choice((1, 4, 30, 3000)))
    return rng.choice(
        (content[:start], content[end:], content[:start] + content[end:], content + junk, junk + content,
         content[:start] + junk + content[start:], content[:end] + content[start:])
    )  # fmt: skip


# ---- zips


def damage_zip(content: bytes, rng: random.Random, marker: Path) -> bytes:
    """Members that are renamed, doubled, linked, packed otherwise, or say another size than they have."""
    members = list(unpack(content).items())
    chosen = rng.randrange(len(members))
    kind = rng.choice(("drop", "double", "rename", "link", "pack", "swap", "many", "empty", "bomb", "folder", "raw"))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for i, (name, body) in enumerate(members):
            info = zipfile.ZipInfo(name)
            if i == chosen:
                if kind == "drop":
                    continue
                if kind == "rename":
                    info = zipfile.ZipInfo(rng.choice(NAMES) or "x")
                    info.filename = rng.choice((info.filename, name + rng.choice(NAMES)))
                elif kind == "link":
                    info.create_system, info.external_attr = 3, rng.choice((0xA1FF, 0x61FF, 0x11FF)) << 16
                elif kind == "pack":
                    info.compress_type = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
                elif kind == "swap":
                    body = members[chosen - 1][1]
                elif kind == "empty":
                    body = b""
                elif kind == "bomb":
                    info.compress_type, body = zipfile.ZIP_DEFLATED, bytes(rng.choice((2**16, 2**21, 2**24 + 1)))
            archive.writestr(info, body)
        if kind == "many":
            for number in range(rng.choice((10, 200))):
                archive.writestr(f"extra{number}", b"")
        if kind == "folder":
            archive.writestr(rng.choice(("a/", "data/", "/", "..")), b"")
        if kind == "double":
            archive.start_dir = archive.fp.tell() if archive.fp else 0
            archive.NameToInfo.clear()
            archive.writestr(*members[chosen])
    return _patch_headers(buffer.getvalue(), rng) if kind == "raw" else buffer.getvalue()


def _patch_headers(content: bytes, rng: random.Random) -> bytes:
    """One field of a directory entry, of a local header or of the zip's end becomes another number."""
    signature, fields = rng.choice((
        (b"PK\x01\x02", {6: 2, 8: 2, 10: 2, 16: 4, 20: 4, 24: 4, 28: 2, 30: 2, 32: 2, 38: 4, 42: 4}),
        (b"PK\x03\x04", {4: 2, 6: 2, 8: 2, 14: 4, 18: 4, 22: 4, 26: 2, 28: 2}),
        (b"PK\x05\x06", {4: 2, 8: 2, 10: 2, 12: 4, 16: 4, 20: 2}),
    ))  # fmt: skip
    places = [i for i in range(len(content)) if content.startswith(signature, i)]
    place = rng.choice(places) if places else 0
    offset, size = rng.choice(list(fields.items()))
    value = rng.choice((0, 1, 9, 0xFFFF, 0xFFFFFFFF, rng.randrange(2**32))) % 2 ** (8 * size)
    patched = value.to_bytes(size, "little")
    return content[: place + offset] + patched + content[place + offset + size :]


# ---- data: JSON


def damage_json(content: bytes, rng: random.Random, marker: Path) -> bytes:
    members = unpack(content)
    data = json.loads(members["data"])
    how = rng.randrange(8)
    if how == 0:
        members["data"] = flip_bytes(members["data"], rng, marker)
    elif how == 1:
        members["data"] = rng.choice((b"[" * 10**5, b'{"a":' * 10**5, b"[]", b"", b"9" * 5000, b"null", b"\xff", b"{}"))
    elif how == 2:
        payload = base64.b64encode(pickle.dumps(Payload(marker))).decode()
        for field in rng.sample(sorted(data), 3):
            data[field] = {**(data[field] if isinstance(data[field], dict) else {}), ":serialized:": payload}
        members["data"] = json.dumps(data).encode()
    else:
        for _ in range(rng.choice((1, 1, 3))):
            table, key = rng.choice(list(_places(data)) + list(_places(data, WEIGHTY)) * 3)
            if rng.random() < 0.2:
                table.pop(key)
            else:
                table[key] = _odd_value(table[key], data, rng)
        members["data"] = json.dumps(data).encode()
    return pack(members)


WEIGHTY = ("policy_class", "policy_kwargs", "action_space", "observation_space", "n_quantiles", "num_timesteps")


def _places(value: Any, below: tuple[str, ...] | None = None) -> Any:
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            if below is None or key in below:
                yield value, key
                yield from _places(value[key])


def _odd_value(value: Any, data: dict[str, Any], rng: random.Random) -> Any:
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    choices = [None, True, -1.5, float("nan"), [], {}, {"a": value}, [value], [value] * 1000, deep]
    return rng.choice(
        (rng.choice(choices), rng.choice(NUMBERS), rng.choice(TEXTS), [rng.choice(NUMBERS) for _ in range(3)],
         copy.deepcopy(rng.choice(list(data.values()))))
    )  # fmt: skip


# ---- .pth: the pickle, the records, the tensors


def damage_pickle(content: bytes, rng: random.Random, marker: Path) -> bytes:
    """The pickle that describes the tensors."""
    members = unpack(content)
    (name,) = (name for name in members if name.endswith("data.pkl"))
    return pack(members | {name: damage_opcodes(members[name], rng, marker)})


def damage_space(content: bytes, rng: random.Random, marker: Path) -> bytes:
    """The pickle of the space of observations, in the ``data`` of a zip."""
    members = unpack(content)
    data = json.loads(members["data"])
    space = data["observation_space"]
    code = damage_opcodes(base64.b64decode(space[":serialized:"]), rng, marker)
    space[":serialized:"] = base64.b64encode(code).decode()
    return pack(members | {"data": json.dumps(data).encode()})


def damage_opcodes(code: bytes, rng: random.Random, marker: Path) -> bytes:
    """Opcodes of a pickle lost, doubled, swapped, made up, or with another argument."""
    ends = [position or 0 for _, _, position in pickletools.genops(code)] + [len(code)]
    parts = [code[a:b] for a, b in itertools.pairwise(ends)]
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        i = rng.randrange(len(parts))
        how = rng.randrange(8)
        if how == 0:
            del parts[i]
        elif how == 1:
            parts.insert(i, parts[i])
        elif how == 2:
            j = rng.randrange(len(parts))
            parts[i], parts[j] = parts[j], parts[i]
        elif how == 3:
            parts.insert(i, _odd_opcode(rng))
        elif how == 4:
            numbers = [k for k, part in enumerate(parts) if part[:1] in (b"K", b"M", b"J", b"\x8a")]
            parts[rng.choice(numbers)] = _number(rng.choice(NUMBERS))
        elif how == 5:
            globals_ = [k for k, part in enumerate(parts) if part[:1] == b"c"]
            parts[rng.choice(globals_)] = b"c" + rng.choice(GLOBALS).replace(" ", "\n", 1).encode() + b"\n"
        elif how == 6:
            payload = pickle.dumps(Payload(marker), 2)[2:-1]
            parts.insert(i, payload + rng.choice((b"0", b"")))
        else:
            parts[i] = flip_bytes(parts[i], rng, marker)
    return b"".join(parts)


def _odd_opcode(rng: random.Random) -> bytes:
    code = rng.choice(pickletools.opcodes).code.encode("latin-1")
    return code + rng.choice((b"", b"\0", b"\x01", b"os\nsystem\n", b"5\n", b"\xff\xff\xff\x7f", rng.randbytes(8)))


def _number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def damage_tensors(content: bytes, rng: random.Random, marker: Path) -> bytes:
    """A sound ``torch.save`` of tensors that are not those of the network."""
    weights = dict(torch.load(io.BytesIO(content), weights_only=True))
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(list(weights))
        value = weights[name]
        how = rng.randrange(18)
        flat = value.flatten()
        bad = value.clone()
        bad.view(-1)[rng.randrange(bad.numel())] = rng.choice((float("nan"), float("inf"), -float("inf"), 3e38))
        odd = [
            *(bad, value.double(), value.half(), value.bfloat16(), value.unsqueeze(0), value.to_sparse()),
            *(value.to(rng.choice((torch.int64, torch.bool))), value.to(rng.choice(ODD_TYPES))),
            *(value.T if value.dim() == 2 else bad, flat[: max(flat.numel() - 1, 0)]),
            *(torch.zeros(1).expand(10**6, 10**6), torch.zeros(0, 3), torch.zeros(())),
            *(torch.nn.Parameter(value), [value], {"a": value}, Payload(marker)),
            torch.zeros([rng.choice((1, 2, 3, 4, 5)) for _ in range(rng.randrange(5))]),
        ]
        weights[name] = odd[how]
        if rng.random() < 0.3:
            weights[rng.choice((name + "x", "q_net.q_net.4.weight", "log_std", 7))] = weights.pop(name)
        if rng.random() < 0.2 and len(weights) > 1:  # a view of another one's numbers
            other = rng.choice([v for v in weights.values() if isinstance(v, torch.Tensor) and v.is_contiguous()])
            weights[name] = other.reshape(-1)[rng.randrange(2) :]
    return torch_bytes(weights)


def damage_records(content: bytes, rng: random.Random, marker: Path) -> bytes:
    """Raw numbers changed, cut or grown; the small records beside them changed."""
    members = unpack(content)
    name = rng.choice([name for name in members if not name.endswith("data.pkl")])
    change = rng.choice((flip_bytes, cut_or_grow))
    value = change(members[name], rng, marker) if members[name] else b"x"
    return pack(members | {name: rng.choice((value, value, rng.choice((b"big", b"9\n", b""))))})


def _inside(level: Callable[[bytes, random.Random, Path], bytes]) -> Callable[[bytes, random.Random, Path], bytes]:
    """The same on the ``policy.pth`` of a zip of Stable-Baselines3."""

    def change(content: bytes, rng: random.Random, marker: Path) -> bytes:
        members: Members = unpack(content)
        return pack(members | {"policy.pth": level(members["policy.pth"], rng, marker)})

    change.__name__ = level.__name__
    return change


# ---- safetensors


def damage_header(content: bytes, rng: random.Random, marker: Path) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    how = rng.randrange(7)
    if how == 0:
        return rng.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little") + content[8:]
    if how == 1:
        text = flip_bytes(content[8 : 8 + length], rng, marker)
        return content[:8] + text + body
    name = rng.choice([key for key in header if key != "__metadata__"])
    if how == 2:
        header[name]["dtype"] = rng.choice(("I64", "F64", "F16", "BF16", "F8_E4M3", "BOOL", "X", None, 3))
    elif how == 3:
        header[name]["shape"] = rng.choice(([], [0], [-1], [2**62, 2**62], [1.5], ["1"], None, [True], [1] * 100))
    elif how == 4:
        header[name]["data_offsets"] = rng.choice(([0, 4], [4, 0], [-4, 0], [0, 2**63], [0], None, ["0", "4"], [0, 1]))
    elif how == 5:
        header["__metadata__"] = rng.choice(({"architecture": "nature"}, {"architecture": 3}, [], {}, {"scores": "x"}))
    else:
        header = rng.choice(([], {name: header[name]}, header | {"x": header[name]}, {name: None}, 3))
    text = json.dumps(header).encode()
    if rng.random() < 0.1:
        text = text.replace(b"{", b'{"%s":{},' % name.encode(), 1)
    return len(text).to_bytes(8, "little") + text + body


def damage_numbers(content: bytes, rng: random.Random, marker: Path) -> bytes:
    length = 8 + int.from_bytes(content[:8], "little")
    return content[:length] + flip_bytes(content[length:], rng, marker)


TORCH_LEVELS = (flip_bytes, cut_or_grow, damage_zip, damage_pickle, damage_pickle, damage_tensors, damage_records)
SAFE_LEVELS = (flip_bytes, cut_or_grow, damage_header, damage_header, damage_header, damage_numbers)
ZIP_LEVELS = (
    *(flip_bytes, cut_or_grow, damage_zip, damage_json, damage_json, damage_json, damage_space),
    *(_inside(level) for level in TORCH_LEVELS[2:]),
    _inside(damage_tensors),
)
STATISTICS_LEVELS = (flip_bytes, cut_or_grow, damage_opcodes, damage_opcodes, damage_opcodes)
LEVELS = {".zip": ZIP_LEVELS, ".pth": TORCH_LEVELS, ".safetensors": SAFE_LEVELS, ".pkl": STATISTICS_LEVELS}
