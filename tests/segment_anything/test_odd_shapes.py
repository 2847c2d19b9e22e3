"""ROIs, prompts and masks on volumes of any shape: 1 voxel thin, 2000 slices, voxels of 1 : 20."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segment_anything.adaptive import Geometry, ObjectRequest, RoiAnswer, points_in, segment_objects
from segment_anything.bounds import AdaptiveSettings, choose_bounds, roi_of
from segment_anything.prompts import Box, Click, Prompts
from segment_anything.roi import (
    Roi,
    crop_roi,
    crop_roi_averaged,
    crop_roi_nearest,
    paste_roi,
    resampled_range,
    roi_around,
)

SIZE, MASK_SIZE = 16, 8
SIDES = st.one_of(st.sampled_from([1, 2, 3, 2000]), st.integers(1, 40))
MM = st.sampled_from([0.05, 0.5, 1.0, 3.0, 10.0])
EXAMPLES = settings(max_examples=150, deadline=None, derandomize=True, database=None)


@st.composite
def volumes(draw):
    """Shape (at most 100,000 voxels) and spacing."""
    shape = draw(st.tuples(SIDES, SIDES, SIDES).filter(lambda s: np.prod(s) <= 100_000))
    return shape, draw(st.tuples(MM, MM, MM))


@st.composite
def prompted(draw):
    """A volume, and a box, clicks, or both in it."""
    shape, spacing = draw(volumes())

    def voxel():
        return tuple(draw(st.integers(0, n - 1)) for n in shape)

    box = None
    if draw(st.booleans()):
        a, b = voxel(), voxel()
        start, stop = (tuple(f(i, j) for i, j in zip(a, b, strict=True)) for f in (min, max))
        box = Box(start, tuple(i + 1 for i in stop))
    clicks = [
        Click(voxel(), draw(st.booleans())) for _ in range(draw(st.integers(int(box is None), 3)))
    ]
    return shape, spacing, Prompts(box, tuple(clicks))


@EXAMPLES
@given(volumes(), st.data())
def test_what_is_cropped_comes_back_to_where_it_was(volume, data):
    """On a grid as fine as the volume, or finer, voxel by voxel, and never beyond it."""
    shape, _ = volume
    start = tuple(data.draw(st.integers(-SIZE, n)) for n in shape)
    labels = np.random.default_rng(0).integers(0, 5, shape, np.uint8)
    roi = Roi(SIZE, start, (1.0, 1.0, 1.0), shape)
    region, part = paste_roi(crop_roi_nearest(labels, roi), roi)
    np.testing.assert_array_equal(part, labels[region])
    inside = [max(0, min(s + SIZE, n) - max(s, 0)) for s, n in zip(start, shape, strict=True)]
    assert part.size == np.prod(inside)
    same = crop_roi(labels, roi).numpy()
    np.testing.assert_array_equal(same, crop_roi_nearest(labels, roi))


@EXAMPLES
@given(prompted())
def test_a_click_lies_in_its_voxel_of_the_roi(drawn):
    shape, spacing, prompts = drawn
    settings_ = AdaptiveSettings()
    bounds = choose_bounds(prompts, None, SIZE, shape, spacing, settings_)
    if bounds is None:
        assert not any(click.is_foreground for click in prompts.clicks) and prompts.box is None
        return
    roi = roi_of(bounds, SIZE, SIZE // MASK_SIZE, shape)
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for crop in (crop_roi_averaged(image, roi), crop_roi(image, roi)):
        assert crop.shape == (SIZE,) * 3 and 0 <= crop.min() and crop.max() <= 255
    points, labels = points_in(prompts, roi)
    assert np.isfinite(points).all()
    clicks = points[np.isin(labels, (0, 1))]
    assert len(clicks) == len(prompts.clicks)  # the ROI is expanded to each of them
    for point, click in zip(clicks, prompts.clicks, strict=True):
        back = (point + roi.start + 0.5) * roi.step - 0.5
        np.testing.assert_allclose(back, click.point, atol=1e-3 * max(1, max(roi.step)))


@EXAMPLES
@given(prompted(), st.integers(0, 2**32 - 1))
def test_an_object_lies_in_its_volume_whatever_the_network_says(drawn, seed):
    shape, spacing, prompts = drawn
    rng = np.random.default_rng(seed)

    def ask(queries):
        for query in queries:
            assert query.mask.shape == (MASK_SIZE,) * 3
            logits = rng.standard_normal((MASK_SIZE,) * 3) + rng.uniform(-2, 2)
            yield RoiAnswer(logits.astype(np.float32), 0.5)

    geometry = Geometry(shape, spacing, SIZE, MASK_SIZE)
    (prediction,) = segment_objects([ObjectRequest(prompts)], ask, geometry, AdaptiveSettings())
    mask = prediction.mask
    assert mask.shape == shape and mask.dtype == bool


@EXAMPLES
@given(volumes(), st.data())
def test_the_published_roi_holds_what_it_is_centred_on(volume, data):
    shape, spacing = volume
    ranges, step = (
        [],
        tuple(1.5 / mm if n > 1 else 1.0 for mm, n in zip(spacing, shape, strict=True)),
    )
    for n, t in zip(shape, step, strict=True):
        low = data.draw(st.integers(0, n - 1))
        high = data.draw(st.integers(low + 1, min(low + 4, n)))
        ranges.append(resampled_range(low, high, t, n))
    roi = roi_around(ranges, 512, step, shape)
    for (first, last), start in zip(ranges, roi.start, strict=True):
        assert first < last
        if last - first <= 512:
            assert start <= first and last <= start + 512


@pytest.mark.parametrize("shape", [(1, 1, 1), (2000, 1, 1), (1, 40, 1), (2000, 3, 2)])
def test_everything_is_a_prompt_of_such_a_volume(shape):
    prompts = Prompts(Box((0, 0, 0), shape))
    bounds = choose_bounds(prompts, None, SIZE, shape, (20.0, 1.0, 1.0), AdaptiveSettings())
    roi = roi_of(bounds, SIZE, 2, shape)
    assert crop_roi_nearest(np.ones(shape, np.uint8), roi).any()
