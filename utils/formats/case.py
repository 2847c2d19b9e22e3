"""Challenge cases: what their .npz files hold, in which types and axis orders."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segment_anything.prompts import Click, Index3, Prompts
from utils.formats.atomic import atomic_write
from utils.formats.npz import CaseError, open_npz, read_array, read_form, read_numbers, read_objects
from utils.formats.stored_prompts import MAX_CLICKS, parse_box, parse_clicks

MAX_OBJECTS = 255  # labels of the uint8 output


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
        is_replayed: The prompts were not predicted with so far: they count one after the other,
            from prev_pred on.
        overlap: Whose a voxel of several objects is: "highest" or "first", as Canvas takes it.
    """

    name: str
    image: np.ndarray
    spacing: tuple[float, float, float]
    objects: tuple[Prompts, ...]
    rounds: int
    prev_pred: np.ndarray | None = None
    is_replayed: bool = False
    overlap: str = "highest"

    @property
    def shape(self) -> Index3:
        d, h, w = self.image.shape
        return d, h, w


@dataclass(frozen=True)
class LabelledCase:
    """A case before the first round, and its truth.

    Attributes:
        case: The case, with boxes if the file has them; clicks and prev_pred are left aside.
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
    with open_npz(path) as archive:
        return _parse_case(path.name, archive)


def read_bare_case(path: Path) -> Case:
    """Read and check a case whose prompts, if it has any, are left aside.

    Raises:
        CaseError: The file is not a usable case.
        OSError: It can't be read.
    """
    with open_npz(path) as archive:
        spacing = check_spacing(read_numbers(archive, "spacing"))
        return Case(path.name, _check_image(read_array(archive, "imgs")), spacing, (), 0)


def read_labelled_case(path: Path, truth_path: Path | None = None) -> LabelledCase:
    """Read and check a case and its gts, which may lie in another file.

    Labels may be any positive integers; the objects are numbered in their order.

    Raises:
        CaseError: A file is not usable.
        OSError: It can't be read.
    """
    with open_npz(truth_path or path) as archive:
        truth, labels = _parse_truth(archive)
    with open_npz(path) as archive:
        spacing = check_spacing(read_numbers(archive, "spacing"))
        image = _check_image(read_array(archive, "imgs"))
        _check_same_shape(truth, image)
        boxes = read_objects(archive, "boxes")
        if boxes is not None and len(boxes) != len(labels):
            raise CaseError(f"expected {len(labels)} boxes, one per label, got {len(boxes)}")
        if boxes is None:
            objects = tuple(Prompts() for _ in labels)
        else:
            objects = tuple(
                Prompts(parse_box(box, i, image.shape)) for i, box in enumerate(boxes, 1)
            )
    case = Case(path.name, image, spacing, objects, int(boxes is not None))
    return LabelledCase(case, truth, labels)


def read_volumes(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Read image and gts of a case, whatever its labels -> two (D, H, W), spacing (z, y, x) in mm.

    Raises:
        CaseError: The file is not usable.
        OSError: It can't be read.
    """
    with open_npz(path) as archive:
        spacing = check_spacing(read_numbers(archive, "spacing"))
        image = _check_image(read_array(archive, "imgs"))
        gts = check_gts(read_array(archive, "gts"))
        _check_same_shape(gts, image)
    return image, gts, spacing


def read_geometry(path: Path) -> tuple[Index3, int, tuple[float, float, float]]:
    """(D, H, W) of a case with gts, bytes per label, spacing (z, y, x) in mm; reads no volume.

    Raises:
        CaseError: The file is not usable.
        OSError: It can't be read.
    """
    with open_npz(path) as archive:
        spacing = check_spacing(read_numbers(archive, "spacing"))
        shape, _ = read_form(archive, "imgs")
        gts_shape, dtype = read_form(archive, "gts")
        if len(shape) != 3 or gts_shape != shape:
            raise CaseError(f"expected imgs and gts of one 3D shape, got {shape} and {gts_shape}")
    return (shape[0], shape[1], shape[2]), dtype.itemsize, spacing


def read_segs(path: Path, shape: Index3) -> np.ndarray:
    """Read what a program predicted -> (D, H, W) uint8.

    Raises:
        CaseError: It is not a volume of this shape with labels 0..255.
        OSError: It can't be read.
    """
    with open_npz(path) as archive:
        segs = read_array(archive, "segs")
        if segs is None:
            raise CaseError("expected segs, got none")
        if segs.shape != shape:
            raise CaseError(f"expected segs of shape {shape}, got {segs.shape}")
        if not (0 <= segs.min() and segs.max() <= 255):  # false for NaN, too
            raise CaseError(f"expected segs of labels 0..255, got {segs.min()}..{segs.max()}")
        labels = segs.astype(np.uint8, copy=False)
        if segs.dtype.kind == "f" and (labels != segs).any():
            raise CaseError("expected segs of whole numbers")
    return labels


def read_contents(path: Path) -> dict[str, Any]:
    """What the evaluator hands on from round to round, unchecked: arrays, and boxes as a list.

    Raises:
        CaseError: A part can't be read.
        OSError: The file can't be read.
    """
    with open_npz(path) as archive:
        contents: dict[str, Any] = {key: read_array(archive, key) for key in ("imgs", "gts")}
        contents["spacing"] = read_numbers(archive, "spacing")
        contents["boxes"] = read_objects(archive, "boxes")
    return {key: value for key, value in contents.items() if value is not None}


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
        path: The new file.
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
    truth = check_gts(read_array(archive, "gts"))
    values = label_values(truth)
    if not 1 <= len(values) <= MAX_OBJECTS:
        raise CaseError(f"expected 1 to {MAX_OBJECTS} objects in gts, got {len(values)}")
    if values[-1] == len(values):
        seg = truth.astype(np.uint8, copy=False)
    else:
        seg = number_labels(truth, values)
    return seg, tuple(int(value) for value in values)


def check_gts(truth: np.ndarray | None) -> np.ndarray:
    if truth is None:
        raise CaseError("expected gts, got none")
    if truth.ndim != 3 or truth.size == 0 or truth.dtype.kind not in "bui":
        raise CaseError(
            f"gts must be 3D integers (z, y, x), got shape {truth.shape} of {truth.dtype}"
        )
    if truth.dtype.kind == "i" and truth.min() < 0:
        raise CaseError(f"expected gts of labels from 0 on, got {truth.min()}")
    return truth


def _check_same_shape(truth: np.ndarray, image: np.ndarray) -> None:
    if truth.shape != image.shape:
        raise CaseError(f"expected gts of shape {image.shape} as imgs, got {truth.shape}")


def label_values(seg: np.ndarray) -> np.ndarray:
    """The labels above 0 in a (D, H, W) volume, ascending."""
    values = np.unique(np.concatenate([np.unique(plane) for plane in seg]))
    return values[values > 0]


def missing_labels(seg: np.ndarray, count: int) -> list[int]:
    """The labels of 1..count without a voxel in a (D, H, W) uint8 volume."""
    is_found = np.zeros(256, bool)
    for plane in seg:
        is_found[plane[plane > 0]] = True
    return [label for label in range(1, count + 1) if not is_found[label]]


def number_labels(seg: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Labels 1, 2, ... for those of `label_values`, in the smallest type that holds them."""
    dtype = np.min_scalar_type(len(values))
    return np.stack([np.searchsorted(values, plane, "right").astype(dtype) for plane in seg])


def _parse_case(name: str, archive: zipfile.ZipFile) -> Case:
    spacing = check_spacing(read_numbers(archive, "spacing"))
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
        box = parse_box(boxes[i], i + 1, image.shape) if boxes is not None else None
        made: tuple[Click, ...] = ()
        if clicks is not None:
            kinds = order[i] if order is not None else None
            made = parse_clicks(clicks[i], kinds, i + 1, image.shape)
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
    return Case(name, image, spacing, tuple(prompts), rounds, prev_pred, prev_pred is None)


def check_spacing(stored: np.ndarray | None) -> tuple[float, float, float]:
    """Stored (x, y, z) -> (z, y, x): a (63, 512, 512) case of AMOS stores [0.846 0.846 5.0]."""
    if stored is None:
        raise CaseError("expected spacing, got none")
    values = stored.astype(np.float64)
    if values.shape != (3,) or not (np.isfinite(values) & (values > 0)).all():
        raise CaseError(
            f"expected spacing as 3 positive numbers in mm, got {values.ravel()[:6].tolist()}"
        )
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
