"""The packed arrays of nnInteractive's protocol, read without trust.

Little-endian: `NNIA`, u8 version, u8 codec, u8 rank, u8 length of a name, the dtype's name, int64
sides, u32 number of chunks; for each chunk u64 its bytes, u64 its packed bytes, a blosc2 frame.
"""

import math
import struct

import blosc2
import numpy as np

MAGIC, VERSION = b"NNIA", 1
CODECS = (1, 2)  # ZSTD and LZ4; frames say themselves what they are
DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64"),
)
MAX_RANK = 4
MAX_BYTES = 2**32  # of an array, unpacked
CHUNK = 2**30  # bytes of a chunk at most
# A frame begins with 32 bytes: https://www.blosc.org/c-blosc2/format/chunk_format.html
FRAME = 32
EXTENDED = 0b101  # bits of its third byte
FORMATS = (
    0,
    1,
    4,
)  # its highest three bits: as it is, LZ4, ZSTD; no codec that blosc2 would look for
FILTERS, MAX_FILTER = slice(16, 22), 2  # none, shuffle or bitshuffle
LEVEL = 1  # of compression: masks shrink to nothing anyway


class WireError(ValueError):
    """A body that is no packed array, or too large a one."""


def pack(array: np.ndarray) -> bytes:
    """An array of one of DTYPES -> bytes."""
    array = np.ascontiguousarray(array)
    assert array.dtype.name in DTYPES and array.ndim <= MAX_RANK
    name = array.dtype.name.encode()
    raw = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    parts = [struct.pack("<4s4B", MAGIC, VERSION, CODECS[0], array.ndim, len(name)), name]
    starts = range(0, len(raw), CHUNK)
    parts.append(struct.pack(f"<{array.ndim}qI", *array.shape, len(starts)))
    for start in starts:
        plain = raw[start : start + CHUNK]
        frame = blosc2.compress2(plain, typesize=array.itemsize, clevel=LEVEL)
        parts += [struct.pack("<QQ", len(plain), len(frame)), frame]
    return b"".join(parts)


def unpack(body: bytes, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """Bytes -> an array; what they claim is checked before memory is taken for it.

    Raises:
        WireError: They are no packed array, or one of more than `max_bytes`.
    """
    try:
        return _unpack(body, max_bytes)
    except WireError:
        raise
    except (struct.error, RuntimeError, ValueError) as error:
        message = f"expected a packed array, got one that is cut off or broken: {error}"
        raise WireError(message) from error


def _unpack(body: bytes, max_bytes: int) -> np.ndarray:
    magic, version, codec, rank, length = struct.unpack_from("<4s4B", body)
    if (magic, version) != (MAGIC, VERSION) or codec not in CODECS:
        raise WireError(f"expected a packed array of version {VERSION}, got {body[:6]!r}")
    at = 8 + length
    name = body[8:at].decode("ascii")
    if name not in DTYPES or not 1 <= rank <= MAX_RANK:
        raise WireError(
            f"expected up to {MAX_RANK}D of {', '.join(DTYPES)}, got {rank}D of {name[:20]!r}"
        )
    *shape, count = struct.unpack_from(f"<{rank}qI", body, at)
    at += 8 * rank + 4
    dtype = np.dtype(name).newbyteorder("<")
    if min(shape) < 1 or math.prod(shape) * dtype.itemsize > max_bytes:
        raise WireError(f"expected at most {max_bytes} bytes, got {dtype} {tuple(shape)}")
    size = math.prod(shape) * dtype.itemsize
    chunks = []
    for _ in range(min(count, size + 1)):
        plain, packed = struct.unpack_from("<QQ", body, at)
        at += 16
        frame = body[at : at + packed]
        at += packed
        if not (0 < plain <= CHUNK and FRAME <= packed == len(frame)) or plain % dtype.itemsize:
            raise WireError(f"expected chunks of up to {CHUNK} bytes, got {plain} in {packed}")
        if tuple(blosc2.get_cbuffer_sizes(frame)[:2]) != (plain, packed):
            raise WireError(f"expected a frame of {plain} bytes in {packed}, got another one")
        is_known = frame[2] & EXTENDED == EXTENDED and frame[2] >> 5 in FORMATS
        if not is_known or max(frame[FILTERS]) > MAX_FILTER:
            raise WireError("expected frames of LZ4 or ZSTD with plain filters")
        chunks.append((plain, frame))
    if sum(plain for plain, _ in chunks) != size or at != len(body):
        raise WireError(f"expected {size} bytes in chunks, and none behind them")
    values = np.empty(math.prod(shape), dtype)
    done = 0
    for plain, frame in chunks:
        part = values[done // dtype.itemsize : (done + plain) // dtype.itemsize]
        blosc2.decompress2(frame, dst=part)
        done += plain
    return values.reshape(shape)
