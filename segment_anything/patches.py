"""What the network's answers about an object amount to: its logits on the original grid."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from segment_anything.bounds import bounds_of, union
from segment_anything.modeling.sam3D import MASK_THRESHOLD
from segment_anything.prompts import Click, Index3, Region
from segment_anything.roi import Roi, crop_roi_nearest, sample_linear

REFINEMENT_BLEND = 0.25  # share of a refinement crop's side over which it fades in from a face
PROBABLY_WRONG = 0.6  # what is below it, of estimates of the IoU; a Dice of 0.75
KEPT_LOGIT = 1.0  # for a mask that is kept since there is nothing to ask


@dataclass(frozen=True)
class Mask:
    """A (D, H, W) bool part of a volume, which is False elsewhere."""

    region: Region
    inside: np.ndarray

    @property
    def bounds(self) -> np.ndarray | None:
        """Bounds of the True voxels in the volume, None if there are none."""
        bounds = bounds_of(self.inside)
        return None if bounds is None else bounds + [part.start for part in self.region]

    def crop(self, roi: Roi) -> np.ndarray:
        """(S, S, S) bool, nearest to the voxels of a ROI."""
        z, y, x = (part.start for part in self.region)
        return crop_roi_nearest(self.inside, roi, origin=(z, y, x)).astype(bool)


@dataclass(frozen=True)
class Prediction:
    """An object on the original grid.

    Attributes:
        shape: (D, H, W) of the volume.
        region: The part of the volume that holds the whole object.
        region_logits: Its logits, float16; the object is where they are above MASK_THRESHOLD.
        iou: As the network estimates it.
    """

    shape: Index3
    region: Region
    region_logits: np.ndarray
    iou: float

    @property
    def kept(self) -> Mask:
        # NumPy is slow with float16.
        return Mask(self.region, (torch.from_numpy(self.region_logits) > MASK_THRESHOLD).numpy())

    @property
    def is_doubtful(self) -> bool:
        """True if there is an object that the network itself takes for wrong."""
        return self.iou < PROBABLY_WRONG and self.region_logits.size > 0

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
    """(M, M, M) logits of the network; `roi` is what it saw, in voxels of the logits."""

    roi: Roi
    logits: np.ndarray


def touched(patch: Patch) -> np.ndarray:
    """(2, 3) bool: the faces of its ROI at which a mask lies, and beyond which the volume goes on.

    The first row holds the lower faces along (z, y, x), the second the upper ones.
    """
    faces = np.zeros((2, 3), bool)
    mask = (patch.logits > MASK_THRESHOLD) & is_inside(patch.roi)
    for axis in range(3):
        goes_on = patch.roi.start[axis] > 0, _ends_before(patch.roi, axis)
        for side, at in enumerate((0, -1)):
            faces[side, axis] = goes_on[side] and np.take(mask, at, axis=axis).any()
    return faces


def is_inside(roi: Roi) -> np.ndarray:
    """(S, S, S) bool: the voxels of a ROI that lie in the volume."""
    z, y, x = (roi.positions(axis)[1] for axis in range(3))
    return z[:, None, None] & y[:, None] & x


def _ends_before(roi: Roi, axis: int) -> bool:
    """True if the volume goes on beyond the upper face of a ROI."""
    return (roi.start[axis] + roi.size) * roi.step[axis] < roi.shape[axis]


def nothing(shape: Index3, iou: float = 0.0) -> Prediction:
    """An object without a voxel."""
    return Prediction(shape, (slice(0, 0),) * 3, np.zeros((0, 0, 0), np.float16), iou)


def unchanged(previous: Mask | None, shape: Index3, logit: float) -> Prediction:
    """The mask so far as a prediction: `logit` inside, the opposite outside."""
    if previous is None:
        return nothing(shape)
    logits = np.where(previous.inside, logit, -logit).astype(np.float16)
    return Prediction(shape, previous.region, logits, 1.0)


def assemble(patches: Sequence[Patch], shape: Index3, iou: float) -> Prediction:
    """The patches on the original grid, on the smallest region of it that holds the object."""
    found = [bounds for patch in patches if (bounds := found_bounds(patch, 1)) is not None]
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


def found_bounds(patch: Patch, margin: float = 0.0) -> np.ndarray | None:
    """Bounds of a patch's mask in voxels of the volume, None if it is empty.

    Args:
        patch: What it has beyond the volume is not in its mask.
        margin: In voxels of the patch; with 1, interpolation makes none beyond them foreground.
    """
    positive = bounds_of((patch.logits > MASK_THRESHOLD) & is_inside(patch.roi))
    if positive is None:
        return None
    grown = positive + [[-margin], [margin]]
    return (np.clip(grown, 0, patch.roi.size) + patch.roi.start) * patch.roi.step


def render(patches: Sequence[Patch], positions: Sequence[np.ndarray]) -> np.ndarray:
    """Logits of an object where rows of original voxel coordinates cross -> float32.

    The first patch holds on its ROI, with background beyond; each further one counts fully in its
    middle, and fades towards its borders.
    """
    first, *refinements = patches
    logits = _interpolate(first, positions)
    for axis, position in enumerate(positions):
        edge = (position + 0.5) / first.roi.step[axis] - first.roi.start[axis]
        beyond = (edge < 0) | (edge > first.roi.size)
        if beyond.any():
            logits[(slice(None),) * axis + (beyond,)] = -KEPT_LOGIT
    for patch in refinements:
        weights = [_fade(patch.roi, axis, position) for axis, position in enumerate(positions)]
        part = tuple(_span(weight) for weight in weights)
        inside = [position[p] for position, p in zip(positions, part, strict=True)]
        if not all(len(position) for position in inside):
            continue
        z, y, x = (weight[p] for weight, p in zip(weights, part, strict=True))
        weight = z[:, None, None] * y[:, None] * x
        logits[part] += weight * (_interpolate(patch, inside) - logits[part])
    return logits


def is_obeyed(click: Click, patches: Sequence[Patch]) -> bool:
    """True if the clicked voxel is what the click says."""
    logit = render(patches, [np.array([float(p)]) for p in click.point]).item()
    return (logit > MASK_THRESHOLD) == click.is_foreground


def _interpolate(patch: Patch, positions: Sequence[np.ndarray]) -> np.ndarray:
    """Linear interpolation of a patch, without its voxels beyond the volume: nothing is there."""
    roi, rows = patch.roi, []
    for axis, position in enumerate(positions):
        row = (position + 0.5) / roi.step[axis] - 0.5 - roi.start[axis]
        inside = np.flatnonzero(roi.positions(axis)[1])
        rows.append(row.clip(inside[0], inside[-1]) if len(inside) else row)
    return sample_linear(patch.logits, rows).numpy()


def _fade(roi: Roi, axis: int, position: np.ndarray) -> np.ndarray:
    """The weight of a refinement crop along an axis: 0 at its border and beyond, 1 in its middle.

    It does not fade where its border is that of the volume, or beyond.
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
    """From the first to the last weight above 0."""
    above = np.flatnonzero(weight)
    return slice(above[0], above[-1] + 1) if len(above) else slice(0, 0)
