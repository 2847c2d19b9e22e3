"""The cube that the network sees: from the original grid into it and back, and normalised.

No volume is ever resampled beyond the ROI.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segment_anything.prompts import Index3

CHUNK_VOXELS = 2**21  # voxels of an image that are held as floats at a time
MAX_AVERAGED = 3  # samples along an axis of a ROI voxel; more cost more than they add


@dataclass(frozen=True)
class Roi:
    """A cube of voxels on a grid resampled from the original one; all in (z, y, x).

    Voxel i of an axis of the resampled grid lies at (i + 0.5) * step - 0.5 in voxels of the
    original axis: the outer edges agree (as in torchio.Resample until version 0.20). A position
    outside the original volume holds 0. Axes may have different steps.

    Attributes:
        size: Voxels along each side of the cube.
        start: First voxel of the cube on the resampled grid; may lie outside of it.
        step: Original voxels per resampled voxel.
        shape: (D, H, W) of the original volume.
    """

    size: int
    start: Index3
    step: tuple[float, float, float]
    shape: Index3

    @property
    def resampled_shape(self) -> Index3:
        return resampled_shape(self.shape, self.step)

    def coarse(self, stride: int) -> "Roi":
        """The same cube in voxels `stride` times as wide; they divide size and start."""
        z, y, x = (first // stride for first in self.start)
        tz, ty, tx = (stride * step for step in self.step)
        return Roi(self.size // stride, (z, y, x), (tz, ty, tx), self.shape)

    def positions(self, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """Original coordinates of the cube's voxels along an axis, and which are in the volume."""
        n, step = self.shape[axis], self.step[axis]
        index = np.arange(self.size) + self.start[axis]
        position = (index + 0.5) * step - 0.5
        inside = (0 <= index) & (index < self.resampled_shape[axis])
        return position, inside & (-0.5 <= position) & (position < n - 0.5)


def resampled_shape(shape: Index3, step: tuple[float, float, float]) -> Index3:
    """Size of the resampled grid; its last voxels may reach beyond the volume."""
    d, h, w = (int(np.ceil(n / t)) for n, t in zip(shape, step, strict=True))
    return d, h, w


def roi_around(
    ranges: Sequence[tuple[int, int]], size: int, step: tuple[float, float, float], shape: Index3
) -> Roi:
    """The ROI in whose middle lie the half-open ranges of the resampled grid.

    Centred as torchio.CropOrPad(mask_name=...) does it.
    """
    z, y, x = ((first + last - size) // 2 for first, last in ranges)
    return Roi(size, (z, y, x), step, shape)


def resampled_range(start: int, stop: int, step: float, n: int) -> tuple[int, int]:
    """Half-open [start, stop) on an original axis of n voxels -> on the resampled one.

    These are the voxels whose nearest original voxel lies in the range, or, if a fine spacing
    leaves none, the one voxel that holds the middle of the range.
    """
    size = resampled_shape((n, n, n), (step, step, step))[0]
    # Nearest means position + 0.5 rounded down: start <= (i + 0.5) * step < stop.
    first, last = _first_from(start, step), min(_first_from(min(stop, n), step), size)
    if first < last:
        return first, last
    middle = min(int((start + stop) / 2 / step), size - 1)
    return middle, middle + 1


def _first_from(edge: int, step: float) -> int:
    """The lowest i >= 0 with (i + 0.5) * step >= edge, whichever way edge / step is rounded."""
    guess = max(math.ceil(edge / step - 0.5), 0)
    return next((i for i in (guess - 1, guess) if i >= 0 and (i + 0.5) * step >= edge), guess + 1)


def crop_roi(image: np.ndarray, roi: Roi) -> Tensor:
    """Linear interpolation of a (D, H, W) image on the ROI -> (S, S, S) float32.

    Equal to SimpleITK's linear resampler to the last float32 bits.
    """
    positions, insides = zip(*(roi.positions(axis) for axis in range(3)), strict=True)
    z, y, x = (torch.from_numpy(inside) for inside in insides)
    is_inside = z[:, None, None] & y[:, None] & x
    return torch.where(is_inside, sample_linear(image, positions), 0.0)


def crop_roi_averaged(image: np.ndarray | Tensor, roi: Roi) -> Tensor:
    """As `crop_roi`, but wide voxels of the ROI are means over their width.

    An axis on which they are twice or three times as wide as the original ones is sampled as often
    within each; single samples of a fine, noisy image would be noise. Each axis is a product with
    a matrix; positions beyond the image take the value at its border, voxels outside are 0. A
    tensor is cropped on its device.
    """
    axes = [_averaging_matrix(roi, axis) for axis in range(3)]
    device = image.device if isinstance(image, Tensor) else torch.device("cpu")
    to_z, to_y, to_x = (weights.to(device, non_blocking=True) for _, weights in axes)
    rows_z, rows_y, rows_x = (rows for rows, _ in axes)
    slices = torch.empty(len(rows_z), roi.size, roi.size, device=device)
    at_once = max(1, CHUNK_VOXELS // (len(rows_y) * len(rows_x)))
    with torch.autocast(device.type, enabled=False):  # which would round the products
        for first in range(0, len(rows_z), at_once):
            part = image[_selection(rows_z[first : first + at_once])]
            part = part[:, _selection(rows_y)][:, :, _selection(rows_x)]
            slab = torch.as_tensor(part).float()
            slices[first : first + at_once] = to_y @ (slab @ to_x.T)
        return (to_z @ slices.flatten(1)).view(roi.size, roi.size, roi.size)


def _selection(rows: np.ndarray) -> slice | np.ndarray:
    """Ascending indices, as a slice where there is no gap: then nothing is copied."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


def _averaging_matrix(roi: Roi, axis: int) -> tuple[np.ndarray, Tensor]:
    """The voxels of an original axis that a ROI's are means of: (n,) indices, (S, n) weights."""
    times = int(np.clip(round(roi.step[axis]), 1, MAX_AVERAGED))
    index = np.arange(roi.size * times) + roi.start[axis] * times
    position = (index + 0.5) * (roi.step[axis] / times) - 0.5
    low = np.floor(position).astype(np.int64)
    ends = np.clip([low, low + 1], 0, roi.shape[axis] - 1)  # the voxels below and above
    rows = np.unique(ends)
    if 2 * len(rows) > rows[-1] - rows[0]:  # gaps are not worth the copy
        rows = np.arange(rows[0], rows[-1] + 1)
    weights = np.zeros((roi.size, len(rows)))
    voxel, fraction = np.arange(roi.size).repeat(times), position - low
    for end, weight in zip(ends, (1 - fraction, fraction), strict=True):
        np.add.at(weights, (voxel, np.searchsorted(rows, end)), weight / times)
    weights[~roi.positions(axis)[1]] = 0
    return rows, torch.from_numpy(weights.astype(np.float32))


def sample_linear(image: np.ndarray, positions: Sequence[np.ndarray]) -> Tensor:
    """Linear interpolation of a (D, H, W) image where three ascending rows of coordinates cross.

    Of the image only the slices between the ends are read. Coordinates beyond the image take the
    value at its border.
    """
    region, weights = [], []
    for position, n in zip(positions, image.shape, strict=True):
        low = np.floor(position).astype(np.int64)
        pair = np.clip([low, low + 1], 0, n - 1)
        region.append(slice(pair[0, 0], pair[1, -1] + 1))
        weights.append((pair - pair[0, 0], (position - low).astype(np.float32)))
    x = torch.from_numpy(image[tuple(region)])
    for axis, (pair, _) in enumerate(weights):
        rows, pair[:] = np.unique(pair, return_inverse=True)  # read each slice once
        x = x.index_select(axis, torch.from_numpy(rows))
    # Axes that grow come after the others, the first axis last: then whole slices are copied.
    for axis in sorted(range(3), key=lambda i: (len(positions[i]) > x.shape[i], -i)):
        (low, high), fraction = weights[axis]
        below = x.index_select(axis, torch.from_numpy(low)).float()
        if fraction.any():
            above = x.index_select(axis, torch.from_numpy(high)).float()
            along = [-1 if i == axis else 1 for i in range(3)]
            below = torch.lerp(below, above, torch.from_numpy(fraction).view(along))
        x = below
    return x


def crop_roi_nearest(
    labels: np.ndarray, roi: Roi, stride: int = 1, origin: Index3 = (0, 0, 0)
) -> np.ndarray:
    """The labels nearest to each `stride`-th voxel of the ROI, (S / stride, ...), 0 outside.

    `labels` is the volume, or a part of it that begins at the voxel `origin`.
    """
    indices, (z, y, x) = _nearest_voxels(labels.shape, roi, stride, origin)
    is_inside = z[:, None, None] & y[:, None] & x
    return np.where(is_inside, labels[np.ix_(*indices)], 0)


def crop_tensor_nearest(labels: Tensor, roi: Roi) -> Tensor:
    """As `crop_roi_nearest`, on the device of a (D, H, W) volume."""
    indices, insides = _nearest_voxels(labels.shape, roi, 1, (0, 0, 0))
    for axis, (index, inside) in enumerate(zip(indices, insides, strict=True)):
        rows, kept = (torch.from_numpy(a).to(labels.device) for a in (index, inside))
        along = [-1 if i == axis else 1 for i in range(3)]
        labels = labels.index_select(axis, rows) * kept.view(along)
    return labels


def _nearest_voxels(
    shape: Sequence[int], roi: Roi, stride: int, origin: Index3
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each axis, the voxel nearest to each of the ROI's, and whether it is one."""
    indices, insides = [], []
    for axis, (first, n) in enumerate(zip(origin, shape, strict=True)):
        position, inside = roi.positions(axis)
        nearest = np.floor(position + 0.5).astype(np.int64) - first
        indices.append(np.clip(nearest, 0, n - 1)[::stride])
        insides.append((inside & (0 <= nearest) & (nearest < n))[::stride])
    return indices, insides


def paste_roi(mask_roi: np.ndarray, roi: Roi) -> tuple[tuple[slice, slice, slice], np.ndarray]:
    """Nearest resampling of an (S, S, S) mask back to the original grid.

    Returns:
        The region of the original volume that the ROI covers, and the mask there; outside of the
        region it is empty.
    """
    region, indices = [], []
    for n, size, start in zip(roi.shape, roi.resampled_shape, roi.start, strict=True):
        # As F.interpolate(mode="nearest") does it, in float32 like it.
        index = np.floor(np.arange(n, dtype=np.float32) * np.float32(size / n)).astype(np.int64)
        index = np.minimum(index, size - 1) - start
        covered = np.flatnonzero((0 <= index) & (index < roi.size))
        first, last = (covered[0], covered[-1] + 1) if len(covered) else (0, 0)
        region.append(slice(int(first), int(last)))
        indices.append(index[first:last])
    return (region[0], region[1], region[2]), mask_roi[np.ix_(*indices)]


def normalise(image_roi: Tensor) -> Tensor:
    """Z-normalise by the voxels above 0 (unbiased standard deviation), padding included.

    Where these voxels are none, or all equal, the scale is left as it is.
    """
    if image_roi.device.type != "cpu":
        return _normalise_there(image_roi)
    voxels = image_roi.numpy().ravel()
    values = np.compress(voxels > 0, voxels)  # several times as fast as torch's image[image > 0]
    mean = float(values.mean(dtype=np.float64)) if len(values) else 0.0
    std = float(values.std(dtype=np.float64, ddof=1)) if len(values) > 1 else 0.0
    return (image_roi - mean) / (std if std > 0 else 1.0)


def _normalise_there(image_roi: Tensor) -> Tensor:
    """`normalise` without waiting for what is counted."""
    image = image_roi.double()
    is_counted = image > 0
    count = is_counted.sum()
    mean = (image * is_counted).sum() / count.clamp(min=1)
    variance = ((image - mean).square() * is_counted).sum() / (count - 1).clamp(min=1)
    std = variance.sqrt()
    return ((image - mean) / torch.where(std > 0, std, 1.0)).float()
