"""Challenge cases: the one place that knows the keys, types and axis orders of the .npz files."""

import math
import pickle
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import numpy as np

from utils import safe_pickle
from utils.files import atomic_write
from utils.prompts import Box, Click, Index3, Prompts

MAX_VOLUME_BYTES = 4 * 2**30  # of one array, unpacked
MAX_OBJECTS = 255  # labels of the uint8 output
MAX_CLICKS = 100_000  # in a case

BOX_KEYS = "z_min z_max z_mid z_mid_y_min z_mid_y_max z_mid_x_min z_mid_x_max".split()


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


@dataclass(frozen=True)
class Case:
    """One volume with its prompts.

    Attributes:
        name: File name.
        image: (D, H, W) = (z, y, x), uint8 or float32, values 0..255.
        spacing: (z, y, x) in mm.
        objects: Prompts of object 1, 2, ...; an object may have none.
        rounds: Rounds of prompts so far: the boxes, if any, and each round of clicks.
        prev_pred: (D, H, W) uint8 labels of the round before, or None.
    """

    name: str
    image: np.ndarray
    spacing: tuple[float, float, float]
    objects: tuple[Prompts, ...]
    rounds: int
    prev_pred: np.ndarray | None = None

    @property
    def shape(self) -> Index3:
        d, h, w = self.image.shape
        return d, h, w


def read_case(path: Path) -> Case:
    """Read and check a case.

    Raises:
        CaseError: The file is not a usable case.
        OSError: It can't be read.
    """
    path = Path(path)
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _parse(path.name, archive)
        except CaseError as error:
            raise CaseError(f"{path.name}: {error}") from error.__cause__
        except _BROKEN_ZIP as error:
            message = f"{path.name}: expected a whole .npz (zip) file, got: {error}"
            raise CaseError(message) from error


def write_case(path: Path, segs: np.ndarray) -> None:
    """Write (D, H, W) uint8 labels as the challenge reads them, whole or not at all."""
    assert segs.dtype == np.uint8 and segs.ndim == 3
    with atomic_write(Path(path)) as file:
        np.savez_compressed(file, segs=segs)


def _parse(name: str, archive: zipfile.ZipFile) -> Case:
    members = set(archive.namelist())

    def array(key: str) -> np.ndarray | None:
        return _read_array(archive, key) if f"{key}.npy" in members else None

    def objects(key: str) -> list | None:
        return _read_objects(archive, key) if f"{key}.npy" in members else None

    spacing = _check_spacing(array("spacing"))
    boxes, clicks, order = objects("boxes"), objects("clicks"), objects("clicks_order")
    lengths = {
        key: len(value)
        for key, value in (("boxes", boxes), ("clicks", clicks), ("clicks_order", order))
        if value is not None
    }
    if boxes is None and clicks is None:
        raise CaseError("expected prompts in boxes or clicks, got neither")
    if len(set(lengths.values())) > 1:
        raise CaseError(f"expected one entry per object in each list, got lengths {lengths}")
    count = max(lengths.values())
    if not 1 <= count <= MAX_OBJECTS:
        raise CaseError(f"expected 1 to {MAX_OBJECTS} objects (uint8 output), got {count}")

    image = _check_image(array("imgs"))
    if order is not None and clicks is None:
        clicks = [{}] * count
    prompts = []
    total_clicks = 0
    for i in range(count):
        box = _check_box(boxes[i], i + 1, image.shape) if boxes is not None else None
        made: tuple[Click, ...] = ()
        if clicks is not None:
            kinds = order[i] if order is not None else None
            made = _check_clicks(clicks[i], kinds, i + 1, image.shape)
        total_clicks += len(made)
        if total_clicks > MAX_CLICKS:
            raise CaseError(f"expected at most {MAX_CLICKS} clicks in a case")
        prompts.append(Prompts(box, made))
    if boxes is None and total_clicks == 0:
        raise CaseError("expected prompts, got no boxes and only empty lists of clicks")

    click_rounds = max(len(o) for o in order or [p.clicks for p in prompts])
    prev_pred = array("prev_pred")
    if prev_pred is not None:
        prev_pred = _check_prev_pred(prev_pred, image.shape, count)
    rounds = (boxes is not None) + click_rounds
    return Case(name, image, spacing, tuple(prompts), rounds, prev_pred)


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


def _read_array(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    """A numeric array; its size is checked before memory is taken for it."""
    with archive.open(f"{key}.npy") as file:
        shape, is_fortran, dtype, size = _read_header(archive, key, file)
        if dtype.kind not in "buif":
            raise CaseError(f"{key}: expected numbers, got dtype {dtype}")
        if size > MAX_VOLUME_BYTES:
            raise CaseError(f"{key}: expected at most {MAX_VOLUME_BYTES} bytes, got {size}")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
            raise CaseError(f"{key}: expected {shape} of {dtype}, got {size} bytes")
        values = np.empty(shape[::-1] if is_fortran else shape, dtype)
        buffer = values.reshape(-1).view(np.uint8).data
        done = 0
        while chunk := file.read(2**20):  # its last read compares the checksum
            buffer[done : done + len(chunk)] = chunk
            done += len(chunk)
        if done != size:
            raise CaseError(f"{key}: expected {size} bytes, got {done}")
    return values.T if is_fortran else values


def _read_objects(archive: zipfile.ZipFile, key: str) -> list:
    """One entry per object, of plain containers, strings and numbers."""
    with archive.open(f"{key}.npy") as file:
        shape, _, dtype, size = _read_header(archive, key, file)
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
        return np.frombuffer(data, dtype).reshape(shape).tolist()
    if dtype.kind != "O":
        raise CaseError(f"{key}: expected an array of objects, got dtype {dtype}")
    try:
        values = safe_pickle.loads(data)
    except pickle.UnpicklingError as error:
        message = f"{key}: expected plain lists and dicts, got: {str(error)[:200]}"
        raise CaseError(message) from error
    if not isinstance(values, list) or len(values) != shape[0]:
        raise CaseError(f"{key}: expected {shape[0]} entries, got another value")
    return values


def _check_spacing(stored: np.ndarray | None) -> tuple[float, float, float]:
    """Stored (x, y, z) -> (z, y, x): a (63, 512, 512) case of AMOS stores [0.846 0.846 5.0]."""
    if stored is None:
        raise CaseError("expected spacing, got none")
    values = stored.astype(np.float64)
    if values.shape != (3,) or not (np.isfinite(values) & (values > 0)).all():
        raise CaseError(f"expected spacing as 3 positive numbers in mm, got {stored.tolist()}")
    x, y, z = values.tolist()
    return z, y, x


def _check_image(image: np.ndarray | None) -> np.ndarray:
    if image is None:
        raise CaseError("expected a volume in imgs, got none")
    if image.ndim != 3:
        raise CaseError(f"imgs must be 3D (z, y, x), got shape {image.shape}")
    if image.size == 0:
        raise CaseError(f"imgs must hold voxels, got shape {image.shape}")
    low, high = image.min(), image.max()
    if not (0 <= low and high <= 255):  # false for NaN, too
        raise CaseError(
            f"imgs must lie in 0..255 as the challenge prepares it (CT windowed, other images "
            f"scaled between percentiles), got {low}..{high}"
        )
    if high == 0:
        raise CaseError("imgs must hold a voxel above 0, got zeros only")
    return image.astype(np.float32 if image.dtype.kind == "f" else np.uint8, copy=False)


def _check_prev_pred(labels: np.ndarray, shape: tuple[int, ...], count: int) -> np.ndarray:
    if labels.shape != shape:
        raise CaseError(f"expected prev_pred of shape {shape} as imgs, got {labels.shape}")
    if labels.dtype.kind not in "bui" or labels.min() < 0 or labels.max() > count:
        raise CaseError(
            f"expected prev_pred of labels 0..{count}, got {labels.dtype} "
            f"{labels.min()}..{labels.max()}"
        )
    return labels.astype(np.uint8, copy=False)


def _is_integer(value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) < 2**31 and value == int(value)  # false for NaN, too


def _check_box(entry: Any, label: int, shape: tuple[int, ...]) -> Box:
    """Inclusive bounds of the file -> half-open Box."""
    if not isinstance(entry, dict):
        raise CaseError(f"box of object {label}: expected a dict, got {type(entry).__name__}")
    if missing := [key for key in BOX_KEYS if key not in entry]:
        raise CaseError(f"box of object {label}: expected keys {BOX_KEYS}, missing {missing}")
    bounds = {key: entry[key] for key in BOX_KEYS}
    if not all(_is_integer(value) for value in bounds.values()):
        raise CaseError(f"box of object {label}: expected integers, got {brief(bounds)}")
    z_min, z_max, z_mid, y_min, y_max, x_min, x_max = (int(v) for v in bounds.values())
    for axis, low, high, n in zip(
        "zyx", (z_min, y_min, x_min), (z_max, y_max, x_max), shape, strict=True
    ):
        if not 0 <= low <= high < n:
            raise CaseError(
                f"box of object {label}: expected 0 <= {axis} min <= {axis} max <= {n - 1}, "
                f"got {low}..{high}"
            )
    if not z_min <= z_mid <= z_max:
        raise CaseError(f"box of object {label}: expected z_mid in {z_min}..{z_max}, got {z_mid}")
    return Box((z_min, y_min, x_min), (z_max + 1, y_max + 1, x_max + 1), z_mid)


def _check_clicks(entry: Any, order: Any, label: int, shape: tuple[int, ...]) -> tuple[Click, ...]:
    """{"fg": points, "bg": points} and the order of their kinds -> clicks as they were made."""
    if not isinstance(entry, dict) or not set(entry) <= {"fg", "bg"}:
        raise CaseError(f'clicks of object {label}: expected {{"fg": [...], "bg": [...]}}')
    points = {kind: _check_points(entry.get(kind, ()), label, shape) for kind in ("fg", "bg")}
    if order is None:
        kinds = ["fg"] * len(points["fg"]) + ["bg"] * len(points["bg"])
    else:
        if not isinstance(order, (list, tuple)):
            raise CaseError(f"clicks_order of object {label}: expected a list")
        kinds = [kind for kind in order if kind is not None]
    if unknown := [kind for kind in kinds if kind not in ("fg", "bg")]:
        raise CaseError(
            f"clicks_order of object {label}: expected fg, bg or None, got {brief(unknown)}"
        )
    for kind in ("fg", "bg"):
        if kinds.count(kind) != len(points[kind]):
            raise CaseError(
                f"clicks of object {label}: expected {len(points[kind])} {kind} in clicks_order, "
                f"got {kinds.count(kind)}"
            )
    queues = {kind: iter(values) for kind, values in points.items()}
    return tuple(Click(next(queues[kind]), kind == "fg") for kind in kinds)


def _check_points(points: Any, label: int, shape: tuple[int, ...]) -> list[Index3]:
    if not isinstance(points, (list, tuple)) or len(points) > MAX_CLICKS:
        raise CaseError(f"clicks of object {label}: expected a list of at most {MAX_CLICKS} points")
    checked = []
    for point in points:
        if not isinstance(point, (list, tuple)) or len(point) != 3:
            raise CaseError(f"click of object {label}: expected [z, y, x], got {brief(point)}")
        if not all(_is_integer(v) and 0 <= v < n for v, n in zip(point, shape, strict=True)):
            raise CaseError(
                f"click of object {label}: expected a voxel [z, y, x] of {shape}, got "
                f"{brief(point)}"
            )
        checked.append((int(point[0]), int(point[1]), int(point[2])))
    return checked
