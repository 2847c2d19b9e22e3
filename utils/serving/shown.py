"""A volume as the browser gets it, in 8 or 16 bits a voxel."""

import math
from dataclasses import dataclass

import numpy as np

SHOWN = (0.5, 99.5)  # percentiles that are black and white at first
SAMPLED = 2_000_000  # voxels that they are taken of, about


@dataclass(frozen=True)
class Shown:
    """The volume as the browser gets it: value = stored * slope + intercept.

    Attributes:
        stored: (D, H, W) uint8 or int16.
        slope: Of the values.
        intercept: Of the values.
        levels: Values that are black and white at first.
    """

    stored: np.ndarray
    slope: float
    intercept: float
    levels: tuple[float, float]


def shown(values: np.ndarray) -> Shown:
    """A volume of any values, as they are where 16 bits hold them, else rounded to 16 bits."""
    step = max(1, round((values.size / SAMPLED) ** (1 / 3)))
    low, high = np.percentile(values[::step, ::step, ::step], SHOWN).tolist()
    levels = (low, high) if low < high else (low, low + 1)
    if values.dtype == np.uint8:
        return Shown(values.copy(), 1.0, 0.0, levels)
    least, most = float(values.min()), float(values.max())
    if not math.isfinite(most - least):
        raise ValueError(f"expected values of a range that is finite, got {least:g} to {most:g}")
    if values.dtype.kind in "iu" and -(2**15) <= least and most < 2**15:
        return Shown(values.astype("<i2"), 1.0, 0.0, levels)
    slope = (most - least) / (2**16 - 1) or 1.0
    stored = np.empty(values.shape, "<i2")
    for plane, out in zip(values, stored, strict=True):
        out[:] = np.rint((plane.astype(np.float64) - least) / slope) - 2**15
    return Shown(stored, slope, least + 2**15 * slope, levels)
