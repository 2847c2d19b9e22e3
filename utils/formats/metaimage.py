"""MetaImage files (.mha), read here: ITK opens whatever file a line of their header names.

ITK's parser (MetaIO) goes on to the next line where a value is short of numbers, and takes some
white space for a part of a key, so that no look at the header before tells what it will open.
"""

import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk

from utils.formats.image_header import CUT_OFF, inflated, text_lines
from utils.formats.npz import MAX_VOLUME_BYTES

TYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2"},
    **{"MET_INT": "i4", "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4"},
    **{"MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
# What means the same, https://itk.org/Wiki/MetaIO/Documentation; the first that is there counts.
ORIGIN = ("Offset", "Position", "Origin")
DIRECTION = ("TransformMatrix", "Rotation", "Orientation")
SPACING = ("ElementSpacing", "ElementSize")
BIG_ENDIAN = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
FLAGS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
# What would make the values others than those that are stored.
PLAIN = {
    "HeaderSize": 0.0,
    "ElementNumberOfChannels": 1.0,
    "ElementToIntensityFunctionSlope": 1.0,
    "ElementToIntensityFunctionOffset": 0.0,
}


def read_metaimage(path: Path) -> sitk.Image:
    """The volume of a .mha file, where ITK would place it.

    Raises:
        ValueError: It is malformed, cut off, no single 3D volume, or its data lie in another file.
        RuntimeError: ITK does not take its grid.
        OSError: It can't be read.
    """
    with open(path, "rb") as file:
        header = _header(file)
        if header.get("NDims", "3") != "3":
            raise ValueError(f"expected 3 dimensions, got {header['NDims'][:50]}")
        for key, plain in PLAIN.items():
            if _numbers(header, (key,), [plain]) != [plain]:
                raise ValueError(
                    f"expected {key} = {plain:g} in its header, got {header[key][:50]}"
                )
        if not _flag(header, ("BinaryData",), True):
            raise ValueError("expected binary data, got a text")
        kind = TYPES.get(header.get("ElementType", ""))
        if kind is None:
            got = header.get("ElementType", "none")[:50]
            raise ValueError(f"expected ElementType as one of {', '.join(TYPES)}, got {got}")
        dtype = np.dtype(kind).newbyteorder(">" if _flag(header, BIG_ENDIAN, False) else "<")
        sides = _numbers(header, ("DimSize",), [math.nan] * 3)
        if not all(side >= 1 and side.is_integer() for side in sides):
            raise ValueError("expected DimSize as 3 whole numbers in its header")
        width, height, depth = map(int, sides)
        origin, spacing = _numbers(header, ORIGIN, [0.0] * 3), _numbers(header, SPACING, [1.0] * 3)
        axes = _numbers(header, DIRECTION, np.eye(3).ravel().tolist())
        if not min(spacing) > 0:
            raise ValueError(f"expected a spacing above 0, got {spacing}")
        image = sitk.GetImageFromArray(_values(file, (depth, height, width), dtype, header))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(np.reshape(axes, (3, 3)).T.ravel().tolist())  # a row is an axis of the grid
    return image


def _header(file: BinaryIO) -> dict[str, str]:
    """What a header says; the file is then where its data begin."""
    header: dict[str, str] = {}
    for line in text_lines(file):
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not key:
            raise ValueError(f"expected lines KEY = VALUE in its header, got {line[:50]!r}")
        if key in header:
            raise ValueError(f"expected {key[:50]} once in its header")
        header[key] = value
        if key == "ElementDataFile":
            if value.upper() != "LOCAL":
                raise ValueError("expected its data in the same file, got a header alone")
            return header
    raise ValueError(CUT_OFF)


def _numbers(header: dict[str, str], names: tuple[str, ...], default: list[float]) -> list[float]:
    """As many numbers as `default` has, which holds where none of the names is there."""
    for name in names:
        if name not in header:
            continue
        try:
            found = [float(part) for part in header[name].split()]
        except ValueError:
            found = []
        if len(found) != len(default) or not all(map(math.isfinite, found)):
            got = header[name][:50]
            raise ValueError(f"expected {name} as numbers, {len(default)} of them, got {got!r}")
        return found
    return default


def _flag(header: dict[str, str], names: tuple[str, ...], default: bool) -> bool:
    for name in names:
        value = header.get(name, str(default)).lower()
        if value not in FLAGS:
            raise ValueError(f"expected {name} as True or False, got {value[:50]!r}")
        if name in header:
            return FLAGS[value]
    return default


def _values(
    file: BinaryIO, shape: tuple[int, int, int], dtype: np.dtype, header: dict[str, str]
) -> np.ndarray:
    """(D, H, W) values from where the file is, in the byte order of this machine.

    Raises:
        ValueError: They are cut off or damaged, or too many.
    """
    size = math.prod(shape) * dtype.itemsize
    if size > MAX_VOLUME_BYTES:
        raise ValueError(f"expected at most {MAX_VOLUME_BYTES} bytes, got {size}")
    if _flag(header, ("CompressedData",), False):
        content: bytes | bytearray = inflated(file, zlib.MAX_WBITS, size)
    else:
        content = file.read(size)
    if len(content) < size:
        raise ValueError(CUT_OFF)
    values = np.frombuffer(content, dtype, math.prod(shape)).reshape(shape)
    return values.astype(dtype.newbyteorder("="), copy=False)
