"""Reading .npz files of strangers: no code of theirs runs, and no memory is taken on their word."""

import hashlib
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from utils.formats import safe_pickle

MAX_VOLUME_BYTES = 4 * 2**30  # one array, unpacked
MAX_NUMBERS = 16  # that were saved as objects
MAX_TEXT_BYTES = 2**22  # a string, four bytes a character

# What zipfile raises for a damaged, encrypted or otherwise unreadable archive.
_BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    LookupError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)


class CaseError(ValueError):
    """A case that can't be used; the message names the file, the expected and the actual."""


@contextmanager
def open_npz(path: Path) -> Iterator[zipfile.ZipFile]:
    """An open .npz file; what the block finds wrong with its content names the file, too.

    Raises:
        CaseError: The block refuses the content, or the file is broken.
        OSError: It can't be opened.
    """
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive
        except CaseError as error:
            raise CaseError(f"{path.name}: {error}") from error.__cause__
        except _BROKEN_ZIP as error:
            message = f"{path.name}: expected a whole .npz (zip) file, got: {error}"
            raise CaseError(message) from error


def read_array(archive: zipfile.ZipFile, key: str) -> np.ndarray | None:
    """A numeric array, or None; its size is checked before memory is taken for it."""
    if f"{key}.npy" not in archive.namelist():
        return None
    with archive.open(f"{key}.npy") as file:
        shape, is_fortran, dtype, size = _read_form(archive, key, file)
        values = np.empty(shape[::-1] if is_fortran else shape, dtype)
        buffer = values.reshape(-1).view(np.uint8).data
        done = 0
        while chunk := file.read(2**20):  # its last read compares the checksum
            buffer[done : done + len(chunk)] = chunk
            done += len(chunk)
        if done != size:
            raise CaseError(f"{key}: expected {size} bytes, got {done}")
    return values.T if is_fortran else values


def read_numbers(archive: zipfile.ZipFile, key: str) -> np.ndarray | None:
    """A few numbers, or None; those that were saved as objects, too."""
    if f"{key}.npy" not in archive.namelist():
        return None
    with archive.open(f"{key}.npy") as file:
        _, _, dtype, _ = _read_header(archive, key, file)
    if dtype.kind != "O":
        return read_array(archive, key)
    values = read_objects(archive, key) or []
    if len(values) > MAX_NUMBERS or not all(type(value) in (int, float) for value in values):
        raise CaseError(f"{key}: expected a few numbers, got other objects")
    return np.array(values, np.float64)


def read_form(archive: zipfile.ZipFile, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array, as its header tells and its size confirms."""
    if f"{key}.npy" not in archive.namelist():
        raise CaseError(f"expected {key}, got none")
    with archive.open(f"{key}.npy") as file:
        shape, _, dtype, _ = _read_form(archive, key, file)
    return shape, dtype


def read_text(archive: zipfile.ZipFile, key: str) -> str | None:
    """A single string, saved as an array of it, or None."""
    if f"{key}.npy" not in archive.namelist():
        return None
    with archive.open(f"{key}.npy") as file:
        shape, _, dtype, size = _read_header(archive, key, file)
        if shape or dtype.kind != "U" or size != dtype.itemsize or size > MAX_TEXT_BYTES:
            raise CaseError(
                f"{key}: expected a string of at most {MAX_TEXT_BYTES} bytes, got {shape} of "
                f"{dtype}"
            )
        return str(np.frombuffer(file.read(), dtype)[0]) if size else ""


def map_array(path: Path, archive: zipfile.ZipFile, key: str) -> np.ndarray:
    """An array of numbers that is stored uncompressed, mapped: pages are read when used.

    Writing to it changes a private copy (and lets torch take it without a warning). Its checksum
    is not compared. `archive` is `path`, open.
    """
    if f"{key}.npy" not in archive.namelist():
        raise CaseError(f"expected {key}, got none")
    info = archive.getinfo(f"{key}.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise CaseError(f"{key}: expected it stored, to be mapped, got method {info.compress_type}")
    with archive.open(info) as file:
        shape, is_fortran, dtype, _ = _read_form(archive, key, file)
        header_bytes = file.tell()
    if is_fortran or 0 in shape:
        raise CaseError(f"{key}: expected values in C order, got {dtype} of shape {shape}")
    with open(path, "rb") as raw:
        # A zip's local header ends with two lengths and the two fields that are as long.
        raw.seek(info.header_offset + 26)
        name_bytes, extra_bytes = struct.unpack("<HH", raw.read(4))
    offset = info.header_offset + 30 + name_bytes + extra_bytes + header_bytes
    return np.memmap(path, dtype, "c", offset, shape)


def read_objects(archive: zipfile.ZipFile, key: str) -> list | None:
    """One entry per object, of plain containers, strings and numbers; or None."""
    if f"{key}.npy" not in archive.namelist():
        return None
    with archive.open(f"{key}.npy") as file:
        shape, is_fortran, dtype, size = _read_header(archive, key, file)
        if size > safe_pickle.MAX_PICKLE_BYTES:
            limit = safe_pickle.MAX_PICKLE_BYTES
            raise CaseError(f"{key}: expected at most {limit} bytes, got {size}")
        data = file.read()
    if len(shape) == 0:
        raise CaseError(f"{key}: expected one entry per object, got a single value")
    if math.prod(shape) == 0:
        return []
    if dtype.kind == "U":  # a rectangular clicks_order, saved without dtype=object
        if math.prod(shape) * dtype.itemsize != len(data):
            raise CaseError(f"{key}: expected {shape} of {dtype}, got {len(data)} bytes")
        texts = np.frombuffer(data, dtype)
        return (texts.reshape(shape[::-1]).T if is_fortran else texts.reshape(shape)).tolist()
    if dtype.kind != "O":
        raise CaseError(
            f"{key}: expected an array of one dict or list per object (dtype=object), got {dtype}"
        )
    try:
        values = safe_pickle.loads(data)
    except pickle.UnpicklingError as error:
        message = f"{key}: expected plain lists and dicts, got: {str(error)[:200]}"
        raise CaseError(message) from error
    if not isinstance(values, list) or len(values) != shape[0]:
        raise CaseError(f"{key}: expected {shape[0]} entries, got another value")
    return values


def _read_form(archive: zipfile.ZipFile, key: str, file: Any) -> tuple[Any, bool, np.dtype, int]:
    """As `_read_header`, for numbers that fill their shape and are not too many."""
    shape, is_fortran, dtype, size = _read_header(archive, key, file)
    if dtype.kind not in "buif":
        raise CaseError(f"{key}: expected numbers, got dtype {dtype}")
    if size > MAX_VOLUME_BYTES:
        raise CaseError(f"{key}: expected at most {MAX_VOLUME_BYTES} bytes, got {size}")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
        raise CaseError(f"{key}: expected {shape} of {dtype}, got {size} bytes")
    return shape, is_fortran, dtype, size


def _read_header(archive: zipfile.ZipFile, key: str, file: Any) -> tuple[Any, bool, np.dtype, int]:
    """(shape, is_fortran, dtype, bytes that follow) of a .npy member."""
    info = archive.getinfo(f"{key}.npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CaseError(f"{key}: expected it stored or deflated, got method {info.compress_type}")
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            header = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            header = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"format version {version}")
    except Exception as error:  # numpy parses a broken header as Python, which fails in any way
        raise CaseError(f"{key}: expected a .npy array, got: {str(error)[:200]}") from error
    return *header, info.file_size - file.tell()


def fingerprint(path: Path) -> str:
    """A digest of the content of a .npz, by the checksums that it keeps of its members.

    Raises:
        CaseError: It is not a .npz file.
        OSError: It can't be read.
    """
    with open_npz(path) as archive:
        members = sorted((i.filename, i.file_size, i.CRC) for i in archive.infolist())
    return hashlib.sha256(repr(members).encode()).hexdigest()
