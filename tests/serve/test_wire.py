"""The wire: openpi's bytes, what is refused, and that no message can take the reader down."""

import json
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

msgpack = pytest.importorskip("msgpack")

from roboalign.core.errors import RoboAlignError  # noqa: E402
from roboalign.serve import wire  # noqa: E402

GOLDEN = json.loads((Path(__file__).parent / "openpi_bytes.json").read_text())
"""Made by openpi-client 0.1.2's `msgpack_numpy.packb` with msgpack 1.2.4 and NumPy 2.4.6."""
VALUES = {
    "empty": {},
    "plain": {
        "prompt": "open the drawer",
        "n": 7,
        "x": 1.5,
        "none": None,
        "flag": True,
        "list": [1, "a"],
        "nested": {"a": {"b": -1}},
    },
    "uint8": {"observation/image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3)},
    "float32": {"observation/state": np.array([0.5, -1.25, 3.0], np.float32)},
    "float64": {"observation/state": np.array([0.5, -1.25, 3.0])},
    "bool": {"mask": np.array([True, False])},
    "text": {"prompt": np.array("pick up the cube")},
    "scalars": {
        "a": np.float32(0.5),
        "b": np.int64(-3),
        "c": np.bool_(True),
        "d": np.float64(2.5),
    },
    "fortran": {"x": np.asfortranarray(np.arange(6, dtype="<i4").reshape(2, 3))},
    "empty_array": {"x": np.zeros((0, 3), np.float32)},
    "reply": {"actions": np.ones((2, 3), np.float32), "server_timing": {"infer_ms": 1.5}},
}


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("name", GOLDEN)
def test_bytes_are_openpis(name):
    assert wire.pack_message(VALUES[name]).hex() == GOLDEN[name]
    read = wire.unpack_message(bytes.fromhex(GOLDEN[name]))
    if name == "scalars":  # np.float64 is a Python float to msgpack, in openpi too
        assert type(read["d"]) is float
        read["d"] = np.float64(read["d"])
    assert same(read, VALUES[name])


def test_bytes_are_the_installed_clients():
    theirs = pytest.importorskip("openpi_client.msgpack_numpy")
    for name, value in VALUES.items():
        assert theirs.packb(value).hex() == GOLDEN[name] == wire.pack_message(value).hex()


def test_keys_of_arrays_may_be_text():
    """vla-eval's codec has the same names as text."""
    described = {"__ndarray__": True, "data": b"\1\0\2\0", "dtype": "<u2", "shape": [2]}
    assert wire.unpack_message(msgpack.packb({"x": described}))["x"].tolist() == [1, 2]


arrays = st.tuples(
    st.sampled_from(["|b1", "|u1", "|i1", "<i2", ">i4", "<i8", "<u4", "<f2", "<f4", ">f8"]),
    st.lists(st.integers(0, 4), max_size=4),
    st.randoms(use_true_random=False),
).map(
    lambda drawn: np.frombuffer(
        drawn[2].randbytes(int(np.prod(drawn[1])) * np.dtype(drawn[0]).itemsize)
        if drawn[0] != "|b1"
        else bytes(drawn[2].randrange(2) for _ in range(int(np.prod(drawn[1])))),
        drawn[0],
    ).reshape(drawn[1])
)
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=9)
values = st.recursive(
    plain | arrays,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


def bits(value):
    """A value with arrays as their bytes, so that NaN equals itself."""
    if isinstance(value, np.ndarray):
        return ("array", value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, dict):
        return {key: bits(one) for key, one in value.items()}
    return [bits(one) for one in value] if isinstance(value, list) else value


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=8), values, max_size=5))
def test_what_is_packed_is_read_back(value):
    if {"__ndarray__", "__npgeneric__"} & value.keys():
        return
    assert bits(wire.unpack_message(wire.pack_message(value))) == bits(value)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(sorted(GOLDEN)), st.integers(0, 400), st.data())
def test_broken_bytes_are_one_error(noise, name, place, data):
    """Random bytes, and good messages with a byte changed, cut or inserted."""
    whole = bytes.fromhex(GOLDEN[name])
    place = place % (len(whole) + 1)
    for broken in (noise, whole[:place], whole[:place] + noise + whole[place:]):
        try:
            wire.unpack_message(broken)
        except RoboAlignError as error:
            assert error.where == "message" and error.fix and "\n" not in str(error)


def array_map(**changed):
    described = {b"__ndarray__": True, b"data": b"\0" * 12, b"dtype": "<f4", b"shape": [3]}
    return msgpack.packb({"x": described | {k.encode(): v for k, v in changed.items()}})


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (array_map(shape=[4]), "has 12 bytes instead of 16"),
        (array_map(shape=[-3]), "shape is [-3]"),
        (array_map(shape=[True]), "shape is [True]"),
        (array_map(shape=[2**31]), "shape is"),
        (array_map(shape=[2**30] * 8), "has 12 bytes instead of"),
        (array_map(shape=[1] * 9), "shape is"),
        (array_map(shape=3), "shape is 3"),
        (array_map(data="text"), "data is str"),
        (array_map(dtype="|O"), "dtype '|O'"),
        (array_map(dtype="<c8"), "dtype '<c8'"),
        (array_map(dtype="f4,i4"), "dtype 'f4,i4'"),
        (array_map(dtype="(9999999,)f8"), "dtype '(9999999,)f8'"),
        (array_map(dtype=4), "dtype '4'"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"dtype": "<f4", b"data": "1"}}), "a str"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"dtype": "|u1", b"data": 300}}), "300"),
        (msgpack.packb({1: 2}), "int is not allowed for map key"),
        (msgpack.packb(msgpack.ExtType(5, b"ab")), "extension of type 5"),
        (pickle.dumps(Evil()), "not a readable message"),
        (b"", "not a readable message"),
        (b"\x80\x80", "not a readable message"),
        (b"\x91" * 5000, "not a readable message"),
        ("text", "a text frame"),
    ],
)
def test_what_is_refused_is_named(data, problem, capsys):
    with pytest.raises(RoboAlignError) as caught:
        wire.unpack_message(data)
    assert problem in caught.value.problem
    assert "executed" not in capsys.readouterr().out


def test_size_and_entries_are_bounded_before_memory_is():
    with pytest.raises(RoboAlignError, match="a message of 101 bytes, at most 100"):
        wire.unpack_message(b"\0" * 101, limit=100)
    nested = b"\xdc\x3f\xff" + b"\x90" * 16383  # 16,383 empty lists
    deep = b"\xdd\x00\x00\x3f\xff" * 400  # each announces 16,383 entries
    many = msgpack.packb([[0] * 1000] * 1000)
    tracemalloc.start()
    for data in (nested, deep, many, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"):
        with pytest.raises(RoboAlignError):
            wire.unpack_message(data)
    assert tracemalloc.get_traced_memory()[1] < 80e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    "value", [object(), np.array([object()]), np.array([1j]), {"x": 2**64}, np.zeros(1, "i4,i4")]
)
def test_what_cannot_be_sent_is_refused(value):
    with pytest.raises(RoboAlignError, match="cannot be sent"):
        wire.pack_message(value)
