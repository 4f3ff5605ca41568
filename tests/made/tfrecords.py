"""A writer of TFRecord: its own protobuf, so that only the checksum is shared with the reader.

That one has golden values.
"""

import struct

from roboalign.episodes.formats.tfrecord import masked_crc


def varint(value: int) -> bytes:
    value %= 1 << 64
    out = b""
    while value > 127:
        out, value = out + bytes([value % 128 + 128]), value // 128
    return out + bytes([value])


def field(number: int, data: bytes) -> bytes:
    return varint(number * 8 + 2) + varint(len(data)) + data


def feature(values, packed: bool = True) -> bytes:
    values = values if isinstance(values, list) else list(values)
    if values and isinstance(values[0], bytes):
        return field(1, b"".join(field(1, value) for value in values))
    if values and isinstance(values[0], float):
        items = [struct.pack("<f", value) for value in values]
        return field(
            2,
            field(1, b"".join(items))
            if packed
            else b"".join(varint(8 + 5) + item for item in items),
        )
    items = [varint(int(value)) for value in values]
    return field(
        3, field(1, b"".join(items)) if packed else b"".join(varint(8) + item for item in items)
    )


def example(features: dict, packed: bool = True) -> bytes:
    entries = [
        field(1, field(1, name.encode()) + field(2, feature(v, packed)))
        for name, v in features.items()
    ]
    return field(1, b"".join(entries))


def framed(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return (
        length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data))
    )
