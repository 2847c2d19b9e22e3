"""ROI geometry against SimpleITK and TorchIO, and against itself."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torchio

from conftest import SHAPE
from segment_anything.roi import (
    Roi,
    crop_roi,
    crop_roi_nearest,
    normalise,
    paste_roi,
    resampled_range,
    resampled_shape,
)

STEPS = (0.5, 1.5, 3.0)  # original voxels per resampled one: finer, coarser, much coarser
STARTS = [(0, 0, 0), (5, 2, 1), (-3, -9, -5), (15, 6, 4)]  # the last leave the volume


def volume(shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def resample(image: np.ndarray, step: tuple[float, ...], interpolator: int) -> np.ndarray:
    """The whole volume on the resampled grid, by SimpleITK."""
    resampler = sitk.ResampleImageFilter()
    resampler.SetInterpolator(interpolator)
    resampler.SetOutputPixelType(sitk.sitkFloat32)
    resampler.SetOutputSpacing(step[::-1])
    resampler.SetOutputOrigin([0.5 * (t - 1) for t in step[::-1]])
    resampler.SetSize(resampled_shape(image.shape, step)[::-1])
    return sitk.GetArrayFromImage(resampler.Execute(sitk.GetImageFromArray(image)))


def crop_or_pad(volume: np.ndarray, roi: Roi) -> np.ndarray:
    padded = np.pad(volume, 64)
    z, y, x = (slice(s + 64, s + 64 + roi.size) for s in roi.start)
    return padded[z, y, x]


@pytest.mark.parametrize("start", STARTS)
def test_crop_equals_resampling_the_whole_volume_with_simpleitk(start):
    image = volume()
    roi = Roi(12, start, STEPS, image.shape)
    expected = crop_or_pad(resample(image, STEPS, sitk.sitkLinear), roi)
    actual = crop_roi(image, roi)
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(actual, expected, atol=3e-5, rtol=0)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("stride", [1, 4])
def test_nearest_crop_equals_resampling_the_whole_volume_with_simpleitk(start, stride):
    labels = volume()
    roi = Roi(12, start, STEPS, labels.shape)
    expected = crop_or_pad(resample(labels, STEPS, sitk.sitkNearestNeighbor), roi)
    np.testing.assert_array_equal(
        crop_roi_nearest(labels, roi, stride), expected[::stride, ::stride, ::stride]
    )


@pytest.mark.parametrize("start", [(0, 0, 0), (2, 3, 4), (-2, -1, -3), (6, 9, 12)])
def test_paste_undoes_a_nearest_crop_inside_the_roi(start):
    labels = volume() > 127
    roi = Roi(8, start, (1.0, 1.0, 1.0), labels.shape)
    region, mask = paste_roi(crop_roi_nearest(labels, roi), roi)
    np.testing.assert_array_equal(mask, labels[region])
    z, y, x = (slice(max(s, 0), min(s + 8, n)) for s, n in zip(start, labels.shape, strict=True))
    assert region == (z, y, x)


def test_paste_equals_interpolate_of_the_whole_resampled_volume():
    image = volume()
    roi = Roi(12, (3, -2, -4), STEPS, image.shape)
    mask = np.random.default_rng(1).random((12, 12, 12)) > 0.5
    whole = np.zeros(roi.resampled_shape, np.float32)
    padded = np.pad(whole, 64)
    z, y, x = (slice(s + 64, s + 76) for s in roi.start)
    padded[z, y, x] = mask
    whole = torch.from_numpy(padded[64:-64, 64:-64, 64:-64].copy())
    expected = torch.nn.functional.interpolate(whole[None, None], size=image.shape)[0, 0] > 0
    actual = np.zeros(image.shape, bool)
    region, part = paste_roi(mask, roi)
    actual[region] = part
    np.testing.assert_array_equal(actual, expected)


def test_an_roi_beside_the_volume_is_empty_both_ways():
    roi = Roi(8, (100, 0, 0), (1.0, 1.0, 1.0), SHAPE)
    assert not crop_roi(volume(), roi).any()
    _, mask = paste_roi(np.ones((8, 8, 8), bool), roi)
    assert mask.size == 0


@pytest.mark.parametrize("step, n", [(0.4, 30), (1.0, 30), (1.7, 30), (6.0, 30), (0.3, 1)])
@pytest.mark.parametrize("start, stop", [(0, 1), (3, 9), (0, 30), (28, 30)])
def test_range_holds_the_voxels_whose_nearest_is_in_it(step, n, start, stop):
    if stop > n:
        start, stop = 0, 1
    inside = np.zeros((n, 1, 1), np.uint8)
    inside[start:stop] = 1
    resampled = resample(inside, (step, 1.0, 1.0), sitk.sitkNearestNeighbor)[:, 0, 0]
    first, last = resampled_range(start, stop, step, n)
    if resampled.any():
        np.testing.assert_array_equal(np.flatnonzero(resampled), np.arange(first, last))
    else:  # too fine a spacing for the grid: the voxel that holds the middle
        assert last == first + 1
        assert first * step <= (start + stop) / 2 <= last * step


def test_a_range_of_many_resampled_voxels_takes_no_memory():
    first, last = resampled_range(40, 61, 1.5e-10, 100)
    assert (first * 1.5e-10, last * 1.5e-10) == pytest.approx((40, 61))


def test_normalise_equals_torchio():
    image = torch.from_numpy(volume()).float()
    image[image < 60] = 0  # what CropOrPad pads with, and the air
    expected = torchio.ZNormalization(masking_method=lambda x: x > 0)(image[None])[0]
    torch.testing.assert_close(normalise(image), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_normalise_of_a_constant_is_finite(value):
    assert normalise(torch.full((4, 4, 4), value)).eq(0).all()


def test_the_last_voxels_of_the_resampled_grid_may_reach_beyond_the_volume():
    assert resampled_shape((10, 14, 3), (3.0, 7.0, 2.9)) == (4, 2, 2)
    assert resampled_shape((1, 9, 64), (1.0, 0.5, 0.75)) == (1, 18, 86)
