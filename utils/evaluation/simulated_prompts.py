"""The prompts that the challenge makes from the truth: its boxes, and its evaluator's clicks."""

from collections.abc import Sequence
from typing import NamedTuple

import edt
import numpy as np
from scipy import ndimage

from segment_anything.prompts import Box, Click, Index3, Region
from utils.formats.stored_prompts import stored_box

# The official evaluator's own constants (CVPR25_iter_eval.py, 2025-06-03).
CLICK_SEED = 42  # for the choice among the voxels farthest inside
MARGIN = 0.25  # added on each side before distances are measured, times the component's size
MAX_VOXELS = 60_000_000  # a larger component is halved along each axis first
# The boxes in the challenge's files are moved outwards by up to MAX_SHIFT pixels of a slice that
# is SHIFT_SIDE pixels wide and high, and by as much more as a slice is larger.
MAX_SHIFT, SHIFT_SIDE = 5, 256


class Extent(NamedTuple):
    """What a box of the challenge is made of: z is exact, y and x are those of the middle slice.

    Attributes:
        start: First voxel (z, y, x).
        stop: The one behind the last.
        middle: z of the middle one of the slices that hold the object.
    """

    start: Index3
    stop: Index3
    middle: int

    def box(self, moved: Sequence[int], slice_shape: Sequence[int]) -> Box:
        """The box with y and x moved outwards by so many voxels each, within (H, W)."""
        (z0, *low), (z1, *high) = self.start, self.stop
        y0, x0 = (max(first - by, 0) for first, by in zip(low, moved, strict=True))
        y1, x1 = (
            min(last + by, side) for last, by, side in zip(high, moved, slice_shape, strict=True)
        )
        return Box((z0, y0, x0), (z1, y1, x1))


def middle_extent(mask: np.ndarray, origin: Index3 = (0, 0, 0)) -> Extent:
    """The extent of a (D, H, W) bool mask, True somewhere, whose first voxel is `origin`."""
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    middle = int(slices[len(slices) // 2])
    held = (slices, *(np.flatnonzero(mask[middle].any(axis=axis)) for axis in (1, 0)))
    z, y, x = (
        (int(rows[0]) + first, int(rows[-1]) + 1 + first)
        for rows, first in zip(held, origin, strict=True)
    )
    return Extent((z[0], y[0], x[0]), (z[1], y[1], x[1]), middle + origin[0])


def draw_shift(rng: np.random.Generator) -> int:
    """From 0 to MAX_SHIFT."""
    return int(rng.integers(0, MAX_SHIFT, endpoint=True))


def pixels_of_shift(shift: int, slice_shape: Sequence[int]) -> tuple[int, int]:
    """Voxels by which a shift of 0..MAX_SHIFT moves y and x in slices of (H, W)."""
    height, width = slice_shape
    return int(shift * height / SHIFT_SIDE), int(shift * width / SHIFT_SIDE)


def challenge_box(mask: np.ndarray, rng: np.random.Generator) -> tuple[Box, int]:
    """The box of an object as the challenge makes it, and the slice that its y and x come from.

    z is exact. y and x are the object's extent in the middle one of the slices that hold it. One
    shift is drawn from 0..MAX_SHIFT; times the slice's height or width over SHIFT_SIDE, truncated,
    it is taken off the lower and added to the upper side alike, within the slice.

    Args:
        mask: (D, H, W) = (z, y, x) bool, True somewhere.
        rng: Draws the shift.

    Returns:
        The box in voxels, and z of the middle slice.
    """
    extent = middle_extent(mask)
    sides = mask.shape[1:]
    return extent.box(pixels_of_shift(draw_shift(rng), sides), sides), extent.middle


def box_of(mask: np.ndarray, rng: np.random.Generator) -> dict[str, int]:
    """The box of a (D, H, W) bool mask, by `challenge_box`, as a challenge file stores it."""
    return stored_box(*challenge_box(mask, rng))


def challenge_boxes(seg: np.ndarray, labels: Sequence[int], seed: int) -> np.ndarray:
    """The boxes of these labels, in their order, as a challenge file stores them.

    Args:
        seg: (D, H, W) integer labels; all of `labels` occur in it.
        labels: The objects.
        seed: For the shifts.

    Returns:
        (n,) object array of dicts.
    """
    rng = np.random.default_rng(seed)
    boxes = np.empty(len(labels), object)
    boxes[:] = [box_of(seg == label, rng) for label in labels]
    return boxes


def largest_error_click(truth: np.ndarray, pred: np.ndarray, threads: int = 1) -> Click | None:
    """A click in the middle of the largest error, or None where there is no error.

    Errors are the 26-connected components of the voxels where the masks differ. The click is a
    voxel of the largest one that is farthest from its border in voxels, chosen at random among
    equals with a fixed seed.

    Args:
        truth: (D, H, W) bool, a region that holds the whole object and the whole prediction.
        pred: (D, H, W) bool, the same region.
        threads: Number that the distance transform may use.

    Returns:
        The click in voxels of the region: foreground where the truth is, else background.
    """
    errors, count = ndimage.label(truth != pred, np.ones((3, 3, 3)))
    if count == 0:
        return None
    largest = int(np.bincount(errors[errors > 0]).argmax())
    component = errors == largest
    region = bounding_box(component)
    depth = _squared_depth(np.ascontiguousarray(component[region]), threads)
    farthest = np.argwhere(depth == depth.max())
    chosen = farthest[np.random.RandomState(CLICK_SEED).choice(len(farthest))]
    z, y, x = (int(i) + part.start for i, part in zip(chosen, region, strict=True))
    return Click((z, y, x), bool(truth[z, y, x]))


def bounding_box(mask: np.ndarray) -> Region:
    """The smallest region that holds all of a (D, H, W) bool mask, which is not empty."""
    yx = np.logical_or.reduce(mask, axis=0)
    along = (mask.reshape(len(mask), -1).any(axis=1), yx.any(axis=1), yx.any(axis=0))
    z, y, x = (slice(int(w[0]), int(w[-1]) + 1) for w in map(np.flatnonzero, along))
    return z, y, x


def _squared_depth(component: np.ndarray, threads: int) -> np.ndarray:
    """Squared distance in voxels of each voxel of a component to the nearest one outside of it."""
    shape = np.array(component.shape)
    margin = np.maximum((MARGIN * shape).astype(int), 1)
    if np.prod(shape + 2 * margin) <= MAX_VOXELS:
        return edt.edtsq(component.view(np.uint8), black_border=True, parallel=threads)
    padded = np.pad(component, [(m, m + n % 2) for m, n in zip(margin, shape, strict=True)])
    halved = np.logical_or.reduce(
        [padded[z::2, y::2, x::2] for z in (0, 1) for y in (0, 1) for x in (0, 1)]
    )
    depth = edt.edtsq(halved.view(np.uint8), parallel=threads)
    depth = depth.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
    z, y, x = (slice(m, m + n) for m, n in zip(margin, shape, strict=True))
    return depth[z, y, x]
