"""TFRecord: what a small writer writes is read back, and no damaged byte passes."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tfrecords import example, field, framed, varint

from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.core.processes import within
from roboalign.episodes.formats.tfrecord import (
    TfRecord,
    crc32c,
    masked_crc,
    parse_example,
    read_tfrecord,
    short_crc32c,
)

BRIDGE = Path(__file__).parents[2].parent / "shared" / "data" / "bridge_sample"


def write(path: Path, records: list[bytes]) -> Path:
    path.write_bytes(b"".join(framed(record) for record in records))
    return path


def as_lists(values: dict) -> dict:
    return {name: v if isinstance(v, list) else v.tolist() for name, v in values.items()}


# Checksums ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # RFC 3720, appendix B.4, and the check value of CRC-32/ISCSI
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_crc32c_golden(data, expected):
    assert crc32c(data) == short_crc32c(data) == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2000), st.integers(0, 2**32 - 1))
def test_the_vectorised_checksum_is_the_one_byte_by_byte(length, seed):
    data = np.random.default_rng(seed).bytes(length)
    assert crc32c(data) == short_crc32c(data)


def test_the_header_of_a_real_file_holds_the_masked_checksum():
    header = bytes.fromhex(
        "0435020000000000 8c1fcfa2"
    )  # the first 12 bytes of the BridgeV2 sample, by TensorFlow
    assert masked_crc(header[:8]) == int.from_bytes(header[8:], "little")


# Files ----------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=5))
def test_round_trip(tmp_path_factory, records):
    path = write(tmp_path_factory.mktemp("t") / "f", records)
    found = list(read_tfrecord(path))
    assert [item.data for item in found] == records
    assert [item.number for item in found] == list(range(len(records)))
    starts = np.cumsum([0] + [len(record) + 16 for record in records])[:-1]
    assert [item.offset for item in found] == starts.tolist()


def test_any_flipped_byte_is_found(tmp_path):
    whole = write(tmp_path / "f", [b"one", b"", bytes(100)]).read_bytes()
    originals = [b"one", b"", bytes(100)]
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "f").write_bytes(damaged)
        found = list(read_tfrecord(tmp_path / "f"))
        assert sum(isinstance(item, Fault) for item in found) == 1, place
        assert all(
            originals[item.number] == item.data for item in found if isinstance(item, TfRecord)
        )


def test_a_wrong_data_checksum_skips_that_record_alone(tmp_path):
    data = bytearray(write(tmp_path / "f", [b"one", b"two", b"three"]).read_bytes())
    data[19 + 12] ^= 1
    (tmp_path / "f").write_bytes(data)
    first, fault, last = read_tfrecord(tmp_path / "f")
    assert (first.data, last.data, last.number) == (b"one", b"three", 2)
    assert fault.where == f"{tmp_path / 'f'}, record 1, byte 19" and "checksum" in fault.problem


def test_a_wrong_length_checksum_ends_the_file(tmp_path):
    data = bytearray(write(tmp_path / "f", [b"one", b"two", b"three"]).read_bytes())
    data[19] ^= 1
    (tmp_path / "f").write_bytes(data)
    first, fault = read_tfrecord(tmp_path / "f")
    assert first.data == b"one" and "record 1, byte 19" in fault.where and "length" in fault.problem


def test_every_truncation_is_found(tmp_path):
    whole = write(tmp_path / "f", [b"one", b"three"]).read_bytes()
    for size in range(len(whole)):
        (tmp_path / "f").write_bytes(whole[:size])
        found = list(read_tfrecord(tmp_path / "f"))
        faults = [item for item in found if isinstance(item, Fault)]
        assert len(faults) == (size not in (0, 19)), size
        assert all(
            "ends inside the record" in fault.problem and fault is found[-1] for fault in faults
        )


def test_a_missing_file_is_a_fault(tmp_path):
    (fault,) = read_tfrecord(tmp_path / "none")
    assert isinstance(fault, Fault) and str(tmp_path / "none") in fault.where


# Examples -------------------------------------------------------------------------------------------------------------

NAMES = st.text(max_size=12)
INTS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20)
FLOATS = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20)
TEXTS = st.lists(st.binary(max_size=10), min_size=1, max_size=5)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(NAMES, st.one_of(INTS, FLOATS, TEXTS), max_size=5), st.booleans())
def test_examples_round_trip(features, packed):
    assert as_lists(parse_example(example(features, packed))) == features


def test_an_example_by_hand():
    # Features, an entry, its key "a", its value: an Int64List, packed: 1, 300, -1 (ten bytes, as 2**64 - 1), 5
    data = bytes.fromhex("0a19 0a17 0a0161 1212 1a10 0a0e 01 ac02 ffffffffffffffffff01 05")
    assert parse_example(data)["a"].tolist() == [1, 300, -1, 5]


def test_unknown_fields_and_empty_features_are_passed_over():
    data = example({"a": [7]})
    data += (
        field(9, b"?")
        + varint(8 * 8)
        + varint(5)
        + varint(9 * 8 + 5)
        + b"1234"
        + varint(10 * 8 + 1)
        + bytes(8)
    )
    data += field(1, field(1, field(1, b"none") + field(2, b"")))
    assert as_lists(parse_example(data)) == {"a": [7], "none": []}


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_but_the_one_error(data):
    try:
        parse_example(data, "here")
    except RoboAlignError as error:
        assert error.where == "here"


def one_feature(kind: int, data: bytes, name: bytes = b"a") -> bytes:
    return field(1, field(1, field(1, name) + field(2, field(kind, data))))


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",
        b"\x0b\x00",
        b"\x00\x00",
        b"\xff" * 11,
        b"\x0a\x05\x0a\x01",
        example({"a": [1.0]})[:-1],
        one_feature(2, field(1, b"123")),
        one_feature(3, field(1, b"\x80")),
        one_feature(3, field(1, b"\x80" * 11 + b"\x01")),
        one_feature(3, b"", name=b"\xff"),
    ],
)
def test_malformed_examples_are_refused(data):
    with pytest.raises(RoboAlignError, match=r"no tf\.train\.Example") as caught:
        parse_example(data, "f, record 3")
    assert caught.value.where == "f, record 3"


@pytest.mark.skipif(not BRIDGE.is_dir(), reason="the sample data are not here")
def test_bridge_sample():
    path = next(BRIDGE.glob("*.tfrecord-*"))
    records = list(read_tfrecord(path))
    assert len(records) == 25 and all(isinstance(record, TfRecord) for record in records)
    assert records[-1].offset + len(records[-1].data) + 16 == path.stat().st_size
    # dataset_info.json counts 3474742 bytes of data: the file without the 16 bytes of framing a record
    assert sum(len(record.data) for record in records) == 3474742
    assert {len(parse_example(record.data)["steps/action"]) for record in records} == {70}


def test_a_pipe_is_one_fault_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (fault,) = within(20, lambda: list(read_tfrecord(tmp_path / "pipe")))
    assert (fault.where, fault.problem) == (str(tmp_path / "pipe"), "this is not a plain file")
