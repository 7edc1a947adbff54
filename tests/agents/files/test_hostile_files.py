"""Files made to attack: each is one line, in bounded memory and time, and nothing in it is executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from polydistill.errors import UserError
from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill_agents.files.archive import MAX_MEMBERS
from polydistill_agents.files.inspection import convert_agent, inspect_agent
from polydistill_agents.files.sb3_zip import read_agent, rebuild_scores
from polydistill_agents.files.tensor_pickle import Form, NotTensors, Storage, read_forms
from polydistill_agents.files.tensors import MAX_WEIGHT_BYTES, read_safetensors, read_torch
from tests.agents.samples import refusal
from tests.fuzz.seeds import make_seeds, pack, torch_bytes, unpack

SEEDS = make_seeds()
MEGABYTE = 2**20
STORAGE = object()


def peak_kilobytes(*, anew: bool = False) -> int:
    """The most memory that this process has held so far, or (``anew``, on Linux) since now."""
    if anew and Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status")
    if status.exists():
        return int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_the_peak_is_that_since_the_last_look() -> None:
    for _ in range(2):  # in the second round a peak of the whole process's life would not grow
        before = peak_kilobytes(anew=True)
        block = bytearray(500 * 2**20)
        assert peak_kilobytes() - before > 400_000
        del block


def quick_refusal(path: Path) -> str:
    """The one line; within five seconds, and with less than 400 MB more than before."""
    before, started = peak_kilobytes(anew=True), time.process_time()
    line = refusal(lambda source: rebuild_scores(read_agent(source)), path)
    assert time.process_time() - started < 5.0
    assert peak_kilobytes() - before < 400_000
    assert len(line) < 500
    return line


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def zip_with(path: Path, *extra: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    """A sound agent, with further members."""
    path.write_bytes(SEEDS["dqn.zip"])
    with zipfile.ZipFile(path, "a") as archive:
        for name, content in extra:
            archive.writestr(name, content)
    return path


# ------------------------------------------------------------------ the zip


@pytest.mark.parametrize(
    "name", ["/etc/cron.d/x", "../x", "a/../../x", "..", "\\\\host\\x", "..\\x", "C:\\x", "c:x", "a/..", "x/..\\y"]
)
def test_a_member_that_points_out_of_the_zip_is_refused(tmp_path, name):
    info = zipfile.ZipInfo("x")
    info.filename = name
    assert "points out of the zip" in quick_refusal(zip_with(tmp_path / "bad.zip", (info, b"")))


def test_a_name_cut_by_a_zero_byte_is_refused(tmp_path):
    info = zipfile.ZipInfo("x")
    info.filename = "data_\0.txt"
    assert "points out of the zip" in quick_refusal(zip_with(tmp_path / "bad.zip", (info, b"")))


@pytest.mark.parametrize("kind", [0xA000, 0x1000, 0x2000, 0x6000, 0xC000])
def test_a_link_or_a_device_is_refused(tmp_path, kind):
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    assert "a link or a device" in quick_refusal(zip_with(tmp_path / "bad.zip", (info, b"/etc/passwd")))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["data", "policy.pth", "system_info.txt"])
def test_a_member_that_is_there_twice_is_refused_even_if_nobody_reads_it(tmp_path, name):
    assert f"2 members named '{name}'" in quick_refusal(zip_with(tmp_path / "bad.zip", (name, b"")))


def test_an_encrypted_member_is_refused(tmp_path):
    content = bytearray(SEEDS["dqn.zip"])
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    assert "encrypted" in quick_refusal(written(tmp_path / "bad.zip", bytes(content)))


def test_members_that_lie_over_one_another_are_refused(tmp_path):
    content = bytearray(SEEDS["dqn.zip"])
    second = content.rindex(b"PK\x01\x02")
    first = content.rindex(b"PK\x01\x02", 0, second)
    content[second + 42 : second + 46] = content[first + 42 : first + 46]
    assert "overlap" in quick_refusal(written(tmp_path / "bad.zip", bytes(content)))


def test_a_zip_of_very_many_members_is_refused_before_it_is_listed(tmp_path):
    names = {f"{number}": b"" for number in range(MAX_MEMBERS + 1)}
    assert "more than 4,096 members" in quick_refusal(
        written(tmp_path / "bad.zip", pack(unpack(SEEDS["dqn.zip"]) | names))
    )


def bomb(path: Path, name: str, size: int, claimed: int | None = None) -> Path:
    """The member ``name`` unpacks to ``size`` zeros; its directory entry may claim less."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in (unpack(SEEDS["dqn.zip"]) | {name: b""}).items():
            if member != name:
                archive.writestr(member, content)
        with archive.open(name, "w") as stream:
            for _ in range(size // MEGABYTE):
                stream.write(bytes(MEGABYTE))
    if claimed is not None:
        content = bytearray(path.read_bytes())
        entry = content.rindex(b"PK\x01\x02")
        content[entry + 24 : entry + 28] = struct.pack("<I", claimed)
        path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["data", "policy.pth"])
def test_a_bomb_is_not_unpacked(tmp_path, name):
    path = bomb(tmp_path / "bad.zip", name, 200 * MEGABYTE)
    assert path.stat().st_size < MEGABYTE
    assert f"'{name}' has 209,715,200 bytes, more than" in quick_refusal(path)


def test_a_bomb_that_claims_to_be_small_is_not_unpacked_further_than_it_claims(tmp_path):
    assert "damaged" in quick_refusal(bomb(tmp_path / "bad.zip", "data", 200 * MEGABYTE, claimed=1000))


def test_members_that_together_claim_gigabytes_are_refused(tmp_path):
    content = bytearray(SEEDS["dqn.zip"])
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", 2**31)
    assert "unpacked, its members would have more than" in quick_refusal(written(tmp_path / "bad.zip", bytes(content)))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_method_that_may_claim_gigabytes_to_unpack_is_not_used(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w", method) as archive:
        for name, content in unpack(SEEDS["dqn.zip"]).items():
            archive.writestr(name, content)
    assert "which is not read" in quick_refusal(tmp_path / "bad.zip")


def test_a_file_over_the_stated_size_is_not_opened(tmp_path):
    with (tmp_path / "bad.zip").open("wb") as stream:
        stream.truncate(2**30)
    assert "has 1,073,741,824 bytes, more than 536,870,912" in quick_refusal(tmp_path / "bad.zip")


def test_a_pipe_and_a_device_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.zip")
    assert "no regular file" in quick_refusal(tmp_path / "pipe.zip")
    assert "no regular file" in quick_refusal(Path("/dev/zero"))


def test_brackets_by_the_million_are_one_line(tmp_path):
    members = unpack(SEEDS["dqn.zip"])
    for data in (b"[" * 10**6, b'{"a":[' + b"[],".ljust(3) * 10**6 + b"1]}", b'{"n_quantiles": ' + b"9" * 10**6 + b"}"):
        quick_refusal(written(tmp_path / "bad.zip", pack(members | {"data": data})))


# ------------------------------------------------------------------ the weights


def weights_refusal(content: bytes) -> str:
    with pytest.raises((UserError, NotTensors)) as error:
        read_torch(content, "weights.pth")
    assert str(error.value).isprintable()
    return str(error.value)


class Call:
    """Pickled as a call of ``function``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def with_pickle(code: bytes) -> bytes:
    """A sound ``.pth`` whose description is replaced."""
    members = unpack(SEEDS["acktr.pth"])
    return pack(members | {"archive/data.pkl": code})


def test_a_payload_anywhere_in_the_weights_is_named_and_never_executed(tmp_path):
    marker = tmp_path / "executed"
    call = Call(os.mknod, str(marker))
    tensor = torch.zeros(2)
    for value in (call, {"a": call}, {"a": tensor, "b": [call]}, OrderedDict(a=call), {"a": {"b": call}}, [call]):
        for protocol in (2, 3, 4, 5):
            line = weights_refusal(torch_bytes(value, pickle_protocol=protocol))
            assert "posix.mknod" in line
    assert not marker.exists()
    pickle.loads(pickle.dumps(call))
    assert marker.exists(), "the proof of concept works"


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x02cos\nsystem\nX\x01\0\0\0x\x85R.",
        b"\x80\x02ctorch\nload\nX\x01\0\0\0x\x85R.",
        b"\x80\x02ctorch.storage\n_load_from_bytes\nU\x01x\x85R.",
        b"(S'x'\nios\nsystem\n.",
        b"\x80\x02(cos\nsystem\nX\x01\0\0\0xo.",
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",
        b"\x80\x02ccollections\nOrderedDict\nX\x01\0\0\0x\x85R.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02}X\x01\0\0\0aK\x05s.",
        b"\x80\x02}K\x05K\x05s.",
        b"\x80\x02].",
        b"\x80\x02}}.",
        b"\x80\x02.",
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"",
    ],
)
def test_a_pickle_that_is_no_table_of_tensors_is_refused(code):
    with pytest.raises((UserError, NotTensors, ValueError, IndexError, OverflowError)):
        read_torch(with_pickle(code), "weights.pth")


def test_a_tuple_whose_hash_would_take_for_ever_is_no_key(tmp_path):
    code = b"\x80\x02}()q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"tK\x01s."
    started = time.process_time()
    with pytest.raises(NotTensors, match="with a key tuple"):
        read_forms(code)
    assert time.process_time() - started < 2.5


def test_a_description_of_a_megabyte_ends_soon():
    for code in (b"\x80\x02" + b"}" * (MEGABYTE - 3) + b".", b"\x80\x02" + b"(" * (MEGABYTE - 3) + b"."):
        started = time.process_time()
        with pytest.raises(NotTensors, match="one value"):
            read_forms(code)
        assert time.process_time() - started < 5.0
    with pytest.raises(NotTensors, match="more than 1,048,576"):
        read_forms(bytes(MEGABYTE + 1))


def described(
    offset: Any, shape: Any, stride: Any, length: Any = 6, key: Any = "0", kind: Any = torch.FloatStorage
) -> bytes:
    """A table of one tensor, described so."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", kind, key, "cpu", length) if value is STORAGE else None

    buffer = io.BytesIO()
    call = Call(torch._utils._rebuild_tensor_v2, STORAGE, offset, shape, stride, False, OrderedDict())
    Pickler(buffer, 2).dump({"a": call})
    return buffer.getvalue()


def test_a_sound_description_is_read():
    assert read_forms(described(0, (2, 3), (3, 1))) == {"a": Form(Storage("float32", "0", 6), 0, (2, 3), (3, 1))}
    assert read_forms(described(0, (2, 3), (1, 2)))["a"].stride == (1, 2), "another order of axes is dense too"
    assert read_forms(described(0, (2, 1, 3), (3, 99, 1)))["a"].elements == 6, "an axis of 1 may have any stride"
    assert read_forms(described(2, (4,), (1,)))["a"].offset == 2


@pytest.mark.parametrize(
    ("offset", "shape", "stride", "options"),
    [
        (0, (-1,), (1,), {}),
        (-1, (2,), (1,), {}),
        (0, (2,), (-1,), {}),
        (0, (7,), (1,), {}),
        (1, (6,), (1,), {}),
        (0, (10**12, 10**12), (10**12, 1), {}),
        (0, (2**62,), (1,), {"length": 2**62}),
        (0, (10**6, 10**6), (0, 0), {"length": 1}),
        (0, (3,), (2,), {}),
        (0, (2, 2), (2, 2), {}),
        (0, (2, 3), (3,), {}),
        (0, (1,) * 9, (1,) * 9, {}),
        (0, [6], [1], {}),
        (0, (6.0,), (1,), {}),
        (0, (True,), (1,), {}),
        ("0", (6,), (1,), {}),
        (0, None, None, {}),
        (0, (6,), (1,), {"length": -6}),
        (0, (6,), (1,), {"length": 6.0}),
        (0, (6,), (1,), {"key": "../x"}),
        (0, (6,), (1,), {"key": "²"}),
        (0, (6,), (1,), {"key": 0}),
        (0, (6,), (1,), {"kind": torch.LongStorage}),
        (0, (6,), (1,), {"kind": torch.ComplexFloatStorage}),
        (0, (6,), (1,), {"kind": torch.QInt8Storage}),
        (0, (6,), (1,), {"kind": OrderedDict}),
    ],
)
def test_shapes_strides_and_storages_that_make_no_tensor_are_refused(offset, shape, stride, options):
    with pytest.raises(NotTensors):
        read_forms(described(offset, shape, stride, **options))


def test_a_record_that_is_not_as_long_as_its_description_says_is_refused():
    members = unpack(SEEDS["acktr.pth"])
    for change in (lambda record: record[:-4], lambda record: record + bytes(4), lambda record: b""):
        assert "do not make" in weights_refusal(pack(members | {"archive/data/0": change(members["archive/data/0"])}))
    del members["archive/data/0"]
    assert "no member named 'archive/data/0'" in weights_refusal(pack(members))


def test_records_that_are_packed_or_of_another_byte_order_are_refused():
    members = unpack(SEEDS["acktr.pth"])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert "no file of torch.save" in weights_refusal(buffer.getvalue())
    assert "little-endian" in weights_refusal(pack(members | {"archive/byteorder": b"big"}))


def test_exact_aliases_are_read_and_partly_overlapping_tensors_are_not():
    block = torch.arange(6.0)
    aliased = read_torch(torch_bytes({"a": block, "b": block}), "x")
    assert aliased["a"].data_ptr() == aliased["b"].data_ptr()
    apart = read_torch(torch_bytes({"a": block[:3], "b": block[3:]}), "x")
    assert apart["b"].tolist() == [3.0, 4.0, 5.0]
    for other in (block[1:], block[:3], block.view(2, 3), block.view(2, 3).T, block[2:4]):
        assert "overlap in part" in weights_refusal(torch_bytes({"a": block, "b": other}))


def test_aliases_may_not_multiply_a_storage_without_bound():
    block = torch.zeros(MEGABYTE)
    names = {str(number): block for number in range(MAX_WEIGHT_BYTES // (4 * MEGABYTE) + 1)}
    assert "its tensors have more than" in weights_refusal(torch_bytes(names))


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(2, dtype=torch.bool),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2).to(torch.float8_e4m3fn),
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(0),
        torch.tensor([float("nan")]),
        torch.tensor([-float("inf")], dtype=torch.bfloat16),
        3.0,
        "x",
        None,
    ],
    ids=str,
)
def test_what_is_no_plain_finite_floating_point_tensor_is_refused(value):
    weights_refusal(torch_bytes({"good": torch.zeros(1), "bad": value}))


def test_parameters_and_every_floating_point_type_are_read():
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    table = {str(kind): torch.nn.Parameter(torch.ones(3, dtype=kind)) for kind in kinds}
    weights = read_torch(torch_bytes(OrderedDict(table)), "x")
    assert [value.dtype for value in weights.values()] == list(kinds)
    assert all(value.sum() == 3 for value in weights.values())


def same_tensors(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Equal names, bits, types, strides and aliases."""
    places: list[tuple[int, int]] = []
    for (name, one), (known, other) in zip(mine.items(), theirs.items(), strict=True):
        places.append((one.untyped_storage().data_ptr(), other.untyped_storage().data_ptr()))
        described = [(x.dtype, x.shape, x.stride(), x.storage_offset(), x.is_leaf) for x in (one, other.detach())]
        if name != known or described[0] != described[1]:
            return False
        if not torch.equal(*(x.detach().reshape(-1).view(torch.uint8) for x in (one, other))):
            return False
    return len(set(places)) == len({a for a, _ in places}) == len({b for _, b in places})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_are_those_that_torch_would_load(dtype: torch.dtype) -> None:
    block = torch.randn(24, generator=torch.Generator().manual_seed(0)).to(dtype)
    table = {
        "whole": block.view(2, 3, 4),
        "alias": block.view(2, 3, 4),
        "first": (halves := torch.arange(12.0).to(dtype))[:6].view(2, 3).T,
        "second": halves[6:].view(3, 2),
        "channels last": torch.randn(2, 3, 4, 4).to(dtype, memory_format=torch.channels_last),
        "scalar": torch.tensor(-0.0, dtype=dtype),
        "parameter": torch.nn.Parameter(torch.ones(1, 1, 5, dtype=dtype)),
    }
    content = torch_bytes(table)
    assert same_tensors(read_torch(content, "x"), torch.load(io.BytesIO(content), weights_only=True))


@pytest.mark.parametrize("name", ["dqn-CartPole-v1.zip", "qrdqn-CartPole-v1.zip", "acktr-PongNoFrameskip-v4.pt", "zoo"])
def test_weights_of_real_files_are_those_that_torch_would_load(root: Path, name: str) -> None:
    path = root.parent / "shared" / "data" / "teachers" / name
    path = root / "agents" / "teachers" / "zoo" / "dqn-pong.zip" if name == "zoo" else path
    if not path.exists():
        pytest.skip(f"needs {name}, which is not part of the clone")
    content = path.read_bytes() if path.suffix == ".pt" else unpack(path.read_bytes())["policy.pth"]
    loaded = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    assert same_tensors(read_torch(content, name), loaded)


def test_reading_a_pickle_unpickles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    content = torch_bytes({"a": torch.zeros(2)})
    for module, name in ((torch, "load"), (pickle, "loads"), (pickle, "load"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, None)
    assert read_torch(content, "x")["a"].tolist() == [0.0, 0.0]


# ------------------------------------------------------------------ safetensors


def safe(header: Any, body: bytes = bytes(8), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


SOUND = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def test_a_sound_file_of_safetensors_is_read():
    weights, metadata = read_safetensors(safe(SOUND | {"__metadata__": {"k": "v"}}), "x")
    assert weights["a"].tolist() == [0.0, 0.0]
    assert metadata == {"k": "v"}


TWICE = b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
REFUSED_BY_SAFETENSORS = [
    b"",
    b"\xff" * 8,
    safe(SOUND, length=2**63),
    safe(SOUND, length=3),
    safe(SOUND, body=bytes(4)),
    safe(SOUND, body=bytes(12)),
    safe({"a": SOUND["a"] | {"shape": [-2]}}),
    safe({"a": SOUND["a"] | {"shape": [2**62, 4]}}),
    safe({"a": SOUND["a"] | {"shape": [2.0]}}),
    safe({"a": SOUND["a"] | {"shape": [True, 2]}}),
    safe({"a": SOUND["a"] | {"dtype": "F99"}}),
    safe({"a": SOUND["a"] | {"data_offsets": [4, 12]}}, body=bytes(12)),
    safe({"a": SOUND["a"] | {"data_offsets": [8, 0]}}),
    safe(SOUND | {"b": SOUND["a"]}),
    safe(SOUND | {"b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, body=bytes(12)),
    safe(SOUND | {"__metadata__": {"k": 1}}),
    safe(SOUND | {"__metadata__": []}),
    safe(b'{"__metadata__":' + b'{"a":' * 10**5 + b"}" * 10**5 + b"}"),
    safe(b'{"__metadata__":{},"__metadata__":{},' + TWICE + b"}"),
    safe(b'{"\\ud800":' + TWICE[4:] + b"}"),
    safe(b'{"\xff":' + TWICE[4:] + b"}"),
    safe(b"[" * 10**5),
    safe(b"null"),
]
REFUSED_HERE = [
    safe({"a": SOUND["a"] | {"dtype": "I32"}}),
    safe({"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}),
    safe({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, body=b""),
    safe({"a": SOUND["a"] | {"shape": [1] * 10**5 + [2]}}),
    safe(b"{" + TWICE + b"," + TWICE + b"}"),
    safe(json.dumps(SOUND).encode() + b" " * MEGABYTE),
    safe({"a": SOUND["a"]}, body=struct.pack("<2f", 0.0, float("nan"))),
    save_safetensors({"a": torch.zeros(2, dtype=torch.int64)}),
]


@pytest.mark.parametrize("content", REFUSED_BY_SAFETENSORS)
def test_a_damaged_header_is_refused_by_safetensors_itself(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(SafetensorError):
        load_safetensors(content)
    assert_refused(written(tmp_path / "nature.safetensors", content))


@pytest.mark.parametrize("content", REFUSED_HERE)
def test_what_safetensors_would_read_and_is_no_table_of_weights_is_refused(content: bytes, tmp_path: Path) -> None:
    load_safetensors(content)
    assert_refused(written(tmp_path / "nature.safetensors", content))


def assert_refused(path: Path) -> None:
    with pytest.raises(UserError) as error:
        inspect_agent(str(path))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


# ------------------------------------------------------------------ what the fuzzing found


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-8-sig"])
def test_data_in_another_encoding_is_refused(tmp_path, encoding):
    members = unpack(SEEDS["dqn.zip"])
    quick_refusal(written(tmp_path / "bad.zip", pack(members | {"data": members["data"].decode().encode(encoding)})))


@pytest.mark.parametrize("text", ["\0", "\ud800", "\x1b[2J", "a\nb", "\u202e"])
def test_a_strangers_text_cannot_speak_to_the_terminal(tmp_path, text):
    members = unpack(SEEDS["dqn.zip"])
    data = json.loads(members["data"])
    for name, key in (
        ("observation_space", "dtype"),
        ("observation_space", "_shape"),
        ("action_space", "n"),
        (text, text),
    ):
        changed = data | {name: {**data.get(name, {}), key: text, ":serialized:": text}}
        path = written(tmp_path / "odd.zip", pack(members | {"data": json.dumps(changed).encode()}))
        assert all(word.isprintable() for line in inspect_agent(str(path)) for word in line)
        try:
            rebuild_scores(read_agent(path))
        except UserError as error:
            line = str(error)
            assert line.isprintable()  # not every such text matters to the network


def test_hundreds_of_thousands_of_pickles_are_counted_and_not_looked_into(tmp_path):
    members = unpack(SEEDS["dqn.zip"])
    fields = ",".join(f'"{number:06d}":{{":serialized:":"gASVLg=="}}' for number in range(400_000))
    data = members["data"].decode().rstrip().removesuffix("}") + "," + fields + "}"
    path = written(tmp_path / "many.zip", pack(members | {"data": data.encode()}))
    started = time.process_time()
    told = inspect_agent(str(path))
    assert time.process_time() - started < 5.0
    assert len(told) < 300
    assert any(what == "more pickles" and int(text.split(",", 1)[0]) > 300 for what, text in told)


@pytest.mark.parametrize("steps", ['"abc"', "[]", "null", "{}", "1e400", "-3", "true", "1" + "0" * 4000])
def test_steps_that_are_no_count_are_taken_for_none(tmp_path, steps):
    members = unpack(SEEDS["dqn-cnn.zip"])
    data = json.loads(members["data"]) | {"num_timesteps": "here"}
    text = json.dumps(data).replace('"here"', steps)
    path = written(tmp_path / "odd.zip", pack(members | {"data": text.encode()}))
    assert ("steps", "unknown") in inspect_agent(str(path))
    convert_agent(str(path), tmp_path / "clean.zip")
    assert read_agent(tmp_path / "clean.zip").steps == 0
    assert PolicyDistillation.load(path, device="cpu").num_timesteps == 0
