"""Lines and outlines in a slice as the voxels that they cover; by OpenCV."""

import cv2
import numpy as np

from segment_anything.prompts import Drawing


def drawn_in_slice(
    points: np.ndarray, is_region: bool, is_foreground: bool, after: int = 0
) -> Drawing:
    """The voxels of a line, or of a closed outline and what is in it.

    Args:
        points: (N, 3) voxels (z, y, x), which have a coordinate in common.
        is_region: It is an outline.
        is_foreground: The object is there, or is not.
        after: Clicks of the object that were made before.
    """
    low = points.min(axis=0)
    sides = points.max(axis=0) - low + 1
    axis = int(np.flatnonzero(sides == 1)[0])
    plane = np.zeros(np.delete(sides, axis), np.uint8)
    corners = np.delete(points - low, axis, axis=1)[:, ::-1].astype(np.int32)  # (column, row)
    if is_region:
        cv2.fillPoly(plane, [corners], 1)
    else:
        cv2.polylines(plane, [corners], False, 1)
    z, y, x = low.tolist()
    inside = np.expand_dims(plane > 0, axis)
    return Drawing((z, y, x), inside, is_region, is_foreground, after)
