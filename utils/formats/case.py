"""Challenge cases: the one place that knows the keys, types and axis orders of the .npz files."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import numpy as np

from segment_anything.prompts import Box, Click, Index3, Prompts
from utils.formats.atomic import atomic_write
from utils.formats.npz import CaseError, read_array, read_form, read_npz, read_objects

MAX_OBJECTS = 255  # labels of the uint8 output
MAX_CLICKS = 100_000  # in a case

BOX_KEYS = "z_min z_max z_mid z_mid_y_min z_mid_y_max z_mid_x_min z_mid_x_max".split()


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


@dataclass(frozen=True)
class LabelledCase:
    """A case before the first round, and its truth.

    Attributes:
        case: With boxes if the file has them; its clicks and prev_pred are left aside.
        truth: (D, H, W) uint8, object i of the case as label i.
        labels: What the file calls object 1, 2, ...
    """

    case: Case
    truth: np.ndarray
    labels: tuple[int, ...]


def read_case(path: Path) -> Case:
    """Read and check a case.

    Raises:
        CaseError: The file is not a usable case.
        OSError: It can't be read.
    """
    path = Path(path)
    return read_npz(path, lambda archive: _parse_case(path.name, archive))


def read_labelled_case(path: Path, truth_path: Path | None = None) -> LabelledCase:
    """Read and check a case and its gts, which may lie in another file.

    Labels may be any positive integers; the objects are numbered in their order.

    Raises:
        CaseError: A file is not usable.
        OSError: It can't be read.
    """
    truth, labels = read_npz(truth_path or path, _parse_truth)

    def parse(archive: zipfile.ZipFile) -> Case:
        spacing = _check_spacing(read_array(archive, "spacing"))
        image = _check_image(read_array(archive, "imgs"))
        _check_same_shape(truth, image)
        boxes = read_objects(archive, "boxes")
        if boxes is None:
            objects = tuple(Prompts() for _ in labels)
        elif len(boxes) != len(labels):
            raise CaseError(f"expected {len(labels)} boxes, one per label, got {len(boxes)}")
        else:
            objects = tuple(
                Prompts(_check_box(box, i, image.shape)) for i, box in enumerate(boxes, 1)
            )
        return Case(path.name, image, spacing, objects, int(boxes is not None))

    return LabelledCase(read_npz(path, parse), truth, labels)


def read_volumes(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Read image and gts of a case, whatever its labels -> two (D, H, W), spacing (z, y, x) in mm.

    Raises:
        CaseError: The file is not usable.
        OSError: It can't be read.
    """

    def parse(
        archive: zipfile.ZipFile,
    ) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
        spacing = _check_spacing(read_array(archive, "spacing"))
        image = _check_image(read_array(archive, "imgs"))
        gts = _check_gts(read_array(archive, "gts"))
        _check_same_shape(gts, image)
        return image, gts, spacing

    return read_npz(path, parse)


def read_geometry(path: Path) -> tuple[Index3, int, tuple[float, float, float]]:
    """(D, H, W) of a case with gts, bytes per label, spacing (z, y, x) in mm; reads no volume.

    Raises:
        CaseError: The file is not usable.
        OSError: It can't be read.
    """

    def parse(archive: zipfile.ZipFile) -> tuple[Index3, int, tuple[float, float, float]]:
        spacing = _check_spacing(read_array(archive, "spacing"))
        shape, _ = read_form(archive, "imgs")
        gts_shape, dtype = read_form(archive, "gts")
        if len(shape) != 3 or gts_shape != shape:
            raise CaseError(f"expected imgs and gts of one 3D shape, got {shape} and {gts_shape}")
        return (shape[0], shape[1], shape[2]), dtype.itemsize, spacing

    return read_npz(path, parse)


def read_segs(path: Path, shape: Index3) -> np.ndarray:
    """Read what a program predicted -> (D, H, W) uint8.

    Raises:
        CaseError: It is not a volume of this shape with labels 0..255.
        OSError: It can't be read.
    """
    segs = read_npz(path, lambda archive: read_array(archive, "segs"))
    if segs is None:
        raise CaseError(f"{path.name}: expected segs, got none")
    if segs.shape != shape:
        raise CaseError(f"{path.name}: expected segs of shape {shape}, got {segs.shape}")
    if not (0 <= segs.min() and segs.max() <= 255):  # false for NaN, too
        got = f"{segs.min()}..{segs.max()}"
        raise CaseError(f"{path.name}: expected segs of labels 0..255, got {got}")
    labels = segs.astype(np.uint8, copy=False)
    if segs.dtype.kind == "f" and (labels != segs).any():
        raise CaseError(f"{path.name}: expected segs of whole numbers")
    return labels


def read_contents(path: Path) -> dict[str, Any]:
    """What the evaluator hands on from round to round, unchecked: arrays, and boxes as a list.

    Raises:
        CaseError: A part can't be read.
        OSError: The file can't be read.
    """

    def parse(archive: zipfile.ZipFile) -> dict[str, Any]:
        arrays = {key: read_array(archive, key) for key in ("imgs", "gts", "spacing")}
        contents = {**arrays, "boxes": read_objects(archive, "boxes")}
        return {key: value for key, value in contents.items() if value is not None}

    return read_npz(path, parse)


def write_case(path: Path, segs: np.ndarray) -> None:
    """Write (D, H, W) uint8 labels as the challenge reads them, whole or not at all."""
    assert segs.dtype == np.uint8 and segs.ndim == 3
    with atomic_write(Path(path)) as file:
        np.savez_compressed(file, segs=segs)


def write_round(
    path: Path,
    contents: dict[str, Any],
    rounds: Sequence[Sequence[Click | None]],
    prev_pred: np.ndarray,
) -> None:
    """Write a case as the official evaluator does for a round of clicks: keys, types, order.

    Args:
        path: Of the new file.
        contents: As `read_contents` returns it.
        rounds: The clicks of each round so far, one per object, None where nothing was wrong.
        prev_pred: (D, H, W) uint8 labels of the round before.
    """
    objects = list(zip(*rounds, strict=True))
    clicks: list[dict[str, list]] = [{"fg": [], "bg": []} for _ in objects]
    order: list[list[str | None]] = [[] for _ in objects]
    for i, made in enumerate(objects):
        for click in made:
            kind = None if click is None else "fg" if click.is_foreground else "bg"
            order[i].append(kind)
            if click is not None and kind is not None:
                clicks[i][kind].append(list(np.array(click.point)))
    arrays: dict[str, Any] = {
        key: contents[key] for key in ("imgs", "gts", "spacing") if key in contents
    }
    arrays |= {"clicks": clicks, "clicks_order": order, "prev_pred": prev_pred}
    if "boxes" in contents:
        arrays["boxes"] = contents["boxes"]
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def _parse_truth(archive: zipfile.ZipFile) -> tuple[np.ndarray, tuple[int, ...]]:
    """(D, H, W) uint8 with labels 1, 2, ..., and what the file calls them."""
    truth = _check_gts(read_array(archive, "gts"))
    values = label_values(truth)
    if not 1 <= len(values) <= MAX_OBJECTS:
        raise CaseError(f"expected 1 to {MAX_OBJECTS} objects in gts, got {len(values)}")
    if values[-1] == len(values):
        seg = truth.astype(np.uint8, copy=False)
    else:
        seg = number_labels(truth, values)
    return seg, tuple(int(value) for value in values)


def _check_gts(truth: np.ndarray | None) -> np.ndarray:
    if truth is None:
        raise CaseError("expected gts, got none")
    if truth.ndim != 3 or truth.size == 0 or truth.dtype.kind not in "bui":
        raise CaseError(
            f"gts must be 3D integers (z, y, x), got shape {truth.shape} of {truth.dtype}"
        )
    if truth.min() < 0:
        raise CaseError(f"expected gts of labels from 0 on, got {truth.min()}")
    return truth


def _check_same_shape(truth: np.ndarray, image: np.ndarray) -> None:
    if truth.shape != image.shape:
        raise CaseError(f"expected gts of shape {image.shape} as imgs, got {truth.shape}")


def label_values(seg: np.ndarray) -> np.ndarray:
    """The labels above 0 in a (D, H, W) volume, ascending."""
    values = np.unique(np.concatenate([np.unique(plane) for plane in seg]))
    return values[values > 0]


def number_labels(seg: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Labels 1, 2, ... for those of `label_values`, in the smallest type that holds them."""
    dtype = np.min_scalar_type(len(values))
    return np.stack([np.searchsorted(values, plane, "right").astype(dtype) for plane in seg])


def _parse_case(name: str, archive: zipfile.ZipFile) -> Case:
    spacing = _check_spacing(read_array(archive, "spacing"))
    boxes, clicks, order = (
        read_objects(archive, key) for key in ("boxes", "clicks", "clicks_order")
    )
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

    image = _check_image(read_array(archive, "imgs"))
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
        is_right = order is not None and len(order[i]) > 0 and order[i][-1] is None
        prompts.append(Prompts(box, made, is_right))
    if boxes is None and total_clicks == 0:
        raise CaseError("expected prompts, got no boxes and only empty lists of clicks")

    click_rounds = max(len(o) for o in order or [p.clicks for p in prompts])
    prev_pred = read_array(archive, "prev_pred")
    if prev_pred is not None:
        prev_pred = _check_prev_pred(prev_pred, image.shape, count)
    rounds = (boxes is not None) + click_rounds
    return Case(name, image, spacing, tuple(prompts), rounds, prev_pred)


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
    return Box((z_min, y_min, x_min), (z_max + 1, y_max + 1, x_max + 1))


def stored_box(box: Box, z_mid: int) -> dict[str, int]:
    """A box as a challenge file stores it, all bounds inclusive; y and x are of slice `z_mid`."""
    (z0, y0, x0), (z1, y1, x1) = box.start, box.stop
    bounds = (z0, z1 - 1, z_mid, y0, y1 - 1, x0, x1 - 1)
    return dict(zip(BOX_KEYS, bounds, strict=True))


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
