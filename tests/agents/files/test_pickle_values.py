"""Numbers in pickles, read without unpickling: spaces and arrays of every protocol; hostile ones are just damaged."""

from __future__ import annotations

import os
import pickle
import time
from collections import OrderedDict, deque

import numpy as np
import pytest
from gymnasium import spaces

from polydistill_agents.files.pickle_values import Built, array_of, number_of, read_values

PROTOCOLS = [3, 4, 5]
ARRAYS = [
    np.arange(6.0).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(24, dtype=np.int16).reshape(2, 3, 4)[:, ::2],
    np.array(3.5),
    np.float32([-np.inf, np.nan, 1e-40]),
    np.zeros((0, 3), np.uint8),
    np.array([255], np.uint8),
    np.array([-(2**63)], np.int64),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_an_array_is_read_as_it_is(array, protocol):
    found = array_of(read_values(pickle.dumps(array, protocol)))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("number", [3, -0.5, np.float64(1e300), np.float32(0.1), np.int64(-7), np.uint8(9)])
def test_a_number_is_read_as_it_is(number, protocol):
    assert number_of(read_values(pickle.dumps(number, protocol))) == number


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_space_with_a_generator_that_was_drawn_from_is_read(protocol):
    space = spaces.Box(np.float32([-1, -np.inf]), np.float32([1, 3]), seed=1)
    space.sample()
    built = read_values(pickle.dumps(space, protocol))
    np.testing.assert_array_equal(array_of(built.attributes()["high"]), space.high)
    whole = [space, {"a": {1, 2}, 3: frozenset({4})}, OrderedDict(a=deque([1, 2])), b"x", bytearray(b"y"), None, True]
    assert isinstance(read_values(pickle.dumps(whole, protocol))[0], Built)


@pytest.mark.parametrize(
    "value",
    [
        None, "x", [1.0], True, np.array(["a"]), np.array([1j]), np.array([None]), np.array([True]),
        np.array([1.0], ">f8"), np.datetime64("2020-01-01"), np.longdouble(1), OrderedDict(), print,
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_plain_number_is_none(value):
    read = read_values(pickle.dumps(value, 4))
    assert array_of(read) is None
    assert number_of(read) is None or isinstance(value, float)


def test_nothing_is_executed(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mknod, (str(tmp_path / "executed"),)

    built = read_values(pickle.dumps({"a": Payload()}))["a"]
    assert built.function == ("posix", "mknod")
    assert array_of(built) is None
    assert not (tmp_path / "executed").exists()


def reconstructed(shape: object, code: object = "f8", order: object = "<", raw: object = bytes(8)) -> Built:
    def named(module: str, name: str) -> object:
        return read_values(f"c{module}\n{name}\n.".encode())

    kind = Built(named("numpy", "dtype"), (code, False, True))
    kind.state = (3, order, None, None, None, -1, -1, 0)
    array = Built(named("numpy.core.multiarray", "_reconstruct"), ())
    array.state = (1, shape, kind, False, raw)
    return array


def test_shapes_and_bytes_that_do_not_fit_are_none():
    assert array_of(reconstructed((1,))).tolist() == [0.0]
    assert array_of(reconstructed((2**20, 2**20))) is None
    for shape in ((2,), (-1,), (True,), [1], 1, ("1",), (2**40,)):
        assert array_of(reconstructed(shape)) is None
    for shape in ((0, *[2**31 - 1] * 3), (1,) * 100):  # more than NumPy itself can shape
        assert array_of(reconstructed(shape, raw=bytes(0 if 0 in shape else 8))) is None
    for code in ("O8", "f9", "V8", "f8,f8", 8, None, "²"):
        assert array_of(reconstructed((1,), code)) is None
    assert array_of(reconstructed((1,), order=">")) is None
    assert array_of(reconstructed((1,), raw="12345678")) is None


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x80\x04.", b"\x80\x04R.", b"\x80\x04h\x00.", b"\x80\x04t.", b"\x80\x04N\x93.", b"\x80\x04Ns.",
        b"\x80\x04K\x01b.", b"\x80\x04" + b"]" * 300_000 + b".", b"\x80\x04\x8e" + b"\xff" * 8 + b".",
    ],
)  # fmt: skip
def test_a_damaged_pickle_is_an_exception_soon(content):
    started = time.process_time()
    try:
        value = read_values(content)
    except Exception:
        value = None
    assert array_of(value) is None
    assert time.process_time() - started < 3.0


def test_values_that_hold_one_another_by_the_thousand_are_read_and_dropped():
    nested = b"\x80\x04]" + b"\x85" * 10_000 + b"."
    assert type(read_values(nested)) is tuple
    doubled = b"\x80\x04)\x94" + b"".join(b"h%ch%c\x86\x94" % (n, n) for n in range(200)) + b"."
    assert type(read_values(doubled)) is tuple
