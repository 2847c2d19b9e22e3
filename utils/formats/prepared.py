"""Cases prepared for training: resampled, and laid out so that a crop is read without the rest.

A prepared case is a .npz file that is not compressed, so that its volumes can be mapped:

    imgs            (D, H, W) = (z, y, x) uint8
    gts             the same, unsigned, with the labels of the source
    spacing         3 float64 in mm, (x, y, z) as in the challenge
    labels          (n,) labels in gts, ascending
    label_boxes     (n, 3, 2) their bounding boxes, half-open [start, stop) in (z, y, x)
    label_counts    (n,) their voxels
    is_native       whether the grid is that of the source, and not resampled; absent: it is not
    source          sha256 of the source's fingerprint and of how it was prepared
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from utils.formats.atomic import atomic_write
from utils.formats.case import label_values, number_labels
from utils.formats.npz import CaseError, map_array, open_npz, read_array

COLUMNS = ("labels", "label_boxes", "label_counts")


@dataclass(frozen=True)
class PreparedCase:
    """What a prepared file holds beside its volumes; the attributes are named as its keys.

    `spacing` is (z, y, x) in mm, as anywhere outside of files.
    """

    path: Path
    shape: tuple[int, ...]
    spacing: tuple[float, float, float]
    is_native: bool
    labels: np.ndarray
    label_boxes: np.ndarray
    label_counts: np.ndarray


def write_prepared(
    path: Path,
    image: np.ndarray,
    gts: np.ndarray,
    spacing: tuple[float, float, float],
    source: bytes,
    is_native: bool = False,
) -> None:
    """Write a prepared case, whole or not at all.

    Args:
        path: The new file.
        image: (D, H, W) uint8.
        gts: (D, H, W) integer labels from 0 on.
        spacing: (z, y, x) in mm.
        source: Digest of the source's content and of how it was prepared.
        is_native: Whether the grid is that of the source.

    Raises:
        CaseError: There are no labels.
    """
    values = label_values(gts)
    if len(values) == 0:
        raise CaseError("expected labels in the resampled gts, got none")
    gts = gts.astype(np.min_scalar_type(int(values[-1])), copy=False)
    boxes, counts = boxes_and_counts(gts, values)
    with atomic_write(path) as file:
        np.savez(
            file,
            imgs=np.ascontiguousarray(image),
            gts=np.ascontiguousarray(gts),
            spacing=np.array(spacing[::-1], np.float64),
            labels=values.astype(np.int64),
            label_boxes=boxes,
            label_counts=counts,
            is_native=np.array(is_native),
            source=np.frombuffer(source, np.uint8),
        )


def read_prepared(path: Path) -> PreparedCase:
    """Read all but the volumes, and check that these are there.

    Raises:
        CaseError: It is not a whole prepared case.
        OSError: It can't be read.
    """
    with open_npz(path) as archive:
        labels, boxes, counts = (read_array(archive, key) for key in COLUMNS)
        if labels is None or boxes is None or counts is None:
            raise CaseError(
                "expected a case made by data/resample_preprocess_for_CVPR_3DFM.py, got one "
                f"without {', '.join(COLUMNS)}"
            )
        image, _ = _map_volumes(path, archive)
        n = labels.size
        if labels.shape != (n,) or boxes.shape != (n, 3, 2) or counts.shape != (n,):
            raise CaseError(
                f"expected labels (n,), their boxes (n, 3, 2) and counts (n,), got {labels.shape}, "
                f"{boxes.shape} and {counts.shape}"
            )
        starts, stops = boxes[..., 0], boxes[..., 1]
        is_inside = (0 <= starts) & (starts < stops) & (stops <= image.shape)
        if any(column.dtype.kind not in "ui" for column in (labels, boxes, counts)) or not (
            is_inside.all()
        ):
            raise CaseError(f"expected boxes of integers within {image.shape}")
        spacing, is_native = (read_array(archive, key) for key in ("spacing", "is_native"))
        if spacing is None or spacing.shape != (3,) or not (spacing > 0).all():
            raise CaseError("expected spacing as 3 positive numbers in mm")
        x, y, z = spacing.tolist()
        native = is_native is not None and bool(is_native.all())
        return PreparedCase(path, image.shape, (z, y, x), native, labels, boxes, counts)


def map_volumes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Image and gts of a prepared case, (D, H, W) each, mapped: what is not used is not read.

    Raises:
        CaseError: The file has changed.
        OSError: It can't be read.
    """
    with open_npz(path) as archive:
        return _map_volumes(path, archive)


def _map_volumes(path: Path, archive: zipfile.ZipFile) -> tuple[np.ndarray, np.ndarray]:
    image, gts = map_array(path, archive, "imgs"), map_array(path, archive, "gts")
    is_unsigned = gts.dtype.kind == "u" and gts.dtype.isnative
    if image.dtype != np.uint8 or image.ndim != 3 or not is_unsigned or gts.shape != image.shape:
        raise CaseError(
            f"expected imgs of uint8 and unsigned gts of one 3D shape, got {image.dtype} "
            f"{image.shape} and {gts.dtype} {gts.shape}"
        )
    return image, gts


def source_of(path: Path) -> bytes | None:
    """What a prepared case was made of; None if there is no whole one."""
    try:
        with open_npz(path) as archive:
            source = read_array(archive, "source")
    except (CaseError, OSError):
        return None
    return None if source is None else source.tobytes()


def boxes_and_counts(gts: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3, 2) half-open boxes and (n,) voxels of the labels `values`, all of which occur."""
    index = number_labels(gts, values)
    regions = ndimage.find_objects(index, max_label=len(values))
    boxes = [[(part.start, part.stop) for part in region] for region in regions]
    counts = [np.bincount(plane.ravel(), minlength=len(values) + 1) for plane in index]
    return np.array(boxes, np.int64), np.sum(counts, axis=0)[1:]
