"""Three slices through an object, small enough to keep: image, truth, prediction and prompts."""

from dataclasses import dataclass

import numpy as np

from utils.evaluation.simulated_prompts import bounding_box
from utils.formats.case import LabelledCase

MARGIN = 0.25  # of the object's extent, shown round it
MIN_MARGIN = 6  # voxels


@dataclass(frozen=True)
class ObjectSlices:
    """Slices along z, y and x through one object, cropped to it; all in (z, y, x).

    Attributes:
        centre: The voxel where the slices meet.
        start: First voxel of the crop.
        spacing: In mm.
        box: Half-open (2, 3) start and stop, as it was given; empty if there was none.
        across_z: (3, y, x) uint8: image, truth and prediction in the slice across z.
        across_y: (3, z, x).
        across_x: (3, z, y).
    """

    centre: np.ndarray
    start: np.ndarray
    spacing: np.ndarray
    box: np.ndarray
    across_z: np.ndarray
    across_y: np.ndarray
    across_x: np.ndarray


def cut_slices(labelled: LabelledCase, seg: np.ndarray, label: int) -> ObjectSlices:
    """Cut the slices in which the object is largest.

    Args:
        labelled: The case and its truth.
        seg: (D, H, W) uint8, as the truth.
        label: The object, which is not empty in the truth.
    """
    case, truth = labelled.case, labelled.truth == label
    held = bounding_box(truth | (seg == label))
    centre, crop = [], []
    for axis, n in enumerate(case.shape):
        others = tuple(i for i in range(3) if i != axis)
        centre.append(int(truth[held].sum(axis=others).argmax()) + held[axis].start)
        margin = max(MIN_MARGIN, int(MARGIN * (held[axis].stop - held[axis].start)))
        crop.append(slice(max(held[axis].start - margin, 0), min(held[axis].stop + margin, n)))
    slices = []
    for axis in range(3):
        at = tuple(centre[i] if i == axis else crop[i] for i in range(3))
        slices.append(np.stack([case.image[at].astype(np.uint8), truth[at], seg[at] == label]))
    box = case.objects[label - 1].box
    return ObjectSlices(
        np.array(centre),
        np.array([part.start for part in crop]),
        np.array(case.spacing),
        np.array([box.start, box.stop] if box else np.zeros((0, 3))),
        *slices,
    )
