"""What is checked in an image file before ITK reads it, since ITK does not say or survive it.

ITK opens the files that headers of NRRD name, and does not survive some malformed ones.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from utils.formats.npz import MAX_VOLUME_BYTES

MAX_LINES, MAX_LINE = 10_000, 10_000  # of a header in text; bytes of a line
MAX_FIELD = 250  # bytes of a field that ITK takes apart, partly into arrays of 255
PLAIN = re.compile(r"[^%\x00-\x1f]*")  # some are taken for printf's formats
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
NRRD_FIELDS = {
    *("type", "dimension", "sizes", "encoding", "endian", "content", "space", "space dimension"),
    *("space directions", "space origin", "space units", "spacings", "thicknesses", "kinds"),
    *("labels", "units", "centers", "centerings", "axis mins", "axis maxs", "measurement frame"),
    *("min", "max", "old min", "old max", "number", "sample units", "block size"),
}
CUT_OFF = "expected a whole file, got one that is cut off or damaged"
CHUNK = 2**20  # bytes
DICOM_GROUPS = (2, 8)  # in which a file without a preamble begins
MAX_ELEMENT, MAX_LENGTH = 0x100, 2**16  # of its first element, and of what that holds


def check_nrrd(path: Path) -> None:
    """Look at the header of a .nrrd file.

    Raises:
        ValueError: It is malformed, or its data lie in another file.
        OSError: It can't be read.
    """
    with open(path, "rb") as file:
        _check_nrrd(file)


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


def text_lines(file: BinaryIO) -> Iterator[str]:
    """The lines of a text header; raises ValueError where it is too long or no text."""
    for number in range(1, MAX_LINES + 1):
        line = file.readline(MAX_LINE + 1)
        if len(line) > MAX_LINE:
            raise ValueError(f"expected lines of at most {MAX_LINE} bytes in its header")
        if not line.endswith(b"\n"):
            raise ValueError("expected a whole file, got one that is cut off in its header")
        try:
            yield line.removesuffix(b"\n").removesuffix(b"\r").decode()
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
    for number, line in enumerate(text_lines(file)):
        if number == 0:
            if not re.fullmatch(r"NRRD000[1-6]", line):
                raise ValueError(f"expected a NRRD file, got one that begins with {line[:20]!r}")
        elif not line:
            if encoding in ("gzip", "gz"):
                inflated(file, zlib.MAX_WBITS | 16)
            return
        elif CONTROL.search(line):  # to ITK some end a line, and a new field begins
            raise ValueError(f"expected text as line {number + 1} of its header")
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


def inflated(file: BinaryIO, wbits: int, most: int = 0) -> bytearray:
    """Unpack the rest of a file -> the first `most` bytes of it.

    Raises:
        ValueError: It is damaged or cut off, or has more than MAX_VOLUME_BYTES.
    """
    inflate, size, kept = zlib.decompressobj(wbits), 0, bytearray()
    try:
        while not inflate.eof and (part := inflate.unconsumed_tail or file.read(CHUNK)):
            found = inflate.decompress(part, CHUNK)
            kept += found[: max(most - size, 0)]
            size += len(found)
            if size > MAX_VOLUME_BYTES:
                raise ValueError(f"expected at most {MAX_VOLUME_BYTES} bytes, got more")
    except zlib.error as error:
        raise ValueError(CUT_OFF) from error
    if not inflate.eof:
        raise ValueError(CUT_OFF)
    return kept
