"""What is checked in an image file before ITK reads it, since ITK does not say or survive it.

ITK opens the files that NRRD and MetaImage headers name, fills what is cut off of a NIfTI file with
anything, takes a spacing of 0 for 1 mm, and does not survive some malformed headers.
"""

import gzip
import math
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

MAX_LINES, MAX_LINE = 10_000, 10_000  # lines of a NRRD or MetaImage header; bytes of a line
MAX_FIELD = 250  # bytes of a field that ITK takes apart, partly into arrays of 255
PLAIN = re.compile(r"[^%\x00-\x1f]*")  # some are taken for printf's formats
NRRD_FIELDS = {
    *("type", "dimension", "sizes", "encoding", "endian", "content", "space", "space dimension"),
    *("space directions", "space origin", "space units", "spacings", "thicknesses", "kinds"),
    *("labels", "units", "centers", "centerings", "axis mins", "axis maxs", "measurement frame"),
    *("min", "max", "old min", "old max", "number", "sample units", "block size"),
}
NIFTI = 348  # bytes of the header: https://nifti.nimh.nih.gov/nifti-1
NIFTI_FIELDS = {
    "dim": (40, "8h"),
    "bitpix": (72, "h"),
    "spacing": (80, "3f"),
    "offset": (108, "f"),
    "codes": (252, "2h"),  # qform's and sform's; 0: there is none
    "qform": (256, "6f"),
    "sform": (280, "12f"),
}
SHEAR = 1e-3  # cosine of two axes, by rounding; of a sheared sform, ITK takes the qform instead
CHUNK = 2**20


def check_header(path: Path) -> None:
    """Look at the header of a .nii, .nii.gz, .nrrd or .mha file.

    Raises:
        ValueError: It is malformed, its data lie in another file, or it is cut off (NIfTI; other
            formats are refused by ITK then).
        OSError: It can't be read.
    """
    name = path.name.lower()
    with open(path, "rb") as file:
        if name.endswith(".nrrd"):
            _check_nrrd(file)
        elif name.endswith(".mha"):
            _check_meta(file)
        else:
            _check_nifti(file, path.stat().st_size)


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _lines(file: BinaryIO) -> Iterator[str]:
    """The lines of a text header; raises ValueError where it is too long or no text."""
    for number in range(1, MAX_LINES + 1):
        line = file.readline(MAX_LINE + 1)
        if len(line) > MAX_LINE:
            raise ValueError(f"expected lines of at most {MAX_LINE} bytes in its header")
        if not line.endswith(b"\n"):
            raise ValueError("expected a whole file, got one that is cut off in its header")
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise ValueError(f"expected text as line {number} of its header") from None
    raise ValueError(f"expected a header of at most {MAX_LINES} lines")


def _check_plain(key: str, value: str, seen: set[str]) -> None:
    if key in seen:
        raise ValueError(f"expected {key} once in its header")
    if not PLAIN.fullmatch(value) or len(key) + len(value) > MAX_FIELD:
        raise ValueError(f"expected numbers or a short text as {key[:50]}, got {value[:50]!r}")
    seen.add(key)


def _check_nrrd(file: BinaryIO) -> None:
    seen: set[str] = set()
    for number, line in enumerate(_lines(file)):
        if number == 0:
            if not re.fullmatch(r"NRRD000[1-6]", line):
                raise ValueError(f"expected a NRRD file, got one that begins with {line[:20]!r}")
        elif not line:
            return
        elif line.startswith("#") or re.match(r"[^:]*:=", line):
            continue  # comments, and what programs note for themselves
        else:
            key, _, value = line.partition(": ")
            if key.lower().replace(" ", "") == "datafile":
                raise ValueError("expected its data in the same file, got a header alone")
            if key.lower() not in NRRD_FIELDS:
                raise ValueError(f"expected the fields of NRRD in its header, got {line[:50]!r}")
            _check_plain(key.lower(), value, seen)


def _check_meta(file: BinaryIO) -> None:
    seen: set[str] = set()
    for line in _lines(file):
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not re.fullmatch(r"\w+", key):
            raise ValueError(f"expected lines KEY = VALUE in its header, got {line[:50]!r}")
        _check_plain(key, value, seen)
        if key == "NDims" and value not in ("2", "3", "4"):
            raise ValueError(f"expected 3 dimensions, got {value}")
        if key == "ElementDataFile":
            if value.upper() != "LOCAL":
                raise ValueError("expected its data in the same file, got a header alone")
            return


def _check_nifti(raw: BinaryIO, size: int) -> None:
    """Check an open file of `size` bytes, compressed or not."""
    is_gzip = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    # A gzip.GzipFile has all that is used here.
    file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if is_gzip else raw
    try:
        header = file.read(NIFTI)
        if len(header) < NIFTI:
            raise EOFError
        expected = _parse_nifti(header)
        if is_gzip:
            is_whole = _stated_length(raw) == expected % 2**32 or _reaches(raw, expected)
        else:
            is_whole = size >= expected
    except (EOFError, zlib.error, gzip.BadGzipFile):
        is_whole = False
    if not is_whole:
        raise ValueError("expected a whole file, got one that is cut off or damaged")


def _parse_nifti(header: bytes) -> int:
    """The uncompressed size in bytes that a header asks of its file."""
    order = next((o for o in "<>" if struct.unpack(f"{o}i", header[:4])[0] == NIFTI), None)
    if order is None or header[344:347] != b"n+1":
        raise ValueError("expected a NIfTI-1 file with its data in it")

    def field(name: str) -> tuple:
        at, kind = NIFTI_FIELDS[name]
        return struct.unpack_from(order + kind, header, at)

    (rank, *sides), (bits,), (offset,) = field("dim"), field("bitpix"), field("offset")
    if not 1 <= rank <= 7 or min(sides[:rank]) < 1 or bits < 1 or not 0 <= offset < 2**31:
        raise ValueError(
            f"expected sides, bits and an offset above 0 in its header, got {(rank, *sides)}, "
            f"{bits}, {offset}"
        )
    spacing = field("spacing")[:rank]
    if not all(0 < mm < math.inf for mm in spacing):
        got = ", ".join(f"{mm:g}" for mm in spacing)
        raise ValueError(f"expected a spacing (x, y, z) above 0 mm, got {got}")
    for name, code in zip(("qform", "sform"), field("codes"), strict=True):
        if code and not all(map(math.isfinite, field(name))):
            raise ValueError(f"expected finite numbers as {name} in its header")
        if code and name == "sform":
            axes = np.reshape(field(name), (3, 4))[:, :3]
            axes = axes / np.maximum(np.linalg.norm(axes, axis=0), np.finfo(float).tiny)
            if np.abs(axes.T @ axes - np.diag(np.diag(axes.T @ axes))).max() > SHEAR:
                raise ValueError("expected axes at right angles, got a sheared sform")
    return int(offset) + math.prod(sides[:rank]) * bits // 8


def _stated_length(raw: BinaryIO) -> int:
    """What the end of a gzip file says of its length, modulo 2^32; anything if it was cut off."""
    raw.seek(-4, 2)
    return struct.unpack("<I", raw.read(4))[0]


def _reaches(raw: BinaryIO, expected: int) -> bool:
    """Whether a gzip file has so many bytes; it may have several parts, or more at its end."""
    raw.seek(0)
    length = 0
    with gzip.GzipFile(fileobj=raw) as file:
        while length < expected and (chunk := file.read(CHUNK)):
            length += len(chunk)
    return length >= expected
