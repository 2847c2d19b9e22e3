"""Scans as people have them (NIfTI, NRRD, MetaImage, DICOM) -> cases, and labels on their grid.

Inside, a scan is turned to LPS, as the challenge's cases are; its labels are turned back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from segment_anything.prompts import Box, Click, Drawing, Prompts
from utils.formats.atomic import atomic_path
from utils.formats.case import MAX_OBJECTS, Case
from utils.formats.drawn import drawn_in_slice
from utils.formats.images import (
    GEOMETRY_TOLERANCE,
    is_nifti,
    read_image,
    read_labels,
    turned_to_lps,
)
from utils.formats.intensity import parse_window, to_grey
from utils.formats.nifti import TO_LPS, Header, read_header, write_nifti
from utils.formats.npz import CaseError
from utils.formats.scan_prompts import RawDrawing, RawObject, RawPrompts, ending_of


class Axis(NamedTuple):
    """The axis of a file along an axis of its case.

    Attributes:
        name: z, y or x.
        is_flipped: The file counts from the other end.
    """

    name: str
    is_flipped: bool


FILE_AXES = (Axis("z", False), Axis("y", False), Axis("x", False))


@dataclass(frozen=True)
class Grid:
    """Where an image lies: all (x, y, z), in mm and LPS; the 9 cosines of its direction by rows."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image) -> "Grid":
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @classmethod
    def of_case(cls, case: Case) -> "Grid":
        """That of a challenge case, which does not say where it lies."""
        return cls(case.shape[::-1], case.spacing[::-1], (0.0,) * 3, tuple(np.eye(3).ravel()))

    def image(self) -> sitk.Image:
        """An empty image on it."""
        image = sitk.Image(self.size, sitk.sitkUInt8)
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image

    @property
    def affine(self) -> np.ndarray:
        """(4, 4), voxels (x, y, z) -> mm in RAS, as NIfTI has it."""
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(self.direction, (3, 3)) * self.spacing
        affine[:3, 3] = self.origin
        return TO_LPS @ affine  # which is its own inverse

    def to_voxels(self, mm: np.ndarray) -> np.ndarray:
        """(N, 3) mm (x, y, z) -> (N, 3) voxels (z, y, x)."""
        matrix = np.reshape(self.direction, (3, 3)) * self.spacing
        return np.linalg.solve(matrix, (mm - self.origin).T).T[:, ::-1]


def turn_of(grid: Grid, turned: Grid) -> tuple[list[int], list[bool]]:
    """For each axis (z, y, x) of a grid: the turned grid's axis along it, and if it is flipped."""
    to, of = (np.reshape(each.direction, (3, 3)) for each in (grid, turned))
    cosines = (of.T @ to)[::-1, ::-1]  # of the turned grid's axis i, the grid's axis j; z, y, x
    order = np.abs(cosines).argmax(axis=0)
    return order.tolist(), (cosines[order, range(3)] < 0).tolist()


@dataclass(frozen=True)
class Scan:
    """A scan that was read.

    Attributes:
        case: What is segmented, turned to LPS.
        grid: The grid of the file.
        turned: The grid of the case.
        notices: What the user may want to know, a line each.
        header: Of a NIfTI file.
    """

    case: Case
    grid: Grid
    turned: Grid
    notices: tuple[str, ...] = ()
    header: Header | None = None

    @property
    def axes(self) -> tuple[Axis, Axis, Axis]:
        """The axes of the file that lie along the axes (z, y, x) of the case."""
        found = {
            i: Axis(n, f) for n, i, f in zip("zyx", *turn_of(self.grid, self.turned), strict=True)
        }
        return found[0], found[1], found[2]


def read_values(path: Path) -> tuple[Scan, sitk.Image]:
    """Read a file or a DICOM series; its case is a view of the image's own values, turned to LPS.

    Raises:
        ValueError, RuntimeError: It can't be used.
    """
    notices: list[str] = []
    image = read_image(path, notices)
    header = read_header(path) if is_nifti(path) else None
    grid = Grid.of(image)
    image = turned_to_lps(image)
    turned = Grid.of(image)
    x, y, z = turned.spacing
    case = Case(path.name, sitk.GetArrayViewFromImage(image), (z, y, x), (), 0)
    return Scan(case, grid, turned, tuple(notices), header), image


def read_scan(path: Path, prompts: RawPrompts) -> Scan:
    """Read a file or a DICOM series, and bring it into the challenge's form.

    CT is windowed, where `prompts` name a window; all else is scaled between percentiles.

    Raises:
        CaseError: It can't be used, or the prompts do not fit it.
    """
    try:
        window = parse_window(prompts.window) if prompts.window else None
        scan, image = read_values(path)
        notices = list(scan.notices)
        case = prompted(scan.case, prompts, scan.grid, scan.turned, notices)
        grey, said = to_grey(sitk.GetArrayViewFromImage(image), window)
    except (ValueError, RuntimeError) as error:
        message = str(error).removeprefix(f"{path.name}: ")
        raise CaseError(f"{path.name}: {message}") from error
    return replace(scan, case=replace(case, image=grey), notices=(*notices, *said))


def prompted(case: Case, prompts: RawPrompts, grid: Grid, turned: Grid, notices: list[str]) -> Case:
    """The case with prompts as they were given, which count one after the other.

    Args:
        case: On the turned grid.
        prompts: In their space.
        grid: The grid of the file.
        turned: The grid of the case.
        notices: List to which is added what the user may want to know.

    Raises:
        ValueError: The prompts do not fit it, or its labels do not.
    """
    objects = tuple(
        place(raw, number, prompts.space, grid, turned, notices)
        for number, raw in enumerate(prompts.objects, 1)
    )
    if not any(each.count for each in objects):
        raise ValueError("expected a box or a click, got none")
    if len(objects) > MAX_OBJECTS:
        raise ValueError(f"expected at most {MAX_OBJECTS} objects, got {len(objects)}")
    previous = None
    if prompts.labels is not None:
        labels = read_labels(prompts.labels, turned.image(), case.name, notices)
        previous = numbered(labels, [raw.initial for raw in prompts.objects])
    later = max(each.count - (each.box is not None) for each in objects)
    return replace(
        case,
        objects=objects,
        rounds=any(each.box for each in objects) + later,
        prev_pred=previous,
        is_replayed=True,
        overlap=prompts.overlap,
    )


def numbered(labels: np.ndarray, numbers: Sequence[int | None]) -> np.ndarray:
    """(D, H, W) uint8 with object i where the labels are the i-th number; None: it is nowhere.

    Raises:
        ValueError: A label is not there.
    """
    previous = np.zeros(labels.shape, np.uint8)
    for i, number in enumerate(numbers, 1):
        inside = labels == number
        if number is not None and not inside.any():
            raise ValueError(f"initial of object {i}: expected a label of the file, got {number}")
        previous[inside] = i
    return previous


def place(
    raw: RawObject, number: int, space: str, grid: Grid, turned: Grid, notices: list[str]
) -> Prompts:
    """Prompts as they were given -> in voxels of the turned grid.

    Args:
        raw: The prompts of one object, in `space`.
        number: Which object it is, for messages.
        space: One of SPACES.
        grid: The grid of the file.
        turned: The grid of the case.
        notices: List to which is added what the user may want to know.

    Raises:
        ValueError: They lie outside of the volume.
    """
    box = None
    if raw.box is not None:
        try:
            edges = _box_edges(raw.box, space, grid, turned)
            low, high = edges.clip(0, turned.size[::-1])
            if not (low < high).all():
                raise ValueError(f"expected it to touch the volume, {_size(grid)}")
        except ValueError as error:
            raise ValueError(f"box of object {number}: {error}, got {_brief(raw.box)}") from error
        if (edges != [low, high]).any():
            notices.append(f"the box of object {number} reaches beyond the volume, and was cut")
        (z0, y0, x0), (z1, y1, x1) = low.astype(int).tolist(), high.astype(int).tolist()
        box = Box((z0, y0, x0), (z1, y1, x1))
    clicks = []
    for point, is_foreground in raw.clicks:
        given = np.array([point])
        if space == "voxel":
            given = _rounded(given)  # before axes are flipped
        voxel = _rounded(_voxels(given, space, grid, turned)[0])
        if (voxel < 0).any() or (voxel >= turned.size[::-1]).any():
            raise ValueError(
                f"click of object {number}: expected a point of the volume, {_size(grid)}, got "
                f"{_brief(point)} ({space})"
            )
        z, y, x = voxel.astype(int).tolist()
        clicks.append(Click((z, y, x), is_foreground))
    drawings = tuple(_placed(drawn, number, space, grid, turned) for drawn in raw.drawings)
    return Prompts(box, tuple(clicks), drawings=drawings)


def _placed(raw: RawDrawing, number: int, space: str, grid: Grid, turned: Grid) -> Drawing:
    """What was drawn, in voxels of the turned grid.

    Raises:
        ValueError: It does not lie in one slice of the volume.
    """
    if raw.kind == "box":
        edges = _box_edges((*raw.points[0], *raw.points[1]), space, grid, turned).astype(int)
        low, high = edges[0], edges[1] - 1
    else:
        given = np.array(raw.points)
        if space == "voxel":
            given = _rounded(given)  # before axes are flipped
        voxels = _rounded(_voxels(given, space, grid, turned)).astype(int)
        low, high = voxels.min(axis=0), voxels.max(axis=0)
    where = f"{raw.kind} of object {number}"
    if (low < 0).any() or (high >= turned.size[::-1]).any():
        raise ValueError(f"{where}: expected it within the volume, {_size(grid)}")
    if (low < high).all():
        raise ValueError(
            f"{where}: expected it in one slice, got {' x '.join(map(str, high - low + 1))} voxels"
        )
    if raw.kind == "box":
        z, y, x = low.tolist()
        return Drawing((z, y, x), np.ones(high - low + 1, bool), True, raw.is_foreground, raw.after)
    return drawn_in_slice(voxels, raw.kind == "lasso", raw.is_foreground, raw.after)


def _rounded(values: np.ndarray) -> np.ndarray:
    """The nearest integers; halves go up, also those that rounding errors made a bit smaller."""
    return np.floor(values + 0.5 + 1e-6)


def _box_edges(given: tuple[float, ...], space: str, grid: Grid, turned: Grid) -> np.ndarray:
    """The box that holds the given one: half-open (2, 3), in voxels (z, y, x) of the turned grid.

    Raises:
        ValueError: It is not in the volume; the message says what was expected.
    """
    ends = np.reshape(given, (2, 3))
    if space == "voxel":
        if not (ends[0] < ends[1]).all() or (ends != np.rint(ends)).any():
            raise ValueError("expected whole numbers z0 < z1, y0 < y1, x0 < x1")
        if (ends[0] < 0).any() or (ends[1] > grid.size[::-1]).any():
            raise ValueError(f"expected it within the volume, {_size(grid)}")
        ends = ends - 0.5  # the outer edges of its voxels
    corners = np.array(list(product(*ends.T)))
    voxels = _voxels(corners, space, grid, turned)
    edges = _rounded(np.array([voxels.min(axis=0) + 0.5, voxels.max(axis=0) + 0.5]))
    edges[1] = np.maximum(edges[1], edges[0] + 1)  # at least one voxel
    return edges


def _voxels(given: np.ndarray, space: str, grid: Grid, turned: Grid) -> np.ndarray:
    """(N, 3) points (z, y, x) in their space -> in voxels of the turned grid."""
    if space == "voxel":
        voxels = np.empty_like(given)
        for axis, (other, is_flipped) in enumerate(zip(*turn_of(grid, turned), strict=True)):
            last = grid.size[::-1][axis] - 1
            voxels[:, other] = last - given[:, axis] if is_flipped else given[:, axis]
        return voxels
    return turned.to_voxels(given[:, ::-1] * ((-1, -1, 1) if space == "ras" else (1, 1, 1)))


def _size(grid: Grid) -> str:
    return f"{' x '.join(map(str, grid.size[::-1]))} voxels (z, y, x)"


def _brief(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def turned_back(seg: np.ndarray, scan: Scan) -> np.ndarray:
    """(D, H, W) on the grid of the case -> on the grid of the file: axes exchanged and flipped."""
    order, is_flipped = turn_of(scan.grid, scan.turned)
    return np.flip(seg.transpose(order), tuple(np.flatnonzero(is_flipped).tolist()))


def write_labels(path: Path, seg: np.ndarray, scan: Scan) -> None:
    """Write (D, H, W) uint8 labels of a scan's case on the grid of its file, whole or not at all.

    Args:
        path: The new file; its ending says the format.
        seg: (D, H, W) on the grid of the case.
        scan: The scan as it was read.

    Raises:
        OSError: It can't be written, or the format can't hold its grid.
    """
    labels = np.ascontiguousarray(turned_back(seg, scan))
    image = sitk.GetImageFromArray(labels)
    image.CopyInformation(scan.grid.image())
    with atomic_path(path, ending_of(path) or "") as temporary:
        try:
            if is_nifti(path):
                write_nifti(temporary, labels, scan.header, scan.grid.affine)
            else:
                sitk.WriteImage(image, str(temporary), useCompression=True)
            written = read_image(temporary)  # not every writer tells of a full disk
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1].removeprefix(f"{temporary.name}: ")
            raise OSError(f"{path}: can't be written: {reason}") from error
        if not np.array_equal(sitk.GetArrayViewFromImage(written), labels):
            raise OSError(f"{path}: can't be written whole; is the disk full?")
        if not written.IsSameImageGeometryAs(image, GEOMETRY_TOLERANCE, GEOMETRY_TOLERANCE):
            raise OSError(f"{path}: {ending_of(path)} can't hold its grid, {scan.grid}")
