"""What training looks up about an object on the host, and the first prompts that are made of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from segment_anything.bounds import roi_of
from segment_anything.prompts import Box, Drawing, Index3
from segment_anything.roi import Roi, crop_roi_nearest
from utils.evaluation.simulated_prompts import (
    Extent,
    draw_shift,
    largest_error_click,
    middle_extent,
    pixels_of_shift,
)
from utils.training.drawings import DRAWS, lasso, scribble

FULL_SLICES = 0.5  # of the boxes are moved as if the case were cut out of whole slices,
FULL_SIDES = (128, 512)  # so many voxels wide and high; the others as in slices of the case's size
DRAWN_KINDS = {"box": 0.4, "scribble": 0.3, "lasso": 0.3}  # of the first drawings
ACROSS = (0.6, 0.2, 0.2)  # of the first drawings lie in a slice across z, y and x
SLICES = (0.25, 0.75)  # of those that hold the object, from which one is chosen
BOX_EDGE = (-0.05, 0.1)  # of its side, by which an edge of a box in a slice lies outside
CANVAS = 64  # pixels along the sides on which a hand draws, a sixteenth at each side left free


@dataclass(frozen=True)
class ObjectShape:
    """What decides about the prompts of an object, found out when it is asked for.

    Attributes:
        gts: (D, H, W) labels.
        label: The object.
        bounds: (2, 3) its lower and upper edges along (z, y, x).
        size: Voxels along the side of a cube on which it is looked at.
    """

    gts: np.ndarray
    label: int
    bounds: np.ndarray
    size: int

    @cached_property
    def extent(self) -> Extent:
        """That of the challenge's box."""
        (z0, y0, x0), (z1, y1, x1) = self.bounds.astype(int).tolist()
        return middle_extent(self.gts[z0:z1, y0:y1, x0:x1] == self.label, (z0, y0, x0))

    @cached_property
    def first_click(self) -> Index3:
        """The voxel that the evaluator clicks at first."""
        if not self._mask.any():
            return self._middle
        click = largest_error_click(self._mask, np.zeros_like(self._mask))
        assert click is not None
        return _original(self._roi, np.array(click.point))

    @cached_property
    def border(self) -> np.ndarray:
        """(N, 3) int16 voxels of the cube at the object's border; none of a thin one."""
        return np.argwhere(self._mask & ~ndimage.binary_erosion(self._mask)).astype(np.int16)

    def border_voxel(self, rng: np.random.Generator) -> Index3:
        """A random voxel near the border."""
        if not len(self.border):
            return self._middle
        return _original(self._roi, self.border[rng.integers(len(self.border))])

    def slice_part(self, axis: int, share: float) -> tuple[Index3, np.ndarray]:
        """The largest part of the object in a slice across an axis.

        Args:
            axis: 0 to 2.
            share: Which of the slices that hold the object, in [0, 1).

        Returns:
            Its first voxel (z, y, x) and (h, w) bool, along the other two axes.
        """
        held = self._held[axis]
        start, stop = self.bounds.astype(int).tolist()
        at = start[axis] + int(held[int(share * len(held))])
        region = [slice(*edges) for edges in zip(start, stop, strict=True)]
        plane = self.gts[(*region[:axis], at, *region[axis + 1 :])] == self.label
        numbers, _ = ndimage.label(plane)
        largest = numbers == np.bincount(numbers[plane]).argmax()
        rows, columns = (np.flatnonzero(largest.any(axis=axis)) for axis in (1, 0))
        corner = [int(rows[0]), int(columns[0])]
        first = [start[i] + corner.pop(0) if i != axis else at for i in range(3)]
        part = largest[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return (first[0], first[1], first[2]), part

    @cached_property
    def _held(self) -> list[np.ndarray]:
        """For each axis, which slices of its bounds hold the object."""
        (z0, y0, x0), (z1, y1, x1) = self.bounds.astype(int).tolist()
        mask = self.gts[z0:z1, y0:y1, x0:x1] == self.label
        return [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]

    @property
    def _middle(self) -> Index3:
        z, y, x = self.bounds.mean(axis=0).astype(int).tolist()
        return z, y, x

    @property
    def _roi(self) -> Roi:
        d, h, w = self.gts.shape
        return roi_of(self.bounds, self.size, 1, (d, h, w))

    @property
    def _mask(self) -> np.ndarray:
        """(N, N, N) bool, empty where it is thinner than the cube's grid."""
        return crop_roi_nearest(self.gts, self._roi) == self.label


def slice_sides(shape: Index3, rng: np.random.Generator) -> tuple[int, int]:
    """Height and width of the slices that a box is made in: those of the case, or wider ones.

    The challenge moves boxes the farther the larger the slices are.
    """
    side = int(rng.integers(*FULL_SIDES, endpoint=True)) if rng.random() < FULL_SLICES else 0
    return max(side, shape[1]), max(side, shape[2])


def moved_box(extent: Extent, shape: Index3, rng: np.random.Generator) -> Box:
    """The challenge's box of an object in a volume (D, H, W)."""
    sides = slice_sides(shape, rng)
    return extent.box(pixels_of_shift(draw_shift(rng), sides), shape[1:])


def first_drawing(shape: ObjectShape, rng: np.random.Generator, kind: str = "") -> Drawing:
    """What a hand draws at first, in a slice through an object's middle half.

    Args:
        shape: The object.
        rng: Decides the slice, and how the hand draws.
        kind: One of DRAWN_KINDS; default: one of them by its share.
    """
    kind = kind or str(rng.choice(list(DRAWN_KINDS), p=list(DRAWN_KINDS.values())))
    axis = int(rng.choice(3, p=ACROSS))
    start, part = shape.slice_part(axis, rng.uniform(*SLICES))
    flat = [i for i in range(3) if i != axis]
    if kind == "box":
        outside = rng.uniform(*BOX_EDGE, (2, 2)) * part.shape
        low, high = (
            np.round(edges).astype(int) for edges in (-outside[0], part.shape + outside[1])
        )
        drawn = np.ones(np.maximum(high - low, 1), bool)
    else:
        draws = torch.from_numpy(rng.random((1, DRAWS)))
        low, drawn = drawn_by_hand(scribble if kind == "scribble" else lasso, part, draws)
    first = np.array(start)
    first[flat] += low
    return within(shape.gts.shape, first, np.expand_dims(drawn, axis), kind != "scribble")


def drawn_by_hand(
    draw: Callable[[Tensor, Tensor], Tensor], part: np.ndarray, draws: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """A region drawn on as on a canvas where it is seen as a whole.

    Args:
        draw: `scribble` or `lasso`.
        part: (h, w) bool.
        draws: (1, DRAWS), for `draw`.

    Returns:
        The first pixel of the drawing, which may lie before that of the part, and (h', w') bool.
    """
    free = CANVAS // 16
    pixel = -(-max(part.shape) // (CANVAS - 2 * free))  # pixels of the part in one of the canvas
    small = part[::pixel, ::pixel]
    canvas = np.zeros((1, CANVAS, CANVAS), bool)
    canvas[0, free : free + small.shape[0], free : free + small.shape[1]] = small
    drawn = draw(torch.from_numpy(canvas), draws)[0].numpy()
    return np.full(2, -free * pixel), drawn.repeat(pixel, axis=0).repeat(pixel, axis=1)


def within(
    shape: tuple[int, ...], first: np.ndarray, drawn: np.ndarray, is_region: bool
) -> Drawing:
    """A foreground drawing (d, h, w) bool from a voxel on, without what lies beyond the volume."""
    low, high = np.maximum(first, 0), np.minimum(first + drawn.shape, shape)
    inside = drawn[tuple(slice(a, b) for a, b in zip(low - first, high - first, strict=True))]
    z, y, x = low.tolist()
    return Drawing((z, y, x), inside, is_region, True)


def _original(roi: Roi, voxel: np.ndarray) -> Index3:
    """The original voxel nearest to one of a ROI."""
    position = np.floor((voxel + roi.start + 0.5) * roi.step).astype(int)
    z, y, x = np.clip(position, 0, np.array(roi.shape) - 1).tolist()
    return z, y, x
