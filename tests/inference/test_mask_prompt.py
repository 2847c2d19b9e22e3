"""The mask prompt of the published method: the labels of the round before, in the ROI's frame."""

import numpy as np
import SimpleITK as sitk
import torch

from segment_anything.prompts import Click, Index3, Prompts
from utils.formats.case import Case
from utils.inference.baseline import TARGET_SPACING, baseline_queries, predict_rois

SHAPE = (20, 14, 66)
SPACING = (0.75, 1.5, 0.25)  # (z, y, x) in mm: steps of 2, 1 and 6 voxels, half-way between them


def resample_nearest(labels: np.ndarray, shape: Index3) -> np.ndarray:
    """Labels at TARGET_SPACING, by SimpleITK as in the original."""
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(SPACING[::-1])
    resampler = sitk.ResampleImageFilter()
    resampler.SetInterpolator(sitk.sitkNearestNeighbor)
    resampler.SetOutputSpacing([TARGET_SPACING] * 3)
    resampler.SetOutputOrigin([0.5 * (TARGET_SPACING - mm) for mm in SPACING[::-1]])
    resampler.SetSize(shape[::-1])
    return sitk.GetArrayFromImage(resampler.Execute(image))


def test_half_way_between_two_voxels_the_upper_one_gives_the_label(tiny_model, monkeypatch):
    rng = np.random.default_rng(0)
    image, labels = rng.integers(1, 256, SHAPE, np.uint8), rng.integers(0, 3, SHAPE, np.uint8)
    click = Click((9, 6, 31), True)
    case = Case("case.npz", image, SPACING, (Prompts(), Prompts(None, (click,))), 2, labels)
    given = []

    def decode(embedding, points, mask_prompt):
        given.append(mask_prompt)
        return torch.zeros_like(mask_prompt), None

    monkeypatch.setattr(tiny_model, "decode", decode)
    (query,) = baseline_queries(case, tiny_model.img_size, seed=0)
    predict_rois(tiny_model, case, [query], "fp32")
    size, stride = tiny_model.img_size, tiny_model.img_size // tiny_model.mask_size
    padded = np.pad(resample_nearest(labels, query.roi.resampled_shape), size)
    part = tuple(slice(start + size, start + 2 * size, stride) for start in query.roi.start)
    np.testing.assert_array_equal(given[0][0, 0], padded[part] == query.label)
    assert given[0].any()
