"""What is checked in an image file before ITK reads it, since ITK does not say or survive it.

ITK opens the files that NRRD and MetaImage headers name, and does not survive some malformed ones.
"""

import math
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from utils.formats.npz import MAX_VOLUME_BYTES

MAX_LINES, MAX_LINE = 10_000, 10_000  # lines of a NRRD or MetaImage header; bytes of a line
MAX_FIELD = 250  # bytes of a field that ITK takes apart, partly into arrays of 255
PLAIN = re.compile(r"[^%\x00-\x1f]*")  # some are taken for printf's formats
NRRD_FIELDS = {
    *("type", "dimension", "sizes", "encoding", "endian", "content", "space", "space dimension"),
    *("space directions", "space origin", "space units", "spacings", "thicknesses", "kinds"),
    *("labels", "units", "centers", "centerings", "axis mins", "axis maxs", "measurement frame"),
    *("min", "max", "old min", "old max", "number", "sample units", "block size"),
}
# Of MetaImage: bytes of a value, and what has to be as ITK takes it for granted.
META_BYTES = {
    **{"MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4},
    **{"MET_LONG": 4, "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8},
    **{"MET_FLOAT": 4, "MET_DOUBLE": 8},
}
META_PLAIN = {
    "HeaderSize": "0",
    "ElementToIntensityFunctionSlope": "1",
    "ElementToIntensityFunctionOffset": "0",
}
CUT_OFF = "expected a whole file, got one that is cut off or damaged"
CHUNK = 2**20  # bytes
DICOM_GROUPS = (2, 8)  # in which a file without a preamble begins
MAX_ELEMENT, MAX_LENGTH = 0x100, 2**16  # of its first element, and of what that holds


def check_header(path: Path) -> None:
    """Look at the header of a .nrrd or .mha file.

    Raises:
        ValueError: It is malformed, or its data lie in another file.
        OSError: It can't be read.
    """
    name = path.name.lower()
    with open(path, "rb") as file:
        if name.endswith(".nrrd"):
            _check_nrrd(file)
        else:
            _check_meta(file)


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do: with a preamble, or at once with an element."""
    with open(path, "rb") as file:
        head = file.read(132)
    if head[128:] == b"DICM":
        return True
    if len(head) < 132:
        return False
    group, element, length = struct.unpack("<HHI", head[:8])
    is_explicit = head[4:6].isalpha() and head[4:6].isupper()
    return group in DICOM_GROUPS and element <= MAX_ELEMENT and (is_explicit or length < MAX_LENGTH)


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
    encoding = ""
    for number, line in enumerate(_lines(file)):
        if number == 0:
            if not re.fullmatch(r"NRRD000[1-6]", line):
                raise ValueError(f"expected a NRRD file, got one that begins with {line[:20]!r}")
        elif not line:
            if encoding in ("gzip", "gz"):
                _inflated(file, zlib.MAX_WBITS | 16)
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
            if key.lower() == "encoding":
                encoding = value.strip().lower()


def _check_meta(file: BinaryIO) -> None:
    seen: set[str] = set()
    found: dict[str, str] = {}
    for line in _lines(file):
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not re.fullmatch(r"\w+", key):
            raise ValueError(f"expected lines KEY = VALUE in its header, got {line[:50]!r}")
        _check_plain(key, value, seen)
        if key == "NDims" and value not in ("2", "3", "4"):
            raise ValueError(f"expected 3 dimensions, got {value}")
        found[key] = value
        if key == "ElementDataFile":
            if value.upper() != "LOCAL":
                raise ValueError("expected its data in the same file, got a header alone")
            _check_meta_data(file, found)
            return


def _check_meta_data(file: BinaryIO, header: dict[str, str]) -> None:
    """What follows a MetaImage header, which ITK takes for whole when it is not.

    Raises:
        ValueError: It is cut off or damaged, or stands for other values than those that ITK reads.
    """
    for key, plain in META_PLAIN.items():
        if header.get(key, plain).strip() not in (plain, f"{plain}.0"):
            raise ValueError(f"expected {key} = {plain} in its header, got {header[key]}")
    if header.get("BinaryData", "True").lower() == "false":
        raise ValueError("expected binary data, got a text")
    kind = META_BYTES.get(header.get("ElementType", ""))
    try:
        sides = [int(side) for side in header["DimSize"].split()]
        channels = int(header.get("ElementNumberOfChannels", 1))
    except (KeyError, ValueError) as error:
        raise ValueError("expected DimSize as whole numbers in its header") from error
    if kind is None or min(sides, default=0) < 1 or channels < 1:
        raise ValueError(f"expected {', '.join(META_BYTES)}, got {header.get('ElementType')}")
    expected = math.prod(sides) * channels * kind
    if expected > MAX_VOLUME_BYTES:
        raise ValueError(f"expected at most {MAX_VOLUME_BYTES} bytes, got {expected}")
    if header.get("CompressedData", "False").lower() == "true":
        size = _inflated(file, zlib.MAX_WBITS)
    else:
        begin = file.tell()
        size = file.seek(0, 2) - begin
    if size < expected:
        raise ValueError(CUT_OFF)


def _inflated(file: BinaryIO, wbits: int) -> int:
    """Bytes that the rest of a file unpacks to; raises ValueError if it is damaged or cut off."""
    inflate, size = zlib.decompressobj(wbits), 0
    try:
        while not inflate.eof and (part := inflate.unconsumed_tail or file.read(CHUNK)):
            size += len(inflate.decompress(part, CHUNK))
            if size > MAX_VOLUME_BYTES:
                raise ValueError(f"expected at most {MAX_VOLUME_BYTES} bytes, got more")
    except zlib.error as error:
        raise ValueError(CUT_OFF) from error
    if not inflate.eof:
        raise ValueError(CUT_OFF)
    return size
