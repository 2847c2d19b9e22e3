"""The challenge's metrics: DSC, NSD at 2 mm, and their areas under the curve of clicks."""

from collections.abc import Sequence
from functools import cache

import edt
import numpy as np

NSD_TOLERANCE_MM = 2.0
NSD_MIN_DSC = 0.2  # the official evaluator reports an NSD of 0 at or below this mean DSC
AUC_ROUNDS = 5  # the click rounds; a first round with boxes is left out

MAX_OFFSETS = 1000  # beyond it a distance transform is faster than looking at each neighbour

Spacing = tuple[float, float, float]


def dsc(truth: np.ndarray, pred: np.ndarray) -> float:
    """Dice similarity coefficient in [0, 1] of two bool masks; NaN if both are empty."""
    size = int(np.count_nonzero(truth)) + int(np.count_nonzero(pred))
    return 2 * int(np.count_nonzero(truth & pred)) / size if size else float("nan")


def nsd(
    truth: np.ndarray,
    pred: np.ndarray,
    spacings: Sequence[Spacing],
    tolerance_mm: float = NSD_TOLERANCE_MM,
) -> list[float]:
    """Normalised surface distance in [0, 1] of two (D, H, W) bool masks, for each spacing.

    It is the share of both surfaces' area that lies within the tolerance of the other surface.
    Surfaces are sub-voxel, as in DeepMind's surface-distance, which the official evaluator uses:
    each corner of the voxel grid whose 2 x 2 x 2 voxels are not all alike holds a piece of
    surface, whose area depends on which of them are set and is taken from MONAI's table. MONAI's
    own NSD is the same to 1e-6, and takes 50 times as long.

    Args:
        truth: A region that holds the whole object and the whole prediction; what lies outside
            of it counts as background.
        pred: The same region.
        spacings: Voxel sizes in mm, each in the order of the axes.
        tolerance_mm: Surface that is at most so far from the other surface agrees.

    Returns:
        A value for each spacing: 0 if one of the masks is empty, NaN if both are.
    """
    neighbours = [_ball(spacing, tolerance_mm, truth.shape) for spacing in spacings]
    reach = [np.abs(ball).max(axis=0) for ball in neighbours if ball is not None]
    margin = np.max([(0, 0, 0), *reach], axis=0)
    codes = [_corner_codes(mask, margin) for mask in (truth, pred)]
    borders = [(code + np.uint8(1)) > 1 for code in codes]  # neither 0 nor 255
    corners = [np.flatnonzero(border) for border in borders]
    values = []
    for spacing, ball in zip(spacings, neighbours, strict=True):
        areas = _area_table(tuple(float(s) for s in spacing))
        total = apart = 0.0
        for i, other in ((0, 1), (1, 0)):
            if ball is None:
                far = corners[i][_is_far(borders[other], spacing, tolerance_mm)[corners[i]]]
            else:
                far = _without_neighbour(corners[i], borders[other], ball)
            total += float(areas[codes[i].reshape(-1)[corners[i]]].sum())
            apart += float(areas[codes[i].reshape(-1)[far]].sum())
        values.append(1 - apart / total if total else float("nan"))
    return values


def _ball(spacing: Spacing, radius: float, shape: tuple[int, ...]) -> np.ndarray | None:
    """(N, 3) offsets in voxels within a radius in mm, nearest first; None if they are many."""
    reach = [min(int(radius / s) + 1, n + 1) for s, n in zip(spacing, shape, strict=True)]
    if np.prod([2 * r + 1 for r in reach]) > 4 * MAX_OFFSETS:
        return None
    offsets = np.stack(np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij"), axis=-1)
    distance = np.sqrt(((offsets * spacing) ** 2).sum(axis=-1))  # as SciPy rounds it
    is_near = distance <= radius
    offsets = offsets[is_near][np.argsort(distance[is_near], kind="stable")]
    return offsets if len(offsets) <= MAX_OFFSETS else None


def _corner_codes(mask: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """Which of the 8 voxels round each corner are set, a bit each, for MONAI's table.

    (D, H, W) -> (D + 1 + 2 margin, ...) uint8, 0 in the margin.
    """
    voxels = np.pad(mask.view(np.uint8), [(m + 1, m + 1) for m in margin])
    codes = voxels[:, :, :-1] << 1
    codes |= voxels[:, :, 1:]
    codes = (codes[:, :-1] << 2) | codes[:, 1:]
    return (codes[:-1] << 4) | codes[1:]


@cache
def _area_table(spacing: Spacing) -> np.ndarray:
    """(256,) float64 area in mm^2 of the surface in a corner, by its code."""
    # MONAI takes 4 s to import, which whoever needs no NSD is spared.
    from monai.metrics.utils import create_table_neighbour_code_to_surface_area

    return create_table_neighbour_code_to_surface_area(spacing)[0].double().numpy()


def _without_neighbour(corners: np.ndarray, border: np.ndarray, ball: np.ndarray) -> np.ndarray:
    """The corners (flat indices) that have no voxel of a border at any of the offsets."""
    steps = ball @ np.array(border.strides)
    border = border.reshape(-1)
    for step in steps:
        corners = corners[~border[corners + step]]
        if len(corners) == 0:
            break
    return corners


def _is_far(border: np.ndarray, spacing: Spacing, radius: float) -> np.ndarray:
    """(N,) bool, flat: which voxels are farther than a radius in mm from a border.

    A distance that rounding puts above the radius, by 1e-6 of its square, is not farther.
    """
    if not border.any():
        return np.ones(border.size, bool)
    outside = (~border).view(np.uint8)
    distance = edt.edtsq(outside, anisotropy=[float(s) for s in spacing], parallel=1)
    return distance.reshape(-1) > radius**2 * (1 + 1e-6)


def auc(curve: np.ndarray) -> float:
    """Trapezoid area under the last AUC_ROUNDS values, a round apart: at most AUC_ROUNDS - 1."""
    return float(np.trapezoid(curve[-AUC_ROUNDS:]))
