"""Packed arrays: those of the real client are read, and what is broken or huge is refused."""

import random
import struct

import numpy as np
import pytest
from nnInteractive.inference.remote.serialization import pack_array, unpack_array

from utils.serving import wire
from utils.serving.wire import DTYPES, WireError, pack, unpack

ARRAY = np.random.default_rng(0).integers(0, 100, (3, 5, 7)).astype(np.int16)
PACKED = pack(ARRAY)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(4,), (1, 3, 5, 7), (2, 60, 50)])
def test_arrays_are_those_of_the_client(name, shape):
    array = np.random.default_rng(1).integers(0, 2, shape).astype(name)
    for packed in (
        pack(array),
        pack_array(array),
        pack_array(0 * array if name != "bool" else array),
    ):
        for reader in (unpack, unpack_array):
            found = reader(packed)
            assert found.dtype == array.dtype and found.shape == shape
    np.testing.assert_array_equal(unpack(pack_array(array)), array)
    np.testing.assert_array_equal(unpack_array(pack(array)), array)


def test_arrays_may_have_several_chunks(monkeypatch):
    monkeypatch.setattr(wire, "CHUNK", 64)
    np.testing.assert_array_equal(unpack(pack(ARRAY)), ARRAY)


def header(name=b"int16", shape=(3, 5, 7), count=1, magic=b"NNIA", version=1, codec=1) -> bytes:
    start = struct.pack("<4s4B", magic, version, codec, len(shape), len(name)) + name
    return start + struct.pack(f"<{len(shape)}qI", *shape, count)


BEHIND = PACKED[len(header()) :]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "cut off or broken"),
        (PACKED[:20], "cut off or broken"),
        (PACKED[:-1], "expected chunks"),
        (PACKED + b"x", "none behind them"),
        (header(magic=b"NNIB") + BEHIND, "expected a packed array of version 1"),
        (header(version=2) + BEHIND, "expected a packed array of version 1"),
        (header(codec=3) + BEHIND, "expected a packed array of version 1"),
        (header(b"object") + BEHIND, "expected up to 4D of bool, .* got 3D of 'object'"),
        (header(b"complex64") + BEHIND, "got 3D of 'complex64'"),
        (header(b"\xff\xff") + BEHIND, "cut off or broken"),
        (header(shape=(1,) * 9) + BEHIND, "got 9D of 'int16'"),
        (header(shape=()) + BEHIND, "got 0D of 'int16'"),
        (header(shape=(3, -5, 7)) + BEHIND, "expected at most"),
        (header(shape=(2**40, 1, 1)) + BEHIND, "expected at most 4294967296 bytes"),
        (header(shape=(2**62,) * 3) + BEHIND, "expected at most 4294967296 bytes"),
        (header(shape=(3, 5, 8)) + BEHIND, "expected 240 bytes in chunks"),
        (header(count=0), "expected 210 bytes in chunks"),
        (header(count=2**32 - 1) + BEHIND, "cut off or broken"),
        (header() + struct.pack("<QQ", 210, 2**63) + BEHIND[16:], "expected chunks"),
        (header() + struct.pack("<QQ", 2**40, len(BEHIND) - 16) + BEHIND[16:], "expected chunks"),
        (header() + struct.pack("<QQ", 209, len(BEHIND) - 16) + BEHIND[16:], "expected chunks"),
        (header() + struct.pack("<QQ", 210, 40) + bytes(40), "frame|broken"),
        (PACKED.replace(b"\x05\x01\x85\x02", b"\x05\x01\xd5\x02"), "frames of LZ4 or ZSTD"),
    ],
)
def test_what_is_no_packed_array_is_refused_before_memory_is_taken(body, message):
    with pytest.raises(WireError, match=message):
        unpack(body)


def test_an_array_beyond_the_limit_is_refused():
    with pytest.raises(WireError, match="expected at most 209 bytes, got int16"):
        unpack(PACKED, max_bytes=209)


def test_garbled_bodies_are_arrays_or_refused():
    rng = random.Random(0)
    for _ in range(500):
        body = bytearray(PACKED)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(body))
            body[at] = rng.randrange(256)
        if rng.random() < 0.2:
            del body[rng.randrange(len(body)) :]
        try:
            assert unpack(bytes(body), 10**6).nbytes <= 10**6
        except WireError:
            pass
