"""The click that the challenge's evaluator makes on a prediction, voxel for voxel."""

import numpy as np

from segment_anything.prompts import Click, Region

# The official evaluator's own constants (CVPR25_iter_eval.py, 2025-06-03).
CLICK_SEED = 42  # of the choice among the voxels farthest inside
MARGIN = 0.25  # of the component's size, added on each side before distances are measured
MAX_VOXELS = 60_000_000  # a larger component is halved along each axis first


def largest_error_click(truth: np.ndarray, pred: np.ndarray, threads: int = 1) -> Click | None:
    """A click in the middle of the largest error, or None where there is no error.

    Errors are the 26-connected components of the voxels where the masks differ. The click is a
    voxel of the largest one that is farthest from its border in voxels, chosen at random among
    equals with a fixed seed.

    Args:
        truth: (D, H, W) bool, a region that holds the whole object and the whole prediction.
        pred: (D, H, W) bool, the same region.
        threads: Of the distance transform.

    Returns:
        The click in voxels of the region: foreground where the truth is, else background.
    """
    from scipy import ndimage

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
    """The smallest region that holds a (D, H, W) bool mask, which is not empty."""
    yx = np.logical_or.reduce(mask, axis=0)
    along = (mask.reshape(len(mask), -1).any(axis=1), yx.any(axis=1), yx.any(axis=0))
    z, y, x = (slice(int(w[0]), int(w[-1]) + 1) for w in map(np.flatnonzero, along))
    return z, y, x


def _squared_depth(component: np.ndarray, threads: int) -> np.ndarray:
    """Squared distance in voxels of each voxel of a component to the nearest one outside of it."""
    import edt

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
