"""Thirty kinds of messages that are no requests: each a function of a good request and a random generator."""

import pickle
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

from roboalign.serve.wire import pack_message

Kind = Callable[[dict[str, Any], np.random.Generator], bytes | str]


def changed(**entries: Any) -> Kind:
    """The good request with other entries; None removes one. `__` in a name stands for `/`."""

    def make(good: dict[str, Any], rng: np.random.Generator) -> bytes:
        named = {key.replace("__", "/"): value for key, value in entries.items()}
        kept = {key: value for key, value in (good | named).items() if value is not None}
        return pack_message(kept)

    return make


def array(**entries: Any) -> Kind:
    """The good request, whose state is a map of an array that is none."""

    def make(good: dict[str, Any], rng: np.random.Generator) -> bytes:
        described = {"__ndarray__": True, "data": bytes(64), "dtype": "<f8", "shape": [8]} | entries
        state = {key.encode(): value for key, value in described.items()}
        return pack_message({**good, "observation/state": state})

    return make


def fixed(data: bytes | str) -> Kind:
    """Always this message."""
    return lambda good, rng: data


def cut(good: dict[str, Any], rng: np.random.Generator) -> bytes:
    """A good request that ends somewhere."""
    whole = pack_message({key: good[key] for key in ("observation/state", "prompt")})
    return whole[: rng.integers(len(whole))]


def flipped(good: dict[str, Any], rng: np.random.Generator) -> bytes:
    """A request without images in which some bytes are others."""
    data = bytearray(pack_message({key: good[key] for key in ("observation/state", "prompt")}))
    for place in rng.integers(0, len(data), 3):
        data[place] = rng.integers(256)
    return bytes(data)


KINDS: dict[str, Kind] = {
    "random bytes": lambda good, rng: rng.bytes(int(rng.integers(1, 400))),
    "empty": fixed(b""),
    "text frame": fixed("hello"),
    "cut": cut,
    "flipped bytes": flipped,
    "a list": fixed(pack_message([1, 2])),
    "a number": fixed(pack_message(7)),
    "an empty map": fixed(pack_message({})),
    "integer keys": fixed(msgpack.packb({1: 2})),
    "extension type": fixed(msgpack.packb(msgpack.ExtType(3, b"x"))),
    "a pickle": fixed(pickle.dumps({"prompt": np.zeros(2)})),
    "deep nesting": fixed(b"\x91" * 2000),
    "many entries": fixed(msgpack.packb([[0] * 1000] * 100)),
    "announced entries": fixed(b"\xdd\xff\xff\xff\xff"),
    "no camera": changed(observation__wrist=None),
    "unknown key": changed(observation__side=np.zeros(3)),
    "small image": changed(observation__front=np.zeros((8, 8, 3), np.uint8)),
    "float image": changed(observation__front=np.zeros((8, 8, 3), np.float32)),
    "channels first": changed(observation__front=np.zeros((3, 224, 224), np.uint8)),
    "image as list": changed(observation__front=[[1, 2], [3, 4]]),
    "no state": changed(observation__state=None),
    "NaN state": changed(observation__state=np.full(8, np.nan)),
    "short state": changed(observation__state=np.zeros(3)),
    "state of text": changed(observation__state=np.array(["a"] * 8)),
    "no prompt": changed(prompt=None),
    "long prompt": changed(prompt="a" * 5000),
    "wrong byte count": array(shape=[9]),
    "negative shape": array(shape=[-8]),
    "object dtype": array(dtype="|O"),
    "record dtype": array(dtype="f4,i4"),
}
