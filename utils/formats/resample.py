"""Whole volumes on the grid of `scipy.ndimage.zoom`: its first and last voxels are the old ones.

The published training data were made so. Inference resamples only what it looks at, on the grid of
`segment_anything.roi`.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from segment_anything.prompts import Index3


def zoomed_shape(shape: Index3, spacing: tuple[float, float, float], target: float) -> Index3:
    """Size of a (z, y, x) volume at the target spacing, all in mm; 0 where an axis vanishes."""
    d, h, w = (round(n * (s / target)) for n, s in zip(shape, spacing, strict=True))
    return d, h, w


def zoom_positions(n_in: int, n_out: int) -> np.ndarray:
    """Voxel coordinates on the old axis of the voxels of the new one."""
    return np.arange(n_out) * ((n_in - 1) / (n_out - 1) if n_out > 1 else 1.0)


def zoom_linear(image: np.ndarray, shape: Index3) -> np.ndarray:
    """Linear interpolation of a (D, H, W) image of values 0..255, rounded to uint8.

    Equal to scipy.ndimage.zoom(order=1) on uint8, but for halves that round to either side. Goes
    plane by plane: two resampled planes are all the memory it takes beside its result.
    """
    (low_z, high_z, weight_z), y, x = (
        _neighbours(zoom_positions(n, m), n) for n, m in zip(image.shape, shape, strict=True)
    )

    @lru_cache(maxsize=2)
    def plane(z: int) -> Tensor:  # transposed: gathering rows is several times faster than columns
        return _lerp_rows(_lerp_rows(torch.from_numpy(image[z]), *y).t().contiguous(), *x)

    zoomed = np.empty(shape, np.uint8)
    for target, low, high, weight in zip(zoomed, low_z, high_z, weight_z, strict=True):
        values = torch.lerp(plane(int(low)), plane(int(high)), float(weight))
        # As scipy rounds; half to even would differ.
        torch.from_numpy(target).copy_(values.add_(0.5).floor_().t())
    return zoomed


def zoom_nearest(seg: np.ndarray, shape: Index3) -> np.ndarray:
    """The (D, H, W) labels nearest to the new voxels; equal to scipy.ndimage.zoom(order=0)."""
    index = (
        np.floor(zoom_positions(n, m) + 0.5).astype(np.int64)
        for n, m in zip(seg.shape, shape, strict=True)
    )
    return seg[np.ix_(*index)]


def _neighbours(position: np.ndarray, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The voxels below and above each position on an axis of n voxels, and the latter's weights."""
    low = np.clip(np.floor(position).astype(np.int64), 0, n - 1)
    high = np.minimum(low + 1, n - 1)
    weight = (position - low).astype(np.float32)
    return torch.from_numpy(low), torch.from_numpy(high), torch.from_numpy(weight)


def _lerp_rows(plane: Tensor, low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    below, above = (plane.index_select(0, index).float() for index in (low, high))
    return torch.lerp(below, above, weight[:, None])
