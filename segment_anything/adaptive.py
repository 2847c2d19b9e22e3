"""The adaptive policy for one object: what to ask of the network, and what its answers amount to.

Nothing here runs a network or reads a file: `segment_object` yields queries, is sent the answers,
and returns the object's logits.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from segment_anything.bounds import (
    EXTENSION,
    AdaptiveSettings,
    bounds_of,
    choose_bounds,
    refinement_bounds,
    roi_of,
    union,
)
from segment_anything.modeling.sam3D import MASK_THRESHOLD
from segment_anything.prompts import Click, Index3, Prompts, Region
from segment_anything.roi import Roi, crop_roi_nearest, sample_linear

MAX_EXPANSIONS = 2  # times that an object is predicted again since its mask touches the border
REFINEMENT_BLEND = 0.25  # of a piece's side, from its border inwards, over which it fades in
KEPT_LOGIT = 1.0  # of what is kept as it was since there is nothing to ask
RIGHT_LOGIT = 100.0  # of what is known to be right, whatever other objects claim


@dataclass(frozen=True)
class Mask:
    """A (D, H, W) bool part of a volume, which is False elsewhere."""

    region: Region
    inside: np.ndarray

    @property
    def bounds(self) -> np.ndarray | None:
        """Of the True voxels, None if there are none."""
        bounds = bounds_of(self.inside)
        return None if bounds is None else bounds + [part.start for part in self.region]

    def crop(self, roi: Roi) -> np.ndarray:
        """Nearest to the voxels of a ROI."""
        z, y, x = (part.start for part in self.region)
        return crop_roi_nearest(self.inside, roi, origin=(z, y, x)).astype(bool)


@dataclass(frozen=True)
class ObjectRequest:
    """An object to segment.

    Attributes:
        prompts: All of them, in voxels of the original volume.
        previous: The mask before the last prompts, if there is one.
    """

    prompts: Prompts
    previous: Mask | None = None


@dataclass(frozen=True)
class RoiQuery:
    """What the network is asked: the prompts in voxels of the ROI, the mask in those of the mask.

    Attributes:
        roi: To look at.
        points: (N, 3) float32.
        labels: (N,) int64, as PromptEncoder3D.forward takes them.
        mask: (M, M, M) bool.
    """

    roi: Roi
    points: np.ndarray
    labels: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class RoiAnswer:
    """(M, M, M) float32 logits, and their predicted IoU."""

    logits: np.ndarray
    iou: float


@dataclass(frozen=True)
class Prediction:
    """An object on the original grid.

    Attributes:
        shape: (D, H, W) of the volume.
        region: Holds the whole object.
        region_logits: There, float16; the object is where they are above MASK_THRESHOLD.
        iou: As the network estimates it.
    """

    shape: Index3
    region: Region
    region_logits: np.ndarray
    iou: float

    @property
    def kept(self) -> Mask:
        # Float16 is slow in NumPy.
        return Mask(self.region, (torch.from_numpy(self.region_logits) > MASK_THRESHOLD).numpy())

    @property
    def mask(self) -> np.ndarray:
        """(D, H, W) bool"""
        mask = np.zeros(self.shape, bool)
        mask[self.region] = self.kept.inside
        return mask

    @property
    def logits(self) -> np.ndarray:
        """(D, H, W) float32, -inf beyond the region."""
        logits = np.full(self.shape, -np.inf, np.float32)
        logits[self.region] = self.region_logits
        return logits


@dataclass(frozen=True)
class Patch:
    """The network's logits on a ROI; `roi` is that of the ROI in voxels of the mask."""

    roi: Roi
    logits: np.ndarray


def points_in(prompts: Prompts, roi: Roi) -> tuple[np.ndarray, np.ndarray]:
    """The prompts that touch a ROI, in its voxels -> points (N, 3) float32, labels (N,) int64.

    Lower and upper corner of the box (labels 2 and 3), as the ROI's voxels inside it; then the
    clicks in the order in which they were made.
    """
    step, start = np.array(roi.step), np.array(roi.start)
    points: list[np.ndarray] = []
    labels: list[int] = []
    if prompts.box is not None:
        points += [prompts.box.start / step - start, prompts.box.stop / step - start - 1]
        labels += [2, 3]
    for click in prompts.clicks:
        point = (np.array(click.point) + 0.5) / step - 0.5 - start
        if ((-0.5 <= point) & (point <= roi.size - 0.5)).all():
            points.append(point)
            labels.append(int(click.is_foreground))
    return np.array(points, np.float32).reshape(-1, 3), np.array(labels, np.int64)


def touched(logits: np.ndarray, roi: Roi) -> np.ndarray:
    """(2, 3) bool: at which faces of its ROI a mask lies, other than at those of the volume."""
    faces = np.zeros((2, 3), bool)
    mask = (logits > MASK_THRESHOLD) & is_inside(roi)
    for axis in range(3):
        for side, at in ((0, 0), (1, -1)):
            goes_on = roi.start[axis] > 0 if side == 0 else _ends_before(roi, axis)
            faces[side, axis] = goes_on and np.take(mask, at, axis=axis).any()
    return faces


def is_inside(roi: Roi) -> np.ndarray:
    """(S, S, S) bool: which voxels of a ROI lie in the volume."""
    z, y, x = (roi.positions(axis)[1] for axis in range(3))
    return z[:, None, None] & y[:, None] & x


def _ends_before(roi: Roi, axis: int) -> bool:
    """Whether the volume goes on beyond the upper face of a ROI."""
    return (roi.start[axis] + roi.size) * roi.step[axis] < roi.shape[axis]


def segment_object(
    request: ObjectRequest,
    shape: Index3,
    spacing: Sequence[float],
    size: int,
    mask_size: int,
    settings: AdaptiveSettings,
) -> Generator[RoiQuery, RoiAnswer, Prediction]:
    """Segment an object by asking the network.

    The whole object is asked for on one ROI, on a larger one while the mask touches its border.
    Then, where a clicked voxel has not become what was asked, on a piece of the ROI round the
    click, finer.

    Args:
        request: The object.
        shape: (D, H, W) of the volume.
        spacing: (z, y, x) in mm.
        size: Voxels along the side of the ROI.
        mask_size: Voxels along the side of the network's masks; divides `size`.
        settings: Of the checkpoint.
    """
    prompts, previous, stride = request.prompts.newest, request.previous, size // mask_size
    kept = previous.bounds if previous is not None else None
    bounds = choose_bounds(prompts, kept, size, shape, spacing, settings)
    is_asked = prompts.box is not None or len(prompts.clicks) > 0
    is_right = prompts.is_right and previous is not None
    if bounds is None or not is_asked or is_right:
        return unchanged(previous, shape, RIGHT_LOGIT if is_right else KEPT_LOGIT)
    extension = EXTENSION * (bounds[1] - bounds[0])
    for growth in range(MAX_EXPANSIONS + 1):
        roi = roi_of(bounds, size, stride, shape)
        low_roi = roi.coarse(stride)
        mask = np.zeros([mask_size] * 3, bool)
        if previous is not None and kept is not None:
            mask = previous.crop(low_roi)
        answer = yield RoiQuery(roi, *points_in(prompts, roi), mask)
        whole = Patch(low_roi, answer.logits)
        faces = touched(answer.logits, low_roi)
        if growth == MAX_EXPANSIONS or not faces.any():
            break
        bounds = bounds + faces * [[-1.0], [1.0]] * extension

    patches = [whole]
    for click in prompts.clicks:
        if is_obeyed(click, patches):
            continue
        piece = roi_of(refinement_bounds(bounds, click.point), size, stride, shape)
        piece_low = piece.coarse(stride)
        positions = [piece_low.positions(axis)[0] for axis in range(3)]
        mask = render(patches, positions) > MASK_THRESHOLD
        piece_answer = yield RoiQuery(piece, *points_in(prompts, piece), mask)
        patches.append(Patch(piece_low, piece_answer.logits))
    return assemble(patches, shape, answer.iou)


def nothing(shape: Index3, iou: float = 0.0) -> Prediction:
    return Prediction(shape, (slice(0, 0),) * 3, np.zeros((0, 0, 0), np.float16), iou)


def unchanged(previous: Mask | None, shape: Index3, logit: float) -> Prediction:
    """The mask so far as a prediction."""
    if previous is None:
        return nothing(shape)
    logits = np.where(previous.inside, logit, -logit).astype(np.float16)
    return Prediction(shape, previous.region, logits, 1.0)


def assemble(patches: Sequence[Patch], shape: Index3, iou: float) -> Prediction:
    """The patches on the original grid, on the smallest region of it that holds the object."""
    found = [bounds for patch in patches if (bounds := _positive_bounds(patch)) is not None]
    if not found:
        return nothing(shape, iou)
    low, high = union(*found)
    z, y, x = (
        slice(max(int(np.floor(first)), 0), min(int(np.ceil(last)), n))
        for first, last, n in zip(low, high, shape, strict=True)
    )
    positions = [np.arange(part.start, part.stop, dtype=float) for part in (z, y, x)]
    logits = torch.from_numpy(render(patches, positions)).half().numpy()  # slow in NumPy
    return Prediction(shape, (z, y, x), logits, iou)


def _positive_bounds(patch: Patch) -> np.ndarray | None:
    """Of the voxels that interpolation can make foreground."""
    positive = bounds_of((patch.logits > MASK_THRESHOLD) & is_inside(patch.roi))
    if positive is None:
        return None
    grown = positive + [[-1.0], [1.0]]
    return (np.clip(grown, 0, patch.roi.size) + patch.roi.start) * patch.roi.step


def render(patches: Sequence[Patch], positions: Sequence[np.ndarray]) -> np.ndarray:
    """Logits of an object where rows of original voxel coordinates cross -> float32.

    The first patch holds on its ROI, with background beyond; each further one counts fully in its
    middle, and fades towards its borders.
    """
    first, *pieces = patches
    logits = _interpolate(first, positions)
    for axis, position in enumerate(positions):
        edge = (position + 0.5) / first.roi.step[axis] - first.roi.start[axis]
        beyond = (edge < 0) | (edge > first.roi.size)
        if beyond.any():
            logits[(slice(None),) * axis + (beyond,)] = -KEPT_LOGIT
    for piece in pieces:
        weights = [_fade(piece.roi, axis, position) for axis, position in enumerate(positions)]
        part = tuple(_span(weight) for weight in weights)
        inside = [position[p] for position, p in zip(positions, part, strict=True)]
        if not all(len(position) for position in inside):
            continue
        z, y, x = (weight[p] for weight, p in zip(weights, part, strict=True))
        weight = z[:, None, None] * y[:, None] * x
        logits[part] += weight * (_interpolate(piece, inside) - logits[part])
    return logits


def is_obeyed(click: Click, patches: Sequence[Patch]) -> bool:
    """Whether the clicked voxel is what the click says."""
    logit = render(patches, [np.array([float(p)]) for p in click.point]).item()
    return (logit > MASK_THRESHOLD) == click.is_foreground


def _interpolate(patch: Patch, positions: Sequence[np.ndarray]) -> np.ndarray:
    """Linear; at the volume's border without the voxels beyond, where there is nothing to see."""
    roi, rows = patch.roi, []
    for axis, position in enumerate(positions):
        row = (position + 0.5) / roi.step[axis] - 0.5 - roi.start[axis]
        inside = np.flatnonzero(roi.positions(axis)[1])
        rows.append(row.clip(inside[0], inside[-1]) if len(inside) else row)
    return sample_linear(patch.logits, rows).numpy()


def _fade(roi: Roi, axis: int, position: np.ndarray) -> np.ndarray:
    """The weight of a piece along an axis: 0 at its border and beyond, 1 in its middle.

    Where the border is that of the volume, or beyond, it does not fade.
    """
    side = roi.size * roi.step[axis]
    low = (position + 0.5 - roi.start[axis] * roi.step[axis]) / side  # 0..1 from face to face
    ends = np.full((2, len(position)), np.inf)
    if roi.start[axis] > 0:
        ends[0] = low
    if _ends_before(roi, axis):
        ends[1] = 1 - low
    return np.clip(ends.min(axis=0) / REFINEMENT_BLEND, 0, 1).astype(np.float32)


def _span(weight: np.ndarray) -> slice:
    above = np.flatnonzero(weight)
    return slice(above[0], above[-1] + 1) if len(above) else slice(0, 0)
