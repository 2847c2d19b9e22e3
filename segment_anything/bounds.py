"""Where the adaptive policy looks: regions of the volume, and the ROIs that show them.

Bounds are (2, 3) arrays, the lower and upper edges of a region along (z, y, x) in voxels of the
original volume: voxel i reaches from i to i + 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segment_anything.prompts import Drawing, Index3, Prompts
from segment_anything.roi import Roi

ROI_FACTOR = 1.8  # sides of the ROI over those of the box
ROI_SPACING = 1.5  # mm, side of the ROI's voxels where only a click says where the object is
MIN_ROI_VOXELS = 8.0  # original ones, along each side of the ROI
MIN_CLICKED = 1 / 3  # least side without a box, over that of the first click's ROI
SIDE_RATIO = 1.25  # between the sides that a ROI without a box may have
EXPANSION = 0.25  # share of its side by which a ROI is expanded at a time
MARGIN = 1 / 16  # share of its side: what lies nearer to the border calls for an expansion
REFINEMENT_SCALE = 0.5  # sides of a refinement crop over those of the ROI


@dataclass(frozen=True)
class AdaptiveSettings:
    """What a checkpoint was trained with, and inference obeys.

    Attributes:
        roi_factor: Sides of the ROI over those of the box.
        roi_spacing: Side of the ROI's voxels in mm, where there are only clicks.
        normalisation: The ROI's; `zscore` is `segment_anything.roi.normalise`.
        drawings: Whether scribbles, lassos and boxes in a slice were among the prompts.
        clipped: Whether a ROI ends where the volume does, as far as that makes its voxels finer.
        second_look: Whether the first answer about an object is a mask prompt for a second one,
            where nothing is drawn.
        iou_slope, iou_intercept: The straight line that makes estimates of the IoU true on average,
            found afterwards (bench/bench_quality.py).
    """

    roi_factor: float = ROI_FACTOR
    roi_spacing: float = ROI_SPACING
    normalisation: str = "zscore"
    drawings: bool = False
    clipped: bool = False
    second_look: bool = False
    iou_slope: float = 1.0
    iou_intercept: float = 0.0

    def __post_init__(self) -> None:
        for name in ("roi_factor", "roi_spacing"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value < 1000:
                raise ValueError(f"expected {name} as a number above 0, got {value!r}")
        if self.normalisation != "zscore":
            raise ValueError(f"expected the normalisation zscore, got {self.normalisation!r}")
        for name in ("drawings", "clipped", "second_look"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(f"expected {name} as True or False, got {value!r}")
        for name in ("iou_slope", "iou_intercept"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not -10 < value < 10:
                raise ValueError(f"expected {name} as a number from -10 to 10, got {value!r}")

    def true_iou(self, estimate: float) -> float:
        """What the network's estimate of an IoU amounts to on average, 0 to 1."""
        return min(max(self.iou_intercept + self.iou_slope * estimate, 0.0), 1.0)


def bounds_of(mask: np.ndarray) -> np.ndarray | None:
    """Bounds of the voxels of a (D, H, W) array that are not 0, None if there are none."""
    rows = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    if not len(rows[0]):
        return None
    return np.array([[row[0] for row in rows], [row[-1] + 1 for row in rows]], float)


def around(core: np.ndarray, factor: float, least: np.ndarray | float = 0.0) -> np.ndarray:
    """Bounds with the middle of `core`, `factor` times its sides, and no side too short."""
    side = np.maximum(factor * (core[1] - core[0]), np.maximum(least, MIN_ROI_VOXELS))
    return core.mean(axis=0) + np.outer([-0.5, 0.5], side)


def union(*parts: np.ndarray) -> np.ndarray:
    """The smallest bounds that hold all of these."""
    return np.stack([np.min([p[0] for p in parts], 0), np.max([p[1] for p in parts], 0)])


def clip(bounds: np.ndarray, shape: Index3, size: int) -> np.ndarray:
    """Bounds with no more than a margin beyond the volume, so that a ROI of `size` voxels is finer.

    No side becomes shorter than `size` voxels of the volume, from where on a ROI shows no more, and
    those that are shorter stay.

    Args:
        bounds: (2, 3), in voxels of the volume.
        shape: (D, H, W) of the volume.
        size: Voxels along the side of the ROI.
    """
    side = bounds[1] - bounds[0]
    margin = MARGIN * side
    beyond = np.stack([-margin - bounds[0], bounds[1] - margin - shape]).clip(min=0)
    spare = (side - size).clip(min=0) / beyond.sum(axis=0).clip(min=1e-9)
    return bounds + beyond * spare.clip(max=1) * [[1.0], [-1.0]]


def expand(base: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """Bounds that hold `needed` with a margin: `base`, moved outwards by whole EXPANSIONs.

    In steps, so that the ROI stands, and with it its embedding, while little changes.
    """
    step = EXPANSION * (base[1] - base[0])
    bounds = base
    if not (np.isfinite(base).all() and np.isfinite(needed).all()):
        raise ValueError(
            f"expected prompts and a spacing that bound a region, got {needed.tolist()}"
        )
    while True:  # a longer side has wider voxels, by which roi_of may move it: a wider margin
        margin = MARGIN * (bounds[1] - bounds[0])
        beyond = np.stack([bounds[0] - needed[0], needed[1] - bounds[1]]) + margin
        steps = np.ceil(np.maximum(beyond, 0) / step - 1e-6)
        if not steps.any():
            return bounds
        bounds = bounds + np.stack([-steps[0], steps[1]]) * step


def snap(bounds: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Bounds about as large and at the same place, out of few: sides `least` * SIDE_RATIO^k."""
    side = bounds[1] - bounds[0]
    power = np.ceil(np.log(np.maximum(side / least, 1.0)) / np.log(SIDE_RATIO) - 1e-6)
    side = least * SIDE_RATIO**power
    middle = np.round(bounds.mean(axis=0) / (side / 8)) * (side / 8)
    return middle + np.outer([-0.5, 0.5], side)


def choose_bounds(
    prompts: Prompts,
    kept: np.ndarray | None,
    size: int,
    shape: Index3,
    spacing: Sequence[float],
    settings: AdaptiveSettings,
) -> np.ndarray | None:
    """Where to look for an object.

    Args:
        prompts: In voxels of the original volume.
        kept: Bounds of the mask so far, None if it is empty.
        size: Voxels along the side of the ROI.
        shape: (D, H, W) of the volume.
        spacing: (z, y, x) in mm.
        settings: Those that the network was trained with.

    Returns:
        Round the box, `roi_factor` times as large. Without one, round the first foreground click
        at `roi_spacing`, but with no side longer than the volume's, or round what is drawn on in
        the object, as deep as it is narrow; and once there is a mask, round mask and foreground.
        Clipped to the volume, if so trained, and then expanded so that the mask, all clicks and all
        drawings are inside. None where there is neither box, nor mask, nor foreground.
    """
    points = [
        (click.is_foreground, np.add.outer([0.0, 1.0], click.point)) for click in prompts.clicks
    ]
    drawn = [deepened(drawing, spacing) for drawing in prompts.drawings if drawing.is_foreground]
    found = [point for is_foreground, point in points if is_foreground] + drawn
    clicked = np.minimum(size * settings.roi_spacing / np.asarray(spacing), shape)
    if prompts.box is not None:
        box = np.array([prompts.box.start, prompts.box.stop], float)
        base = around(box, settings.roi_factor)
    elif kept is not None:
        least = MIN_CLICKED * clicked
        core = union(kept, *found)
        base = snap(around(core, settings.roi_factor, least), least)
    elif drawn:
        base = around(union(*found), settings.roi_factor, MIN_CLICKED * clicked)
    elif found:
        base = around(found[0], 1.0, clicked)
    else:
        return None
    if settings.clipped:
        base = clip(base, shape, size)
    needed = [point for _, point in points] + [drawing.bounds for drawing in prompts.drawings]
    needed += [] if kept is None else [kept]
    return expand(base, union(*needed)) if needed else base


def deepened(drawing: Drawing, spacing: Sequence[float]) -> np.ndarray:
    """Bounds of what a drawing says of its object's size.

    Those of the drawing, but where it lies in a slice at least as deep in mm as its shorter side in
    the slice: that fits objects best (bench/bench_prompts.py --depths).
    """
    bounds, mm = drawing.bounds, np.asarray(spacing)
    sides = (bounds[1] - bounds[0]) * mm
    flat = [axis for axis in range(3) if drawing.inside.shape[axis] == 1]
    if len(flat) != 1:
        return bounds
    (axis,) = flat
    sides[axis] = max(sides[axis], np.delete(sides, axis).min())
    return bounds.mean(axis=0) + np.outer([-0.5, 0.5], sides / mm)


def roi_of(bounds: np.ndarray, size: int, stride: int, shape: Index3) -> Roi:
    """The ROI of `size` voxels a side that looks at `bounds`.

    It begins at a whole voxel of the mask, which is `stride` times as wide.
    """
    step = (bounds[1] - bounds[0]) / size
    start = np.round(bounds[0] / (stride * step)).astype(int) * stride
    (z, y, x), (tz, ty, tx) = start.tolist(), step.tolist()
    return Roi(size, (z, y, x), (tz, ty, tx), shape)


def refinement_bounds(bounds: np.ndarray, point: Index3) -> np.ndarray:
    """Bounds of a refinement crop round a voxel, with the proportions of `bounds`."""
    return np.array(point) + 0.5 + np.outer([-0.5, 0.5], REFINEMENT_SCALE * (bounds[1] - bounds[0]))
