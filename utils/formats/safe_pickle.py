"""Reads the object arrays in a challenge file without running what a pickle may ask for.

`np.load(allow_pickle=True)` calls whatever function the file names. Here a pickle can build lists,
tuples, dicts, strings and numbers, and numpy arrays and scalars, which arrive as lists and plain
numbers. The numpy names of the pickle never reach numpy's own constructors: these trust the state
they are given, and a crafted dtype makes them read arbitrary memory.
"""

import io
import math
import pickle
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

MAX_BITS = 64  # of an integer
MAX_PICKLE_BYTES = 4 * 2**20  # 255 objects with thousands of clicks each stay far below it

_PLAIN_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|U\d{1,4}")


class _DType:
    """Stands for numpy.dtype: remembers its code and byte order."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if code not in ("O", "O8") and not _PLAIN_DTYPE.fullmatch(code):
            raise pickle.UnpicklingError(f"dtype {code!r} is not admitted")
        self.code = code
        self.order = "|"

    @property
    def is_object(self) -> bool:
        return self.code.startswith("O")

    @property
    def size(self) -> int:
        """Bytes of a value."""
        return np.dtype(self.code).itemsize

    def set_state(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    __setstate__ = set_state  # for torch's unpickler

    def parse(self, data: bytes | str) -> np.ndarray:
        if isinstance(data, str):  # as Python 2 wrote bytes
            data = data.encode("latin-1")
        if self.is_object or self.order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"no plain values in dtype {self.order!r}, {self.code!r}")
        return np.frombuffer(data, np.dtype(self.order + self.code))


class _Array(list):
    """Stands for numpy.ndarray: its values as nested lists; of no dimension, a list of one."""

    is_single = False

    def set_state(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        # An empty axis behind a huge one would be a huge list of empty ones.
        is_small = len(shape) <= 3 and all(
            type(n) is int and (i == 0 or n > 0) and n <= MAX_PICKLE_BYTES
            for i, n in enumerate(shape)
        )
        is_turned = is_fortran and len(shape) > 1
        if not isinstance(dtype, _DType) or not is_small or (is_turned and dtype.is_object):
            raise pickle.UnpicklingError("an array of this shape or type is not admitted")
        if is_turned and math.prod(shape) * dtype.size == len(data):
            flat = dtype.parse(data).reshape(shape[::-1]).T.ravel().tolist()
        else:
            flat = data if dtype.is_object else dtype.parse(data).tolist()
        if not isinstance(flat, list) or len(flat) != math.prod(shape):
            raise pickle.UnpicklingError("an array does not hold as many values as its shape says")
        self[:] = _nest(flat, shape or (1,))
        self.is_single = not shape

    __setstate__ = set_state  # for torch's unpickler


def _nest(flat: list, shape: tuple[int, ...]) -> list:
    if len(shape) == 1:
        return flat
    step = math.prod(shape[1:])
    return [_nest(flat[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


def _reconstruct(kind: type, shape: tuple[int, ...], code: bytes) -> _Array:
    return _Array()


def _from_buffer(data: bytes, dtype: _DType, shape: tuple[int, ...], order: str) -> _Array:
    """As pickle protocol 5 has arrays."""
    made = _Array()
    made.set_state((1, shape, dtype, order == "F", bytes(data)))
    return made


def _scalar(dtype: _DType, data: bytes) -> Any:
    return dtype.parse(data).tolist()[0]


def _encode(text: str, encoding: str) -> bytes:
    """As pickle protocol 2 has bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is not admitted")
    return text.encode("latin-1")


def _empty_bytes() -> bytes:
    """As pickle protocol 2 has bytes of which there are none."""
    return b""


_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _empty_bytes,
    ("builtins", "bytes"): _empty_bytes,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
}
# What stands for numpy's names, as torch.serialization.safe_globals takes it.
STAND_INS = [(made, f"{module}.{name}") for (module, name), made in _ADMITTED.items()]


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """The unpickler in Python: the one in C allocates gigabytes for a large memo index."""

    dispatch = pickle._Unpickler.dispatch.copy()  # type: ignore[attr-defined]

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted") from None

    def load_build(self) -> None:
        state = self.stack.pop()  # type: ignore[attr-defined]
        target = self.stack[-1]  # type: ignore[attr-defined]
        if not isinstance(target, (_Array, _DType)):  # else it would set any attribute
            raise pickle.UnpicklingError(f"a state for a {type(target).__name__} is not admitted")
        target.set_state(state)

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]
        if size > MAX_PICKLE_BYTES:  # else it would be allocated
            raise pickle.UnpicklingError(f"expected at most {MAX_PICKLE_BYTES} bytes, got {size}")
        self.append(self.read(size))  # type: ignore[attr-defined]

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8  # type: ignore[assignment]


def _plain(value: Any, done: dict[int, tuple[Any, Any]]) -> Any:
    """A value with numbers in place of arrays of no dimension.

    `done` holds each container with what became of it, by its id, so that it is looked at once.
    """
    if isinstance(value, int) and value.bit_length() > MAX_BITS:  # else no message could show it
        raise pickle.UnpicklingError(f"a number of {value.bit_length()} bits is not admitted")
    if not isinstance(value, (list, tuple, dict)):
        return value
    if id(value) in done:
        return done[id(value)][1]
    done[id(value)] = value, value
    if isinstance(value, _Array) and value.is_single:
        made = _plain(value[0], done)
    elif isinstance(value, tuple):
        made = tuple(_plain(part, done) for part in value)
    else:
        made = value
        for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
            value[key] = _plain(part, done)
    done[id(value)] = value, made
    return made


def loads(data: bytes) -> Any:
    """The value in a pickle, of plain containers, strings and numbers only.

    Raises:
        pickle.UnpicklingError: It holds something else, is broken, or is above MAX_PICKLE_BYTES.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise pickle.UnpicklingError(f"{len(data)} bytes, the limit is {MAX_PICKLE_BYTES}")
    try:
        return _plain(_Unpickler(io.BytesIO(data), encoding="latin1").load(), {})
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a broken pickle fails in any way: stack, types, encodings
        raise pickle.UnpicklingError(f"broken pickle, {type(error).__name__}: {error}") from error
