"""What is checked in an image file before ITK reads it, since ITK does not say or survive it.

ITK opens the files that NRRD and MetaImage headers name, and does not survive some malformed ones.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

MAX_LINES, MAX_LINE = 10_000, 10_000  # lines of a NRRD or MetaImage header; bytes of a line
MAX_FIELD = 250  # bytes of a field that ITK takes apart, partly into arrays of 255
PLAIN = re.compile(r"[^%\x00-\x1f]*")  # some are taken for printf's formats
NRRD_FIELDS = {
    *("type", "dimension", "sizes", "encoding", "endian", "content", "space", "space dimension"),
    *("space directions", "space origin", "space units", "spacings", "thicknesses", "kinds"),
    *("labels", "units", "centers", "centerings", "axis mins", "axis maxs", "measurement frame"),
    *("min", "max", "old min", "old max", "number", "sample units", "block size"),
}
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
